"""ResNet of basic blocks: layers that learn a residual of their input.

    y = ReLU(F(x) + W_s x),  F = Conv3x3-BN-ReLU-Conv3x3-BN

W_s is the identity, and a strided 1x1 convolution with batch norm where the block changes the size
or the number of maps (option B).

"Deep Residual Learning for Image Recognition", He, Zhang, Ren, Sun, 2015, arXiv 1512.03385;
equation 2, figure 3, table 1.

`keras.applications` has the bottleneck models (50, 101, 152) of this paper, under the same names of
layers; the two here, of 18 and 34 layers, have the layout of torchvision.

Deviations: the paper's 18 and 34 layers of table 2 have shortcuts without parameters (option A,
padded with zeros); option B, its 34-layer net of table 3, has become the usual model. Epsilon is
1.001e-5 (torchvision: 1e-5).
"""

import re

import keras

from kzoo.models.builder import (
    batch_norm,
    bn_relu,
    build_image_model,
    conv,
    padded_conv,
    stage_end,
    stem_pool,
)
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Deep Residual Learning for Image Recognition",
    authors=("Kaiming He", "Xiangyu Zhang", "Shaoqing Ren", "Jian Sun"),
    year=2015,
    arxiv="1512.03385",
)


def basic_block(x, filters, strides, name):
    """Returns ReLU(F(x) + W_s x), with `filters` maps, `strides` times smaller than `x`."""
    skip = x
    if strides > 1 or x.shape[-1] != filters:
        skip = batch_norm(conv(filters, 1, f"{name}_0_conv", strides)(x), f"{name}_0_bn")
    y = bn_relu(padded_conv(x, filters, 3, f"{name}_1_conv", strides), f"{name}_1_")
    y = batch_norm(conv(filters, 3, f"{name}_2_conv")(y), f"{name}_2_bn")
    y = keras.layers.Add(name=f"{name}_add")([skip, y])
    return keras.layers.Activation("relu", name=f"{name}_out")(y)


def _features(blocks):
    """The stem and four stages of basic blocks, of width 64 to 512."""

    def features(x):
        x = stem_pool(bn_relu(padded_conv(x, 64, 7, "conv1_conv"), "conv1_"))
        for stage, (count, filters) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 2):
            for block in range(1, count + 1):
                strides = 2 if stage > 2 and block == 1 else 1
                x = basic_block(x, filters, strides, f"conv{stage}_block{block}")
            x = stage_end(x, stage)
        return x

    return features


def torchvision_name(layer):
    """The name of a layer in the checkpoints of torchvision."""
    if found := re.fullmatch(r"conv1_(conv|bn)", layer):
        return f"{found[1]}1"
    if found := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        stage, block, step = (int(found[i]) for i in (1, 2, 3))
        parent = f"layer{stage - 1}.{block - 1}"
        if step == 0:
            return f"{parent}.downsample.{0 if found[4] == 'conv' else 1}"
        return f"{parent}.{found[4]}{step}"
    return "fc"


def _imagenet_resnet(depth, blocks):
    """Makes the constructor of an ImageNet model."""

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=f"resnet{depth}",
    ):
        return build_image_model(
            _features(blocks),
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
            torch_names=torchvision_name,
        )

    build.__name__ = build.__qualname__ = f"ResNet{depth}"
    build.__doc__ = f"""ResNet-{depth} for ImageNet: stages of {blocks} basic blocks.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of torchvision (whose preprocessing the input then needs).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are any
            or None; 32 are halved to 1.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits, "sigmoid" for several labels. The
            output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        He et al. (2015), table 1, arxiv.org/abs/1512.03385
    """
    return component(PAPER)(build)


ResNet18 = _imagenet_resnet(18, (2, 2, 2, 2))
ResNet34 = _imagenet_resnet(34, (3, 4, 6, 3))
