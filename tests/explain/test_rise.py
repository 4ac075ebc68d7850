import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import DRISE, RISE
from kzoo.explain.drise import detection_similarity, intersection_over_union
from kzoo.explain.random_masks import RandomMasks

RISE_PAPER = pytest.mark.paper(
    "RISE: Randomized Input Sampling for Explanation of Black-box Models"
)
DRISE_PAPER = pytest.mark.paper("Black-box Explanation of Object Detectors via Saliency Maps")


def all_masks(masks, height, width):
    return masks.draw(height, width)(tf.range(masks.count)).numpy()


@RISE_PAPER
def test_masks_are_smooth_shifted_grids_with_the_right_mean():
    masks = RandomMasks(3000, grid=4, probability=0.3, seed=1)
    drawn = all_masks(masks, 12, 20)
    assert drawn.shape == (3000, 12, 20)
    assert drawn.min() >= 0
    assert drawn.max() <= 1 + 1e-6
    assert abs(drawn.mean() - 0.3) < 0.01
    # Every place is seen as often as any other, and neighbours of a cell go together.
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.04
    near = np.corrcoef(drawn[:, 5, 5], drawn[:, 6, 5])[0, 1]
    far = np.corrcoef(drawn[:, 0, 0], drawn[:, 11, 19])[0, 1]
    assert near > 0.8
    assert abs(far) < 0.1


@RISE_PAPER
def test_masks_are_what_an_image_library_enlarges():
    """The grid, resized by TensorFlow's own bilinear filter and cut at the drawn place."""
    masks = RandomMasks(5, grid=3, probability=0.5, seed=2)
    uniform = tf.random.stateless_uniform([5, 3, 3], [2, 0], alg="philox")
    shifts = tf.random.stateless_uniform([5, 2], [2, 1], alg="philox").numpy()
    cell = 4
    large = tf.image.resize(tf.cast(uniform < 0.5, tf.float32)[..., tf.newaxis], [4 * cell] * 2)
    for mask, enlarged, shift in zip(all_masks(masks, 10, 12), large, shifts, strict=True):
        top, left = (int(s * cell) for s in shift)
        cut = enlarged[top : top + 10, left : left + 12, 0]
        np.testing.assert_allclose(mask, cut, atol=1e-5)


@RISE_PAPER
def test_equals_the_weighted_mean_of_the_masks(cnn, images):
    explainer = RISE(cnn, samples=30, grid=3, baseline=0.5, rows=7)
    masks = all_masks(explainer.masks, 8, 8)[..., np.newaxis]
    for row, target in ((0, 1), (3, 2)):
        probabilities = cnn(0.5 + masks * (images[row] - 0.5)).numpy()[:, target]
        expected = (probabilities[:, None, None] * masks[..., 0]).sum(0) / (30 * 0.5)
        result = explainer(images[row : row + 1], target)
        np.testing.assert_allclose(result["attributions"][0], expected, atol=1e-5)
        np.testing.assert_allclose(result["score"][0], cnn(images)[row, target], atol=1e-6)


@RISE_PAPER
def test_finds_the_pixels_that_matter(rng):
    x = keras.Input([16, 16, 1])
    corner = keras.ops.mean(x[:, 2:6, 9:13, 0], axis=(1, 2))
    model = keras.Model(x, keras.ops.stack([corner, 1 - corner], axis=1))
    explain = RISE(model, samples=800, grid=6, score=lambda y, t: (y[:, 0], t))
    heat = explain(np.ones([1, 16, 16, 1]), 0)["attributions"][0].numpy()
    top, left = np.unravel_index(heat.argmax(), heat.shape)
    assert 2 <= top < 6
    assert 9 <= left < 13
    # What is not looked at gets the mean score of all masks.
    assert abs(heat[12:, :5].mean() - 0.5) < 0.03
    assert heat[2:6, 9:13].mean() > 0.6


