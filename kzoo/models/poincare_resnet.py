"""Poincaré ResNet: a residual network all of whose feature maps are points of the Poincaré ball.

    x + f(x) = PoincareConv - BN - ReLU - PoincareConv - BN - (+ x) - ReLU

with the Möbius sum f(x) + x, ReLU of the tangent vectors at the origin, and midpoint batch
normalization. Where a stage begins with a smaller map of more channels, the skip path is a 1x1
Poincaré convolution. An image goes into the ball as the tangent vectors of its pixels; the last
feature map is averaged as tangent vectors, and classified by distances to hyperplanes.

"Poincaré ResNet", van Spengler, Berkhout, Mettes, 2023, arXiv 2303.14027; section 3. Three stages
of widths 8, 16 and 32 and a depth of 20 or 32 for CIFAR, with a curvature of -0.1.

Train it with Adam (theirs: learning rate 0.001, weight decay 1e-4) on images in [-1, 1]: all
weights are Euclidean parameters, for which Riemannian Adam is Adam.

Deviations: the head is the hyperbolic classifier of Hyperbolic Neural Networks++, whose logits are
not bounded; the authors' code takes the tangent vectors of a fully connected layer for logits. In
the sum on the residual path the vectors are the channels; in their code they are image rows.
"""

import keras

from kzoo.layers.poincare import PAPER, ExpMap0, LogMap0, MobiusAdd, TangentActivation
from kzoo.layers.poincare_batch_norm import PoincareBatchNormalization
from kzoo.layers.poincare_dense import PoincareConv2D, PoincareMLR
from kzoo.models.builder import blocks_per_stage, build_image_model
from kzoo.ops.poincare import check_curvature
from kzoo.papers import Example, component


def preprocess_input(x):
    """Scales images in [0, 255] to [-1, 1]; returns a new float array or tensor."""
    return keras.ops.cast(x, keras.config.floatx()) / 127.5 - 1.0


def _images(rng, batch):
    return (rng.uniform(-1, 1, size=(batch, 8, 8, 3)).astype("float32"),)


class _Blocks:
    """The layers of a network of one curvature."""

    def __init__(self, curvature):
        self.curvature = curvature

    def conv_bn(self, x, filters, strides, name):
        x = self.conv(x, filters, 3, strides, f"{name}_conv")
        return PoincareBatchNormalization(self.curvature, name=f"{name}_bn")(x)

    def conv(self, x, filters, kernel_size, strides, name):
        if kernel_size > 1:
            # The zeros are origins; 16 bits would put points onto the boundary.
            x = keras.layers.ZeroPadding2D(kernel_size // 2, dtype=x.dtype, name=f"{name}_pad")(x)
        return PoincareConv2D(filters, kernel_size, strides, curvature=self.curvature, name=name)(x)

    def relu(self, x, name):
        return TangentActivation("relu", self.curvature, name=f"{name}_relu")(x)

    def residual(self, x, filters, strides, name):
        y = self.relu(self.conv_bn(x, filters, strides, f"{name}_1"), f"{name}_1")
        y = self.conv_bn(y, filters, 1, f"{name}_2")
        if strides > 1 or x.shape[-1] != filters:
            x = self.conv(x, filters, 1, strides, f"{name}_0_conv")
        y = MobiusAdd(self.curvature, name=f"{name}_add")(y, x)
        return self.relu(y, f"{name}_2")

    def features(self, x, widths, blocks):
        x = ExpMap0(self.curvature, name="expmap")(x)
        x = self.relu(self.conv_bn(x, widths[0], 1, "conv1"), "conv1")
        for stage, filters in enumerate(widths):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = self.residual(x, filters, strides, f"conv{stage + 2}_block{block + 1}")
            if stage == len(widths) - 1:
                # What comes out of the body are tangent vectors.
                x = LogMap0(self.curvature, name="logmap")(x)
            # As `stage_end` does, in the points' own precision.
            x = keras.layers.Identity(dtype=x.dtype, name=f"P{stage}")(x)
        return x

    def top(self, x, classes):
        x = keras.layers.GlobalAveragePooling2D(dtype=x.dtype, name="avg_pool")(x)
        x = ExpMap0(self.curvature, name="pooled")(x)
        return PoincareMLR(classes, self.curvature, name="logits")(x)


@component(
    PAPER,
    example=Example(
        kwargs={"depth": 6, "widths": (4, 6), "input_shape": (8, 8, 3)}, inputs=_images
    ),
)
def PoincareResNet(
    depth,
    widths=(8, 16, 32),
    curvature=0.1,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    name=None,
):
    """A residual network in the Poincaré ball, for small images.

    Args:
        depth: 2 s n + 2 for s stages of n blocks each; the paper has 20 and 32, of three stages.
        widths: channels of the stages, positive integers. Defaults to (8, 16, 32).
        curvature: c, above 0: the ball has the curvature -c. Defaults to 0.1.
        include_top: whether the classifier is part of the model; else it ends with the tangent
            vectors at the origin of the last feature map.
        weights: None for initial ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (32, 32, 3). Height and width are any
            or None.
        pooling: without the top: None, "avg" or "max" (global), of the tangent vectors.
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for an impossible depth (the message names the nearest possible ones) and
            other arguments out of range.

    Reference:
        van Spengler et al. (2023), arxiv.org/abs/2303.14027
    """
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"`widths` must be positive integers. Received: {widths!r}")
    blocks = blocks_per_stage(depth, 2 * len(widths), 2)
    layers = _Blocks(check_curvature(curvature, "curvature"))
    return build_image_model(
        lambda x: layers.features(x, widths, blocks),
        default_shape=(32, 32, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"poincare_resnet_{depth}",
        top=layers.top,
    )


@component(PAPER)
def PoincareResNet20(**kwargs):
    """The network of 20 layers; see `PoincareResNet` for the arguments."""
    return PoincareResNet(20, **kwargs)


@component(PAPER)
def PoincareResNet32(**kwargs):
    """The network of 32 layers; see `PoincareResNet` for the arguments."""
    return PoincareResNet(32, **kwargs)
