"""PCGrad: each gradient loses what conflicts with the others, one after the other.

    g_i <- g_i - (g_i . g_j) / ||g_j||^2 g_j   where g_i . g_j < 0, for j != i in random order
    A(J) = sum_i g_i

"Gradient Surgery for Multi-Task Learning", Yu, Kumar, Gupta, Levine, Hausman, Finn, 2020, arXiv
2001.06782.
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import Weighting, check_seed, draw_seed, register


@register
class PCGrad(Weighting):
    """The sum of the gradients, each projected onto the normal planes of those it conflicts with.

    Free of conflict for two objectives, not in general for more. It is a sum, so with learning
    rates made for means divide by m.

    Args:
        seed: integer of at least 0; the orders depend on it and on the number of the step.

    Reference:
        Yu et al. (2020), algorithm 1, arxiv.org/abs/2001.06782
    """

    def __init__(self, seed=0):
        self.seed = check_seed(seed)

    def weights(self, gramian, step=0):
        count = tf.shape(gramian)[0]
        seed = draw_seed(self.seed, step)
        keys = tf.random.stateless_uniform([count, count], seed, alg="philox")
        # Row i is the order in which the i-th gradient meets the others.
        orders = tf.argsort(keys, axis=-1)
        norms = tf.linalg.diag_part(gramian)

        def meet(turn, weights):
            others = tf.one_hot(orders[:, turn], count, dtype=gramian.dtype)
            products = tf.reduce_sum(weights * tf.matmul(others, gramian), axis=-1)
            factors = tf.math.divide_no_nan(-products, tf.linalg.matvec(others, norms))
            itself = tf.equal(orders[:, turn], tf.range(count))
            factors = tf.where((products < 0) & ~itself, factors, 0.0)
            return turn + 1, weights + factors[:, tf.newaxis] * others

        _, weights = tf.while_loop(
            lambda turn, weights: turn < count, meet, (0, tf.eye(count, dtype=gramian.dtype))
        )
        return tf.reduce_sum(weights, axis=0)

    def get_config(self):
        return {"seed": self.seed}
