import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.mlp_conv import MLPConv2D

pytestmark = pytest.mark.paper("Network In Network")


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2])
def test_is_a_perceptron_of_each_patch(float64, rng, padding, strides):
    images = rng.normal(size=(2, 7, 6, 3))
    layer = MLPConv2D((5, 4, 2), (3, 2), strides, padding)
    maps = layer(images)
    sizes, steps = (1, 3, 2, 1), (1, strides, strides, 1)
    patches = tf.image.extract_patches(images, sizes, steps, (1, 1, 1, 1), padding.upper())
    y = patches.numpy().reshape(-1, 3 * 2 * 3)
    for dense in layer.perceptron:
        dense.bias.assign(rng.normal(size=dense.bias.shape))
        kernel, bias = dense.get_weights()
        y = np.maximum(y @ kernel.reshape(-1, kernel.shape[-1]) + bias, 0)
    assert layer.compute_output_shape(images.shape) == maps.shape
    np.testing.assert_allclose(layer(images), y.reshape(maps.shape), atol=1e-12)


def test_one_unit_is_a_convolution(rng):
    images = rng.normal(size=(2, 5, 5, 3)).astype("float32")
    layer = MLPConv2D((4,), 3, activation=None)
    plain = keras.layers.Conv2D(4, 3, padding="same")
    layer(images), plain(images)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(images), plain(images))


def test_gradients(float64, rng):
    layer = MLPConv2D((3, 2), 3, activation="tanh")
    images = tf.constant(rng.normal(size=(1, 4, 3, 2)))
    layer(images)
    weights = [weight.value for weight in layer.trainable_weights]
    assert len(weights) == 4

    def outputs(images, *values):
        for weight, value in zip(layer.trainable_weights, values, strict=True):
            weight.assign(value)
        return layer(images)

    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(tf.sin(layer(images)))
    gradients = tape.gradient(total, [images, *weights])
    points = [images, *(tf.identity(weight) for weight in weights)]
    step = 1e-6
    for which, gradient in enumerate(gradients):
        direction = tf.constant(rng.normal(size=points[which].shape))
        ends = []
        for sign in (1, -1):
            moved = [
                point + sign * step * direction if i == which else point
                for i, point in enumerate(points)
            ]
            ends.append(tf.reduce_sum(tf.sin(outputs(*moved))))
        numeric = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(tf.reduce_sum(gradient * direction), numeric, rtol=1e-6)


def test_layers_of_one_shape_begin_differently():
    layer = MLPConv2D((4, 4, 4), 3, kernel_initializer=keras.initializers.HeUniform())
    layer.build((None, 5, 5, 4))
    second, third = (each.get_weights()[0] for each in layer.perceptron[1:])
    assert np.abs(second - third).max() > 0.1
    assert np.abs(second).max() <= np.sqrt(6 / 4)


def test_regularizer_reaches_every_kernel():
    layer = MLPConv2D((4, 3), 3, kernel_regularizer=keras.regularizers.L2(0.5))
    layer.build((None, 5, 5, 2))
    expected = 0.5 * sum(np.sum(each.get_weights()[0] ** 2) for each in layer.perceptron)
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


@pytest.mark.parametrize("units", [(), (4, 0), (4, 2.5)])
def test_refuses_other_units(units):
    with pytest.raises(ValueError, match="`units` must be positive integers. Received"):
        MLPConv2D(units, 3)
