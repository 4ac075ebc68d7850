"""Nash-MTL: the update as the outcome of a bargaining game between the objectives.

    A(J) = J^T a,   J J^T a = 1 / a  (elementwise), a > 0

"Multi-Task Learning as a Bargaining Game", Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik,
Fetaya, 2022, arXiv 2202.01017, algorithm 1.

The equation is the optimality condition of 1/2 a^T G a - sum_i log a_i, a convex, self-concordant
function with one minimum, which damped Newton steps reach from anywhere (Nesterov and Nemirovski);
the authors approach it by a sequence of convex programs, which stops short of it. Nothing is
carried from step to step.
"""

import math

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import Weighting, register

# Added to the Gramian of the unit gradients: where they balance there is no solution.
_RIDGE = 1e-12
_STEPS = 100


@register
class NashMTL(Weighting):
    """The update that is Nash's bargaining solution: each objective gains in the same proportion.

    ||A(J)|| = sqrt(m) whatever the norms of the gradients, so the learning rate decides the length
    of the step. Gradients that are zero have no part in the game and get the weight 0. Where some
    convex combination of the gradients vanishes there is no solution, and the update is one of at
    most that length.

    Args:
        max_norm: the largest norm of the update, beyond which it is scaled down; the authors' code
            has 1. Defaults to None, no limit, as in the paper's equation.

    Reference:
        Navon et al. (2022), claim 3.1 and algorithm 1, arxiv.org/abs/2202.01017
    """

    def __init__(self, max_norm=None):
        number = isinstance(max_norm, int | float) and not isinstance(max_norm, bool)
        if max_norm is not None and not (number and 0 < max_norm < math.inf):
            raise ValueError(
                f"`max_norm` must be a positive number or None. Received: {max_norm!r}"
            )
        self.max_norm = max_norm

    def weights(self, gramian, step=0):
        diagonal = tf.linalg.diag_part(gramian)
        plays = diagonal > 0
        scale = tf.where(plays, tf.math.rsqrt(tf.where(plays, diagonal, 1.0)), 0.0)
        unit = scale[:, tf.newaxis] * gramian * scale
        # A row of the identity keeps those who do not play out of the way of the others.
        ridge = tf.where(plays, tf.constant(_RIDGE, tf.float64), 1.0)
        found = scale * _bargain(unit + tf.linalg.diag(ridge))
        if self.max_norm is None:
            return found
        norm = tf.sqrt(tf.reduce_sum(found * tf.linalg.matvec(gramian, found)))
        return found / tf.maximum(norm / self.max_norm, 1.0)

    def get_config(self):
        return {"max_norm": self.max_norm}


def _bargain(gramian):
    """a > 0 with G a = 1 / a, by damped Newton steps on 1/2 a^T G a - sum log a."""

    def improve(values, decrement):
        gradient = tf.linalg.matvec(gramian, values) - 1 / values
        hessian = gramian + tf.linalg.diag(1 / tf.square(values))
        factor = tf.linalg.cholesky(hessian)
        move = tf.linalg.cholesky_solve(factor, gradient[:, tf.newaxis])[:, 0]
        decrement = tf.sqrt(tf.maximum(tf.reduce_sum(gradient * move), 0.0))
        length = tf.where(decrement > 0.25, 1 / (1 + decrement), 1.0)
        return values - length * move, decrement

    start = tf.ones_like(tf.linalg.diag_part(gramian))
    values, _ = tf.while_loop(
        lambda values, decrement: decrement > 1e-10,
        improve,
        (start, tf.constant(1.0, tf.float64)),
        maximum_iterations=_STEPS,
    )
    return values
