"""Saliency: the gradient of the class score with respect to the input.

    M_ij = max_c |dS / dx_ijc|

"Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
Simonyan, Vedaldi, Zisserman, 2013, arXiv 1312.6034; section 3.1. S is the score before softmax.

Deviations: the maximum over the channels is a switch, off by default, so that the attributions have
the shape of the input, as with every other method.
"""

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Deep Inside Convolutional Networks: Visualising Image Classification Models and "
    "Saliency Maps",
    authors=("Karen Simonyan", "Andrea Vedaldi", "Andrew Zisserman"),
    year=2013,
    arxiv="1312.6034",
)


@component(PAPER, example=Example())
class Saliency(Explainer):
    """How much the score reacts to a small change of each value of the input.

    Args:
        model: see `Explainer`, as are `score` and `tap`.
        absolute: whether to take the absolute value. The signed gradient says in which direction,
            too. Defaults to True.
        max_channels: whether to take, as the paper does, the maximum over the last axis. Defaults
            to False.

    Returns (when called): `attributions` of the input's shape (without the last axis where
    `max_channels`), `score` and `target` [batch].

    Example:

    >>> result = Saliency(model, max_channels=True)(images)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Simonyan et al. (2013), section 3.1, arxiv.org/abs/1312.6034
    """

    def __init__(self, model, absolute=True, max_channels=False, score=None, tap=None):
        super().__init__(model, score=score, tap=tap)
        self.absolute = bool(absolute)
        self.max_channels = bool(max_channels)

    def attribute(self, values, target, inputs):
        gradients, scored = self.gradients(values, target, inputs)
        return {"attributions": keras.tree.map_structure(self._reduce, gradients), **scored}

    def _reduce(self, gradient):
        if self.absolute:
            gradient = tf.abs(gradient)
        return tf.reduce_max(gradient, axis=-1) if self.max_channels else gradient

    def get_config(self):
        return {"absolute": self.absolute, "max_channels": self.max_channels}
