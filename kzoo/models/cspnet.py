"""Cross-stage-partial ResNet, ResNeXt and Darknet.

    x_U = w_U * [x_0', w_T * blocks(x_0'')],   [x_0', x_0''] = the two halves of Conv1x1(x)

"CSPNet: A New Backbone that can Enhance Learning Capability of CNN", Wang, Liao, Yeh, Wu, Chen,
Hsieh, 2019, arXiv 1911.11929; sections 3.1 and 4.

The models have the layout of timm, whose checkpoints they take: one 1x1 convolution before the
split (the authors' files have one on either path, and a first stage of its own kind), leaky ReLU
with a slope of 0.01 (the authors: 0.1), batch norm with momentum 0.9 and epsilon 1e-5, scales of 0
at first in the last batch norm of each block. The ResNet and ResNeXt models split before the
activation: their 1x1 convolution is linear. `kzoo.models.csp_densenet` has the DenseNet.
"""

import re

import keras

from kzoo.models.builder import (
    batch_norm,
    build_image_model,
    conv,
    preprocess_as_torch,
    stage_end,
)
from kzoo.models.cross_stage_partial import PAPER, cross_stage_partial
from kzoo.papers import Example, component

# Less than any feature, and finite in every precision: minus infinity makes NaN of differences.
_LEAST = -65504.0


preprocess_input = preprocess_as_torch


def _leaky_relu(x, name):
    return keras.layers.LeakyReLU(negative_slope=0.01, name=name)(x)


def _conv_norm_act(x, filters, kernel_size, name, strides=1, groups=1, activation=True, **norm):
    """A convolution padded evenly, batch norm, and leaky ReLU unless `activation` is False."""
    if strides > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    padding = "valid" if strides > 1 else "same"
    x = conv(filters, kernel_size, f"{name}_conv", strides, padding=padding, groups=groups)(x)
    x = batch_norm(x, f"{name}_bn", epsilon=1e-5, **norm)
    return _leaky_relu(x, f"{name}_act") if activation else x


