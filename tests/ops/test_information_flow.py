"""Information flow against sums by hand, and what its estimate does with samples."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kzoo.ops.information_flow import (
    class_log_probabilities,
    information_flow,
    sample_interventions,
)

pytestmark = pytest.mark.paper("Generative causal explanations of black-box classifiers")


def enumerated(p):
    """I(alpha; Y) in nats by the definition, one value after the other; p is [alpha, beta, y]."""
    alphas, betas, classes = p.shape
    total = 0.0
    for i, y in itertools.product(range(alphas), range(classes)):
        conditional = sum(p[i, j, y] for j in range(betas)) / betas
        marginal = sum(p[k, j, y] for k in range(alphas) for j in range(betas)) / alphas / betas
        total += conditional * np.log(conditional / marginal) / alphas
    return total


def test_a_number_by_hand():
    """p(1 | do(alpha)) is 1/4 and 3/4, p(1) is 1/2: ln 2 less the entropy of (1/4, 3/4)."""
    p = np.array([[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]])
    with np.errstate(divide="ignore"):
        flow = information_flow(np.log(p))
    expected = np.log(2) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75)
    np.testing.assert_allclose(expected, 0.130812, atol=1e-6)
    np.testing.assert_allclose(flow, expected, rtol=1e-12)


def test_a_grid_is_enumerated_exactly(rng):
    p = rng.dirichlet(np.ones(3), size=(4, 5))
    np.testing.assert_allclose(information_flow(np.log(p)), enumerated(p), rtol=1e-10)


def test_samples_come_near_the_exact_value(rng):
    """Two binary factors with p(1) = sigmoid(2 a + b - 1.5), sampled, within 2 %."""

    def p_of(a, b):
        p = 1 / (1 + np.exp(1.5 - 2 * a - b))
        return np.stack([1 - p, p], -1)

    exact = enumerated(p_of(*np.meshgrid([0, 1], [0, 1], indexing="ij")))
    a, b = rng.integers(0, 2, [2000, 1]), rng.integers(0, 2, [2000, 400])
    np.testing.assert_allclose(information_flow(np.log(p_of(a, b))), exact, rtol=0.02)


def test_an_ignored_factor_has_none_and_a_deciding_one_all(rng):
    ignored = np.broadcast_to(rng.dirichlet(np.ones(3), size=(1, 6)), [5, 6, 3])
    np.testing.assert_allclose(information_flow(np.log(ignored)), 0, atol=1e-12)
    deciding = tf.broadcast_to(tf.eye(3)[:, tf.newaxis] * 1000.0, [3, 4, 3])
    flow = information_flow(class_log_probabilities(deciding, from_logits=True))
    np.testing.assert_allclose(flow, np.log(3), rtol=1e-6)


def test_it_is_between_zero_and_the_logarithm_of_the_classes(rng):
    for scale in (0.1, 1.0, 10.0, 1e4):
        logits = rng.normal(size=(7, 3, 4)) * scale
        flow = float(information_flow(class_log_probabilities(logits, from_logits=True)))
        assert -1e-12 < flow < np.log(4) + 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_gradient_is_that_of_the_formula(rng, scale):
    logits = tf.constant(rng.normal(size=(3, 2, 3)) * scale)

    @tf.function(jit_compile=True)
    def flow(logits):
        return information_flow(class_log_probabilities(logits, from_logits=True))

    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = flow(logits)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(gradient).all()
    direction = rng.normal(size=logits.shape)
    slope = (flow(logits + 1e-5 * direction) - flow(logits - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def test_probabilities_of_zero_have_finite_gradients():
    p = tf.constant([[[1.0, 0.0]], [[0.0, 1.0]]])
    with tf.GradientTape() as tape:
        tape.watch(p)
        flow = information_flow(class_log_probabilities(p))
    np.testing.assert_allclose(flow, np.log(2), rtol=1e-6)
    assert np.isfinite(tape.gradient(flow, p)).all()


def test_one_output_stands_for_two_classes(float64):
    logits = np.array([[-2.0], [0.5]])
    p = 1 / (1 + np.exp(-logits))
    expected = np.log(np.concatenate([1 - p, p], 1))
    np.testing.assert_allclose(class_log_probabilities(p), expected, rtol=1e-10)
    np.testing.assert_allclose(class_log_probabilities(logits, True), expected, rtol=1e-10)


def test_interventions_hold_their_factors_alone():
    z = sample_interventions([True, False, True], 500, 40, [3, 4]).numpy()
    assert z.shape == (500, 40, 3)
    held = z[..., [0, 2]]
    np.testing.assert_array_equal(held, np.broadcast_to(held[:, :1], held.shape))
    assert len(np.unique(z[..., 1])) > 0.99 * 500 * 40
    np.testing.assert_allclose(np.cov(z[:, 0].T), np.eye(3), atol=0.15)
    assert abs(z[..., 1].mean()) < 0.03
    assert abs(z[..., 1].std() - 1) < 0.03
    np.testing.assert_array_equal(z, sample_interventions([True, False, True], 500, 40, [3, 4]))
    assert np.all(z != sample_interventions([True, False, True], 500, 40, [3, 5]))


def test_another_rank_is_refused():
    with pytest.raises(ValueError, match="`log_probabilities` must have the shape"):
        information_flow(np.zeros([3, 2]))
