import keras
import numpy as np
import pytest
from scipy.stats import pearsonr

from kzoo.explain import InputXGradient, Saliency
from kzoo.explain.faithfulness.class_sensitivity import class_sensitivity
from kzoo.explain.scores import margin_score

pytestmark = pytest.mark.paper("There and Back Again: Revisiting Backpropagation Saliency Methods")


@pytest.fixture
def linear(rng):
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(4)])
    model.set_weights([rng.normal(size=(6, 4)), rng.normal(size=4)])
    return model


def test_correlation_of_the_maps_of_the_first_and_the_last_class(linear, rng):
    x = rng.normal(size=(7, 6)).astype("float32")
    result = class_sensitivity(InputXGradient(linear), x, batch_size=3)
    logits = linear(x).numpy()
    kernel = linear.layers[-1].kernel.numpy()
    for row in range(7):
        maps = [x[row] * kernel[:, pick(logits[row])] for pick in (np.argmax, np.argmin)]
        np.testing.assert_allclose(result[row], pearsonr(*maps).statistic, rtol=1e-4)


def test_extremes(rng):
    x = rng.normal(size=(3, 6)).astype("float32")
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(2, use_bias=False)])
    w = rng.normal(size=6)
    for sign in (1, -1):
        model.set_weights([np.stack([w, sign * 0.5 * w], 1)])
        # One class is a multiple of the other: the signed maps agree, or are opposites.
        result = class_sensitivity(Saliency(model, absolute=False), x)
        np.testing.assert_allclose(result, sign, rtol=1e-5)
        np.testing.assert_allclose(class_sensitivity(Saliency(model), x), 1, rtol=1e-5)
    opposites = Saliency(model, absolute=False, score=margin_score)
    np.testing.assert_allclose(class_sensitivity(opposites, x), -1, rtol=1e-5)


def test_constant_maps_have_no_correlation(rng):
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(2)])
    model.set_weights([np.stack([np.full(6, 0.1), rng.normal(size=6)], 1), np.array([9.0, 0.0])])
    x = rng.normal(size=(3, 6)).astype("float32")
    assert np.isnan(class_sensitivity(Saliency(model), x)).all()


def test_errors(linear, rng):
    regression = keras.Sequential([keras.Input([6]), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="of at least two classes. Received one .*1"):
        class_sensitivity(Saliency(regression), np.zeros([2, 6]))
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        class_sensitivity(Saliency(linear), np.zeros([2, 6]), batch_size=0)
