import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.scaled_residual import ScaledResidual

pytestmark = pytest.mark.paper(
    "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"
)


def test_adds_a_fraction_of_the_residual():
    x, residual = tf.constant([[1.0, -2.0]]), tf.constant([[10.0, 5.0]])
    np.testing.assert_allclose(ScaledResidual(0.2)(x, residual), [[3.0, -1.0]], rtol=1e-6)


def test_scale_0_is_the_identity_and_1_is_an_addition(float64, rng):
    x, residual = (tf.constant(each) for each in rng.normal(size=(2, 3, 4, 4, 2)))
    np.testing.assert_array_equal(ScaledResidual(0)(x, residual), x)
    np.testing.assert_array_equal(ScaledResidual(1)(x, residual), keras.layers.Add()([x, residual]))


def test_gradients_are_1_and_the_scale(float64, rng):
    x, residual = (tf.constant(each) for each in rng.normal(size=(2, 2, 3)))
    layer = ScaledResidual(0.17)
    theory, numeric = tf.test.compute_gradient(lambda *pair: layer(*pair), [x, residual])
    for gradient, expected in zip(theory, (1.0, 0.17), strict=True):
        np.testing.assert_allclose(gradient, expected * np.eye(6), atol=1e-12)
    np.testing.assert_allclose(theory[1], numeric[1], atol=1e-6)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), None])
def test_refuses_other_scales(scale):
    with pytest.raises(ValueError, match="`scale` must be a number of at least 0. Received"):
        ScaledResidual(scale)


def test_refuses_shapes_that_would_broadcast():
    message = r"must have one shape. Received: \(2, 4, 4, 3\) and \(2, 4, 4, 1\)"
    with pytest.raises(ValueError, match=message):
        ScaledResidual(0.1)(tf.ones((2, 4, 4, 3)), tf.ones((2, 4, 4, 1)))
