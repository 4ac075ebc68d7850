import keras
import numpy as np
import pytest

from kzoo.layers.hypercomplex import PHMConv2D
from kzoo.models import feature_pyramid
from kzoo.models.phc_resnet import PHCResNet

pytestmark = pytest.mark.paper(
    "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions"
)

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def convolutions(depth, widths, channels):
    """(channels in, channels out, places) of each convolution of the real net."""
    yield channels, widths[0], 9
    channels = widths[0]
    for stage, (count, width) in enumerate(zip(BLOCKS[depth], widths, strict=True)):
        outputs = width if depth < 50 else 4 * width
        for block in range(count):
            if (stage > 0 and block == 0) or channels != outputs:
                yield channels, outputs, 1
            if depth < 50:
                yield from [(channels, width, 9), (width, width, 9)]
            else:
                yield from [(channels, width, 1), (width, width, 9), (width, outputs, 1)]
            channels = outputs


def conv_parameters(model):
    return sum(layer.count_params() for layer in model.layers if isinstance(layer, PHMConv2D))


@pytest.mark.parametrize(
    ("depth", "n", "widths"),
    [(18, 4, (64, 128, 256, 512)), (18, 3, (60, 120, 240, 516)), (50, 2, (64, 128, 256, 512))],
)
def test_convolutions_have_an_nth_of_the_real_weights(depth, n, widths):
    model = PHCResNet(depth, n, include_top=False)
    padded = 3 if n == 3 else 4
    expected = [n**3 + s * d * k // n for s, d, k in convolutions(depth, widths, padded)]
    assert conv_parameters(model) == sum(expected)
    real = sum(s * d * k for s, d, k in convolutions(depth, widths, 3))
    assert sum(expected) / real < 1.02 / n


def test_quaternion_net_has_less_than_27_percent_of_the_real_nets_weights():
    """The real ResNet-18 for CIFAR has 11 173 962 weights, 11 159 232 of them in convolutions."""
    model = PHCResNet(18, n=4)
    real = sum(s * d * k for s, d, k in convolutions(18, (64, 128, 256, 512), 3))
    # batch norms: 5 of 64, 5 of each other width with its skip path; then the classifier
    norms = 2 * (5 * 64 + 5 * (128 + 256 + 512))
    assert real + norms + 5130 == 11_173_962
    assert conv_parameters(model) <= 0.27 * real
    assert model.count_params() <= 0.27 * 11_173_962


def test_output_is_a_distribution_and_stages_are_marked(rng):
    model = PHCResNet(50, n=2, widths=(2, 4, 4, 4), classes=7, input_shape=(None, None, 3))
    outputs = model(rng.normal(size=(2, 9, 12, 3)))
    assert outputs.shape == (2, 7)
    np.testing.assert_allclose(np.sum(outputs, axis=1), 1, rtol=1e-5)
    pyramid = feature_pyramid(model)
    sizes = [level.shape[1:3] for level in pyramid(rng.normal(size=(1, 16, 8, 3))).values()]
    assert sizes == [(16, 8), (8, 4), (4, 2), (2, 1)]


def test_real_algebra_gives_the_real_resnet(float64, rng):
    """n = 1 and A = 1: the same outputs as the net written with Keras's convolutions."""
    model = PHCResNet(18, n=1, widths=(3, 4, 4, 5), classifier_activation=None,
                      input_shape=(8, 8, 3))  # fmt: skip
    for variable in model.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        if variable.path.endswith("algebra"):
            variable.assign([[[1.0]]])
    images = rng.normal(size=(2, 8, 8, 3))

    def conv(x, name, strides=1):
        kernel = model.get_layer(name).component_kernels[0]
        size = kernel.shape[0] // 2
        x = np.pad(x, [(0, 0), (size, size), (size, size), (0, 0)])
        return keras.ops.conv(x, kernel, strides, "valid")

    def norm(x, name):
        gamma, beta, mean, variance = model.get_layer(name).get_weights()
        return np.array(gamma * (x - mean) / np.sqrt(variance + 1.001e-5) + beta)

    x = np.maximum(norm(conv(images, "conv1_conv"), "conv1_bn"), 0)
    for stage in (2, 3, 4, 5):
        for block in (1, 2):
            name = f"conv{stage}_block{block}_"
            strides = 2 if stage > 2 and block == 1 else 1
            y = np.maximum(norm(conv(x, f"{name}1_conv", strides), f"{name}1_bn"), 0)
            y = norm(conv(y, f"{name}2_conv"), f"{name}2_bn")
            if strides == 2:
                x = norm(conv(x, f"{name}0_conv", strides), f"{name}0_bn")
            x = np.maximum(x + y, 0)
    kernel, bias = model.get_layer("predictions").get_weights()
    np.testing.assert_allclose(model(images), x.mean((1, 2)) @ kernel + bias, rtol=1e-9)


def test_missing_channels_are_zeros_in_front(rng):
    image = rng.normal(size=(2, 4, 4, 3)).astype("float32")
    kwargs = {"widths": (4, 4, 4, 4), "include_top": False}
    padding = PHCResNet(18, 4, input_shape=(4, 4, 3), **kwargs)
    given = PHCResNet(18, 4, input_shape=(4, 4, 4), **kwargs)
    given.set_weights(padding.get_weights())
    quaternions = np.concatenate([np.zeros((2, 4, 4, 1), "float32"), image], axis=-1)
    np.testing.assert_array_equal(padding(image), given(quaternions))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 20}, "`depth` must be one of 18, 34, 50, 101, 152. Received: 20"),
        ({"n": 0}, "`n` must be a positive integer. Received: 0"),
        ({"n": 5}, "`n` must divide .* where `widths` is None. Received: 5"),
        ({"widths": (4, 8, 8, 6)}, "`widths` must be four multiples of n = 4"),
        ({"widths": (4, 8)}, "`widths` must be four multiples of n = 4"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PHCResNet(**kwargs)
