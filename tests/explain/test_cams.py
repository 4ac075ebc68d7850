"""Grad-CAM++, LayerCAM and Score-CAM against their equations, by hand and by loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from kzoo.explain.names import method_name

PLUS_PLUS = pytest.mark.paper(
    "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks"
)
LAYER = pytest.mark.paper("LayerCAM: Exploring Hierarchical Class Activation Maps for Localization")
SCORE = pytest.mark.paper(
    "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks"
)

A = np.array([[[2.0, 1.0], [0.0, 3.0]]])
G = np.array([[[1.0, -2.0], [3.0, 0.5]]])


@pytest.fixture
def two_places():
    """Two places with two channels each, whose score is sum(A * G): its gradient is G."""
    x = keras.Input([1, 2, 2])
    maps = keras.layers.Activation("linear", name="maps")(x)
    score = keras.ops.sum(maps * G.astype("float32"), axis=(1, 2, 3))
    return keras.Model(x, keras.ops.expand_dims(score, 1))


@PLUS_PLUS
def test_grad_cam_plus_plus_by_hand(two_places):
    # Channel 0: A = (2, 0), sum 2, g = (1, 3): alpha = 1 / (2 + 2), 9 / (18 + 54) = 1 / 8.
    # w = 1/4 + 3/8 = 5/8.  Channel 1: A = (1, 3), sum 4, g = (-2, 1/2):
    # alpha = 4 / (8 - 32) = -1/6, 1/4 / (1/2 + 1/2) = 1/4; relu(g) = (0, 1/2): w = 1/8.
    expected = [[2 * 5 / 8 + 1 / 8, 0 + 3 / 8]]
    explainer = GradCAMPlusPlus(two_places, "maps", upsample=False)
    np.testing.assert_allclose(explainer(A[None])["attributions"][0], expected, rtol=1e-6)


@LAYER
def test_layer_cam_by_hand(two_places):
    explainer = LayerCAM(two_places, "maps", upsample=False)
    expected = [[2 * 1 + 1 * 0, 0 * 3 + 3 * 0.5]]
    np.testing.assert_allclose(explainer(A[None])["attributions"][0], expected, rtol=1e-6)
    against = LayerCAM(two_places, "maps", upsample=False, counterfactual=True)
    np.testing.assert_allclose(against(A[None])["attributions"][0], [[2, 0]], rtol=1e-6)


@LAYER
def test_layer_cam_is_grad_cam_where_gradients_are_positive_and_everywhere_the_same(rng):
    pooled = keras.Sequential(
        [
            keras.Input([6, 6, 1]),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, kernel_initializer=keras.initializers.RandomUniform(0.1, 1)),
        ]
    )
    x = rng.normal(size=(3, 6, 6, 1))
    ours, theirs = (method(pooled, upsample=False)(x, 1) for method in (LayerCAM, GradCAM))
    np.testing.assert_allclose(ours["attributions"], theirs["attributions"], rtol=1e-5)


@SCORE
def test_score_cam_equals_one_mask_after_the_other(cnn, images):
    explainer = ScoreCAM(cnn, "first", rows=3)
    first = keras.Model(cnn.input, cnn.get_layer("first").output)
    cnn_logits = lambda x: np.log(cnn(x).numpy())  # noqa: E731
    result = explainer(images, target=2)
    for row in range(2):
        image, maps = images[row], first(images[row : row + 1])[0].numpy()
        scores = []
        for channel in range(maps.shape[-1]):
            mask = tf.image.resize(maps[..., channel, None], [8, 8]).numpy()
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            # log p differs from the logit by the same for all classes: add the difference.
            logits = cnn_logits((image * mask)[None])[0]
            shift = _logits(cnn, (image * mask)[None])[0, 0] - logits[0]
            scores.append(logits[2] + shift)
        weights = np.exp(scores) / np.exp(scores).sum()
        cam = np.maximum((weights * maps).sum(-1), 0)
        expected = tf.image.resize(cam[..., None], [8, 8])[..., 0]
        np.testing.assert_allclose(result["attributions"][row], expected, atol=1e-5)


def _logits(model, x):
    *_, last = model.layers
    return keras.Model(model.input, last.input)(x) @ last.kernel + last.bias


@SCORE
def test_score_cam_needs_images():
    table = keras.Sequential(
        [keras.Input([4, 2]), keras.layers.Dense(3), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="Score-CAM masks images"):
        ScoreCAM(table)(np.zeros([1, 4, 2]))


@PLUS_PLUS
def test_name_in_signatures():
    assert method_name(GradCAMPlusPlus) == "grad_cam_plus_plus"
    assert method_name(ScoreCAM) == "score_cam"
