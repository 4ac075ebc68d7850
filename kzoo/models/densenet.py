"""DenseNet: every layer of a block sees the feature maps of all layers before it.

    x_l = H_l([x_0, x_1, ..., x_{l-1}]),  H = BN-ReLU-Conv3x3
                                          H = BN-ReLU-Conv1x1(4k)-BN-ReLU-Conv3x3   (DenseNet-B)

H gives k feature maps, the growth rate. Between the blocks, BN-ReLU-Conv1x1 and 2x2 average pooling
keep a fraction theta of the maps (theta < 1 is DenseNet-C), so that a block of L layers has
L (L + 1) / 2 connections.

"Densely Connected Convolutional Networks", Huang, Liu, van der Maaten, Weinberger, 2016,
arXiv 1608.06993; section 3 and table 1. `recompute=True` trains as in "Memory-Efficient
Implementation of DenseNets", Pleiss et al., 2017, arXiv 1707.06990.

Deviations: the ImageNet models have the layers, their names and their order from
`keras.applications`, whose weights they take; epsilon is 1.001e-5 everywhere (torchvision: 1e-5).
DenseNet-264 has the blocks of table 1, which make 265 layers.
"""

import re

import keras

from kzoo.models.builder import (
    blocks_per_stage,
    bn_relu,
    build_image_model,
    conv,
    padded_conv,
    preprocess_as_torch,
    stage_end,
    stem_pool,
)
from kzoo.models.recompute import RecomputeModel
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Densely Connected Convolutional Networks",
    authors=("Gao Huang", "Zhuang Liu", "Laurens van der Maaten", "Kilian Q. Weinberger"),
    year=2016,
    arxiv="1608.06993",
)


preprocess_input = preprocess_as_torch


def _images(rng, batch):
    return (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),)


def dense_layer(x, growth_rate, bottleneck, dropout_rate, name):
    """Concatenates `x` and the `growth_rate` feature maps H(x)."""
    y = x
    if bottleneck:
        y = conv(4 * growth_rate, 1, f"{name}_1_conv")(bn_relu(y, f"{name}_0_"))
        y = _dropout(y, dropout_rate, f"{name}_1_dropout")
    step = 2 if bottleneck else 1
    y = conv(growth_rate, 3, f"{name}_{step}_conv")(bn_relu(y, f"{name}_{step - 1}_"))
    y = _dropout(y, dropout_rate, f"{name}_{step}_dropout")
    return keras.layers.Concatenate(name=f"{name}_concat")([x, y])


def transition(x, compression, dropout_rate, name):
    """Keeps a fraction `compression` of the feature maps and halves their size."""
    filters = int(x.shape[-1] * compression)
    x = conv(filters, 1, f"{name}_conv")(bn_relu(x, f"{name}_"))
    x = _dropout(x, dropout_rate, f"{name}_dropout")
    return keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def _dropout(x, rate, name):
    return keras.layers.Dropout(rate, name=name)(x) if rate else x


def _dense_blocks(x, blocks, growth_rate, bottleneck, compression, level, dropout_rate=0.0):
    """Dense blocks with transitions between them, named from "conv2" and "pool2" on.

    Args:
        level: how often the image was halved before the first of them.
    """
    for stage, layers in enumerate(blocks, 2):
        if stage > 2:
            x = stage_end(x, level + stage - 3)
            x = transition(x, compression, dropout_rate, f"pool{stage - 1}")
        for layer in range(1, layers + 1):
            x = dense_layer(x, growth_rate, bottleneck, dropout_rate, f"conv{stage}_block{layer}")
    return stage_end(bn_relu(x, ""), level + len(blocks) - 1)


def torchvision_name(layer):
    """The names of a layer of an ImageNet model in torchvision's checkpoints, new and old."""
    if layer == "predictions":
        return "classifier"
    if found := re.fullmatch(r"conv1_(conv|bn)", layer):
        return {"conv": "features.conv0", "bn": "features.norm0"}[found[1]]
    if found := re.fullmatch(r"pool(\d)_(conv|bn)", layer):
        kind = {"conv": "conv", "bn": "norm"}[found[2]]
        return f"features.transition{int(found[1]) - 1}.{kind}"
    if found := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
        stage, block, step = (int(found[i]) for i in (1, 2, 3))
        kind, number = ("conv", step) if found[4] == "conv" else ("norm", step + 1)
        parent = f"features.denseblock{stage - 1}.denselayer{block}"
        return f"{parent}.{kind}{number}", f"{parent}.{kind}.{number}"
    return "features.norm5"


def _model_class(recompute):
    return RecomputeModel if recompute else keras.Model


def _check_growth(growth_rate, compression, dropout_rate):
    if not isinstance(growth_rate, int) or growth_rate < 1:
        raise ValueError(f"`growth_rate` must be a positive integer. Received: {growth_rate!r}")
    if not 0 < compression <= 1:
        raise ValueError(f"`compression` must be in (0, 1]. Received: {compression!r}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")


