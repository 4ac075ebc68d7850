import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from kzoo.explain import InputXGradient
from kzoo.explain.faithfulness.curves import (
    deletion,
    insertion,
    perturbation_accuracy,
    perturbation_curve,
    pixel_perturbation,
)
from kzoo.explain.faithfulness.queries import make_baseline

RISE = pytest.mark.paper("RISE: Randomized Input Sampling for Explanation of Black-box Models")
FULL_GRAD = pytest.mark.paper("Full-Gradient Representation for Neural Network Visualization")
RELEVANCE = pytest.mark.paper("Transformer Interpretability Beyond Attention Visualization")


def linear_model(kernel, activation=None):
    kernel = np.asarray(kernel, "float32")
    dense = keras.layers.Dense(kernel.shape[1], activation, use_bias=False)
    model = keras.Sequential([keras.Input([kernel.shape[0]]), dense])
    dense.set_weights([kernel])
    return model


def by_loop(model, x, attributions, fractions, target, order, insert, start):
    """The curve of one image after the other, one fraction after the other, in NumPy."""
    size = attributions[0].size
    scores = []
    for image, attribution, base, label in zip(x, attributions, start, target, strict=True):
        flat = attribution.ravel()
        ranked = sorted(range(size), key=lambda i: (-flat[i] if order == "most" else flat[i], i))
        row = []
        for fraction in fractions:
            chosen = np.zeros(size, bool)
            chosen[ranked[: round(fraction * size)]] = True
            chosen = chosen.reshape(attribution.shape)
            if chosen.ndim < image.ndim:
                chosen = chosen[..., None]
            changed = np.where(chosen == insert, image, base)
            row.append(np.asarray(model(changed[None]))[0, label])
        scores.append(row)
    return np.array(scores)


@RISE
def test_a_linear_model_by_hand():
    model = linear_model([[3.0, 0], [-1, 0], [2, 0]])
    x, target = np.array([[1.0, 1.0, 2.0]], "float32"), [0]
    contributions = np.array([[3.0, -1.0, 4.0]])
    # Goes in the order 4, 3, -1, from a score of 6.
    curve = perturbation_curve(model, x, contributions, [0, 1 / 3, 2 / 3, 1], target)
    np.testing.assert_allclose(curve.scores, [[6, 2, -1, 0]], atol=1e-6)
    np.testing.assert_allclose(curve.auc, [(6 / 2 + 2 - 1 + 0) / 3], rtol=1e-6)
    np.testing.assert_allclose(curve.score, [6])
    curve = perturbation_curve(model, x, contributions, [0, 1 / 3, 2 / 3, 1], target, insert=True)
    np.testing.assert_allclose(curve.scores, [[0, 4, 7, 6]], atol=1e-6)
    curve = perturbation_curve(model, x, contributions, [0, 1 / 3, 1], target, "least", baseline=2)
    np.testing.assert_allclose(curve.scores, [[6, 5, 8]], atol=1e-6)


@RISE
def test_probabilities_and_equal_steps():
    model = linear_model(np.eye(2) * [[1, 0], [0, 1]], "softmax")
    x = np.array([[2.0, 1.0]], "float32")
    curve = deletion(model, x, x, target=0, steps=50)
    sigmoid = [1 / (1 + np.exp(-d)) for d in (2 - 1, 0 - 1, 0 - 0)]
    np.testing.assert_allclose(curve.fractions, [0, 0.5, 1])  # no more steps than values
    np.testing.assert_allclose(curve.scores, [sigmoid], rtol=1e-6)
    np.testing.assert_allclose(curve.auc, [np.trapezoid(sigmoid, [0, 0.5, 1])], rtol=1e-6)
    curve = insertion(model, x, x, target=0, baseline=0.0)
    np.testing.assert_allclose(curve.scores, [[0.5, 1 / (1 + np.exp(-2)), sigmoid[0]]], rtol=1e-6)