def _bottleneck(x, filters, groups, name):
    """A block of ResNet or ResNeXt."""
    y = _conv_norm_act(x, filters, 1, f"{name}_1")
    y = _conv_norm_act(y, filters, 3, f"{name}_2", groups=groups)
    last = {"activation": False, "gamma_initializer": "zeros"}
    y = _conv_norm_act(y, x.shape[-1], 1, f"{name}_3", **last)
    return _leaky_relu(keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_out")


def _dark_block(x, filters, groups, name):
    """A block of Darknet; its sum is not rectified."""
    y = _conv_norm_act(x, filters, 1, f"{name}_1")
    y = _conv_norm_act(y, x.shape[-1], 3, f"{name}_2", gamma_initializer="zeros", groups=groups)
    return keras.layers.Add(name=f"{name}_add")([x, y])


_BLOCKS = {"resnet": _bottleneck, "resnext": _bottleneck, "darknet": _dark_block}


def _stage(x, block, number, depth, width, strides, groups):
    """Stage `number`, from 1, with `depth` blocks between two transitions to `width` maps."""
    name, dark = f"stage{number}", block == "darknet"
    if strides > 1:
        down = width if dark else x.shape[-1]
        x = _conv_norm_act(x, down, 3, f"{name}_down", strides, groups)
    wide = block == "resnet" or (dark and number == 1)
    path = width if wide else width // 2
    x = _conv_norm_act(x, 2 * path, 1, f"{name}_exp", activation=dark)

    def blocks(y):
        for index in range(1, depth + 1):
            y = _BLOCKS[block](y, width // 2, groups, f"{name}_block{index}")
        return y

    return cross_stage_partial(
        x,
        blocks,
        partial_transition=lambda y: _conv_norm_act(y, path, 1, f"{name}_transition_b"),
        transition=lambda y: _conv_norm_act(y, width, 1, f"{name}_transition"),
        name=name,
    )


def _features(block, depths, widths, stem_filters, groups):
    """The stem and the stages; Darknet halves the image in each stage, the others begin at 4."""

    def features(x):
        dark = block == "darknet"
        if dark:
            x = _conv_norm_act(x, stem_filters, 3, "stem_conv1")
        else:
            x = _stem_pool(_conv_norm_act(x, stem_filters, 7, "stem_conv1", strides=2))
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            strides = 2 if dark or number > 1 else 1
            x = _stage(x, block, number, depth, width, strides, groups)
            x = stage_end(x, number if dark else number + 1)
        return x

    return features


def _stem_pool(x):
    """3x3 max-pooling of stride 2, the border left out, also where all features are negative."""
    x = keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=_LEAST)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def timm_name(layer):
    """The name of a layer in the checkpoints of timm."""
    if found := re.fullmatch(r"stem_conv1_(conv|bn)", layer):
        return f"stem.conv1.{found[1]}"
    if found := re.fullmatch(r"stage(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        stage, block, step, kind = found.groups()
        return f"stages.{int(stage) - 1}.blocks.{int(block) - 1}.conv{step}.{kind}"
    if found := re.fullmatch(r"stage(\d)_(\w+)_(conv|bn)", layer):
        return f"stages.{int(found[1]) - 1}.conv_{found[2]}.{found[3]}"
    return "head.fc"


@component(
    PAPER,
    example=Example(
        kwargs={
            "block": "resnext",
            "depths": (1, 1),
            "widths": (8, 16),
            "stem_filters": 4,
            "groups": 2,
            "input_shape": (12, 12, 3),
            "classes": 3,
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 12, 12, 3)).astype("float32"),),
    ),
)
def CSPNet(
    block,
    depths,
    widths,
    stem_filters=64,
    groups=1,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="cspnet",
):
    """A cross-stage-partial ResNet, ResNeXt or Darknet of any size.

    Half of a stage's maps go through its blocks, half around them.

    Args:
        block: "resnet", "resnext" or "darknet". The first two begin with a 7x7 convolution and a
            max-pooling, which make images 4 times smaller, the last with a 3x3 convolution.
        depths: number of blocks of each stage. All stages of "darknet" halve the maps, those of
            the others from the second on.
        widths: channels of each stage's output, even.
        stem_filters: channels before the first stage. Defaults to 64.
        groups: of the 3x3 convolutions of "resnext"; twice it divides all widths. Defaults to 1.
        include_top: whether the classifier is part of the model; else it ends with the last stage.
        weights: None for random ones, or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of timm (the input then needs
            `kzoo.models.cspnet.preprocess_input`).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (256, 256, 3). Height and width are any
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
        Wang et al. (2019), section 3.1, arxiv.org/abs/1911.11929
    """
    depths, widths = tuple(depths), tuple(widths)
    _check_layout(block, depths, widths, stem_filters, groups)
    return build_image_model(
        _features(block, depths, widths, stem_filters, groups),
        default_shape=(256, 256, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        torch_names=timm_name,
    )


def _check_layout(block, depths, widths, stem_filters, groups):
    if block not in _BLOCKS:
        raise ValueError(f"`block` must be one of {', '.join(_BLOCKS)}. Received: {block!r}")
    sizes = {
        "depths": depths,
        "widths": widths,
        "stem_filters": (stem_filters,),
        "groups": (groups,),
    }
    for argument, numbers in sizes.items():
        if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"`{argument}` must be positive integers. Received: {numbers}")
    if len(depths) != len(widths):
        raise ValueError(
            "`depths` and `widths` must have one number for each stage. Received: "
            f"{depths} and {widths}"
        )
    if groups > 1 and block != "resnext":
        raise ValueError(f'`groups` must be 1 unless `block` is "resnext". Received: {groups}')
    if any(width % (2 * groups) for width in widths):
        raise ValueError(
            f"`widths` must be multiples of {2 * groups}, twice the `groups`. Received: {widths}"
        )


def _variant(title, **layout):
    """Makes the constructor of a published model."""

    default_name = title.lower()

    def build(name=default_name, **kwargs):
        return CSPNet(**layout, name=name, **kwargs)

    build.__name__ = build.__qualname__ = title
    build.__doc__ = f"""{title}: stages of {layout["depths"]} blocks, {layout["widths"]} wide.

    Args:
        name: of the model.
        kwargs: `include_top`, `weights` and all others of `CSPNet` from there on.

    Reference:
        Wang et al. (2019), section 4, arxiv.org/abs/1911.11929
    """
    return component(PAPER)(build)


CSPResNet50 = _variant(
    "CSPResNet50", block="resnet", depths=(3, 3, 5, 2), widths=(128, 256, 512, 1024)
)
CSPResNeXt50 = _variant(
    "CSPResNeXt50", block="resnext", depths=(3, 3, 5, 2), widths=(256, 512, 1024, 2048), groups=32
)
CSPDarkNet53 = _variant(
    "CSPDarkNet53",
    block="darknet",
    depths=(1, 2, 8, 8, 4),
    widths=(64, 128, 256, 512, 1024),
    stem_filters=32,
)
