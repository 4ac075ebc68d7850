import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers.diff_grad import DiffGrad
from tests.optimizers.reference import trajectory

pytestmark = pytest.mark.paper("diffGrad: An Optimization Method for Convolutional Neural Networks")


# Numbers that Keras takes through float32 unharmed; it adds epsilon elsewhere.
EXACT = {"learning_rate": 1 / 8, "beta_1": 7 / 8, "beta_2": 63 / 64, "epsilon": 0.0}


def by_the_formula(start, gradients, lr, b1, b2, eps, decay):
    """The paper's update, line by line."""
    w, m, v, before, weights = start.copy(), 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        xi = 1 / (1 + np.exp(-np.abs(before - g)))
        u = xi * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - lr * (u + decay * w)
        before = g
        weights.append(w)
    return np.stack(weights)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_equals_the_formula_over_200_steps(float64, rng, jit_compile):
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(200, 3, 4))
    optimizer = DiffGrad(
        0.02, beta_1=0.8, beta_2=0.95, epsilon=1e-6, weight_decay=0.1, jit_compile=jit_compile
    )
    expected = by_the_formula(start, gradients, 0.02, 0.8, 0.95, 1e-6, 0.1)
    np.testing.assert_allclose(trajectory(optimizer, start, gradients), expected, rtol=1e-11)


def test_five_steps_computed_by_hand(float64):
    # Gradients are multiples of a = ln 3, and beta_2 = eps = 0: the root is |g|, Adam's step with
    # beta_1 = 0 is sign(g). The differences a, 0, a, 2a, 0 have xi = 3/4, 1/2, 3/4, 9/10, 1/2.
    gradients = np.log(3) * np.array([1.0, 1.0, 2.0, 4.0, 4.0])[:, None]
    optimizer = DiffGrad(1.0, beta_1=0.0, beta_2=0.0, epsilon=0.0)
    weights = trajectory(optimizer, np.zeros(1), gradients)[:, 0]
    np.testing.assert_allclose(
        weights, -np.cumsum([3 / 4, 1 / 2, 3 / 4, 9 / 10, 1 / 2]), rtol=1e-12
    )


def test_a_constant_gradient_halves_adams_step(float64):
    gradients = np.tile([[0.3, -2.0]], (20, 1))
    ours, adam = (
        np.diff(trajectory(make(**EXACT), np.zeros(2), gradients), axis=0)
        for make in (DiffGrad, keras.optimizers.Adam)
    )
    np.testing.assert_allclose(ours, adam / 2, rtol=1e-6)


def test_a_gradient_that_changes_much_makes_adams_step(float64, rng):
    gradients = rng.uniform(100.0, 200.0, size=(20, 3)) * (-1.0) ** np.arange(20)[:, None]
    ours, adam = (
        trajectory(make(**EXACT), np.zeros(3), gradients)
        for make in (DiffGrad, keras.optimizers.Adam)
    )
    np.testing.assert_allclose(ours, adam, rtol=1e-9)


def test_the_friction_is_not_part_of_the_averages(float64):
    variable = keras.Variable([0.0])
    optimizer = DiffGrad(0.1, beta_1=0.5, beta_2=0.5)
    for gradient in (1.0, 1.0, 3.0):
        optimizer.apply([tf.constant([gradient], tf.float64)], [variable])
    assert float(optimizer._momentums[0][0]) == pytest.approx(1 / 8 + 1 / 4 + 3 / 2)
    assert float(optimizer._previous_gradients[0][0]) == 3.0


def test_steps_in_bfloat16():
    variable = keras.Variable(np.ones(3), dtype="bfloat16")
    DiffGrad(0.5).apply([tf.constant([100.0, -100.0, 0.0], "bfloat16")], [variable])
    np.testing.assert_allclose(variable.numpy().astype("float32"), [0.5, 1.5, 1.0], atol=0.01)


def test_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="`beta_1` must be in .* Received: 1.0"):
        DiffGrad(beta_1=1.0)
