"""Training methods over optimizers over wrappers: each does its part, in the documented order."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers import AdEMAMix, Grams, LearningRateMultipliers
from kzoo.training import GAM, SAM, AcceleratedGAM, GradientRegularization

CURVATURE = np.array([1.0, 4.0, 9.0])
START = np.array([1.0, -0.5, 0.3])


class Quadratic(keras.Model):
    """Two weights, `body` [2] and `head` [1], and their concatenation as every row's output."""

    def __init__(self):
        super().__init__()
        self.body = self.add_weight(shape=[2], name="body")
        self.head = self.add_weight(shape=[1], name="head")
        self.body.assign(START[:2])
        self.head.assign(START[2:])

    def build(self, input_shape):
        self.built = True

    def call(self, x):
        return tf.zeros_like(x[:, :1]) + tf.concat([self.body, self.head], 0)


def loss(target, w):
    """w' C w / 2, times the label: batches of other labels have other gradients."""
    return target[:, 0] * tf.reduce_sum(CURVATURE * w**2, axis=-1) / 2


def trained(method, optimizer, labels, **options):
    """The weights after one step on each label."""
    model = Quadratic()
    trainer = method(model, **options)
    trainer.compile(optimizer, loss)
    weights = []
    for label in labels:
        trainer.train_on_batch(np.zeros([2, 1]), np.full([2, 1], label))
        weights.append(np.concatenate([model.body.numpy(), model.head.numpy()]))
    return np.stack(weights)


def gradient(w, label=1.0):
    return label * CURVATURE * w


def sam_gradient(w, rho=0.1):
    g = gradient(w)
    return gradient(w + rho * g / np.linalg.norm(g))


def gam_gradient(w, label, rho=0.2):
    """g + rho H(w_adv) g_adv / |g_adv|, alpha = 1."""
    curvature = label * CURVATURE
    g = curvature * w
    f = curvature * g / np.linalg.norm(g)
    g_adv = curvature * (w + rho * f / np.linalg.norm(f))
    return g + rho * curvature * g_adv / np.linalg.norm(g_adv)


def test_sam_over_grams_with_clipping(float64):
    # Grams' first step is the sign of the gradient times the learning rate, whatever was clipped.
    grams = Grams(0.01, global_clipnorm=1e-3, epsilon=0.0, weight_decay=0.5)
    (w,) = trained(SAM, grams, [1.0], rho=0.1)
    expected = START * (1 - 0.01 * 0.5) - 0.01 * np.sign(sam_gradient(START))
    np.testing.assert_allclose(w, expected, rtol=1e-9)


def test_clipping_comes_after_the_method(float64):
    (w,) = trained(SAM, keras.optimizers.SGD(1.0, global_clipnorm=0.1), [1.0], rho=0.1)
    g = sam_gradient(START)
    np.testing.assert_allclose(w, START - 0.1 * g / np.linalg.norm(g), rtol=1e-9)


def test_gam_with_accumulation(float64):
    sgd = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    first, second = trained(GAM, sgd, [1.0, 2.0], rho=0.2)
    np.testing.assert_array_equal(first, START)
    mean = (gam_gradient(START, 1.0) + gam_gradient(START, 2.0)) / 2
    np.testing.assert_allclose(second, START - 0.01 * mean, rtol=1e-9)


@pytest.mark.parametrize("method", [SAM, GAM, AcceleratedGAM, GradientRegularization])
def test_groups_of_variables_under_every_method(float64, method):
    groups = LearningRateMultipliers(AdEMAMix(0.1), {"head": 0.0})
    weights = trained(method, groups, [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(weights[:, 2], START[2])
    assert (weights[-1, :2] != START[:2]).all()


@pytest.mark.parametrize("method", [SAM, GAM, AcceleratedGAM, GradientRegularization])
def test_a_batch_without_finite_gradients_is_left_out(float64, method):
    optimizer = Grams(0.1, skip_nonfinite=True)
    weights = trained(method, optimizer, [1.0, np.nan, 1.0])
    np.testing.assert_array_equal(weights[1], weights[0])
    assert np.isfinite(weights).all()
    assert (weights[2] != weights[1]).all()
    assert optimizer.skipped_steps.numpy() == 1
