"""Pre-activation ResNet: residual units whose skip path is the identity, untouched by a ReLU.

    x_{l+1} = x_l + F(x_l),  F = BN-ReLU-Conv-BN-ReLU-Conv            (basic unit)
                             F = BN-ReLU-Conv1x1-BN-ReLU-Conv3x3-BN-ReLU-Conv1x1   (bottleneck)

Within a stage therefore x_L = x_l + sum of F(x_i), and so the gradient of x_L with regard to x_l
contains the identity. Where a unit changes the number of channels, its first BN-ReLU comes before
the paths part, and the skip path is a 1x1 convolution of it (option B); in the very first unit
the skip path takes it too. A BN-ReLU ends the last unit.

"Identity Mappings in Deep Residual Networks", He, Zhang, Ren, Sun, 2016, arXiv 1603.05027;
equations 1-5, figure 1(b), section 5 and the appendix.

Deviations: the ImageNet bottleneck models (50 and up) follow `keras.applications`, so that its
weights load: biases in the first convolution, in the last of each unit and on the skip path, and
the stride at the 3x3 convolution of a stage's last unit, with a subsampled skip path. Max-pooling
comes before the first BN-ReLU in all ImageNet models; epsilon is 1.001e-5 everywhere.
"""

import math

import keras

from kzoo.models.builder import (
    blocks_per_stage,
    bn_relu,
    build_image_model,
    conv,
    padded_conv,
    preprocess_copy,
    stage_end,
    stem_pool,
)
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Identity Mappings in Deep Residual Networks",
    authors=("Kaiming He", "Xiangyu Zhang", "Shaoqing Ren", "Jian Sun"),
    year=2016,
    arxiv="1603.05027",
)


def preprocess_input(x):
    """Scales RGB images in [0, 255], [..., 3], to [-1, 1], as the "imagenet" weights expect.

    Returns a copy.
    """
    return preprocess_copy(keras.applications.resnet_v2.preprocess_input, x)


def _images(rng, batch):
    return (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),)


def residual_unit(x, convolutions, name, shortcut="identity", use_bias=False):
    """Returns skip(x) + F(x).

    Args:
        convolutions: (filters, kernel_size, strides) of each convolution of F.
        shortcut: "identity" (subsampled where F is strided), "projection" (a 1x1 convolution of
            the first BN-ReLU) or "activation" (the first BN-ReLU itself).
        use_bias: whether the last convolution and the projection have a bias.
    """
    first = y = bn_relu(x, f"{name}_preact_")
    strides = math.prod(stride for _, _, stride in convolutions)
    if shortcut == "projection":
        filters = convolutions[-1][0]
        skip = conv(filters, 1, f"{name}_0_conv", strides, use_bias)(first)
    else:
        skip = first if shortcut == "activation" else x
        if strides > 1:
            skip = keras.layers.MaxPooling2D(1, strides, name=f"{name}_0_pool")(skip)
    for step, (filters, kernel_size, stride) in enumerate(convolutions, 1):
        bias = use_bias and step == len(convolutions)
        if step > 1:
            y = bn_relu(y, f"{name}_{step - 1}_")
        layer_name = f"{name}_{step}_conv"
        if kernel_size > 1 and stride > 1:
            y = padded_conv(y, filters, kernel_size, layer_name, stride, bias)
        else:
            y = conv(filters, kernel_size, layer_name, stride, bias)(y)
    return keras.layers.Add(name=f"{name}_out")([skip, y])


def _paper_stages(x, units, widths, bottleneck, level):
    """Stages of the given widths as in the paper; all but the first halve the map's size.

    Args:
        level: how often the image was halved before the first of them.
    """
    for stage, (count, width) in enumerate(zip(units, widths, strict=True), 2):
        for unit in range(1, count + 1):
            strides = 2 if stage > 2 and unit == 1 else 1
            filters = 4 * width if bottleneck else width
            convolutions = [(width, 3, strides), (width, 3, 1)]
            if bottleneck:
                convolutions = [(width, 1, strides), (width, 3, 1), (filters, 1, 1)]
            shortcut = "projection" if x.shape[-1] != filters else "identity"
            if shortcut == "identity" and stage == 2 and unit == 1:
                shortcut = "activation"
            x = residual_unit(x, convolutions, f"conv{stage}_block{unit}", shortcut)
        if stage <= len(units):
            x = stage_end(x, level + stage - 2)
    return stage_end(bn_relu(x, "post_"), level + len(units) - 1)


