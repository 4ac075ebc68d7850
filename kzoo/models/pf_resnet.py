"""ResNets whose bottlenecks mix positions by pooling, which has no weights.

    y = ReLU(x + BN(Conv1x1(4 c)(S(ReLU(BN(Conv1x1(c)(x)))))))

S is 3x3 max-pooling in the efficient bottleneck, where a ResNet has a 3x3 convolution. All blocks
of ResNet50-max are such; in ResNet50-hybrid the three that halve the map keep their convolution,
behind 2x2 average pooling. Without the convolutions, 9 sum(c^2) of their weights are gone.

"Learning Features with Parameter-Free Layers", Han, Yoo, Kim, Heo, 2022, arXiv 2202.02777;
sections 3 and 4.1. The hybrid's placement is that of the authors' code.

Open choice: whether BN-ReLU follow S. `pool_norm=True` keeps them where a ResNet has them, so that
nothing but the convolution is replaced (14,239,784 parameters); the authors' code, and therefore
their checkpoints, have none (`pool_norm=False`, 14,232,232 parameters). The paper: 14.2 million.

Deviations: epsilon of BN is 1.001e-5 (authors: 1e-5), and convolutions begin with He's
initialisation. The paper's deformable max-pooling, which learns where it looks, is left out.
"""

import re

import keras

from kzoo.models.builder import (
    HE_FAN_OUT,
    batch_norm,
    bn_relu,
    build_image_model,
    conv,
    padded_conv,
    preprocess_as_torch,
    stage_end,
    stem_pool,
)
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Learning Features with Parameter-Free Layers",
    authors=("Dongyoon Han", "YoungJoon Yoo", "Beomyoung Kim", "Byeongho Heo"),
    year=2022,
    arxiv="2202.02777",
)
_TRAINED = ("conv", "pooled_conv", "depthwise")
SPATIAL = ("max", "average", "identity", *_TRAINED)


preprocess_input = preprocess_as_torch


def efficient_bottleneck(x, filters, name, strides=1, spatial="max", pool_norm=True):
    """Returns ReLU(skip(x) + F(x)), a bottleneck with any spatial operation.

    Args:
        filters: c, the maps that the spatial operation sees; there are 4 c in the result.
        strides: by how much the map shrinks.
        spatial: "max" or "average" (3x3 pooling), "identity" (subsampling, where it is strided),
            or with weights: "conv" (3x3), "pooled_conv" (3x3, behind average pooling of size
            `strides`) or "depthwise" (3x3).
        pool_norm: whether BN-ReLU follow a spatial operation without weights, as they follow one
            with weights.
    """
    skip = x
    if strides > 1 or x.shape[-1] != 4 * filters:
        skip = batch_norm(conv(4 * filters, 1, f"{name}_0_conv", strides)(x), f"{name}_0_bn")
    y = bn_relu(conv(filters, 1, f"{name}_1_conv")(x), f"{name}_1_")
    y = _spatial(y, spatial, strides, f"{name}_2_")
    if pool_norm or spatial in _TRAINED:
        y = bn_relu(y, f"{name}_2_")
    y = batch_norm(conv(4 * filters, 1, f"{name}_3_conv")(y), f"{name}_3_bn")
    y = keras.layers.Add(name=f"{name}_add")([skip, y])
    return keras.layers.Activation("relu", name=f"{name}_out")(y)


def _spatial(x, kind, strides, name):
    if kind == "max" and strides == 1:
        return keras.layers.MaxPooling2D(3, 1, padding="same", name=f"{name}pool")(x)
    if kind in ("max", "average"):
        pooling = keras.layers.MaxPooling2D if kind == "max" else keras.layers.AveragePooling2D
        # A border of zeros is below no value behind a ReLU.
        x = keras.layers.ZeroPadding2D(1, name=f"{name}pad")(x)
        return pooling(3, strides, name=f"{name}pool")(x)
    if kind == "identity":
        return keras.layers.MaxPooling2D(1, strides, name=f"{name}pool")(x) if strides > 1 else x
    if kind == "depthwise":
        return _depthwise(x, strides, name)
    if kind == "pooled_conv" and strides > 1:
        x = keras.layers.AveragePooling2D(strides, padding="same", name=f"{name}pool")(x)
        strides = 1
    return padded_conv(x, x.shape[-1], 3, f"{name}conv", strides)


