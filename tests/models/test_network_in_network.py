import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.feature_pyramid import feature_pyramid
from kzoo.models.network_in_network import NetworkInNetwork

pytestmark = pytest.mark.paper("Network In Network")

TINY = {"units": ((8, 6), (8, 6), (8, 6)), "kernel_sizes": (5, 3, 3), "input_shape": (12, 12, 3)}


@pytest.fixture(scope="module")
def cifar():
    return NetworkInNetwork(classifier_activation=None)


def test_parameters_of_the_cifar_10_model(cifar):
    counts = [layer.count_params() for layer in cifar.layers if layer.weights]
    blocks = [14_592 + 30_880 + 15_456, 460_992 + 37_056 + 37_056, 331_968 + 37_056, 1_930]
    assert counts == blocks
    assert cifar.count_params() == 966_986


def test_maps_of_the_cifar_10_model(cifar):
    maps = {level: each.shape[1:] for level, each in feature_pyramid(cifar).output.items()}
    assert maps == {"P0": (32, 32, 96), "P1": (16, 16, 192), "P2": (8, 8, 192)}
    assert cifar.get_layer("class_maps").output.shape == (None, 8, 8, 10)


def test_logits_are_the_means_of_the_class_maps(cifar, rng):
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    inner = keras.Model(cifar.input, [cifar.get_layer("class_maps").output, cifar.output])
    maps, logits = inner(images)
    assert np.min(maps) == 0
    assert np.max(logits) > 0
    np.testing.assert_allclose(logits, np.mean(maps, axis=(1, 2)), rtol=1e-5)


def test_first_pooling_is_of_maxima_and_the_second_of_means(rng):
    """Without padding on top and left, as in the authors' code: a window begins at each even row,
    and means are over what of it is in the map."""
    model = NetworkInNetwork(**TINY)
    names = ("mlpconv1", "pool1", "mlpconv2", "pool2")
    inner = keras.Model(model.input, [model.get_layer(name).output for name in names])
    one, maxima, two, means = inner(rng.normal(size=(2, 12, 12, 3)))
    for before, after, reduce in ((one, maxima, np.max), (two, means, np.mean)):
        size = before.shape[1] // 2
        for row, column in ((0, 0), (1, size - 1), (size - 1, size - 1)):
            window = before[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = reduce(window, axis=(1, 2))
            np.testing.assert_allclose(after[:, row, column], expected, rtol=1e-5)


def test_dropout_drops_half_of_what_is_pooled(rng):
    model = NetworkInNetwork(**TINY)
    names = ("pool1", "dropout1", "pool2", "dropout2")
    inner = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = rng.normal(size=(16, 12, 12, 3))
    one, dropped_one, two, dropped_two = inner(images, training=True)
    for before, after in ((one, dropped_one), (two, dropped_two)):
        kept = after[before > 0] / before[before > 0]
        assert set(np.round(kept, 4)) == {0.0, 2.0}
        assert 0.4 < np.mean(kept > 0) < 0.6


def test_learns_which_colour_the_bright_spots_have(rng):
    labels = np.arange(48) % 3
    images = rng.normal(size=(48, 12, 12, 3)).astype("float32")
    images[np.arange(48), 5, 7, labels] += 8
    model = NetworkInNetwork(**TINY, classes=3, dropout_rate=0.0)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    losses = model.fit(images, labels, batch_size=48, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_any_size(rng):
    model = NetworkInNetwork(**{**TINY, "input_shape": (None, None, 1)})
    for height, width in ((1, 1), (7, 10)):
        assert model(np.zeros((2, height, width, 1), "float32")).shape == (2, 10)


def test_output_is_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = NetworkInNetwork(**TINY)
    assert model(rng.normal(size=(2, 12, 12, 3))).dtype == tf.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NetworkInNetwork(units=((8,), (8,))), "one entry for each block. Received: units"),
        (lambda: NetworkInNetwork(units=(), kernel_sizes=()), "one entry for each block"),
        (lambda: NetworkInNetwork(units=((8,), (0,), (8,))), "`units` must be positive integers"),
        (lambda: NetworkInNetwork(dropout_rate=1.0), r"`dropout_rate` must be in \[0, 1\)"),
        (lambda: NetworkInNetwork(weights="imagenet"), "Received it for: network_in_network"),
        (lambda: NetworkInNetwork(weights="nin.pth"), ".keras or .weights.h5 file"),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