@RISE
@pytest.mark.parametrize("order", ["most", "least"])
@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equals_a_loop(order, insert, channels, rows, rng):
    model = keras.Sequential(
        [keras.Input([4, 5, 2]), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    x = rng.normal(size=(6, 4, 5, 2)).astype("float32")
    shape = x.shape if channels else x.shape[:-1]
    attributions = rng.integers(-3, 4, size=shape)  # with many equal ones
    fractions, target = [0.0, 0.2, 0.55, 1.0], [0, 1, 2, 0, 1, 2]
    curve = perturbation_curve(
        model, x, attributions, fractions, target, order, insert, "mean", rows=rows
    )
    start = np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)
    expected = by_loop(model, x, attributions, fractions, target, order, insert, start)
    np.testing.assert_allclose(curve.scores, expected, rtol=1e-4, atol=1e-5)


@RISE
def test_the_target_is_that_of_the_whole_input(rng):
    model = linear_model(rng.normal(size=(6, 4)))
    x = rng.normal(size=(5, 6)).astype("float32")
    top = np.argmax(model(x), axis=1)
    fractions, maps = [0, 0.5, 1], rng.normal(size=x.shape)
    own = perturbation_curve(model, x, maps, fractions)
    np.testing.assert_array_equal(
        own.scores, perturbation_curve(model, x, maps, fractions, top).scores
    )


@RISE
def test_an_oracle_beats_random_beats_the_inverted(rng):
    model = linear_model(3 * rng.normal(size=(40, 2)), "softmax")
    x = rng.normal(size=(30, 40)).astype("float32")
    oracle = InputXGradient(model)(x)["attributions"].numpy()
    rankings = oracle, rng.normal(size=x.shape), -oracle
    falls = [deletion(model, x, maps).auc.mean() for maps in rankings]
    rises = [insertion(model, x, maps, baseline=0.0).auc.mean() for maps in rankings]
    assert falls[0] + 0.1 < falls[1] < falls[2] - 0.1
    assert rises[0] - 0.1 > rises[1] > rises[2] + 0.1


@RISE
def test_tokens_are_replaced_by_the_baseline_id():
    model = keras.Sequential(
        [keras.Input([4], dtype="int32"), keras.layers.Embedding(5, 1), keras.layers.Flatten(),
         keras.layers.Dense(1, use_bias=False)]
    )  # fmt: skip
    model.set_weights([np.array([[0.5], [1], [2], [3], [4]]), np.ones([4, 1])])
    tokens = np.array([[1, 2, 3, 4]])
    curve = perturbation_curve(model, tokens, [[1.0, 4.0, 2.0, 3.0]], [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(curve.scores, [[10, 8.5, 5, 2]])


@RISE
def test_the_blur_is_a_gaussian_normalised_at_the_border(rng):
    x = rng.normal(size=(2, 16, 12, 3))
    ones = np.ones_like(x)
    blurred, norm = x, ones
    for axis in (1, 2):
        blurred, norm = (
            gaussian_filter1d(each, 16 / 8, axis, mode="constant", truncate=20)
            for each in (blurred, norm)
        )
    actual = make_baseline("blur", keras.ops.convert_to_tensor(x, "float64"))
    np.testing.assert_allclose(actual, blurred / norm, rtol=1e-6)


@FULL_GRAD
def test_pixel_perturbation_by_hand():
    model = linear_model([[3.0], [-1], [2]])
    x = np.array([[1.0, 1.0, 2.0]], "float32")  # contributions 3, -1, 4 of a score of 6
    change = pixel_perturbation(model, x, np.abs([[3.0, -1, 4]]), fractions=[1 / 3, 2 / 3])
    np.testing.assert_allclose(change, [[1 / 6, 2 / 6]], rtol=1e-6)
    change = pixel_perturbation(model, x, [[3.0, 1, 4]], fractions=[1 / 3], order="most")
    np.testing.assert_allclose(change, [[4 / 6]], rtol=1e-6)
    change = pixel_perturbation(linear_model([[-1.0]]), [[2.0]], [[1.0]], fractions=[1.0])
    np.testing.assert_allclose(change, [[1.0]])


@RELEVANCE
def test_positive_and_negative_perturbation_by_hand():
    # Six features speak for class 0, 8 in all, and four for class 1, 4 in all.
    weights = np.array([3.0, 1, 1, 1, 1, 1, -1, -1, -1, -1])
    model = linear_model(np.stack([np.maximum(weights, 0), np.maximum(-weights, 0)], axis=1))
    x, maps = np.ones([1, 10], "float32"), weights[np.newaxis]
    positive = perturbation_accuracy(model, x, maps, steps=3)  # 0, 3, 6, 9 values are gone
    np.testing.assert_array_equal(positive.scores, [[1, 0, 0, 0]])
    negative = perturbation_accuracy(model, x, maps, order="least", steps=3)
    np.testing.assert_array_equal(negative.scores, [[1, 1, 1, 1]])
    wrong = perturbation_accuracy(model, x, maps, target=1, steps=3)
    np.testing.assert_array_equal(wrong.scores, [[0, 1, 1, 1]])


@RISE
def test_models_of_other_builds(rng):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2, "softmax")

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    x, maps = rng.normal(size=(2, 3, 6)).astype("float32")
    model(x)
    kernel, bias = model.dense.get_weights()
    expected = perturbation_curve(linear_model(kernel), x, maps, [0, 0.5])
    np.testing.assert_array_equal(bias, 0)
    for build in (model, lambda x: x @ kernel):
        actual = perturbation_curve(build, x, maps, [0, 0.5])
        np.testing.assert_allclose(actual.scores, expected.scores, rtol=1e-5)


@RISE
def test_errors(rng):
    model, x = linear_model(np.eye(3)), np.ones([2, 3], "float32")
    with pytest.raises(ValueError, match=r"`attributions` must have the shape \[2, 3\].*\[2, 2\]"):
        deletion(model, x, np.ones([2, 2]))
    with pytest.raises(ValueError, match="`attributions` must be finite"):
        deletion(model, x, np.full([2, 3], np.nan))
    with pytest.raises(ValueError, match="`fractions` must be .*1.5"):
        perturbation_curve(model, x, x, [0, 1.5])
    with pytest.raises(ValueError, match="`order` must be one of most, least.*'best'"):
        perturbation_curve(model, x, x, [0], order="best")
    with pytest.raises(ValueError, match="`baseline` must be .*'grey'"):
        perturbation_curve(model, x, x, [0], baseline="grey")
    with pytest.raises(ValueError, match="`baseline` 'blur' is for inputs"):
        insertion(model, x, x)
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        deletion(model, x, x, steps=0)
    with pytest.raises(ValueError, match="`rows` must be a positive integer"):
        deletion(model, x, x, rows=0)
    with pytest.raises(ValueError, match="`x` must be one array"):
        deletion(model, {"a": x, "b": x}, x)