def _depthwise(x, strides, name):
    x = keras.layers.ZeroPadding2D(1, name=f"{name}pad")(x)
    initializer = keras.initializers.VarianceScaling(**HE_FAN_OUT)
    return keras.layers.DepthwiseConv2D(
        3, strides, use_bias=False, depthwise_initializer=initializer, name=f"{name}conv"
    )(x)


def pflayer_name(layer):
    """The name of a layer in the authors' checkpoints."""
    if found := re.fullmatch(r"conv1_(conv|bn)", layer):
        return f"conv1.{('conv', 'bn').index(found[1])}"
    if found := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        parent = f"layer{int(found[1]) - 1}.{int(found[2]) - 1}"
        part, index = int(found[3]), ("conv", "bn").index(found[4])
        if part == 2:
            # Behind average pooling, which is the first of two modules there.
            return f"{parent}.conv_block.1.{index}", f"{parent}.conv_block.{index}"
        return f"{parent}.{('downsample', 'reduction_block', '', 'expansion_block')[part]}.{index}"
    return "fc"


@component(
    PAPER,
    example=Example(
        kwargs={"blocks": (1, 1), "width": 4, "input_shape": (16, 16, 3), "classes": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 16, 16, 3)).astype("float32"),),
    ),
)
def ParameterFreeResNet(
    blocks,
    spatial="max",
    strided_spatial=None,
    pool_norm=True,
    width=64,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="parameter_free_resnet",
):
    """A ResNet of bottlenecks with any spatial operation.

    Args:
        blocks: number of bottlenecks of each stage.
        spatial: operation of the bottlenecks: "max", "average", "identity", "conv", "pooled_conv"
            or "depthwise", see `efficient_bottleneck`. Defaults to "max".
        strided_spatial: that of the bottlenecks that halve the map. Defaults to `spatial`.
        pool_norm: whether BN-ReLU follow an operation without weights; False for the authors'
            checkpoints. Defaults to True.
        width: maps that the spatial operations of the first stage see, twice as many in each
            further stage. Defaults to 64.
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of the authors (the input then needs
            `kzoo.models.pf_resnet.preprocess_input`, and the model `pool_norm=False`).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are any
            or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Han et al. (2022), section 4.1, arxiv.org/abs/2202.02777
    """
    strided_spatial = strided_spatial or spatial
    for argument, kind in (("spatial", spatial), ("strided_spatial", strided_spatial)):
        if kind not in SPATIAL:
            raise ValueError(f"`{argument}` must be one of {SPATIAL}. Received: {kind!r}")
    blocks = tuple(blocks)
    if not blocks or not all(isinstance(size, int) and size > 0 for size in (*blocks, width)):
        raise ValueError(
            f"`blocks` and `width` must be positive integers. Received: {blocks} and {width!r}"
        )

    def features(x):
        x = stem_pool(bn_relu(padded_conv(x, 64, 7, "conv1_conv"), "conv1_"))
        for stage, count in enumerate(blocks, 2):
            for block in range(1, count + 1):
                strides = 2 if stage > 2 and block == 1 else 1
                kind = strided_spatial if strides > 1 else spatial
                block_name = f"conv{stage}_block{block}"
                filters = width * 2 ** (stage - 2)
                x = efficient_bottleneck(x, filters, block_name, strides, kind, pool_norm)
            x = stage_end(x, stage)
        return x

    return build_image_model(
        features,
        default_shape=(224, 224, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        torch_names=pflayer_name,
    )


@component(PAPER)
def ResNet50Max(name="resnet50_max", **kwargs):
    """ResNet-50 without spatial convolutions; see `ParameterFreeResNet` for the arguments."""
    return ParameterFreeResNet((3, 4, 6, 3), name=name, **kwargs)


@component(PAPER)
def ResNet50Hybrid(name="resnet50_hybrid", **kwargs):
    """ResNet-50 with spatial convolutions only where a stage halves the map.

    See `ParameterFreeResNet` for the arguments.
    """
    return ParameterFreeResNet((3, 4, 6, 3), strided_spatial="pooled_conv", name=name, **kwargs)
