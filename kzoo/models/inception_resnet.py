"""Inception-ResNet: Inception blocks that are added to their input instead of replacing it.

    y = ReLU(x + scale * Conv1x1(concat(branches(x))))

The 1x1 convolution is linear and gives the residual the depth of x; it has a bias and no BN, so
that more blocks fit into memory. Scaling the residual by 0.1 to 0.3 keeps wide nets stable
(`kzoo.layers.ScaledResidual`). 5 A blocks, Reduction-A, 10 B blocks, Reduction-B and 5 C blocks
follow a stem; v1 has about the cost of Inception-v3, v2 that of Inception-v4.

"Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy,
Ioffe, Vanhoucke, Alemi, 2016, arXiv 1602.07261; sections 3.2 and 3.3, figures 7 and 10 to 20.

Deviations: InceptionResNetV2 is that of the authors' code, of `keras.applications` and of timm,
whose weights it takes: the stem of v1 up to 192 maps with an Inception block of four branches,
10, 20 and 10 blocks, of which the last has neither scaling nor ReLU, and a 1x1 convolution to 1536
maps at the end. `layout="paper"` is the net of the figures. There figures 17 and 19 give the
1x1 convolutions 1154 and 2048 filters, which cannot be added to 1152 and 2144 maps; the depth of
x holds here.

Open choices: the scales 0.17, 0.10 and 0.20 are those of the authors' code; BN has epsilon 1e-3 as
there, and Keras's momentum 0.99; kernels begin He-normal. `width` and `blocks` are ours to change,
for small data.
"""

import functools
import re

from kzoo.layers.scaled_residual import PAPER
from kzoo.models.builder import build_image_model, stage_end
from kzoo.models.inception_blocks import (
    AVG,
    MAX,
    MIN_SIZE,
    Conv,
    InceptionLayers,
    check_inception,
    dropout_head,
    inception_v4_stem,
    pool,
    preprocess_input,
    reduction_a,
    split_name,
)
from kzoo.models.torch_weights import is_torch_file
from kzoo.papers import Example, component

__all__ = ["InceptionResNetV1", "InceptionResNetV2", "preprocess_input"]

_SCALES = (0.17, 0.10, 0.20)

