"""ResNet of parameterised hypercomplex convolutions, for small images.

    y = ReLU(F(x) + W_s x),  F = PHC3x3-BN-ReLU-PHC3x3-BN                        (18 and 34 layers)
                             F = PHC1x1-BN-ReLU-PHC3x3-BN-ReLU-PHC1x1-BN          (50, 101 and 152)

All convolutions, the first and those on the skip paths included, are `kzoo.layers.PHMConv2D`
without bias, so that the net has about 1/n of the weights of the real one; only the classifier is
real. A 3x3 convolution and no pooling begin it; the stages have strides 1, 2, 2, 2.

"PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions", Grassucci, Zhang,
Comminiello, 2021, arXiv 2110.04176; section 4 and the authors' code, which has the widths 64, 128,
256, 512, and, where n does not divide these, 60, 120, 240, 516 ("large").

Deviations: input channels that n does not divide get channels of zeros in front (the authors do so
for n = 4 in their data pipeline, a quaternion without real part). Epsilon of batch norm is 1.001e-5
(theirs: 1e-5).
"""

import keras

from kzoo.layers.hypercomplex import PAPER, PHMConv2D
from kzoo.models.builder import batch_norm, bn_relu, build_image_model, stage_end
from kzoo.papers import Example, component

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
           152: (3, 8, 36, 3)}  # fmt: skip
_WIDTHS = ((64, 128, 256, 512), (60, 120, 240, 516))


@component(
    PAPER,
    example=Example(
        kwargs={"widths": (4, 8, 8, 8), "input_shape": (8, 8, 3)},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),),
    ),
)
def PHCResNet(
    depth=18,
    n=4,
    widths=None,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    name=None,
):
    """A ResNet of hypercomplex convolutions for small images, such as those of CIFAR.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks, four times as wide at their
            ends).
        n: components of the hypercomplex numbers: 3 fits RGB, 4 quaternions.
        widths: of the four stages, multiples of n. None for the authors': (64, 128, 256, 512) if n
            divides them, else (60, 120, 240, 516).
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
        ValueError: for another depth, widths that n does not divide, and other arguments out of
            range.

    Reference:
        Grassucci et al. (2021), section 4, arxiv.org/abs/2110.04176
    """
    if depth not in _BLOCKS:
        raise ValueError(
            f"`depth` must be one of {', '.join(map(str, _BLOCKS))}. Received: {depth!r}"
        )
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"`n` must be a positive integer. Received: {n!r}")
    widths = _checked_widths(widths, n)
    return build_image_model(
        lambda x: _features(x, _BLOCKS[depth], widths, n, bottleneck=depth >= 50),
        default_shape=(32, 32, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"phc_resnet{depth}",
    )


def _features(x, blocks, widths, n, bottleneck):
    x = bn_relu(_conv(_pad_channels(x, n), widths[0], 3, n, 1, "conv1_conv"), "conv1_")
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(1, count + 1):
            strides = 2 if stage > 0 and block == 1 else 1
            x = _block(x, width, n, strides, bottleneck, f"conv{stage + 2}_block{block}")
        x = stage_end(x, stage)
    return x


def _block(x, width, n, strides, bottleneck, name):
    """Returns ReLU(F(x) + W_s x)."""
    convolutions = [(width, 3, strides), (width, 3, 1)]
    if bottleneck:
        convolutions = [(width, 1, 1), (width, 3, strides), (4 * width, 1, 1)]
    filters = convolutions[-1][0]
    skip = y = x
    if strides > 1 or x.shape[-1] != filters:
        skip = batch_norm(_conv(x, filters, 1, n, strides, f"{name}_0_conv"), f"{name}_0_bn")
    for step, (outputs, size, stride) in enumerate(convolutions, 1):
        y = _conv(y, outputs, size, n, stride, f"{name}_{step}_conv")
        last = step == len(convolutions)
        y = batch_norm(y, f"{name}_{step}_bn") if last else bn_relu(y, f"{name}_{step}_")
    y = keras.layers.Add(name=f"{name}_add")([skip, y])
    return keras.layers.Activation("relu", name=f"{name}_out")(y)


def _conv(x, filters, kernel_size, n, strides, name):
    """A convolution without bias, with the same padding on all sides, also where it is strided."""
    padding = "same"
    if strides > 1 and kernel_size > 1:
        pad = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name.removesuffix('conv')}pad")
        x, padding = pad(x), "valid"
    layer = PHMConv2D(
        filters, kernel_size, n, strides=strides, padding=padding, use_bias=False, name=name
    )
    return layer(x)


def _pad_channels(x, n):
    missing = -x.shape[-1] % n
    return keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [missing, 0]]) if missing else x


def _checked_widths(widths, n):
    if widths is None:
        widths = next((each for each in _WIDTHS if not any(w % n for w in each)), None)
        if widths is None:
            raise ValueError(
                f"`n` must divide {_WIDTHS[0]} or {_WIDTHS[1]} where `widths` is None. "
                f"Received: {n}"
            )
    valid = len(widths) == 4 and all(isinstance(w, int) and w > 0 and w % n == 0 for w in widths)
    if not valid:
        raise ValueError(f"`widths` must be four multiples of n = {n}. Received: {widths!r}")
    return tuple(widths)
