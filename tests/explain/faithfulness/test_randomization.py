import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

from kzoo.explain import GuidedBackprop, InputXGradient, Saliency
from kzoo.explain.explainer import Explainer
from kzoo.explain.faithfulness.randomization import (
    map_similarity,
    model_randomization,
    weighted_layers,
)

pytestmark = pytest.mark.paper("Sanity Checks for Saliency Maps")


@pytest.fixture
def cnn(rng):
    model = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            keras.layers.Conv2D(4, 3, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.DepthwiseConv2D(3, activation="relu", name="second"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, "softmax", name="last"),
        ]
    )
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    return model


class _FromWeights(Explainer):
    """Says which layers have their trained weights: one pixel for each."""

    def attribute(self, values, target, inputs):
        sums = [tf.reduce_sum(layer.weights[0]) for layer in weighted_layers(self.model)]
        return {
            "attributions": tf.stack(sums) + tf.zeros_like(values[:, 0, : len(sums), 0]),
            **self.scores(values, target, inputs),
        }


@pytest.mark.parametrize("mode", ["cascading", "independent", "whole"])
def test_which_layers_are_random(cnn, images, mode):
    before = [w.numpy() for w in cnn.weights]
    seen = []
    report = model_randomization(_FromWeights(cnn), images, mode=mode, report=seen.append)
    changed = (report.maps != report.original)[:, 0]
    expected = {
        "cascading": np.tri(4),
        "independent": np.eye(4),
        "whole": np.ones([1, 4]),
    }[mode]
    np.testing.assert_array_equal(changed, expected.astype(bool))
    names = ("last", "second", "norm", "first")
    assert report.layers == (names[-1:] if mode == "whole" else names)
    assert seen == list(report.layers)
    for weight, value in zip(cnn.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_new_weights_are_those_of_the_initializers(cnn, images):
    class Recorder(_FromWeights):
        values = None

        def __call__(self, *args, **kwargs):
            self.values = {w.path: w.numpy() for w in cnn.weights}
            return super().__call__(*args, **kwargs)

    recorder = Recorder(cnn)
    model_randomization(recorder, images, mode="whole")
    by_name = {"/".join(path.split("/")[-2:]): value for path, value in recorder.values.items()}
    for name in ("norm/gamma", "norm/moving_variance"):
        np.testing.assert_array_equal(by_name[name], 1)
    for name in ("norm/beta", "norm/moving_mean", "first/bias", "last/bias"):
        np.testing.assert_array_equal(by_name[name], 0)
    for name in ("first/kernel", "second/kernel", "last/kernel"):
        assert abs(by_name[name].mean()) < 0.3  # the trained ones have a mean of 1
        assert by_name[name].std() > 0.05


def test_the_seed_decides(cnn, images):
    def maps(seed):
        return model_randomization(Saliency(cnn), images, mode="whole", seed=seed).maps

    np.testing.assert_array_equal(maps(1), maps(1))
    assert not np.allclose(maps(1), maps(2))


def test_a_weight_without_initializer_is_shuffled(images):
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[1:], name="scale")

        def call(self, x):
            return x * self.scale

    scale = Scale()
    model = keras.Sequential([keras.Input([8, 8, 1]), scale, keras.layers.Flatten()])
    values = np.arange(64.0).reshape(8, 8, 1)
    scale.set_weights([values])
    report = model_randomization(Saliency(model), images, target=0, mode="whole")
    assert not np.array_equal(report.maps[0], report.original)
    np.testing.assert_array_equal(scale.get_weights()[0], values)


def test_the_weights_come_back_after_an_error(cnn, images):
    before = [w.numpy() for w in cnn.weights]

    def stop(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_randomization(Saliency(cnn), images, report=stop)
    for weight, value in zip(cnn.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_map_that_ignores_the_model_passes_nothing(cnn, images):
    class InputItself(Explainer):
        def attribute(self, values, target, inputs):
            return {"attributions": values, **self.scores(values, target, inputs)}

    report = model_randomization(InputItself(cnn), images)
    for name, values in report.similarity.items():
        np.testing.assert_allclose(values, 1, rtol=1e-5, err_msg=name)
    ours = model_randomization(Saliency(cnn), images)
    assert (ours.similarity["ssim"] < 0.99).all()
    assert abs(ours.similarity["spearman"]).mean() < 0.9


def test_similarity_equals_scipy(rng):
    a, b = rng.integers(-4, 5, size=(2, 6, 5, 7)).astype(float)  # with ties
    similarity = map_similarity(a, b)
    for row in range(6):
        expected = spearmanr(a[row].ravel(), b[row].ravel()).statistic
        assert similarity["spearman"][row] == pytest.approx(expected, rel=1e-6)
        expected = spearmanr(abs(a[row]).ravel(), abs(b[row]).ravel()).statistic
        assert similarity["spearman_absolute"][row] == pytest.approx(expected, rel=1e-6)
    scaled = map_similarity(a, -3 * a)
    np.testing.assert_allclose(scaled["spearman"], -1, rtol=1e-6)
    np.testing.assert_allclose(scaled["spearman_absolute"], 1, rtol=1e-6)
    np.testing.assert_allclose(scaled["ssim"], 1, rtol=1e-5)
    assert np.isnan(map_similarity(0 * a, b)["spearman"]).all()
    assert "ssim" not in map_similarity(a[:, 0], b[:, 0])


def test_ssim_is_that_of_tensorflow(rng):
    a, b = rng.uniform(size=(2, 2, 20, 20, 1))
    a[:, 0, 0], b[:, 0, 0] = 1, 1  # the largest, so that the scale stays
    expected = tf.image.ssim(a, b, max_val=1.0)
    np.testing.assert_allclose(map_similarity(a, b)["ssim"], expected, rtol=1e-5)


def test_signs_and_rules_come_from_the_random_model_too(cnn, images):
    for explainer in (InputXGradient(cnn), GuidedBackprop(cnn)):
        report = model_randomization(explainer, images, mode="whole")
        assert not np.allclose(report.maps[0], report.original)
        np.testing.assert_allclose(explainer(images)["attributions"], report.original, rtol=1e-5)


def test_errors(cnn, images):
    with pytest.raises(ValueError, match="`mode` must be one of .*'all'"):
        model_randomization(Saliency(cnn), images, mode="all")
    empty = keras.Sequential([keras.Input([8, 8, 1]), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="no layer with weights"):
        model_randomization(Saliency(empty), images)
    with pytest.raises(TypeError, match="Keras model"):
        weighted_layers(lambda x: x)
    with pytest.raises(ValueError, match="must have one shape"):
        map_similarity(np.ones([2, 3]), np.ones([2, 4]))