def planted_detector(images):
    """Finds one thing, whose objectness is the brightness of its own box, and one always there."""
    brightness = tf.reduce_mean(images[:, 4:8, 4:8], [1, 2, 3])
    boxes = tf.constant([[[4.0, 4.0, 8.0, 8.0], [10.0, 0.0, 14.0, 3.0]]])
    classes = tf.constant([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    objectness = tf.stack([brightness, 0.4 * tf.ones_like(brightness)], 1)
    batch = tf.shape(images)[0]
    return tf.tile(boxes, [batch, 1, 1]), tf.tile(classes, [batch, 1, 1]), objectness


@DRISE_PAPER
def test_similarity_by_hand():
    box = tf.constant([[0.0, 0.0, 2.0, 2.0]])
    boxes = tf.constant([[[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 2, 2]]])
    np.testing.assert_allclose(intersection_over_union(box[:, None], boxes), [[1, 2 / 6, 0, 1]])
    classes = tf.constant([[[0.0, 2.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    similarity = detection_similarity(
        box, tf.constant([[0.0, 1.0]]), boxes, classes, tf.constant([[0.9, 0.6, 1.0, 1.0]])
    )
    np.testing.assert_allclose(similarity, [[0.9, 0.2, 0, 0]], rtol=1e-6)


@DRISE_PAPER
def test_energy_lies_in_the_box_of_the_detection():
    image = np.ones([1, 16, 16, 1], "float32")
    result = DRISE(planted_detector, samples=1000, grid=8)(image, target=0)
    heat = result["attributions"][0].numpy()
    np.testing.assert_allclose(result["box"][0], [4, 4, 8, 8])
    np.testing.assert_allclose(result["score"], [1.0])
    above = np.maximum(heat - np.median(heat), 0)
    assert above[3:9, 3:9].sum() / above.sum() > 0.6
    top, left = np.unravel_index(heat.argmax(), heat.shape)
    assert 4 <= top < 8
    assert 4 <= left < 8


@DRISE_PAPER
def test_order_of_the_detections_and_ranks():
    def reordered(images):
        return [each[:, ::-1] for each in planted_detector(images)]

    image = np.ones([1, 16, 16, 1], "float32")
    first = DRISE(planted_detector, samples=20, grid=4)(image, target=0)
    other = DRISE(reordered, samples=20, grid=4)(image, target=1)
    np.testing.assert_allclose(first["attributions"], other["attributions"])
    by_rank = DRISE(planted_detector, samples=20, grid=4)(image)
    assert by_rank["target"][0] == 0
    assert DRISE(reordered, samples=20, grid=4)(image, -2)["target"][0] == 0


@DRISE_PAPER
def test_a_detection_that_the_request_brings():
    image = np.ones([2, 16, 16, 1], "float32")
    explainer = DRISE(planted_detector, samples=20, grid=4, request=["box", "class_probabilities"])
    result = explainer(image, box=[4.0, 4, 8, 8], class_probabilities=[[0, 1.0, 0], [0, 0, 1.0]])
    own = DRISE(planted_detector, samples=20, grid=4)(image, target=0)
    np.testing.assert_allclose(result["attributions"][0], own["attributions"][0], rtol=1e-6)
    assert not np.any(result["attributions"][1])


@DRISE_PAPER
def test_a_classifier_is_the_special_case(cnn, images):
    def classifier(x):
        probabilities = cnn(x)
        whole = tf.ones_like(probabilities[:, :1, None]) * [0.0, 0.0, 1.0, 1.0]
        one_hot = tf.one_hot(tf.ones_like(probabilities[:, :1], tf.int32), 3)
        return whole, one_hot, probabilities[:, 1:2]

    ours = DRISE(classifier, samples=12, grid=3)(images, target=0)["attributions"]
    expected = RISE(cnn, samples=12, grid=3)(images, target=1)["attributions"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@RISE_PAPER
def test_errors_name_the_argument(cnn):
    with pytest.raises(ValueError, match="`samples` must be a positive integer. Received: 0"):
        RISE(cnn, samples=0)
    with pytest.raises(ValueError, match=r"`probability` must be in \(0, 1\). Received: 1"):
        RISE(cnn, probability=1)
    with pytest.raises(ValueError, match="`request` must be"):
        DRISE(cnn, request=["box"])
    with pytest.raises(ValueError, match="A detector gives `boxes`"):
        DRISE(cnn)(np.zeros([1, 8, 8, 1]))
    table = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="Random masks are for a model of one input"):
        RISE(table)(np.zeros([1, 4]))