_V1_BLOCKS = (
    ((Conv(32, 1),), (Conv(32, 1), Conv(32, 3)), (Conv(32, 1), Conv(32, 3), Conv(32, 3))),
    ((Conv(128, 1),), (Conv(128, 1), Conv(128, (1, 7)), Conv(128, (7, 1)))),
    ((Conv(192, 1),), (Conv(192, 1), Conv(192, (1, 3)), Conv(192, (3, 1)))),
)
_V2_BLOCKS = (
    ((Conv(32, 1),), (Conv(32, 1), Conv(32, 3)), (Conv(32, 1), Conv(48, 3), Conv(64, 3))),
    ((Conv(192, 1),), (Conv(128, 1), Conv(160, (1, 7)), Conv(192, (7, 1)))),
    ((Conv(192, 1),), (Conv(192, 1), Conv(224, (1, 3)), Conv(256, (3, 1)))),
)
_V1_REDUCTION_B = (
    (Conv(256, 1), Conv(384, 3, 2, "valid")),
    (Conv(256, 1), Conv(256, 3, 2, "valid")),
    (Conv(256, 1), Conv(256, 3), Conv(256, 3, 2, "valid")),
    (MAX,),
)
_V2_REDUCTION_B = (
    (Conv(256, 1), Conv(384, 3, 2, "valid")),
    (Conv(256, 1), Conv(288, 3, 2, "valid")),
    (Conv(256, 1), Conv(288, 3), Conv(320, 3, 2, "valid")),
    (MAX,),
)
_V1_REDUCTIONS = (reduction_a(192, 192, 256, 384), _V1_REDUCTION_B)
_V2_REDUCTIONS = (reduction_a(256, 256, 384, 384), _V2_REDUCTION_B)
_MIXED_5B = (
    (Conv(96, 1),),
    (Conv(48, 1), Conv(64, 5)),
    (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
    (AVG, Conv(64, 1)),
)
# What the blocks of each stage, and the reductions before it, are called in the authors' code.
_BLOCK_NAMES = ("block35", "block17", "block8")
_REDUCTION_NAMES = (None, "mixed6a", "mixed7a")


def _stem(layers, x):
    """The layers of figure 14 up to 71x71x192."""
    x = layers.conv(x, Conv(32, 3, 2, "valid"), "conv1a")
    x = layers.conv(x, Conv(32, 3, 1, "valid"), "conv2a")
    x = stage_end(layers.conv(x, Conv(64, 3), "conv2b"), 1)
    x = pool(x, MAX, "stem3a")
    x = layers.conv(x, Conv(80, 1), "conv3b")
    return stage_end(layers.conv(x, Conv(192, 3, 1, "valid"), "conv4a"), 2)


def _residual_stages(layers, x, branches, reductions, blocks, scales):
    """Residual blocks with reductions between them; the last stage is not marked yet."""
    for stage, (count, scale) in enumerate(zip(blocks, scales, strict=True)):
        if stage:
            x = stage_end(x, stage + 2)
            x = layers.block(x, reductions[stage - 1], _REDUCTION_NAMES[stage])
        for number in range(1, count + 1):
            name = f"{_BLOCK_NAMES[stage]}_{number}"
            x = layers.residual_block(x, branches[stage], scale, name)
    return x


def _features_v1(layers, blocks, scales):
    def features(x):
        x = layers.conv(_stem(layers, x), Conv(256, 3, 2, "valid"), "conv5a")
        x = _residual_stages(layers, x, _V1_BLOCKS, _V1_REDUCTIONS, blocks, scales)
        return stage_end(x, 5)

    return features


def _features_v2_paper(layers, blocks, scales):
    def features(x):
        x = inception_v4_stem(layers, x)
        x = _residual_stages(layers, x, _V2_BLOCKS, _V2_REDUCTIONS, blocks, scales)
        return stage_end(x, 5)

    return features


def _features_v2_code(layers, blocks, scales):
    def features(x):
        x = pool(_stem(layers, x), MAX, "stem5a")
        x = layers.block(x, _MIXED_5B, "mixed5b")
        a, b, c = blocks
        x = _residual_stages(layers, x, _V2_BLOCKS, _V2_REDUCTIONS, (a, b, c - 1), scales)
        x = layers.residual_block(x, _V2_BLOCKS[2], 1.0, f"block8_{c}", activation="linear")
        return stage_end(layers.conv(x, Conv(1536, 1), "conv7b"), 5)

    return features


_LAYOUTS = {"code": ((10, 20, 10), _features_v2_code), "paper": ((5, 10, 5), _features_v2_paper)}


def timm_name(blocks, layer):
    """The names of a layer of `InceptionResNetV2` in timm's checkpoints, one of which is there."""
    if layer == "logits":
        return "classif"
    if found := re.fullmatch(r"(block\d+_\d+)_up_conv", layer):
        return f"{_timm_block(blocks, found[1])}.conv2d"
    block, branch, step, kind = split_name(layer)
    module = _timm_block(blocks, block)
    if branch is None:
        return f"{module}.{kind}"
    return f"{module}.{branch}.{step}.{kind}", f"{module}.{branch}.{kind}"


def _timm_block(blocks, block):
    if block == f"block8_{blocks[2]}":
        return "block8"
    if found := re.fullmatch(r"(block\d+)_(\d+)", block):
        repeat = ("repeat", "repeat_1", "repeat_2")[_BLOCK_NAMES.index(found[1])]
        return f"{repeat}.{int(found[2]) - 1}"
    kind, place = re.fullmatch(r"(conv|mixed)(\d\w)", block).groups()
    return {"conv": "conv2d_", "mixed": "mixed_"}[kind] + place


def _check_scales(scales):
    if len(scales) != 3:
        raise ValueError(
            f"`scales` must be three numbers, for A, B and C blocks. Received: {scales}"
        )


def _example(blocks):
    return Example(
        kwargs={
            "input_shape": (MIN_SIZE, MIN_SIZE, 3),
            "classes": 3,
            "dropout_rate": 0.0,
            "blocks": blocks,
            "width": 1 / 32,
        },
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, MIN_SIZE, MIN_SIZE, 3)).astype("float32"),
        ),
    )


