"""The worst weights of sorted losses within a permutahedron, at the cost of a divergence.

    max_q q^T l - nu D(q || 1/n),   q in the convex hull of the permutations of sigma

Its dual is an isotonic regression. Within a pool B of the finest partition whose values rise,

    chi-square   value mean_B (l - 2 nu n sigma)
                 q_i = mean_B sigma + (l_i - mean_B l) / (2 nu n)
    KL           value logsumexp_B(l / nu) - log sum_B sigma
                 q_i = (sum_B sigma) softmax_B(l / nu)_i

The pools are found by splitting from the whole, many at once, at the vertices of the convex
minorant, not by pooling adjacent violators one by one: the result is the same, in few rounds of
vector operations, which XLA compiles.
"""

import numpy as np
import tensorflow as tf


def chi_square_weights(losses, spectrum, shift_cost):
    """The maximum with the chi-square divergence n ||q - 1/n||^2.

    Args:
        losses: l, floating [n], rising.
        spectrum: sigma, of the same dtype, [n], rising, with the sum 1.
        shift_cost: nu, above 0.

    Returns:
        q, [n], rising.
    """
    scaled = losses / (2.0 * shift_cost * tf.cast(tf.size(losses), losses.dtype))

    def weights(pools):
        return _pool_mean(spectrum, pools) + _pool_deviation(scaled, pools)

    certain = scaled[1:] - scaled[:-1] > spectrum[-1]
    return weights(_split_pools(lambda pools: weights(pools) - spectrum, certain))


def kl_weights(losses, spectrum, shift_cost):
    """The maximum with the Kullback-Leibler divergence sum q_i log(n q_i).

    Args:
        losses, spectrum, shift_cost: see `chi_square_weights`.

    Returns:
        q, [n], rising.
    """
    scaled = losses / shift_cost

    def weights(pools):
        return _pool_sum(spectrum, pools) * _pool_softmax(scaled, pools)

    largest = spectrum[-1] * tf.cast(tf.size(losses), losses.dtype)
    certain = scaled[1:] - scaled[:-1] > tf.math.log(largest) - tf.math.log(spectrum[:-1])
    return weights(_split_pools(lambda pools: weights(pools) - spectrum, certain))


def _split_pools(excess, borders):
    """Splits pools until the weights are within the polytope; int32 [n], the pool of each loss.

    `excess(pools)` gives the weights that go with the pools, less sigma. Where the sum of the
    excess of the first weights of a pool is least, and negative, they are less than the polytope
    lets the smallest weights be: the convex minorant, whose slopes are the isotonic regression, has
    a vertex there, and a pool ends. `borders`, bool [n - 1], are ends that are known beforehand.
    """

    def number(borders):
        return tf.cumsum(tf.concat([[0], tf.cast(borders, "int32")], 0))

    def split(pools, _):
        differences = excess(pools)
        rounding = 4.0 * float(np.finfo(differences.dtype.as_numpy_dtype).eps)
        sums = tf.cumsum(differences)
        least = tf.math.unsorted_segment_min(sums, pools, tf.size(pools))
        ends = sums < -rounding * tf.reduce_sum(tf.abs(differences))
        ends &= sums <= tf.gather(least, pools)
        finer = number(ends[:-1] | (pools[1:] > pools[:-1]))
        return finer, finer[-1] > pools[-1]

    state = number(borders), tf.constant(True)
    return tf.while_loop(lambda _, changed: changed, split, state)[0]


def _pool_sum(values, pools):
    return tf.gather(tf.math.unsorted_segment_sum(values, pools, tf.size(values)), pools)


def _pool_mean(values, pools):
    return _pool_sum(values, pools) / _pool_sum(tf.ones_like(values), pools)


def _pool_deviation(values, pools):
    """The values less the mean of their pool, without the rounding of large values."""
    below = values - _pool_max(values, pools)
    return below - _pool_mean(below, pools)


def _pool_softmax(values, pools):
    exponentials = tf.exp(values - _pool_max(values, pools))
    return exponentials / _pool_sum(exponentials, pools)


def _pool_max(values, pools):
    return tf.gather(tf.math.unsorted_segment_max(values, pools, tf.size(values)), pools)
