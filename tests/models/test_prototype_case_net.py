import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from kzoo.models.prototype_case_net import PrototypeCaseNet

pytestmark = pytest.mark.paper(
    "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its "
    "Predictions"
)


@pytest.fixture
def small():
    """Images of odd sizes, so that the decoder has to undo a rounding."""
    return PrototypeCaseNet(4, input_shape=(7, 6, 2), classes=3, filters=(3, 5))


@pytest.fixture
def images(rng):
    return rng.uniform(size=(5, 7, 6, 2)).astype("float32")


def test_network_of_the_paper():
    model = PrototypeCaseNet()
    assert model.encoder.output_shape == (None, 2, 2, 10)
    assert model.decoder.output_shape == (None, 28, 28, 1)
    convolutions = [1, 32, 32, 32, 10]
    weights = sum(9 * a * b for a, b in itertools.pairwise(convolutions))
    biases = 2 * sum(convolutions) - 1 - 10
    assert model.count_params() == 2 * weights + biases + 15 * 40 + 15 * 10


def test_logits_are_the_weighted_distances(small, images):
    latent = np.asarray(small.encoder(images)).reshape(5, -1)
    distances = cdist(latent, small.prototypes.prototypes.numpy(), "sqeuclidean")
    logits = distances @ small.classifier.kernel.numpy()
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(small(images), expected, rtol=1e-3, atol=1e-5)
    outputs, ours, decoded = small.forward(images)
    np.testing.assert_allclose(outputs, small(images), rtol=1e-5)
    np.testing.assert_allclose(ours, distances, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, small.decoder(small.encoder(images)), rtol=1e-5)
    assert len(small.classifier.weights) == 1


def test_decoder_is_the_transpose_of_the_encoder(rng):
    # <conv(x), z> = <x, transposed conv(z)> for one layer of equal kernels, at odd and even sizes.
    for size in (6, 7):
        model = PrototypeCaseNet(2, input_shape=(size, size, 2), filters=(3,))
        conv, transposed = model.encoder.layers[0], model.decoder.layers[0]
        for layer in (conv, transposed):
            layer.bias.assign(tf.zeros_like(layer.bias))
        kernel = rng.normal(size=(3, 3, 2, 3)).astype("float32")
        conv.kernel.assign(kernel)
        transposed.kernel.assign(kernel)
        x = rng.normal(size=(1, size, size, 2)).astype("float32")
        z = rng.normal(size=(1, *model.encoder.output_shape[1:])).astype("float32")
        conv.activation = keras.activations.linear
        undone = z
        for layer in model.decoder.layers[:-1]:
            undone = layer(undone)
        np.testing.assert_allclose(
            np.sum(conv(x) * z), np.sum(x * np.asarray(undone)), rtol=1e-4, atol=1e-5
        )


def test_file_keeps_all_parts(small, images, tmp_path):
    small.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images), small(images))
    np.testing.assert_array_equal(again.decoded_prototypes(), small.decoded_prototypes())
    small.save_weights(tmp_path / "w.weights.h5")
    other = PrototypeCaseNet(
        4, (7, 6, 2), 3, filters=(3, 5), weights=tmp_path / "w.weights.h5", name="other"
    )
    np.testing.assert_array_equal(other.decoded_prototypes(), small.decoded_prototypes())


def test_own_autoencoder(rng, tmp_path):
    encoder = keras.Sequential([keras.Input([6]), keras.layers.Dense(3)])
    decoder = keras.Sequential([keras.Input([3]), keras.layers.Dense(6)])
    model = PrototypeCaseNet(
        4, [6], 2, classifier_activation=None, encoder=encoder, decoder=decoder
    )
    x = rng.normal(size=(3, 6)).astype("float32")
    logits = model.prototypes(encoder(x)) @ model.classifier.kernel
    np.testing.assert_allclose(model(x), logits, rtol=1e-5)
    np.testing.assert_allclose(
        model.decoded_prototypes(), decoder(model.prototypes.prototypes), rtol=1e-5
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.decoder(again.encoder(x)), decoder(encoder(x)))


def test_eager_graph_and_xla_agree(small, images):
    expected = small(images)
    for jit_compile in (False, True):
        compiled = tf.function(small, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(images), expected, rtol=1e-3, atol=1e-5)


def test_half_precision_gives_float32_probabilities(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = PrototypeCaseNet(4, input_shape=(7, 6, 2), classes=3, filters=(3, 5))
    outputs, distances, _ = model.forward(images)
    assert outputs.dtype == distances.dtype == tf.float32
    np.testing.assert_allclose(np.sum(outputs, 1), 1, rtol=1e-5)


def test_a_prototype_is_of_the_class_of_its_most_negative_weight(small):
    small.classifier.kernel.assign([[1, -2, 0], [-1, -0.5, 3], [0.5, 0.4, 0.6], [0, 0, -1]])
    np.testing.assert_array_equal(small.prototype_classes(), [1, 0, 1, 2])


def test_errors_name_the_argument():
    part = keras.Sequential([keras.Input([6]), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="Received: only `encoder`"):
        PrototypeCaseNet(encoder=part)
    wrong = keras.Sequential([keras.Input([3]), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"`decoder` must give back .* \(6,\).*gives \(3,\)"):
        PrototypeCaseNet(2, [6], encoder=part, decoder=wrong)
    with pytest.raises(ValueError, match="`classes` must be an integer of at least 2.*1"):
        PrototypeCaseNet(classes=1)
    with pytest.raises(ValueError, match="`input_shape` must be .* of known sizes"):
        PrototypeCaseNet(input_shape=(None, 8, 1))
    with pytest.raises(ValueError, match="`filters` must be positive integers"):
        PrototypeCaseNet(filters=(0,))
    with pytest.raises(ValueError, match="`units` must be an integer of at least 1"):
        PrototypeCaseNet(prototypes=0)
