"""Scaled residual: the branch of a residual block is made small before it is added.

    y = x + scale * residual

Residual Inception nets with more than 1000 filters die early in training, their last maps all
zeros; scaling the residuals by 0.1 to 0.3 before they are added keeps them stable, where neither a
lower learning rate nor more batch norm does.

"Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy,
Ioffe, Vanhoucke, Alemi, 2016, arXiv 1602.07261; section 3.3 and figure 20.
"""

import math

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
    authors=("Christian Szegedy", "Sergey Ioffe", "Vincent Vanhoucke", "Alexander A. Alemi"),
    year=2016,
    arxiv="1602.07261",
)


def _pair(rng, batch):
    return tuple(rng.normal(size=(batch, 3, 3, 2)).astype("float32") for _ in range(2))


@component(PAPER, example=Example(kwargs={"scale": 0.17}, inputs=_pair))
class ScaledResidual(keras.layers.Layer):
    """Adds a residual to its shortcut, made smaller by a constant: x + scale * residual.

    Use it in the place of `keras.layers.Add` where a deep or wide residual net diverges.

    Args:
        scale: the constant, at least 0. The paper has 0.1 to 0.3; 1 is a plain addition, and
            with 0 the block is its shortcut.
        kwargs: of `keras.layers.Layer`.

    Call arguments:
        shortcut: a tensor of any shape.
        residual: a tensor of that shape.

    Output shape: that shape.

    Raises:
        ValueError: for a negative scale, or a residual of another shape.

    Example:

    >>> y = ScaledResidual(0.2)(x, branch(x))

    Reference:
        Szegedy et al. (2016), section 3.3, arxiv.org/abs/1602.07261
    """

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale >= 0):
            raise ValueError(f"`scale` must be a number of at least 0. Received: {scale!r}")
        self.scale = scale

    def build(self, shortcut_shape, residual_shape):
        if tuple(shortcut_shape) != tuple(residual_shape):
            raise ValueError(
                f"The shortcut and the residual of {self.name!r} must have one shape. "
                f"Received: {tuple(shortcut_shape)} and {tuple(residual_shape)}"
            )

    def call(self, shortcut, residual):
        return shortcut + self.scale * residual

    def compute_output_shape(self, shortcut_shape, residual_shape):
        return tuple(shortcut_shape)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
