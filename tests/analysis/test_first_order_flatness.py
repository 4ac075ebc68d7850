import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.first_order_flatness import (
    first_order_flatness,
    hessian_trace,
    interpolation_trace,
)
from tests.weights import Weights

FLATNESS = pytest.mark.paper(
    "Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization"
)
TRACE = pytest.mark.paper(
    "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better "
    "Generalization"
)


def weights(*start):
    model = Weights(start)
    model.build(None)
    return model


def half_quadratic(hessian):
    return lambda _, w: 0.5 * tf.reduce_sum(w * tf.linalg.matvec(hessian, w), axis=-1)


DATA = np.zeros([4, 1]), np.zeros([4, 1])


@FLATNESS
def test_at_the_minimum_of_a_quadratic_it_is_the_largest_eigenvalue(float64, rng):
    a = rng.normal(size=(4, 4))
    hessian = a @ a.T
    flatness = first_order_flatness(weights(0, 0, 0, 0), DATA, 0.3, half_quadratic(hessian))
    np.testing.assert_allclose(flatness / 0.3**2, np.linalg.eigvalsh(hessian)[-1], rtol=1e-4)


@FLATNESS
def test_away_from_the_minimum_of_a_bowl(float64):
    # The gradient 2 (w + e) is longest straight away from the minimum: 2 (5 + rho).
    bowl = half_quadratic(2 * np.eye(2))
    flatness = first_order_flatness(weights(3, 4), DATA, 0.5, bowl)
    np.testing.assert_allclose(flatness, 0.5 * 2 * 5.5, rtol=1e-9)


@FLATNESS
def test_finds_the_maximum_of_a_curved_loss(float64):
    # sum w^4 / 4 has the gradient w^3, longest within the ball towards the larger weight.
    def quartic(_, w):
        return tf.reduce_sum(w**4, axis=-1) / 4

    flatness = first_order_flatness(weights(1.0, 0.2), DATA, 0.1, quartic)
    angles = np.linspace(0, 2 * np.pi, 20001)
    moved = np.array([1.0, 0.2])[:, None] + 0.1 * np.stack([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(flatness, 0.1 * np.linalg.norm(moved**3, axis=0).max(), rtol=1e-6)


def network(outputs=2):
    return keras.Sequential(
        [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(outputs)]
    )


def dense_hessian(model, x, y):
    """d x d, from the Jacobian of the gradient."""
    values = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradients = inner.gradient(loss, values)
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    rows = outer.jacobian(flat, values, unconnected_gradients="zero")
    return np.concatenate([np.reshape(r, [len(flat), -1]) for r in rows], axis=1)


@FLATNESS
def test_batches_do_not_matter(float64, rng):
    model, x, y = network(), rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    whole, parts = (
        first_order_flatness(model, (x, y), 0.2, keras.losses.mean_squared_error, 3, 0, size)
        for size in (7, 3)
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-10)


@TRACE
def test_traces_against_the_whole_hessian(float64, rng):
    model, x = network(), rng.normal(size=(9, 3))
    y = model(x).numpy()  # interpolation
    trace = np.trace(dense_hessian(model, x, y))
    np.testing.assert_allclose(interpolation_trace(model, x, batch_size=4), trace, rtol=1e-9)
    model.compile(loss="mse")
    estimate, error = hessian_trace(model, (x, y), probes=100, batch_size=4)
    assert abs(estimate - trace) < 4 * error
    assert error < 0.1 * trace


@TRACE
def test_away_from_interpolation_the_trace_is_another(float64, rng):
    model, x = network(), rng.normal(size=(9, 3))
    y = model(x).numpy() + 1.0
    trace = np.trace(dense_hessian(model, x, y))
    estimate, error = hessian_trace(model, (x, y), loss=keras.losses.mean_squared_error, probes=100)
    assert abs(estimate - trace) < 4 * error
    assert abs(interpolation_trace(model, x) - trace) > 1e-3


@TRACE
def test_one_probe_is_exact_for_a_diagonal_hessian(float64):
    diagonal = half_quadratic(np.diag([1.0, 2.0, 5.0]))
    estimate, error = hessian_trace(weights(1, 1, 1), DATA, diagonal, probes=2)
    np.testing.assert_allclose([estimate, error], [8.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: first_order_flatness(m, DATA, rho=0), "`rho` must be a number above 0"),
        (lambda m: first_order_flatness(m, DATA, steps=0), "`steps` must be a positive integer"),
        (lambda m: first_order_flatness(m, DATA), "`model` must be compiled with a loss"),
        (lambda m: hessian_trace(m, DATA, probes=1), "`probes` must be an integer of at least 2"),
        (lambda m: hessian_trace(m, DATA[0], "mse"), r"`data` must be \(x, y\)"),
        (lambda m: hessian_trace(m, (DATA[0], DATA[1][:2]), "mse"), "one length of at least 1"),
    ],
)
@FLATNESS
def test_refuses_what_is_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(weights(0.0))
