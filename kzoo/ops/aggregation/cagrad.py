"""CAGrad: the update near the mean gradient that most helps the objective it helps least.

    A(J) = argmax_{d: ||d - g0|| <= c ||g0||} min_i g_i . d,   g0 the mean gradient

"Conflict-Averse Gradient Descent for Multi-task Learning", Liu, Liu, Jin, Stone, Liu, 2021, arXiv
2110.14048, equation 3.

With d = g0 + e it is the largest s for which the shortest e with J e >= s - J g0 is no longer than
c ||g0||. That e is J^T w for the w >= 0 of a quadratic program, and its length is convex and
increasing in s, with the derivative sum(w) / ||e||: Newton's method within a bracket finds s. The
authors minimise the dual, sum_i w_i g_i . g0 + c ||g0|| ||J^T w||, which has no derivative where
the combination vanishes. Open choice: there, several d may be best, and the one nearest to g0 is
taken.
"""

import math

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import Weighting, register
from kzoo.ops.aggregation.quadratic import nonnegative_quadratic

_STEPS = 100
_PRECISION = 1e-13


@register
class CAGrad(Weighting):
    """The update within a ball around the mean gradient that has the best worst objective.

    Args:
        c: the radius of the ball over the norm of the mean gradient, at least 0. Below 1 it
            converges to a minimum of the mean loss; 0 is the mean; as it grows, the direction
            becomes that of MGDA. Defaults to 0.5.

    Reference:
        Liu et al. (2021), equation 3, arxiv.org/abs/2110.14048
    """

    def __init__(self, c=0.5):
        number = isinstance(c, int | float) and not isinstance(c, bool)
        if not number or not 0 <= c < math.inf:
            raise ValueError(f"`c` must be a number of at least 0. Received: {c!r}")
        self.c = c

    def weights(self, gramian, step=0):
        along = tf.reduce_mean(gramian, axis=1)  # g_i . g0
        radius = self.c * tf.sqrt(tf.maximum(tf.reduce_mean(along), 0.0))
        count = tf.cast(tf.shape(gramian)[0], tf.float64)
        return 1 / count + _best_within(gramian, along, radius)

    def get_config(self):
        return {"c": self.c}


def _best_within(gramian, along, radius):
    """w of the largest s for which ||J^T w|| is at most the radius."""
    norms = tf.sqrt(tf.linalg.diag_part(gramian))
    low, high = tf.reduce_min(along), tf.reduce_min(along + radius * norms)
    precision = _PRECISION * tf.maximum(tf.reduce_max(tf.abs(along)), tf.abs(high))

    def narrow(low, high, level, kept):
        found, length, feasible = _shortest(gramian, along, level)
        hit = feasible & (tf.abs(length - radius) <= _PRECISION * radius)
        inside = hit | (feasible & (length < radius))
        low, high = tf.where(inside, level, low), tf.where(inside & ~hit, high, level)
        slope = tf.math.divide_no_nan(tf.reduce_sum(found), length)
        newton = level - tf.math.divide_no_nan(length - radius, slope)
        usable = feasible & (newton > low) & (newton < high)
        level = tf.where(usable, newton, 0.5 * (low + high))
        return low, high, level, tf.where(inside, found, kept)

    _, _, _, kept = tf.while_loop(
        lambda low, high, level, kept: high - low > precision,
        narrow,
        (low, high, high, tf.zeros_like(along)),
        maximum_iterations=_STEPS,
    )
    return kept


def _shortest(gramian, along, level):
    """(w, ||J^T w||, whether it is a solution) of the shortest e with J e >= level - along."""
    needed = level - along
    found = nonnegative_quadratic(gramian, -needed[tf.newaxis])[0]
    reached = tf.linalg.matvec(gramian, found)
    length = tf.sqrt(tf.maximum(tf.reduce_sum(found * reached), 0.0))
    slack = 1e-9 * tf.reduce_max(tf.abs(needed))
    return found, length, tf.reduce_all(reached - needed >= -slack)
