"""MGDA: the point of least norm in the convex hull of the gradients.

    A(J) = J^T a,   a = argmin_{a >= 0, sum a = 1} ||J^T a||

"Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Desideri, 2012,
Comptes Rendus Mathematique 350.

The point is found exactly rather than by steps of Frank and Wolfe: b that minimises
||J^T b||^2 + s (1 - sum b)^2 over b >= 0 has its optimality conditions up to a factor, for any
s > 0, so that a = b / sum b (Wolfe 1976).
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import Weighting, register
from kzoo.ops.aggregation.quadratic import nonnegative_quadratic


@register
class MGDA(Weighting):
    """The shortest convex combination of the gradients; zero where they balance.

    Free of conflict, but not proportional to the gradients: the smallest of them dominates.

    Reference:
        Desideri (2012), definition 4, doi.org/10.1016/j.crma.2012.03.014
    """

    def weights(self, gramian, step=0):
        diagonal = tf.linalg.diag_part(gramian)
        # Any factor is right; the least norm keeps all that counts within the same precision.
        least = tf.reduce_min(tf.where(diagonal > 0, diagonal, float("inf")))
        least = tf.where(tf.math.is_finite(least), least, 1.0)
        linear = tf.fill([1, tf.shape(gramian)[0]], -least)
        found = nonnegative_quadratic(gramian + least, linear)[0]
        return tf.math.divide_no_nan(found, tf.reduce_sum(found))
