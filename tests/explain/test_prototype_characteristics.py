import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.prototype_characteristics import (
    CHARACTERISTICS,
    ImageCharacteristicPerturbations,
    characteristic_importance,
    describe_prototype,
    explain_prototypes,
    non_local_means,
    prototype_redundancy,
    sine_warp,
)
from kzoo.models.protopnet import ProtoPNet, similarity_maps

pytestmark = pytest.mark.paper(
    "This Looks Like That, Because ... Explaining Prototypes for Interpretable Image Recognition"
)
# For images of 12 pixels; the paper's are meant for hundreds.
SMALL = {"shape_amplitude": 3.0, "shape_frequency": 0.3, "template": 3, "window": 5}


def index(name):
    return CHARACTERISTICS.index(name)


@pytest.fixture
def images(rng):
    return rng.uniform(0.2, 0.8, size=(3, 12, 12, 3)).astype("float32")


def test_grey_images_have_neither_hue_nor_saturation(images):
    grey = np.repeat(images[..., :1], 3, axis=-1)
    changed = ImageCharacteristicPerturbations(**SMALL)(grey)
    for name in ("hue", "saturation"):
        np.testing.assert_allclose(changed[name], grey, atol=1e-6)
    for name in ("contrast", "shape"):
        assert np.abs(changed[name] - grey).max() > 1e-3


def test_saturation_and_contrast_by_hand():
    image = np.zeros([1, 1, 2, 3], "float32")
    image[0, 0, 0] = 1.0, 0.0, 0.0
    changed = ImageCharacteristicPerturbations(saturation=0.7, contrast=0.45)(image)
    # Red's grey is 0.299, the mean grey of red and black 0.1495.
    expected = [0.7 + 0.3 * 0.299, 0.3 * 0.299, 0.3 * 0.299]
    np.testing.assert_allclose(changed["saturation"][0, 0, 0], expected, rtol=1e-5)
    black = 3 * [0.55 * 0.1495]
    np.testing.assert_allclose(changed["contrast"][0, 0, 1], black, rtol=1e-5)


def test_a_third_of_the_circle_turns_red_into_green():
    red = np.zeros([1, 2, 2, 3], "float32")
    red[..., 0] = 1.0
    green = ImageCharacteristicPerturbations(hue=1 / 3)(red)["hue"]
    np.testing.assert_allclose(green, red[..., [1, 0, 2]], atol=1e-5)


def test_sine_warp_is_numpy_rolls(images):
    expected = images.copy()
    for warp in expected:
        for row in range(12):
            warp[row] = np.roll(warp[row], int(4 * np.sin(np.pi * row * 0.3)), axis=0)
        for column in range(12):
            shift = int(4 * np.sin(np.pi * column * 0.3))
            warp[:, column] = np.roll(warp[:, column], shift, axis=0)
    np.testing.assert_array_equal(sine_warp(images, 4.0, 0.3), expected)


def test_non_local_means_by_loops(rng):
    image = rng.uniform(size=(5, 6, 2))
    strength, expected = 0.4, np.zeros_like(image)
    for r, c in np.ndindex(5, 6):
        total = 0.0
        for s, d in np.ndindex(5, 6):
            if abs(s - r) > 2 or abs(d - c) > 2:
                continue
            squares = [
                ((image[r + i, c + j] - image[s + i, d + j]) ** 2).mean()
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if 0 <= min(r + i, s + i) <= max(r + i, s + i) < 5
                and 0 <= min(c + j, d + j) <= max(c + j, d + j) < 6
            ]
            weight = np.exp(-np.mean(squares) / strength**2)
            expected[r, c] += weight * image[s, d]
            total += weight
        expected[r, c] /= total
    actual = non_local_means(tf.constant(image[np.newaxis]), strength, template=3, window=5)
    np.testing.assert_allclose(actual[0], expected, rtol=1e-9)


def test_non_local_means_takes_noise_and_leaves_an_edge(rng):
    edge = np.zeros([1, 16, 16, 3], "float32")
    edge[:, :, 8:] = 1.0
    noisy = edge + rng.normal(scale=0.02, size=edge.shape).astype("float32")
    # The window is wider than the image: what lies beyond it takes no part.
    clean = non_local_means(tf.constant(noisy), 0.05, template=3, window=33).numpy()
    assert np.abs(clean - edge).mean() < 0.3 * np.abs(noisy - edge).mean()
    assert np.abs(clean - edge).max() < 0.1


def test_the_place_of_the_original_image_counts():
    """Contrast moves the peak; the importance is that of the first place, not of a new peak."""
    image = np.zeros([1, 1, 2, 3], "float32")
    image[0, 0, 0] = 1.0  # white, then black

    def maps(images):
        # Likes white at the left; at the right it always says 0.6.
        left = images[:, :, :1, 0]
        return tf.stack([tf.concat([left, 0.6 * tf.ones_like(left)], axis=-1)], axis=-1)

    result = characteristic_importance(
        maps, image, ImageCharacteristicPerturbations(contrast=0.0, **SMALL)
    )
    np.testing.assert_array_equal(result["position"], [[[0, 0]]])
    # Without contrast all is 0.5: from 1 to 0.5 at the place, though the new peak has 0.6.
    np.testing.assert_allclose(result["importance"][0, 0, index("contrast")], 0.5, atol=1e-6)


