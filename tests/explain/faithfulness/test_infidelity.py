import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import InputXGradient, Saliency
from kzoo.explain.explainer import Explainer
from kzoo.explain.faithfulness.infidelity import (
    gaussian_noise,
    infidelity,
    max_sensitivity,
    noisy_baseline,
    square_removal,
    subset_removal,
)

pytestmark = pytest.mark.paper("On the (In)fidelity and Sensitivity of Explanations")


@pytest.fixture
def linear(rng):
    flat = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input([4, 5, 2]), *flat])
    model.set_weights([rng.normal(size=(40, 3)), rng.normal(size=3)])
    return model


@pytest.fixture
def x(rng):
    return rng.uniform(0.5, 1.5, size=(6, 4, 5, 2)).astype("float32")


@pytest.mark.parametrize("perturbation", ["subset", "square", "noisy_baseline", "gaussian"])
def test_a_linear_model_is_predicted_without_error(linear, x, perturbation):
    gradient = Saliency(linear, absolute=False)(x)["attributions"]
    product = InputXGradient(linear)(x)["attributions"]
    settings = {"perturbation": perturbation, "samples": 20}
    # And any other attribution is not right.
    twice, maps = np.concatenate([x, x]), np.concatenate([product, 2 * product])
    error = infidelity(linear, twice, maps, **settings)
    np.testing.assert_allclose(error[:6], 0, atol=1e-7)
    assert (error[6:] > 1e-4).all()
    maps = np.concatenate([gradient, -gradient])
    error = infidelity(linear, twice, maps, multiplied=False, **settings)
    np.testing.assert_allclose(error[:6], 0, atol=1e-7)
    assert (error[6:] > 1e-4).all()


def test_by_hand():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0], [3.0]])])

    def first(difference, seed):  # I = (x_0, 0): the score falls by 2 x_0
        return difference * [[1.0, 0.0]]

    x, phi = np.array([[1.0, 1.0], [2.0, 5.0]], "float32"), np.array([[5.0, 9.0], [1.0, 9.0]])
    actual = infidelity(model, x, phi, perturbation=first, samples=3)
    np.testing.assert_allclose(actual, [(5 - 2) ** 2, (1 - 4) ** 2], rtol=1e-6)
    actual = infidelity(model, x, phi, perturbation=first, samples=3, multiplied=False)
    np.testing.assert_allclose(actual, [(5 - 2) ** 2, (2 * 1 - 4) ** 2], rtol=1e-6)
    # With x' = (0.5, 0), I = (x_0 - 0.5, 0) is the whole way of the first feature.
    actual = infidelity(model, x, phi, perturbation=first, samples=3, baseline=[0.5, 0.0])
    np.testing.assert_allclose(actual, [(5 - 1) ** 2, (1 - 3) ** 2], rtol=1e-6)
    scaled = infidelity(model, x, phi, perturbation=first, samples=3, optimal_scaling=True)
    np.testing.assert_allclose(scaled, 0, atol=1e-10)


def test_the_expectation_of_gaussian_noise(rng):
    # For f = w.x and I ~ N(0, s^2): E[(I.(phi - w))^2] = s^2 |phi - w|^2.
    model = keras.Sequential([keras.Input([5]), keras.layers.Dense(1, use_bias=False)])
    w, phi = rng.normal(size=(5, 1)), rng.normal(size=(2, 5))
    model.set_weights([w])
    actual = infidelity(
        model,
        np.zeros([2, 5], "float32"),
        phi,
        perturbation=gaussian_noise(0.3),
        samples=20000,
        multiplied=False,
        rows=5000,
    )
    expected = 0.09 * np.sum((phi - w[:, 0]) ** 2, axis=1)
    np.testing.assert_allclose(actual, expected, rtol=0.05)


def test_optimal_scaling_is_the_least_of_all_scales(linear, x, rng):
    phi = rng.normal(size=x.shape)
    best = infidelity(linear, x, phi, samples=20, optimal_scaling=True)
    scales = np.linspace(-3, 3, 13)[:, None, None, None, None]
    many, maps = (np.concatenate(list(each)) for each in (x + 0 * scales, scales * phi))
    others = infidelity(linear, many.astype("float32"), maps, samples=20).reshape(13, 6)
    assert (best <= np.min(others, axis=0) * (1 + 1e-6)).all()
    again = infidelity(linear, x, -7 * phi, samples=20, optimal_scaling=True)
    np.testing.assert_allclose(again, best, rtol=1e-5)
    # A map of zeros predicts nothing: E[(f(x) - f(x - I))^2].
    nothing = infidelity(linear, x, 0 * phi, samples=20, optimal_scaling=True)
    np.testing.assert_allclose(nothing, infidelity(linear, x, 0 * phi, samples=20))


