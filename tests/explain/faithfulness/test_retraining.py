import keras
import numpy as np
import pytest

from kzoo.explain import Saliency
from kzoo.explain.faithfulness.retraining import (
    accuracy,
    attribution_leakage,
    diff_roar,
    masked,
    ranked_mask,
    roar,
)

SHAH = pytest.mark.paper("Do Input Gradients Highlight Discriminative Features?")
HOOKER = pytest.mark.paper("A Benchmark for Interpretability Methods in Deep Neural Networks")

DISCRIMINATIVE = np.arange(100) % 10 == 3


class NearestMean:
    """A classifier that needs no time: the class whose mean is the nearest."""

    def __init__(self, x, y):
        self.means = np.stack([x[y == label].mean(axis=0) for label in (0, 1)])

    def predict(self, x, verbose=0):
        return 2 * x @ self.means.T - (self.means**2).sum(axis=1)


def train(x, y, seed):
    return NearestMean(x, y)


def sample(seed, count=400):
    """100 columns, of which every tenth is shifted by the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(size=(count, 100)) + 1.5 * np.outer(2 * y - 1, DISCRIMINATIVE)
    return x.astype("float32"), y


@pytest.fixture(scope="module")
def data():
    return sample(0), sample(1)


def oracle(model, x, y):
    return np.broadcast_to(DISCRIMINATIVE.astype(float), x.shape)


def inverted(model, x, y):
    return 1 - oracle(model, x, y)


def random(model, x, y):
    return np.random.default_rng(len(x)).normal(size=x.shape)


@SHAH
def test_diff_roar_of_an_oracle_its_inverse_and_chance(data):
    fractions = [0.1, 0.2]
    good = diff_roar(train, oracle, *data, fractions)["difference"]
    bad = diff_roar(train, inverted, *data, fractions)["difference"]
    assert good.shape == (2, 1)
    assert good.min() > 0.3
    np.testing.assert_array_equal(bad, -good)
    chance = diff_roar(train, random, *data, [0.5], seeds=range(3))["difference"]
    assert abs(chance.mean()) < 0.03


@SHAH
def test_everything_left_or_nothing_left_gives_exactly_zero(data):
    result = diff_roar(train, random, *data, [0.0, 1.0])
    np.testing.assert_array_equal(result["difference"], 0)
    whole = accuracy(NearestMean(*data[0]), *data[1])
    assert result["top"][1, 0] == whole


@SHAH
def test_a_constant_attribution_says_nothing(data):
    constant = diff_roar(train, lambda model, x, y: np.ones_like(x), *data, [0.1, 0.7])
    np.testing.assert_array_equal(constant["difference"], 0)


@SHAH
def test_arrays_stand_for_a_callable(data):
    arrays = [oracle(None, x, y) for x, y in data]
    by_arrays = diff_roar(train, arrays, *data, [0.1])
    by_callable = diff_roar(train, oracle, *data, [0.1])
    for name in ("top", "bottom", "difference"):
        np.testing.assert_array_equal(by_arrays[name], by_callable[name])


@HOOKER
def test_roar_removes_what_is_ranked_highest(data):
    fractions = [0.0, 0.05, 0.1, 0.9]
    of_oracle = roar(train, oracle, *data, fractions)[:, 0]
    of_inverse = roar(train, inverted, *data, fractions)[:, 0]
    # Without the ten columns nothing is left to learn; without the ninety others, nothing is lost.
    assert of_oracle[0] == of_inverse[0] > 0.97
    assert of_oracle[1] < of_oracle[0]
    assert abs(of_oracle[2] - 0.5) < 0.08
    assert of_inverse[3] > 0.97


@HOOKER
def test_removed_values_become_the_mean_of_their_channel():
    x = np.arange(16, dtype="float32").reshape(2, 2, 2, 2)
    seen = []

    def keep_data(x, y, seed):
        seen.append(x)

    attributions = np.zeros([2, 2, 2])
    attributions[0, 1, 0], attributions[1, 0, 1] = 2, -3  # ranked by magnitude
    score = lambda model, x, y: 0.0  # noqa: E731
    roar(keep_data, [attributions] * 2, (x, None), (x, None), [0.25], score=score)
    expected = x.copy()
    expected[0, 1, 0] = expected[1, 0, 1] = [7, 8]
    np.testing.assert_array_equal(seen[-1], expected)


@SHAH
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_ranked_mask_against_sorting_each_row(rng, fraction):
    attributions = rng.normal(size=(5, 4, 5))
    top, bottom = (ranked_mask(attributions, fraction, end) for end in ("top", "bottom"))
    count = round(fraction * 20)
    for row in range(5):
        magnitude = np.sort(np.abs(attributions[row]).ravel())
        chosen = np.sort(np.abs(attributions[row][top[row]]))
        np.testing.assert_array_equal(chosen, magnitude[20 - count :])
        chosen = np.sort(np.abs(attributions[row][bottom[row]]))
        np.testing.assert_array_equal(chosen, magnitude[:count])


@SHAH
def test_masks_reach_all_channels_or_one():
    x = np.ones([1, 2, 3], "float32")
    pixel = np.array([[True, False]])
    np.testing.assert_array_equal(masked(x, pixel, 0.5), [[[0.5] * 3, [1] * 3]])
    value = np.zeros([1, 2, 3], bool)
    value[0, 1, 2] = True
    np.testing.assert_array_equal(masked(x, value, 0.5), [[[1, 1, 1], [1, 1, 0.5]]])


@SHAH
def test_leakage_by_hand():
    attributions = np.array([[[1.0, -2.0], [3.0, 0.0]], [[0, 0], [0, 0]]])
    null = np.array([[False, True], [True, True]])
    # Magnitudes of the first: 3 of 6 are in its null row; the second has none at all.
    np.testing.assert_allclose(attribution_leakage(attributions, null), [0.5, 0])
    whole = np.broadcast_to(null[..., np.newaxis], attributions.shape)
    np.testing.assert_allclose(attribution_leakage(attributions, whole), [0.5, 0])


@SHAH
def test_an_explainer_is_an_attribution(data):
    def train_linear(x, y, seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input([100]), keras.layers.Dense(2)])
        means = NearestMean(x, y).means
        model.set_weights([2 * means.T, -(means**2).sum(axis=1)])
        return model

    def saliency(model, x, y):
        return Saliency(model)(x, y)["attributions"]

    result = diff_roar(train_linear, saliency, *data, [0.1])
    assert result["difference"][0, 0] > 0.3


@SHAH
def test_errors_name_the_argument(data):
    with pytest.raises(ValueError, match="`fractions` must be in .* Received: 1.5"):
        diff_roar(train, oracle, *data, [1.5])
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        diff_roar(train, lambda model, x, y: np.ones([len(x), 7]), *data, [0.5])
    with pytest.raises(ValueError, match="`end` must be one of top, bottom. Received: 'left'"):
        ranked_mask(np.ones([1, 2]), 0.5, "left")
    with pytest.raises(ValueError, match="`attributions` must not be NaN"):
        ranked_mask(np.full([1, 2], np.nan), 0.5)
    with pytest.raises(ValueError, match="`null` must have the shape"):
        attribution_leakage(np.ones([2, 3]), np.ones([4], bool))