def _cifar_densenet(
    layers, growth_rate, bottleneck, compression, dropout_rate, recompute, **options
):
    """Three dense blocks for small images, behind one 3x3 convolution."""
    _check_growth(growth_rate, compression, dropout_rate)

    def features(x):
        x = conv(2 * growth_rate if bottleneck else 16, 3, "conv1_conv")(x)
        blocks = 3 * [layers]
        return _dense_blocks(x, blocks, growth_rate, bottleneck, compression, 0, dropout_rate)

    return build_image_model(
        features,
        default_shape=(32, 32, 3),
        min_size=4,
        model_class=_model_class(recompute),
        **options,
    )


@component(PAPER, example=Example(kwargs={"depth": 7, "growth_rate": 4,
                                          "input_shape": (8, 8, 3)}, inputs=_images))  # fmt: skip
def DenseNet(
    depth,
    growth_rate,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    dropout_rate=0.0,
    recompute=False,
    name=None,
):
    """The basic DenseNet for small images (CIFAR, SVHN, digits): 3 blocks, without bottlenecks.

    Args:
        depth: number of layers with weights on the longest path, 3 n + 4 for n layers in each
            block; the paper has 40 and 100.
        growth_rate: k, the feature maps that each layer adds; the paper has 12 and 24.
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (32, 32, 3). Height and width are at
            least 4 or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        dropout_rate: after each convolution but the first; the paper has 0.2 for data that is not
            augmented.
        recompute: whether to save memory in training, see `kzoo.models.RecomputeModel`.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for an impossible depth (the message names the nearest possible ones) and
            other arguments out of range.

    Reference:
        Huang et al. (2016), section 3, arxiv.org/abs/1608.06993
    """
    return _cifar_densenet(
        blocks_per_stage(depth, 3, 4),
        growth_rate,
        bottleneck=False,
        compression=1.0,
        dropout_rate=dropout_rate,
        recompute=recompute,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"densenet_{depth}_{growth_rate}",
    )


@component(PAPER, example=Example(kwargs={"depth": 10, "growth_rate": 4,
                                          "input_shape": (8, 8, 3)}, inputs=_images))  # fmt: skip
def DenseNetBC(
    depth,
    growth_rate,
    compression=0.5,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    dropout_rate=0.0,
    recompute=False,
    name=None,
):
    """DenseNet with bottlenecks and compression for small images: fewer parameters, less work.

    Args:
        depth: 6 n + 4 for n layers of two convolutions in each of 3 blocks; the paper has
            (depth, growth_rate) of (100, 12), (250, 24) and (190, 40).
        growth_rate: k, the feature maps that each layer adds, by way of 4k in its bottleneck.
        compression: theta in (0, 1], the fraction of feature maps that a transition keeps.
        include_top: see `DenseNet`, as are the other arguments, what is returned and raised.

    Reference:
        Huang et al. (2016), section 3, arxiv.org/abs/1608.06993
    """
    return _cifar_densenet(
        blocks_per_stage(depth, 6, 4),
        growth_rate,
        bottleneck=True,
        compression=compression,
        dropout_rate=dropout_rate,
        recompute=recompute,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"densenet_bc_{depth}_{growth_rate}",
    )


def _imagenet_densenet(title, blocks, growth_rate=32, stem_filters=64, application=None):
    """Makes the constructor `title` of a model of table 1."""
    default_name = title.lower()

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        recompute=False,
        name=default_name,
    ):
        def features(x):
            x = bn_relu(padded_conv(x, stem_filters, 7, "conv1_conv"), "conv1_")
            return _dense_blocks(stem_pool(x), blocks, growth_rate, True, compression=0.5, level=2)

        return build_image_model(
            features,
            default_shape=(224, 224, 3),
            min_size=32,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            application=application,
            torch_names=torchvision_name,
            model_class=_model_class(recompute),
        )

    build.__name__ = build.__qualname__ = title
    build.__doc__ = f"""{title} for ImageNet: blocks of {blocks} layers, growth rate {growth_rate}.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, the path of a .keras or .weights.h5 file or of a .pth or
            .safetensors file of torchvision, or "imagenet" (DenseNet121, 169 and 201 only: copied
            from `keras.applications`, which downloads them). The input then needs
            `kzoo.models.densenet.preprocess_input`, torchvision's too.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are at
            least 32 or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        recompute: whether to save memory in training, see `kzoo.models.RecomputeModel`.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range, or "imagenet" where there are no such weights.

    Reference:
        Huang et al. (2016), table 1, arxiv.org/abs/1608.06993
    """
    return component(PAPER)(build)


DenseNet121 = _imagenet_densenet("DenseNet121", (6, 12, 24, 16), application="DenseNet121")
DenseNet169 = _imagenet_densenet("DenseNet169", (6, 12, 32, 32), application="DenseNet169")
DenseNet201 = _imagenet_densenet("DenseNet201", (6, 12, 48, 32), application="DenseNet201")
DenseNet264 = _imagenet_densenet("DenseNet264", (6, 12, 64, 48))
DenseNet161 = _imagenet_densenet("DenseNet161", (6, 12, 36, 24), growth_rate=48, stem_filters=96)
