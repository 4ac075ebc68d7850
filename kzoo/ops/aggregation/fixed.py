"""Weights that do not depend on the gradients: the mean, constants, random ones."""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import (
    Weighting,
    check_seed,
    check_vector,
    combine,
    draw_seed,
    matched,
    register,
    uniform_weights,
)


class _Free(Weighting):
    """Weights for which the Gramian need not be computed."""

    def updates(self, pieces, step):
        return combine(self.weights(pieces[0], step), pieces)


@register
class Mean(_Free):
    """The mean of the gradients: descent along the mean of the objectives."""

    def weights(self, gramian, step=0):
        return uniform_weights(gramian)


@register
class Constant(_Free):
    """A weighted sum of the gradients: descent along that of the objectives.

    Args:
        values: list of m numbers, or one number for all; 1.0 is the sum of the gradients.
    """

    def __init__(self, values=1.0):
        number = isinstance(values, int | float) and not isinstance(values, bool)
        if values is None:
            raise ValueError("`values` must be a number or a list of numbers. Received: None")
        checked = check_vector("values", [values] if number else values)
        self.values = checked[0] if number else checked

    def weights(self, gramian, step=0):
        if isinstance(self.values, float):
            return tf.fill([tf.shape(gramian)[0]], tf.constant(self.values, tf.float64))
        return matched("values", self.values, gramian)

    def get_config(self):
        return {"values": self.values if isinstance(self.values, float) else list(self.values)}


@register
class RandomWeights(_Free):
    """New random weights in every step, softmax(z) with z ~ N(0, I).

    Args:
        seed: integer of at least 0; the weights depend on it and on the number of the step.

    Reference:
        Lin et al. (2021), "Reasonable Effectiveness of Random Weighting", algorithm 1 (RGW),
        arxiv.org/abs/2111.10603
    """

    def __init__(self, seed=0):
        self.seed = check_seed(seed)

    def weights(self, gramian, step=0):
        seed = draw_seed(self.seed, step)
        shape = tf.shape(gramian)[:1]
        return tf.nn.softmax(
            tf.random.stateless_normal(shape, seed, dtype=tf.float64, alg="philox")
        )

    def get_config(self):
        return {"seed": self.seed}
