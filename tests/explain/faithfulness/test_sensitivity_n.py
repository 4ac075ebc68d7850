import keras
import numpy as np
import pytest
from scipy.stats import pearsonr

from kzoo.explain import InputXGradient, IntegratedGradients
from kzoo.explain.faithfulness.sensitivity_n import correlation, random_subsets, sensitivity_n

pytestmark = pytest.mark.paper(
    "Towards better understanding of gradient-based attribution methods for Deep Neural Networks"
)


@pytest.fixture
def x(rng):
    return rng.uniform(0.5, 1.5, size=(5, 12)).astype("float32")


def network(rng, hidden=None):
    layers = [keras.layers.Dense(hidden, "relu")] if hidden else []
    model = keras.Sequential([keras.Input([12]), *layers, keras.layers.Dense(3)])
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


def test_a_linear_model_has_a_correlation_of_one(rng, x):
    model = network(rng)
    contributions = InputXGradient(model)(x)["attributions"].numpy()
    perfect = sensitivity_n(model, x, contributions, samples=20)
    assert perfect.shape == (5, 4)
    np.testing.assert_allclose(perfect, 1, atol=1e-5)
    inverted = sensitivity_n(model, x, 1 - 2 * contributions, samples=20)
    np.testing.assert_allclose(inverted, -1, atol=1e-5)


def test_equals_a_loop(rng, x):
    model, attributions = network(rng, 8), rng.normal(size=x.shape)
    baseline = rng.normal(size=12).astype("float32")
    actual = sensitivity_n(
        model, x, attributions, 1, fractions=[0.25, 0.5], samples=15, baseline=baseline, rows=4
    )
    for column, count in enumerate((3, 6)):
        step = np.arange(15) + 15 * column
        subsets = random_subsets([12], np.full(15, count), 0, step).numpy()
        assert (subsets.sum(1) == count).all()
        for row in range(5):
            sums = [attributions[row, s].sum() for s in subsets]
            scores = [model(np.where(s, baseline, x[row])[None]).numpy()[0, 1] for s in subsets]
            changes = model(x[row : row + 1]).numpy()[0, 1] - np.array(scores)
            expected = pearsonr(sums, changes).statistic
            assert actual[row, column] == pytest.approx(expected, rel=1e-3)


def test_integrated_gradients_beat_random_on_a_network_of_relus(rng, x):
    model = network(rng, 8)
    maps = IntegratedGradients(model)(x)["attributions"]
    ours = np.nanmean(sensitivity_n(model, x, maps))
    assert ours > 0.6
    assert abs(np.nanmean(sensitivity_n(model, x, rng.normal(size=x.shape)))) < 0.4


def test_pixels_go_in_all_channels(rng):
    model = keras.Sequential(
        [keras.Input([3, 4, 2]), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    x = rng.normal(size=(3, 3, 4, 2)).astype("float32")
    contributions = InputXGradient(model)(x)["attributions"].numpy().sum(-1)
    np.testing.assert_allclose(sensitivity_n(model, x, contributions, samples=9), 1, atol=1e-4)


def test_subsets_differ_and_reach_every_place():
    subsets = random_subsets([2, 3], np.full(200, 2), 3, np.arange(200)).numpy()
    assert subsets.shape == (200, 2, 3)
    np.testing.assert_allclose(subsets.mean(axis=0), 1 / 3, atol=0.12)
    again = random_subsets([2, 3], np.full(4, 2), 3, np.array([7, 8, 9, 199])).numpy()
    np.testing.assert_array_equal(again, subsets[[7, 8, 9, 199]])


def test_what_does_not_vary_has_no_correlation(rng, x):
    model = network(rng)
    assert np.isnan(sensitivity_n(model, x, np.full(x.shape, 0.1), samples=5)).all()
    assert np.isnan(sensitivity_n(model, x, x, fractions=[1.0], samples=5)).all()
    np.testing.assert_allclose(correlation([[1, 2, 4]], [[2, 4, 8]]), [1])


def test_errors(rng, x):
    with pytest.raises(ValueError, match="`fractions` must be"):
        sensitivity_n(network(rng), x, x, fractions=[2])
    with pytest.raises(ValueError, match="`samples` must be a positive integer"):
        sensitivity_n(network(rng), x, x, samples=-1)
