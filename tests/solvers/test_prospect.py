import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import isotonic_regression, minimize

from kzoo.losses.spectral_risk import risk_spectrum
from kzoo.solvers.prospect import Prospect

pytestmark = pytest.mark.paper(
    "Distributionally Robust Optimization with Bias and Variance Reduction"
)


def linear_model(units=1, features=3):
    return keras.Sequential([keras.Input([features]), keras.layers.Dense(units, use_bias=False)])


@pytest.fixture
def ridge(float64, rng):
    x = rng.normal(size=(30, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.5 * rng.standard_t(3, size=30)
    return x, y[:, None]


def weights_of(losses, spectrum, cost):
    """The chi-square weights by SciPy: the projection of l / (2 nu n) on the permutahedron."""
    n = len(losses)
    order = np.argsort(losses, kind="stable")
    scaled = losses[order] / (2 * cost * n)
    q = np.empty(n)
    q[order] = scaled - isotonic_regression(scaled - spectrum).x
    return q


def objective_of(w, x, y, spectrum, cost, mu):
    losses = (x @ w - y[:, 0]) ** 2
    q = weights_of(losses, spectrum, cost)
    gradient = x.T @ (2 * q * (x @ w - y[:, 0])) + mu * w
    n = len(losses)
    value = q @ losses - cost * n * np.sum((q - 1 / n) ** 2) + mu / 2 * w @ w
    return value, gradient


def steps_of(w, x, y, spectrum, cost, mu, rate, first, second):
    """Algorithm 1 with mean squared errors, in NumPy."""
    n = len(x)
    losses = (x @ w - y[:, 0]) ** 2
    table = 2 * (x @ w - y[:, 0])[:, None] * x + mu * w
    q = weights_of(losses, spectrum, cost)
    rho = q.copy()
    for i, j in zip(first, second, strict=True):
        gradient = 2 * (x[i] @ w - y[i, 0]) * x[i] + mu * w
        v = n * q[i] * gradient - n * rho[i] * table[i] + rho @ table
        losses[j] = (x[j] @ w - y[j, 0]) ** 2
        w = w - rate * v
        q = weights_of(losses, spectrum, cost)
        table[i], rho[i] = gradient, q[i]
    return w


@pytest.mark.parametrize("independent", [False, True])
def test_two_epochs_equal_the_algorithm_in_numpy(ridge, independent):
    x, y = ridge
    model = linear_model()
    start = model.get_weights()[0][:, 0]
    solver = Prospect(
        model, "mean_squared_error", shift_cost=0.2, learning_rate=0.01, l2=0.1,
        independent=independent, seed=5, jit_compile=False,
    )  # fmt: skip
    history = solver.fit(x, y, epochs=2)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(30, size=30, dtype="int32") for _ in range(4 if independent else 2)]
    first = np.concatenate(drawn[::2] if independent else drawn)
    second = np.concatenate(drawn[1::2]) if independent else first
    spectrum = risk_spectrum("cvar", 0.5, 30).numpy()
    expected = steps_of(start, x, y, spectrum, 0.2, 0.1, 0.01, first, second)
    actual = model.get_weights()[0][:, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-10)
    assert history[0] == pytest.approx(objective_of(start, x, y, spectrum, 0.2, 0.1)[0])
    assert history[-1] == pytest.approx(objective_of(actual, x, y, spectrum, 0.2, 0.1)[0])
    assert solver.objective(x, y) == pytest.approx(history[-1])


def test_with_uniform_weights_it_is_saga(ridge):
    x, y = ridge
    model = linear_model()
    w = model.get_weights()[0][:, 0]
    solver = Prospect(
        model, "mean_squared_error", parameter=0.0, learning_rate=0.02, jit_compile=False, seed=1
    )
    solver.fit(x, y, epochs=1)
    table = 2 * (x @ w - y[:, 0])[:, None] * x
    for i in np.random.default_rng(1).integers(30, size=30, dtype="int32"):
        gradient = 2 * (x[i] @ w - y[i, 0]) * x[i]
        w = w - 0.02 * (gradient - table[i] + table.mean(0))
        table[i] = gradient
    np.testing.assert_allclose(model.get_weights()[0][:, 0], w, rtol=1e-10)


def test_converges_linearly_to_the_minimum_of_scipy(ridge):
    x, y = ridge
    model = linear_model()
    history = Prospect(model, "mean_squared_error", learning_rate=0.02, l2=1.0).fit(x, y, 150)
    spectrum = risk_spectrum("cvar", 0.5, 30).numpy()
    best = minimize(
        objective_of, np.zeros(3), (x, y, spectrum, 1.0, 1.0), jac=True, options={"gtol": 1e-12}
    )
    np.testing.assert_allclose(model.get_weights()[0][:, 0], best.x, atol=1e-7)
    gaps = (history - best.fun) / (history[0] - best.fun)
    assert gaps[-1] < 1e-12
    # A straight line in the logarithm, down to rounding.
    epochs = np.flatnonzero(gaps > 1e-11)
    assert len(epochs) > 20
    assert np.corrcoef(epochs, np.log(gaps[epochs]))[0, 1] ** 2 > 0.9


def test_classification_by_a_small_network(rng):
    x = rng.normal(size=(40, 3)).astype("float32")
    y = (x.sum(1) > 0).astype("int32")
    model = keras.Sequential(
        [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    solver = Prospect(model, loss, "extremile", 2.0, 0.1, "kl", learning_rate=0.05, seed=0)
    history = solver.fit(x, y, epochs=15)
    assert history[-1] < 0.5 * history[0]
    assert solver.objective(x, y) == pytest.approx(history[-1], rel=1e-5)
    outputs = tf.argmax(model(x), axis=-1)
    assert np.mean(outputs == y) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"l2": -1.0}, "`l2` must be at least 0"),
        ({"shift_cost": -1.0}, "`shift_cost` must be at least 0"),
        ({"spectrum": "worst"}, "spectrum must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Prospect(linear_model(), "mean_squared_error", **arguments)


def test_bad_models_and_data():
    with pytest.raises(ValueError, match="`model` must be built"):
        Prospect(keras.Sequential([keras.layers.Dense(1)]), "mean_squared_error")
    with pytest.raises(ValueError, match="`x` and `y` must have the same length"):
        Prospect(linear_model(), "mean_squared_error").fit(np.ones((3, 3)), np.ones((2, 1)), 1)
