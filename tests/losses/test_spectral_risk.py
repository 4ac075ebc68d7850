import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import LinearConstraint, minimize
from scipy.special import xlogy

from kzoo.losses.spectral_risk import (
    SpectralRisk,
    risk_spectrum,
    spectral_risk_value,
    spectral_weights,
)

pytestmark = pytest.mark.paper(
    "Distributionally Robust Optimization with Bias and Variance Reduction"
)

SPECTRA = [("cvar", 0.5), ("cvar", 0.37), ("extremile", 2.5), ("esrm", 3.0)]


def test_spectra_by_hand():
    cases = {
        ("cvar", 0.5): [0, 0, 0.5, 0.5],
        ("cvar", 0.4): [0, 0.1 / 0.6, 0.25 / 0.6, 0.25 / 0.6],
        ("cvar", 0.0): [0.25] * 4,
        ("extremile", 2.0): [1 / 16, 3 / 16, 5 / 16, 7 / 16],
        ("extremile", 1.0): [0.25] * 4,
    }
    for (name, parameter), expected in cases.items():
        np.testing.assert_allclose(risk_spectrum(name, parameter, 4), expected, atol=1e-15)
    growing = risk_spectrum("esrm", 2.0, 4).numpy()
    np.testing.assert_allclose(growing[1:] / growing[:-1], np.exp(0.5), rtol=1e-12)
    assert growing.sum() == pytest.approx(1.0, abs=1e-15)


def divergence_of(q, kind):
    n = len(q)
    return n * np.sum((q - 1 / n) ** 2) if kind == "chi2" else np.sum(xlogy(q, n * q))


