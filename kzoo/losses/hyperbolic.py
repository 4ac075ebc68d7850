"""Hyp-PC: pulls all points of a batch together, by their hyperbolic distances.

    loss = mean over pairs i != j of d(x_i, x_j)

d is the distance of the Poincaré ball. In Hyp-OC the points are those of the real examples; the
cross-entropy with the pseudo-negatives keeps them from collapsing into the origin.

"Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing", Narayan, Patel, 2024,
arXiv 2404.14406; section III.

Deviations: the authors' code has arctan where the distance has artanh, and half the mean (it
divides the sum over N / 2 pairs by N). Open choices: `pairs="halves"` takes the pairs of their
code, each example of the first half of the batch with that at its place in the second; "all", the
default, takes every pair.
"""

import keras
import tensorflow as tf

from kzoo.layers.poincare import HYP_OC_PAPER
from kzoo.ops import poincare as ball
from kzoo.papers import Example, component

_PAIRS = ("all", "halves")


def _example_inputs(rng, batch):
    return rng.integers(0, 2, batch), rng.uniform(-0.4, 0.4, size=(batch, 3)).astype("float32")


@component(HYP_OC_PAPER, example=Example(inputs=_example_inputs))
class HyperbolicPairwiseConfusion(keras.losses.Loss):
    """The mean hyperbolic distance between the points of a batch.

    A row's own loss is its mean distance to its partners; the mean over the rows is that over the
    pairs. A batch of one row has the loss 0. Points outside of the ball are projected into it. It
    is computed in float32, or float64 under that floatx.

    Args:
        curvature: c, above 0, of the ball that the points are in. Defaults to 1.
        pairs: "all", or "halves": row i with row i + N / 2 (of an odd number of rows N each with
            the row N // 2 further on). Defaults to "all".
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: [batch, ...], not used: all rows are taken for one class.
        y_pred: points of the ball, [batch, d].

    Example:

    >>> float(HyperbolicPairwiseConfusion()([0, 0], [[0.5, 0.0], [-0.5, 0.0]]))
    2.1972246

    Reference:
        Narayan and Patel (2024), section III, arxiv.org/abs/2404.14406
    """

    def __init__(
        self,
        curvature=1.0,
        pairs="all",
        reduction="sum_over_batch_size",
        name="hyperbolic_pairwise_confusion",
    ):
        if pairs not in _PAIRS:
            raise ValueError(f"`pairs` must be one of {', '.join(_PAIRS)}. Received: {pairs!r}")
        dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.curvature = ball.check_curvature(curvature, "curvature")
        self.pairs = pairs

    def call(self, y_true, y_pred):
        points = ball.project(tf.convert_to_tensor(y_pred), self.curvature)
        if len(points.shape) != 2:
            raise ValueError(f"`y_pred` must be [batch, d]. Received: shape {tuple(points.shape)}")
        count = tf.shape(points)[0]
        if self.pairs == "halves":
            partners = tf.roll(points, -(count // 2), axis=0)
            return ball.distance(points, partners, self.curvature)
        distances = ball.distance(points[:, None], points[None], self.curvature)
        # The diagonal is 0.
        others = tf.cast(tf.maximum(count - 1, 1), distances.dtype)
        return tf.reduce_sum(distances, axis=1) / others

    def get_config(self):
        return {**super().get_config(), "curvature": self.curvature, "pairs": self.pairs}