def test_a_map_without_channels_is_shared_out(linear, x, rng):
    total = rng.normal(size=x.shape[:-1])
    shared = np.repeat(total[..., None] / 2, 2, axis=-1)
    np.testing.assert_allclose(
        infidelity(linear, x, total, samples=10),
        infidelity(linear, x, shared, samples=10),
        rtol=1e-4,
    )


def test_the_same_whatever_the_chunk_and_the_batch(linear, x, rng):
    phi = rng.normal(size=x.shape)
    whole = infidelity(linear, x, phi, samples=11, rows=1000)
    np.testing.assert_allclose(infidelity(linear, x, phi, samples=11, rows=4), whole, rtol=1e-5)
    alone = infidelity(linear, x[2:3], phi[2:3], samples=11)
    np.testing.assert_allclose(alone, whole[2:3], rtol=1e-5)
    assert not np.allclose(infidelity(linear, x, phi, samples=11, seed=1), whole, rtol=1e-2)


def test_what_is_taken_away():
    difference = tf.reshape(tf.range(1.0, 2 * 6 * 8 * 3 + 1), [2, 6, 8, 3])
    sides = set()
    for number in range(40):
        removed = square_removal()(difference, [0, number]).numpy()
        gone = removed != 0
        np.testing.assert_array_equal(removed[gone], difference.numpy()[gone])
        assert (gone == gone[:1, ..., :1]).all()
        rows, columns = gone[0, ..., 0].any(1).sum(), gone[0, ..., 0].any(0).sum()
        assert rows == columns
        assert gone[0, ..., 0].sum() == rows * columns
        sides.add(int(rows))
    assert sides == {1, 2, 3}
    assert (square_removal(4)(difference, [0, 0]).numpy()[0, ..., 0] != 0).sum() == 16

    shares = [np.mean(subset_removal(0.3)(difference, [0, n]) != 0) for n in range(50)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    rest = difference - noisy_baseline(0.5)(difference, [0, 0])
    assert np.std(rest) == pytest.approx(0.5, abs=0.1)


class _FirstFeature(Explainer):
    """Phi(x) = (3 x_0, 0)."""

    def attribute(self, values, target, inputs):
        scored = self.scores(values, target, inputs)
        return {"attributions": 3 * values * tf.constant([1.0, 0.0]), **scored}


def test_max_sensitivity_of_a_linear_attribution():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    x = np.array([[1.0, 2.0], [0.0, 1.0]], "float32")
    # Phi = (3 x_0, 0): at most 3 r, and close to it for many samples.
    actual = max_sensitivity(_FirstFeature(model), x, radius=0.1, samples=60)
    assert (actual <= 0.3 + 1e-6).all()
    assert (actual > 0.27).all()
    relative = max_sensitivity(_FirstFeature(model), x, radius=0.1, samples=60, relative=True)
    np.testing.assert_allclose(relative[0], actual[0] / 3, rtol=1e-5)
    assert np.isnan(relative[1])


def test_a_linear_model_has_gradients_that_do_not_change(linear, x):
    assert max_sensitivity(Saliency(linear), x, samples=3).max() == 0


def test_double_precision(float64, rng):
    model = keras.Sequential([keras.Input([7]), keras.layers.Dense(2)])
    x = rng.uniform(0.5, 1, size=(3, 7))
    product = InputXGradient(model)(x)["attributions"]
    assert infidelity(model, x, product, samples=10).max() < 1e-28


def test_errors(linear, x):
    with pytest.raises(ValueError, match="`perturbation` must be .*'circle'"):
        infidelity(linear, x, x, perturbation="circle")
    with pytest.raises(ValueError, match="`samples` must be a positive integer"):
        infidelity(linear, x, x, samples=0)
    with pytest.raises(ValueError, match="`x` must be of real numbers"):
        infidelity(linear, x.astype("int32"), x)
    table = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="Squares are removed from images"):
        infidelity(table, np.ones([1, 2], "float32"), np.ones([1, 2]), perturbation="square")
    with pytest.raises(ValueError, match="`radius` must be positive"):
        max_sensitivity(Saliency(linear), x, radius=0)
