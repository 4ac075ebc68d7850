"""Input times gradient: what the linear part of a score at the input owes to each value of it.

    A_i = x_i dS / dx_i

For a network of ReLUs (or max-pools) without biases the score is linear along the ray to the input,
and sum_i A_i = S(x).

"Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
Shrikumar, Greenside, Shcherbina, Kundaje, 2016, arXiv 1605.01713; the gradient times input with
which it compares, and to which its propagation of differences from zero comes down for such
networks.

Deviations: none.
"""

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Not Just a Black Box: Learning Important Features Through Propagating Activation "
    "Differences",
    authors=("Avanti Shrikumar", "Peyton Greenside", "Anna Shcherbina", "Anshul Kundaje"),
    year=2016,
    arxiv="1605.01713",
)


@component(PAPER, example=Example())
class InputXGradient(Explainer):
    """The signed gradient times the input, at the price of one gradient.

    It depends on where the inputs have their zero: a value of 0 gets nothing.

    Args:
        model: see `Explainer`, as are `score` and `tap`.

    Returns (when called): `attributions` of the input's shape (of the tapped layer's output), and
    `score`, `target` [batch], `predictions`.

    Example:

    >>> result = InputXGradient(model)(images)
    >>> result["attributions"].shape == images.shape
    True

    Reference:
        Shrikumar et al. (2016), arxiv.org/abs/1605.01713
    """

    def __init__(self, model, score=None, tap=None):
        super().__init__(model, score=score, tap=tap)

    def attribute(self, values, target, inputs):
        gradients, scored = self.gradients(values, target, inputs)
        return {"attributions": keras.tree.map_structure(tf.multiply, values, gradients), **scored}

    def get_config(self):
        return {}
