import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.inception_depthwise_conv import InceptionDepthwiseConv2D

pytestmark = pytest.mark.paper("InceptionNeXt: When Inception Meets ConvNeXt")


def filled(layer, channels, rng):
    """The layer with random weights, biases as well."""
    layer.build((None, None, None, channels))
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


def masked_kernel(layer, channels):
    """The layer as one kernel [11, 11, channels, 1] and one bias."""
    size, group = layer.band_kernel_size, layer.branch_channels
    kernel, bias = np.zeros((size, size, channels, 1)), np.zeros(channels)
    middle, identity = size // 2, channels - 3 * group
    kernel[middle, middle, :identity] = 1
    bounds = [slice(identity + i * group, identity + (i + 1) * group) for i in range(3)]
    reach = layer.square_kernel_size // 2
    inner = slice(middle - reach, middle + reach + 1)
    kernel[inner, inner, bounds[0]] = layer.square.kernel
    kernel[middle, :, bounds[1]] = np.asarray(layer.horizontal.kernel)[0]
    kernel[:, middle, bounds[2]] = np.asarray(layer.vertical.kernel)[:, 0]
    for bound, branch in zip(bounds, (layer.square, layer.horizontal, layer.vertical), strict=True):
        bias[bound] = branch.bias
    return kernel, bias


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (16, {}),
        (19, {"square_kernel_size": 5}),
        (10, {"band_kernel_size": 9, "branch_ratio": 0.25}),
        (6, {"branch_ratio": 1 / 3}),
    ],
)
def test_is_one_masked_large_kernel(rng, channels, options):
    layer = filled(InceptionDepthwiseConv2D(**options), channels, rng)
    kernel, bias = masked_kernel(layer, channels)
    whole = keras.layers.DepthwiseConv2D(layer.band_kernel_size, padding="same")
    whole.build((None, None, None, channels))
    whole.set_weights([kernel, bias])
    images = rng.normal(size=(2, 7, 13, channels)).astype("float32")
    np.testing.assert_allclose(layer(images), whole(images), rtol=1e-5, atol=1e-5)


def test_five_eighths_of_the_channels_pass_bit_for_bit(rng):
    layer = filled(InceptionDepthwiseConv2D(), 24, rng)
    images = rng.normal(size=(2, 5, 6, 24)).astype("float32")
    outputs = np.asarray(layer(images))
    np.testing.assert_array_equal(outputs[..., :15], images[..., :15])
    assert (outputs[..., 15:] != images[..., 15:]).all()


def test_reach_of_the_branches():
    """Ones for kernels count the neighbours of each position, inside of a 12 x 14 image."""
    layer = InceptionDepthwiseConv2D(depthwise_initializer="ones")
    outputs = np.asarray(layer(np.ones((1, 12, 14, 8), "float32")))
    assert outputs[0, 5, 6].tolist() == [1, 1, 1, 1, 1, 9, 11, 11]
    # In the corner: 2 x 2 of the square, and half of the bands with their middle.
    assert outputs[0, 0, 0].tolist() == [1, 1, 1, 1, 1, 4, 6, 6]
    impulse = np.zeros((1, 12, 14, 8), "float32")
    impulse[0, 5, 6] = 1
    reached = np.asarray(layer(impulse))[0]
    assert reached[..., 6].sum(axis=1).tolist() == 5 * [0] + [11] + 6 * [0]  # one row
    assert reached[..., 7].sum(axis=0).tolist() == 6 * [0] + [11] + 7 * [0]  # one column


@pytest.mark.parametrize(("square", "band", "ratio"), [(3, 11, 0.125), (5, 7, 0.25)])
def test_multiply_adds_of_a_position(square, band, ratio):
    layer = InceptionDepthwiseConv2D(square, band, ratio, use_bias=False)
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((1, 9, 10, 32))).graph
    convolutions = [op for op in graph.get_operations() if op.type == "DepthwiseConv2dNative"]
    # Each number of a map takes one multiply-add for each position of its channel's kernel.
    costs = [np.prod(op.outputs[0].shape) * np.prod(op.inputs[1].shape[:2]) for op in convolutions]
    assert sum(costs) / 90 == 32 * ratio * (square**2 + 2 * band)
    assert sum(costs) / 90 == layer.count_params()


def test_gradients(float64, rng):
    layer = filled(InceptionDepthwiseConv2D(band_kernel_size=5, branch_ratio=0.3), 4, rng)
    images, upstream = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 4))

    def loss(images, *weights):
        outputs, _ = layer.stateless_call(weights, [], images)
        return tf.reduce_sum(outputs * upstream)

    values = [tf.constant(images), *(tf.constant(weight) for weight in layer.get_weights())]
    analytic, numeric = tf.test.compute_gradient(loss, values)
    for ours, difference in zip(analytic, numeric, strict=True):
        assert np.abs(ours).max() > 0.1
        np.testing.assert_allclose(ours, difference, atol=1e-7)


def test_branches_begin_differently():
    layer = InceptionDepthwiseConv2D(depthwise_initializer=keras.initializers.RandomNormal())
    layer.build((None, 4, 4, 8))
    row = np.ravel(layer.horizontal.kernel)
    assert not np.allclose(row, np.ravel(layer.vertical.kernel))


def test_regularizers_and_constraints_hold_for_every_branch(rng):
    layer = InceptionDepthwiseConv2D(
        depthwise_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer=keras.regularizers.L1(2.0),
        depthwise_constraint="non_neg",
    )
    layer = filled(layer, 8, rng)
    weights = layer.get_weights()
    expected = sum(0.5 * (w**2).sum() if w.ndim > 1 else 2 * np.abs(w).sum() for w in weights)
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)
    kernels = [weight for weight in layer.weights if weight.path.endswith("kernel")]
    assert len(kernels) == 3
    assert all(isinstance(w.constraint, keras.constraints.NonNeg) for w in kernels)


def test_open_size_of_the_image(rng):
    images = keras.Input((None, None, 8))
    model = keras.Model(images, InceptionDepthwiseConv2D()(images))
    assert model.output_shape == (None, None, None, 8)
    assert model(rng.normal(size=(1, 3, 30, 8))).shape == (1, 3, 30, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"square_kernel_size": 4}, "`square_kernel_size` must be an odd .* Received: 4"),
        ({"band_kernel_size": 0}, "`band_kernel_size` must be an odd positive integer"),
        ({"branch_ratio": 0.5}, r"`branch_ratio` must be in \(0, 1/3\]. Received: 0.5"),
        ({"branch_ratio": 0.0}, "`branch_ratio` must be in"),
    ],
)
def test_refuses_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        InceptionDepthwiseConv2D(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 4, 7), "needs at least 8 channels. Received: 7"),
        ((2, 4, 8), r"needs inputs \[batch, height, width, channels\]"),
    ],
)
def test_refuses_unfit_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        InceptionDepthwiseConv2D()(np.zeros(shape, "float32"))