def _keras_stages(x, units):
    """Bottleneck stages as in `keras.applications`; all but the last halve the map's size."""
    for stage, (count, width) in enumerate(zip(units, (64, 128, 256, 512), strict=True), 2):
        for unit in range(1, count + 1):
            strides = 2 if stage < 5 and unit == count else 1
            if strides == 2:
                x = stage_end(x, stage)
            convolutions = [(width, 1, 1), (width, 3, strides), (4 * width, 1, 1)]
            shortcut = "projection" if unit == 1 else "identity"
            name = f"conv{stage}_block{unit}"
            x = residual_unit(x, convolutions, name, shortcut, use_bias=True)
    return stage_end(bn_relu(x, "post_"), 5)


@component(
    PAPER,
    example=Example(kwargs={"depth": 11, "input_shape": (8, 8, 3)}, inputs=_images),
)
def PreActResNetCIFAR(
    depth,
    bottleneck=True,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    name=None,
):
    """A pre-activation ResNet for small images: 3 stages of width 16, 32 and 64.

    Args:
        depth: 9 n + 2 with bottlenecks (the paper has 164 and 1001), else 6 n + 2 (110), for n
            units in each stage.
        bottleneck: whether the units are bottlenecks, four times as wide at their ends.
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (32, 32, 3). Height and width are any
            or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for an impossible depth (the message names the nearest possible ones) and
            other arguments out of range.

    Reference:
        He et al. (2016), section 5 and appendix, arxiv.org/abs/1603.05027
    """
    units = 3 * [blocks_per_stage(depth, 9 if bottleneck else 6, 2)]

    def features(x):
        return _paper_stages(conv(16, 3, "conv1_conv")(x), units, (16, 32, 64), bottleneck, level=0)

    return build_image_model(
        features,
        default_shape=(32, 32, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"preact_resnet_{depth}",
    )


@component(PAPER)
def PreActResNet110(**kwargs):
    """The CIFAR model of 110 layers in basic units; see `PreActResNetCIFAR` for the arguments."""
    return PreActResNetCIFAR(110, bottleneck=False, **kwargs)


@component(PAPER)
def PreActResNet164(**kwargs):
    """The CIFAR model of 164 layers in bottlenecks; see `PreActResNetCIFAR` for the arguments."""
    return PreActResNetCIFAR(164, **kwargs)


@component(PAPER)
def PreActResNet1001(**kwargs):
    """The CIFAR model of 1001 layers in bottlenecks; see `PreActResNetCIFAR` for the arguments."""
    return PreActResNetCIFAR(1001, **kwargs)


def _imagenet_resnet(depth, units, bottleneck=True, application=None):
    """Makes the constructor of an ImageNet model."""

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=f"preactresnet{depth}",
    ):
        def features(x):
            x = stem_pool(padded_conv(x, 64, 7, "conv1_conv", use_bias=bottleneck))
            if bottleneck:
                return _keras_stages(x, units)
            return _paper_stages(x, units, (64, 128, 256, 512), bottleneck, level=2)

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
            application=application,
        )

    kind = "bottleneck" if bottleneck else "basic"
    build.__name__ = build.__qualname__ = f"PreActResNet{depth}"
    build.__doc__ = f"""PreActResNet-{depth} for ImageNet: stages of {units} {kind} units.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last ReLU.
        weights: None for random ones, the path of a .keras or .weights.h5 file, or "imagenet"
            (PreActResNet50, 101 and 152 only: copied from the ResNet-V2 of `keras.applications`,
            which downloads them; the input then needs
            `kzoo.models.preact_resnet.preprocess_input`).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are any
            or None; 32 are halved to 1.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range, or "imagenet" where there are no such weights.

    Reference:
        He et al. (2016), section 5, arxiv.org/abs/1603.05027
    """
    return component(PAPER)(build)


PreActResNet18 = _imagenet_resnet(18, (2, 2, 2, 2), bottleneck=False)
PreActResNet34 = _imagenet_resnet(34, (3, 4, 6, 3), bottleneck=False)
PreActResNet50 = _imagenet_resnet(50, (3, 4, 6, 3), application="ResNet50V2")
PreActResNet101 = _imagenet_resnet(101, (3, 4, 23, 3), application="ResNet101V2")
PreActResNet152 = _imagenet_resnet(152, (3, 8, 36, 3), application="ResNet152V2")
PreActResNet200 = _imagenet_resnet(200, (3, 24, 36, 3))