def independent_weights(losses, spectrum, shift_cost, kind):
    """The maximum over the permutahedron by SLSQP: every sum of k weights <= that of k largest."""
    n = len(losses)
    order = np.argsort(losses)
    # The largest weights go to the largest losses, so that sums from the top suffice.
    sums = np.zeros((n - 1, n))
    for k in range(1, n):
        sums[k - 1, order[-k:]] = 1
    limits = np.cumsum(spectrum[::-1])[:-1]
    rising = np.zeros((n - 1, n))
    for k in range(n - 1):
        rising[k, order[k + 1]], rising[k, order[k]] = 1, -1
    found = minimize(
        lambda q: shift_cost * divergence_of(np.maximum(q, 1e-300), kind) - q @ losses,
        np.full(n, 1 / n),
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints=[
            LinearConstraint(np.ones(n), 1, 1),
            LinearConstraint(sums, -np.inf, limits),
            LinearConstraint(rising, 0, np.inf),
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("kind", ["chi2", "kl"])
@pytest.mark.parametrize(("name", "parameter"), SPECTRA)
@pytest.mark.parametrize("shift_cost", [0.02, 0.3])
def test_weights_solve_the_quadratic_program(kind, name, parameter, shift_cost, rng):
    losses = rng.gamma(2.0, size=12)
    spectrum = risk_spectrum(name, parameter, 12).numpy()
    weights = spectral_weights(losses, spectrum, shift_cost, kind).numpy()
    expected = independent_weights(losses, spectrum, shift_cost, kind)
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    value = expected @ losses - shift_cost * divergence_of(expected, kind)
    assert spectral_risk_value(losses, spectrum, shift_cost, kind) >= value - 1e-9


@pytest.mark.parametrize("kind", ["chi2", "kl"])
@pytest.mark.parametrize(("name", "parameter"), SPECTRA)
def test_limits_of_the_shift_cost(kind, name, parameter, rng):
    losses = rng.gamma(2.0, size=50)
    spectrum = risk_spectrum(name, parameter, 50).numpy()
    ranked = spectrum[np.argsort(np.argsort(losses))]
    for shift_cost in (0.0, 1e-9):
        weights = spectral_weights(losses, spectrum, shift_cost, kind)
        np.testing.assert_allclose(weights, ranked, atol=1e-12)
    np.testing.assert_allclose(spectral_weights(losses, spectrum, 1e9, kind), 1 / 50, atol=1e-8)


@pytest.mark.parametrize("kind", ["chi2", "kl"])
def test_gradient_is_that_of_finite_differences(kind, rng):
    losses = rng.gamma(2.0, size=20)
    spectrum = risk_spectrum("cvar", 0.5, 20)
    point = tf.constant(losses)
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = spectral_risk_value(point, spectrum, 0.1, kind)
    gradient = tape.gradient(value, point)
    np.testing.assert_allclose(gradient, spectral_weights(losses, spectrum, 0.1, kind))
    steps = 1e-5 * np.eye(20)
    ahead, back = (
        np.array([spectral_risk_value(losses + sign * s, spectrum, 0.1, kind) for s in steps])
        for sign in (1, -1)
    )
    numeric = (ahead - back) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


@pytest.mark.parametrize("kind", ["chi2", "kl"])
def test_pooling_equals_a_slow_reference(kind, rng):
    losses = np.sort(rng.gamma(2.0, size=200))
    spectrum = risk_spectrum("extremile", 3.0, 200).numpy()
    cost = 0.05

    def level(a, b):
        if kind == "chi2":
            return np.mean(losses[a:b] - 2 * cost * 200 * spectrum[a:b])
        return np.log(np.exp(losses[a:b] / cost).sum() / spectrum[a:b].sum())

    pools = []
    for i in range(200):
        pools.append((i, i + 1))
        while len(pools) > 1 and level(*pools[-2]) >= level(*pools[-1]):
            (start, _), (_, end) = pools[-2], pools[-1]
            pools[-2:] = [(start, end)]
    expected = np.empty(200)
    for a, b in pools:
        if kind == "chi2":
            expected[a:b] = (losses[a:b] - level(a, b)) / (2 * cost * 200)
        else:
            expected[a:b] = np.exp(losses[a:b] / cost - level(a, b))
    assert 1 < len(pools) < 200
    np.testing.assert_allclose(
        spectral_weights(losses, spectrum, cost, kind), expected, rtol=1e-9, atol=1e-13
    )


def test_extreme_losses_give_finite_weights():
    losses = np.array([0.0, 1e4, -1e4, 1e4, 3.0], "float32")
    for kind in ("chi2", "kl"):
        weights = spectral_weights(losses, risk_spectrum("cvar", 0.5, 5), 1e-3, kind).numpy()
        np.testing.assert_allclose(weights, [0.0, 0.4, 0.0, 0.4, 0.2], atol=1e-6)


def test_loss_by_hand():
    # Losses 0, 1, 4, 9 with the weights sigma = 0, 0, 1/2, 1/2, nu = 1: l - 2 nu n sigma is
    # 0, 1, 0, 5, so that the pools are {0}, {1, 4}, {9}.
    q = np.array([0.0, 1 / 4 - 1.5 / 8, 1 / 4 + 1.5 / 8, 1 / 2])
    expected = q @ [0.0, 1.0, 4.0, 9.0] - 4 * np.sum((q - 1 / 4) ** 2)
    loss = SpectralRisk("mean_squared_error", parameter=0.5, shift_cost=1.0)
    targets, outputs = np.zeros((4, 1)), np.array([[1.0], [0.0], [2.0], [3.0]])
    assert float(loss(targets, outputs)) == pytest.approx(expected, rel=1e-6)
    worst = SpectralRisk("mean_squared_error", parameter=0.5, shift_cost=0.0)
    assert float(worst(targets, outputs)) == 6.5


def test_loss_takes_keras_losses_and_trains_the_worst(rng):
    x = rng.normal(size=(64, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    y[:4] = 1 - y[:4]
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", SpectralRisk(base, "extremile", 2.0, 0.1, "kl"))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model.loss))
    assert float(again(y, model(x))) == float(model.loss(y, model(x)))
    before = model.evaluate(x, y, batch_size=64, verbose=0)
    model.fit(x, y, batch_size=64, epochs=20, verbose=0)
    assert model.evaluate(x, y, batch_size=64, verbose=0) < before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spectrum": "max"}, "spectrum must be one of"),
        ({"parameter": 1.0}, r"`parameter` of 'cvar' must be in \[0, 1\)"),
        ({"spectrum": "extremile", "parameter": 0.5}, "must be at least 1"),
        ({"spectrum": "esrm", "parameter": 0.0}, "must be in"),
        ({"shift_cost": -1.0}, "`shift_cost` must be at least 0"),
        ({"divergence": "tv"}, "`divergence` must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectralRisk("mean_squared_error", **arguments)


def test_loss_of_several_values_for_an_example_is_refused():
    with pytest.raises(ValueError, match="`loss` must give one value for each example"):
        SpectralRisk("mean_squared_error")(np.zeros((4, 2, 3)), np.ones((4, 2, 3)))


@pytest.mark.parametrize("kind", ["chi2", "kl"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_of_many_draws_are_within_the_polytope(kind, dtype, rng):
    rounding = 1e-5 if dtype == "float32" else 1e-13
    graph = tf.function(spectral_weights)
    for name, parameter in SPECTRA:
        spectrum = risk_spectrum(name, parameter, 60, dtype)
        for cost in (1e-4, 1e-2, 1.0):
            for losses in (rng.gamma(1.0, size=60), np.exp(5 * rng.normal(size=60)), np.ones(60)):
                losses = losses.astype(dtype)
                tolerance = rounding * max(1.0, float(losses.max()) / (2 * cost * 60))
                weights = graph(losses, spectrum, cost, kind).numpy()
                assert weights.sum() == pytest.approx(1.0, abs=tolerance)
                smallest = np.cumsum(np.sort(weights)) - np.cumsum(spectrum)
                assert smallest.min() > -tolerance
                assert (np.diff(weights[np.argsort(losses)]) > -tolerance).all()
                # The best point of the polytope: no other has a larger value along the gradient.
                scaled = np.maximum(60 * weights.astype("float64"), 1e-300)
                slope = 2 * (scaled - 1) if kind == "chi2" else np.log(scaled) + 1
                gain = losses - cost * slope
                best = np.sort(gain) @ spectrum.numpy()
                assert best - gain @ weights < 10 * tolerance * max(1.0, losses.max())
