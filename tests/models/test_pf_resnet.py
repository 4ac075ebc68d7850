import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models import feature_pyramid, load_torch_weights
from kzoo.models.pf_resnet import (
    SPATIAL,
    ParameterFreeResNet,
    ResNet50Hybrid,
    ResNet50Max,
    efficient_bottleneck,
    pflayer_name,
    preprocess_input,
)

pytestmark = pytest.mark.paper("Learning Features with Parameter-Free Layers")

BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


def count(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def squares(blocks):
    return sum(number * width**2 for number, width in zip(blocks, WIDTHS, strict=True))


@pytest.fixture(scope="module")
def resnet50_max():
    return ResNet50Max()


def test_parameters_without_the_convolutions(resnet50_max):
    regular = count(ParameterFreeResNet(BLOCKS, spatial="conv"))
    assert regular == 25_557_032  # ResNet-50
    assert count(resnet50_max) == 14_239_784
    assert regular - count(resnet50_max) == 9 * squares(BLOCKS) == 11_317_248


def test_parameters_of_the_published_checkpoints():
    # Without BN behind the pooling, gamma and beta of every block are gone as well.
    norms = [2 * n * width for n, width in zip(BLOCKS, WIDTHS, strict=True)]
    assert count(ResNet50Max(pool_norm=False)) == 14_239_784 - sum(norms) == 14_232_232
    kept = 9 * squares((0, 1, 1, 1))
    assert count(ResNet50Hybrid()) == 14_239_784 + kept
    hybrid = count(ResNet50Hybrid(pool_norm=False))
    assert hybrid == 14_232_232 + kept + 2 * sum(WIDTHS[1:]) == 17_330_600
    assert round(hybrid / 1e6, 1) == 17.3


@pytest.mark.parametrize(
    ("make", "published"), [(ResNet50Max, 2.2), (ResNet50Hybrid, 2.6)], ids=["max", "hybrid"]
)
def test_multiply_adds_as_published(make, published):
    """In G, of one image of 224 x 224."""
    model = make(pool_norm=False)
    call = tf.function(lambda x: model(x, training=False))
    graph = call.get_concrete_function(tf.TensorSpec((1, 224, 224, 3))).graph
    multiply_adds = sum(
        np.prod(op.outputs[0].shape) * np.prod(op.inputs[1].shape[:-1])
        for op in graph.get_operations()
        if op.type in ("Conv2D", "MatMul")
    )
    assert round(multiply_adds / 1e9, 1) == published


def test_only_pointwise_kernels_are_trained(resnet50_max):
    sizes = {
        layer.kernel_size
        for layer in resnet50_max.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.name != "conv1_conv"
    }
    assert sizes == {(1, 1)}
    pools = [layer for layer in resnet50_max.layers if layer.name.endswith("_2_pool")]
    assert len(pools) == 16
    assert not any(layer.weights for layer in pools)


def test_convolutions_of_the_hybrid_are_where_maps_are_halved():
    names = [layer.name for layer in ResNet50Hybrid(input_shape=(32, 32, 3)).layers]
    assert [name for name in names if name.endswith("_2_conv")] == [
        f"conv{stage}_block1_2_conv" for stage in (3, 4, 5)
    ]
    assert sum(name.endswith("_2_pool") for name in names) == 16


@pytest.mark.parametrize("size", [64, 61])
@pytest.mark.parametrize("make", [ResNet50Max, ResNet50Hybrid])
def test_strides_of_the_stages(make, size):
    pyramid = feature_pyramid(make(include_top=False, input_shape=(size, size, 3)))
    shapes = {name: tuple(x.shape[1:]) for name, x in pyramid.output.items()}
    assert shapes == {
        "P2": (16, 16, 256), "P3": (8, 8, 512), "P4": (4, 4, 1024), "P5": (2, 2, 2048),
    }  # fmt: skip


def windows(x, strides, fill):
    """[batch, height, width, channels, 9]: the 3 x 3 neighbours, `fill` outside of the map."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    cut = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return cut[:, ::strides, ::strides].reshape(*cut[:, ::strides, ::strides].shape[:4], 9)


def spatial_by_hand(kind, x, strides, kernel):
    """What PyTorch computes with padding 1, in NumPy."""
    if kind == "max":
        return windows(x, strides, -np.inf).max(axis=-1)
    if kind == "average":
        return windows(x, strides, 0).mean(axis=-1)
    if kind == "identity":
        return x[:, ::strides, ::strides]
    if kind == "depthwise":
        return np.einsum("bhwck,kc->bhwc", windows(x, strides, 0), kernel.reshape(9, -1))
    if kind == "pooled_conv" and strides == 2:
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        strides = 1
    return np.einsum(
        "bhwck,kco->bhwo", windows(x, strides, 0), kernel.reshape(9, *kernel.shape[2:])
    )


@pytest.mark.parametrize("pool_norm", [True, False])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("kind", SPATIAL)
def test_block_is_its_equation(float64, rng, kind, strides, pool_norm):
    inputs = keras.Input((6, 8, 12))
    outputs = efficient_bottleneck(inputs, 3, "block", strides, kind, pool_norm)
    model = keras.Model(inputs, outputs)
    for weight in model.weights:
        variance = weight.path.endswith("variance")
        shape = weight.shape
        weight.assign(rng.uniform(0.5, 2, shape) if variance else rng.normal(size=shape))
    arrays = {weight.path: np.asarray(weight) for weight in model.weights}

    def norm(x, name):
        mean, variance = (arrays[f"{name}/moving_{what}"] for what in ("mean", "variance"))
        x = (x - mean) / np.sqrt(variance + 1.001e-5)
        return x * arrays[f"{name}/gamma"] + arrays[f"{name}/beta"]

    def pointwise(x, step):
        return norm(x @ arrays[f"block_{step}_conv/kernel"][0, 0], f"block_{step}_bn")

    x = rng.normal(size=(2, 6, 8, 12))
    y = np.maximum(pointwise(x, 1), 0)
    y = spatial_by_hand(kind, y, strides, arrays.get("block_2_conv/kernel"))
    has_norm = pool_norm or kind in ("conv", "pooled_conv", "depthwise")
    assert has_norm == ("block_2_bn/gamma" in arrays)
    if has_norm:
        y = np.maximum(norm(y, "block_2_bn"), 0)
    skip = pointwise(x[:, ::strides, ::strides], 0) if strides == 2 else x
    expected = np.maximum(skip + pointwise(y, 3), 0)
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-6)


def checkpoint(rng, blocks, widths, classes):
    """A state dictionary of a hybrid with the names and orders of the authors' code."""
    state = {}

    def add(conv, norm, *shape):
        state[f"{conv}.weight"] = rng.normal(size=shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = rng.uniform(0.5, 1.5, size=shape[0])
        state[f"{norm}.num_batches_tracked"] = np.array(3)

    add("conv1.0", "conv1.1", 64, 3, 7, 7)
    before = 64
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            for part, shape in (
                ("reduction_block", (width, before, 1, 1)),
                ("expansion_block", (4 * width, width, 1, 1)),
                ("downsample", (4 * width, before, 1, 1)),
            ):
                if part != "downsample" or block == 0:
                    add(f"{name}.{part}.0", f"{name}.{part}.1", *shape)
            if stage > 1 and block == 0:
                conv = f"{name}.conv_block.1"
                add(f"{conv}.0", f"{conv}.1", width, width, 3, 3)
            before = 4 * width
    state["fc.weight"], state["fc.bias"] = rng.normal(size=(classes, before)), np.zeros(classes)
    return state


def test_takes_the_layout_of_the_published_checkpoints(rng):
    state = checkpoint(rng, (2, 1), (4, 8), 3)
    options = {"width": 4, "strided_spatial": "pooled_conv", "classes": 3}
    model = ParameterFreeResNet((2, 1), pool_norm=False, input_shape=(32, 32, 3), **options)
    load_torch_weights(model, state, pflayer_name)
    kernel = np.moveaxis(state["layer2.0.conv_block.1.0.weight"], (0, 1), (-1, -2))
    np.testing.assert_allclose(model.get_layer("conv3_block1_2_conv").kernel, kernel, rtol=1e-6)
    np.testing.assert_allclose(
        model.get_layer("conv2_block1_0_bn").gamma, state["layer1.0.downsample.1.weight"], rtol=1e-6
    )
    other = ParameterFreeResNet((2, 1), input_shape=(32, 32, 3), **options)
    with pytest.raises(ValueError, match=r"no tensors for conv2_block1_2_bn/gamma"):
        load_torch_weights(other, state, pflayer_name)


def test_names_of_the_resnet50_checkpoints(resnet50_max):
    names = [pflayer_name(layer.name) for layer in resnet50_max.layers if layer.weights]
    flat = [name if isinstance(name, str) else name[1] for name in names]
    assert len(set(flat)) == len(flat)
    pattern = r"conv1\.[01]|fc|layer[1-4]\.\d\.(reduction|conv|expansion)_block\.[01]|"
    pattern += r"layer[1-4]\.0\.downsample\.[01]"
    assert all(re.fullmatch(pattern, name) for name in flat)


def test_preprocessing(rng):
    images = rng.integers(0, 256, size=(2, 4, 4, 3)).astype("uint8")
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess_input(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ParameterFreeResNet((1,), "median"), "`spatial` must be one of .*'median'"),
        (
            lambda: ParameterFreeResNet((1,), strided_spatial="sum"),
            "`strided_spatial` must be one of",
        ),
        (lambda: ParameterFreeResNet((2, 0)), "`blocks` and `width` must be positive integers"),
        (lambda: ParameterFreeResNet(()), "`blocks` and `width` must be positive integers"),
        (lambda: ParameterFreeResNet((1,), width=0), "`blocks` and `width` must be positive"),
        (lambda: ResNet50Max(classes=-1), "`classes` must be a positive integer"),
        (lambda: ResNet50Hybrid(weights="imagenet"), 'weights="imagenet" exists'),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