@component(PAPER, example=_example((1, 0, 0)))
def InceptionResNetV1(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    dropout_rate=0.2,
    batch_norm_scale=True,
    blocks=(5, 10, 5),
    scales=_SCALES,
    width=1.0,
    name="inception_resnet_v1",
):
    """Inception-ResNet-v1, of about the cost of Inception-v3.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last block.
        weights: None for random ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (299, 299, 3). Height and width are at
            least 75 or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        dropout_rate: of the features before the classifier, in [0, 1). Defaults to 0.2: the paper
            keeps 0.8.
        batch_norm_scale: whether BN has gammas.
        blocks: number of A, B and C blocks, each at least 0. Defaults to the paper's (5, 10, 5).
        scales: of the residuals of A, B and C blocks, each at least 0. Defaults to
            (0.17, 0.10, 0.20).
        width: factor of the number of filters of every convolution. Defaults to 1.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Szegedy et al. (2016), section 3.2, arxiv.org/abs/1602.07261
    """
    check_inception(blocks, width, dropout_rate)
    _check_scales(scales)
    return build_image_model(
        _features_v1(InceptionLayers(width, batch_norm_scale), blocks, scales),
        default_shape=(299, 299, 3),
        min_size=MIN_SIZE,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        top=dropout_head(dropout_rate),
    )


@component(PAPER, example=_example((0, 0, 1)))
def InceptionResNetV2(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    dropout_rate=0.2,
    batch_norm_scale=None,
    layout="code",
    blocks=None,
    scales=_SCALES,
    width=1.0,
    name="inception_resnet_v2",
):
    """Inception-ResNet-v2, of about the cost of Inception-v4.

    With 1000 classes it has 55,813,192 trainable parameters, and 30,272 more with BN gammas.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last
            feature map.
        weights: None for random ones; "imagenet" for those of `keras.applications`, which
            downloads them; or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of timm's `inception_resnet_v2`. The input then needs
            `kzoo.models.inception_resnet.preprocess_input`.
        input_tensor: a Keras tensor to begin with; see `InceptionResNetV1`, as are `input_shape`,
            `pooling`, `classes`, `classifier_activation`, `dropout_rate`, `scales` and `width`.
        batch_norm_scale: whether BN has gammas. Defaults to what `weights` have: True for a
            PyTorch file, else False.
        layout: "code" for the net of the authors' code, which all published weights are for;
            "paper" for that of the paper's figures.
        blocks: number of A, B and C blocks. Defaults to (10, 20, 10), and (5, 10, 5) in the paper.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range, or "imagenet" with another than the published
            architecture.

    Reference:
        Szegedy et al. (2016), sections 3.2 and 3.3, arxiv.org/abs/1602.07261
    """
    if layout not in _LAYOUTS:
        raise ValueError(f'`layout` must be "code" or "paper". Received: {layout!r}')
    published_blocks, make_features = _LAYOUTS[layout]
    blocks = published_blocks if blocks is None else tuple(blocks)
    check_inception(blocks, width, dropout_rate)
    if layout == "code" and blocks[2] == 0:
        raise ValueError(
            'With layout="code" `blocks` must have a C block, the one that ends the net. '
            f"Received: {blocks}"
        )
    _check_scales(scales)
    if batch_norm_scale is None:
        batch_norm_scale = is_torch_file(weights)
    if weights == "imagenet":
        _check_published(batch_norm_scale, layout, blocks, width, published_blocks)
    return build_image_model(
        make_features(InceptionLayers(width, batch_norm_scale), blocks, scales),
        default_shape=(299, 299, 3),
        min_size=MIN_SIZE,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        application="InceptionResNetV2",
        torch_names=functools.partial(timm_name, blocks) if layout == "code" else None,
        top=dropout_head(dropout_rate),
    )


def _check_published(batch_norm_scale, layout, blocks, width, published_blocks):
    if batch_norm_scale or layout != "code" or blocks != published_blocks or width != 1:
        raise ValueError(
            'weights="imagenet" need batch_norm_scale=False, layout="code", '
            f"blocks={published_blocks} and width=1. Received: batch_norm_scale="
            f"{batch_norm_scale}, layout={layout!r}, blocks={blocks}, width={width}"
        )
