"""Random numbers that are the same with and without XLA.

TensorFlow's stateless generators agree on the random bits everywhere, but not on what floating
numbers they make of them: `tf.random.stateless_normal` and `stateless_uniform` with alg="philox"
return other numbers in a function compiled by XLA than outside of it.
"""

import math

import tensorflow as tf


def fold_in(seed, *numbers):
    """A new seed for each combination of a seed and integers.

    Args:
        seed: integer [2].
        numbers: integers or integer scalars, such as the number of a step.

    Returns:
        int64 [2].
    """
    seed = tf.cast(seed, tf.int64)
    for number in numbers:
        # All in int64: XLA reads a negative seed of int32 as another one.
        seed = tf.random.fold_in(seed, tf.cast(number, tf.int64), alg="philox")
    return seed


def portable_normal(shape, seed, dtype="float32"):
    """Standard normal numbers, by the method of Box and Muller.

    Args:
        shape: shape of the result, integers or an integer tensor.
        seed: int64 [2], as of `fold_in`.
        dtype: a floating dtype. The numbers are computed in float64 for float64, else in float32,
            and are the same for all but rounding.

    Returns:
        Tensor of the shape and dtype; no absolute value exceeds 6.
    """
    dtype = tf.as_dtype(dtype)
    working = tf.float64 if dtype == tf.float64 else tf.float32
    shape = tf.concat([[2], shape], axis=0)
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
    # 24 bits are what float32 holds; the half keeps the logarithm finite.
    uniform = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), working)
    radius, angle = tf.unstack((uniform + 0.5) * 2.0**-24)
    return tf.cast(tf.sqrt(-2.0 * tf.math.log(radius)) * tf.cos(2.0 * math.pi * angle), dtype)
