"""The blocks that Inception-v4 and the Inception-ResNets are made of, as tables of branches.

A branch is a sequence of steps: `Conv`, `MAX` (3x3 of stride 2, which halves the map without
padding), `AVG` (3x3 of stride 1) or, last, a list of convolutions side by side. A block
concatenates its branches. Every convolution is followed by BN and ReLU.

See `kzoo.models.inception_v4` and `kzoo.models.inception_resnet`; both are from "Inception-v4,
Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy et al., 2016,
arXiv 1602.07261.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import keras

from kzoo.layers.scaled_residual import ScaledResidual
from kzoo.models.builder import batch_norm, preprocess_copy, stage_end

MAX, AVG = "max", "avg"

# Three halvings in the stem and two reductions, none of them padded, leave one position.
MIN_SIZE = 75


class Conv(NamedTuple):
    """A convolution with BN and ReLU; marked "V" in the paper where its padding is "valid"."""

    filters: int
    kernel_size: int | tuple[int, int]
    strides: int = 1
    padding: str = "same"


def reduction_a(k, l, m, n):  # noqa: E741 (the paper's names)
    """Reduction-A, figure 7, with the filters of table 1."""
    return (
        (Conv(n, 3, 2, "valid"),),
        (Conv(k, 1), Conv(l, 3), Conv(m, 3, 2, "valid")),
        (MAX,),
    )


@dataclass(frozen=True)
class InceptionLayers:
    """Adds Inception layers to a functional model.

    Args:
        width: factor of the number of filters of every convolution.
        batch_norm_scale: whether BN has a factor gamma.
    """

    width: float
    batch_norm_scale: bool

    def conv(self, x, spec, name):
        """Convolution, BN and ReLU."""
        x = keras.layers.Conv2D(
            max(1, round(self.width * spec.filters)),
            spec.kernel_size,
            strides=spec.strides,
            padding=spec.padding,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        )(x)
        x = batch_norm(x, f"{name}_bn", momentum=0.99, epsilon=1e-3, scale=self.batch_norm_scale)
        return keras.layers.Activation("relu", name=f"{name}_relu")(x)

    def block(self, x, branches, name):
        """The concatenation of the branches of `x`."""
        ends = []
        for number, steps in enumerate(branches):
            ends += self._branch(x, steps, f"{name}_branch{number}")
        return keras.layers.Concatenate(name=f"{name}_mixed")(ends)

    def residual_block(self, x, branches, scale, name, activation="relu"):
        """activation(x + scale * Conv1x1(branches)), the convolution being linear and biased."""
        mixed = self.block(x, branches, name)
        up = keras.layers.Conv2D(
            x.shape[-1], 1, kernel_initializer="he_normal", name=f"{name}_up_conv"
        )
        x = ScaledResidual(scale, name=f"{name}_add")(x, up(mixed))
        return keras.layers.Activation(activation, name=f"{name}_out")(x)

    def _branch(self, x, steps, name):
        """The ends of a branch: one, or as many as its last step has convolutions."""
        for number, step in enumerate(steps):
            here = f"{name}_{number}"
            if isinstance(step, list):
                pairs = zip(step, "ab", strict=True)
                return [self.conv(x, spec, f"{here}{letter}") for spec, letter in pairs]
            x = self.conv(x, step, here) if isinstance(step, Conv) else pool(x, step, here)
        return [x]


def pool(x, kind, name):
    """The 3x3 pooling `kind`, `MAX` or `AVG`."""
    if kind == MAX:
        return keras.layers.MaxPooling2D(3, strides=2, name=f"{name}_pool")(x)
    return keras.layers.AveragePooling2D(3, 1, padding="same", name=f"{name}_pool")(x)


def split_name(layer):
    """The parts of the name of a layer with weights: block, branch, step, "conv" or "bn".

    Branch and step are None where the block is but one convolution.
    """
    return re.fullmatch(r"(.+?)(?:_(branch\d)_(\w+))?_(conv|bn)", layer).groups()


_STEM_3 = ((MAX,), (Conv(96, 3, 2, "valid"),))
_STEM_4 = (
    (Conv(64, 1), Conv(96, 3, 1, "valid")),
    (Conv(64, 1), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, 1, "valid")),
)
_STEM_5 = ((Conv(192, 3, 2, "valid"),), (MAX,))


def inception_v4_stem(layers, x):
    """The stem of figure 3, of Inception-v4 and of the paper's Inception-ResNet-v2."""
    x = layers.conv(x, Conv(32, 3, 2, "valid"), "stem0")
    x = layers.conv(x, Conv(32, 3, 1, "valid"), "stem1")
    x = stage_end(layers.conv(x, Conv(64, 3), "stem2"), 1)
    x = layers.block(x, _STEM_3, "stem3")
    x = stage_end(layers.block(x, _STEM_4, "stem4"), 2)
    return layers.block(x, _STEM_5, "stem5")


def dropout_head(dropout_rate):
    """A `top` for `build_image_model`: global average pooling, dropout, a dense layer."""

    def top(x, classes):
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dropout(dropout_rate, name="dropout")(x)
        dtype = keras.backend.result_type(x.dtype, "float32")
        return keras.layers.Dense(classes, dtype=dtype, name="logits")(x)

    return top


def preprocess_input(x):
    """Scales RGB images in [0, 255], [..., 3], to [-1, 1], as the published weights expect.

    Returns a copy.
    """
    scale = functools.partial(keras.applications.imagenet_utils.preprocess_input, mode="tf")
    return preprocess_copy(scale, x)


def check_inception(blocks, width, dropout_rate):
    """Refuses impossible arguments that all Inception nets share."""
    if len(blocks) != 3 or not all(isinstance(count, int) and count >= 0 for count in blocks):
        raise ValueError(
            "`blocks` must be three integers of at least 0, the number of A, B and C blocks. "
            f"Received: {blocks}"
        )
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"`width` must be a positive number. Received: {width!r}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")