def test_a_colour_prototype_and_an_edge_prototype(rng):
    """One is the colour of a patch, the other the length of the brightness gradient."""
    images = np.full([4, 32, 32, 3], 0.5, "float32")
    images[:, 6:26, 6:26] = 0.9, 0.15, 0.1
    images += rng.normal(scale=0.01, size=images.shape).astype("float32")

    def maps(x):
        colour = tf.exp(-10 * tf.reduce_sum(tf.square(x - [0.9, 0.15, 0.1]), -1))
        # The mean over patches of 3x3, away from the border of the square, where shapes move.
        colour = tf.nn.avg_pool2d(colour[..., tf.newaxis], 3, 1, "SAME")
        grey = tf.reduce_sum(x * [0.299, 0.587, 0.114], -1, keepdims=True)
        edges = tf.image.sobel_edges(grey)
        return tf.concat([colour, tf.norm(edges[..., 0, :], axis=-1, keepdims=True)], -1)

    perturbations = ImageCharacteristicPerturbations(
        shape_amplitude=2.0, shape_frequency=0.2, template=5, window=9
    )
    colour, edge = explain_prototypes(maps, images, perturbations)["global_importance"]
    assert {CHARACTERISTICS[i] for i in np.argsort(-colour)[:3]} == {
        "hue", "saturation", "contrast",
    }  # fmt: skip
    assert min(colour[index("hue")], colour[index("saturation")]) > 10 * colour[index("shape")]
    for name in ("shape", "contrast"):
        assert edge[index(name)] > 3 * abs(edge[index("hue")])


def test_global_is_the_mean_weighted_by_similarity(images):
    def maps(x):
        return x[..., :2] ** 2

    perturbations = ImageCharacteristicPerturbations(**SMALL)
    result = explain_prototypes(maps, images, perturbations, batch_size=2)
    whole = characteristic_importance(maps, images, perturbations)
    np.testing.assert_allclose(result["importance"], whole["importance"], atol=1e-6)
    similarity, importance = result["similarity"], result["importance"]
    expected = np.zeros([2, 5])
    for j in range(2):
        weights = similarity[:, j] / similarity[:, j].sum()
        expected[j] = sum(w * v for w, v in zip(weights, importance[:, j], strict=True))
    np.testing.assert_allclose(result["global_importance"], expected, atol=1e-6)


def test_a_prototype_that_nothing_resembles_has_no_importance(images):
    perturbations = ImageCharacteristicPerturbations(**SMALL)
    result = explain_prototypes(lambda x: 0 * x[..., :1], images, perturbations)
    np.testing.assert_array_equal(result["global_importance"], 0.0)


def test_on_a_protopnet(images):
    layers = [keras.Input([12, 12, 3]), keras.layers.Conv2D(4, 3, activation="relu")]
    model = ProtoPNet(keras.Sequential(layers), 2, prototypes_per_class=2, prototype_size=5)
    maps = similarity_maps(model)
    result = explain_prototypes(maps, images, ImageCharacteristicPerturbations(**SMALL))
    assert result["global_importance"].shape == (4, 5)
    rows, columns = result["position"][1, 2]
    np.testing.assert_allclose(
        result["similarity"][1, 2], maps(images)[1, rows, columns, 2], rtol=1e-5
    )


def test_words():
    text = describe_prototype([2.2473, 0.5921, 0.0639, 0.7546, 1.0077])
    assert text == "Hue 2.25, shape 1.01, texture 0.75, saturation 0.59, contrast 0.06"
    with pytest.raises(ValueError, match=r"one number for each of hue, .* Received: shape \(2,\)"):
        describe_prototype([1.0, 2.0])


def test_redundant_prototypes_look_alike_and_have_like_reasons():
    prototypes = [[0.0, 0.0], [0.0, 0.1], [0.0, 0.05], [5.0, 0.0]]
    importance = np.zeros([4, 5])
    importance[2, 3] = 1.0  # near the first two, but for its texture
    pairs = prototype_redundancy(prototypes, importance, max_distance=0.2, max_difference=0.5)
    assert pairs == [(0, 1, pytest.approx(0.1), 0.0)]
    with pytest.raises(ValueError, match="Received: 3 rows for 4 prototypes"):
        prototype_redundancy(prototypes, importance[:3], 1.0, 1.0)


def test_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match=r"`hue` must be a number in \[-0.5, 0.5\]. Received: 0.7"):
        ImageCharacteristicPerturbations(hue=0.7)
    with pytest.raises(ValueError, match="`window` must be a number above 0 and odd. Received: 4"):
        ImageCharacteristicPerturbations(window=4)
    with pytest.raises(ValueError, match=r"`images` must be RGB floats .* Received: uint8"):
        ImageCharacteristicPerturbations()(np.zeros([1, 4, 4, 3], "uint8"))
