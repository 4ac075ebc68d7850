import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.prototype_patches import PrototypePatchSimilarity

pytestmark = [
    pytest.mark.paper(
        "Learning Support and Trivial Prototypes for Interpretable Image Classification"
    ),
    pytest.mark.paper("This Looks Like That: Deep Learning for Interpretable Image Recognition"),
]


def layer_and_features(rng, **options):
    layer = PrototypePatchSimilarity(3, 2, **options)
    features = rng.normal(size=(4, 5, 6, 7)).astype(keras.config.floatx())
    layer.build(features.shape)
    return layer, features


def over_patches(features, layer, function):
    """function(patch, prototype) at every position, by loops."""
    size, prototypes = layer.patch_size, layer.prototypes.numpy()
    batch, height, width, _ = features.shape
    shape = batch, height - size + 1, width - size + 1, prototypes.shape[-1]
    return np.array(
        [
            function(features[b, r : r + size, c : c + size], prototypes[..., p])
            for b, r, c, p in np.ndindex(shape)
        ]
    ).reshape(shape)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_squared_distances_and_their_log_similarity(rng, patch_size):
    layer, features = layer_and_features(rng, patch_size=patch_size)
    distances = over_patches(features, layer, lambda z, p: ((z - p) ** 2).sum())
    np.testing.assert_allclose(-layer.proximity_map(features), distances, atol=1e-4)
    expected = np.log((distances + 1) / (distances + 1e-4))
    np.testing.assert_allclose(layer.similarity_map(features), expected, atol=1e-5)
    np.testing.assert_allclose(layer(features), expected.max((1, 2)), atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_cosine_similarity_of_prototypes_of_unit_length(rng, patch_size):
    layer, features = layer_and_features(rng, similarity="cosine", patch_size=patch_size)

    def cosine(z, p):
        return (z * p).sum() / np.linalg.norm(z) / np.linalg.norm(p)

    expected = over_patches(features, layer, cosine)
    np.testing.assert_allclose(layer.proximity_map(features), expected, atol=1e-6)
    np.testing.assert_allclose(layer(features), expected.max((1, 2)).clip(0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(layer.class_prototypes(), axis=-1), 1.0, rtol=1e-6)


def test_a_patch_that_is_the_prototype_has_the_greatest_similarity(rng):
    layer, features = layer_and_features(rng, epsilon=0.01)
    layer.prototypes.assign(np.repeat(features[1, 2, 3][None, None, :, None], 6, -1))
    similarities = layer.similarity_map(features).numpy()
    assert np.unravel_index(similarities[..., 0].argmax(), (4, 5, 6)) == (1, 2, 3)
    np.testing.assert_allclose(similarities.max(), np.log(100.0), rtol=1e-3)


def test_far_patches_keep_their_order(rng):
    """log((d + 1) / (d + eps)) in float32 rounds to 0 where log1p does not."""
    layer = PrototypePatchSimilarity(1, 1, prototypes_initializer="zeros")
    features = np.array([4000.0, 4004.0], "float32").reshape(2, 1, 1, 1)
    near, far = layer(features).numpy()[:, 0].astype("float64")
    np.testing.assert_allclose([near, far], 1 / np.array([4000.0, 4004.0]) ** 2, rtol=1e-3)


def test_gradient_reaches_the_prototype_from_its_nearest_patch_alone(float64, rng):
    layer, features = layer_and_features(rng)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.reduce_max(layer.proximity_map(features[:1]), [1, 2]))
    gradient = tape.gradient(loss, layer.prototypes.value).numpy()[0, 0]
    patches, prototypes = features[0].reshape(-1, 7), layer.prototypes.numpy()[0, 0].T
    for j, p in enumerate(prototypes):
        nearest = patches[((patches - p) ** 2).sum(1).argmin()]
        np.testing.assert_allclose(gradient[:, j], 2 * (nearest - p), rtol=1e-9)


def test_a_patch_of_zeros_has_no_direction():
    layer = PrototypePatchSimilarity(2, 1, similarity="cosine")
    zeros = tf.zeros([1, 2, 2, 3])
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        similarities = layer(zeros)
    np.testing.assert_array_equal(similarities, 0.0)
    np.testing.assert_array_equal(tape.gradient(similarities, zeros), 0.0)


def test_the_prototypes_of_a_class_stand_next_to_each_other(rng):
    layer, _ = layer_and_features(rng)
    np.testing.assert_array_equal(layer.prototype_classes, [0, 0, 1, 1, 2, 2])
    grouped = layer.class_prototypes().numpy()
    np.testing.assert_array_equal(grouped[1, 0], layer.prototypes.numpy()[0, 0, :, 2])


def test_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="`similarity` must be one of log, cosine"):
        PrototypePatchSimilarity(2, 2, similarity="l2")
    with pytest.raises(ValueError, match="`classes` must be an integer of at least 1"):
        PrototypePatchSimilarity(0, 2)
    with pytest.raises(ValueError, match=r"`epsilon` must be in \(0, 1\). Received: 0"):
        PrototypePatchSimilarity(2, 2, epsilon=0)
    with pytest.raises(ValueError, match="feature map must be at least as large as a patch"):
        PrototypePatchSimilarity(2, 2, patch_size=3).build((None, 2, 5, 4))
