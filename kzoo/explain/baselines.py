"""Baselines that attributions are measured from, and the sums that completeness compares."""

import keras
import tensorflow as tf


def broadcast_baseline(baseline, values):
    """A baseline in the structure and shape of `values`.

    Args:
        baseline: a number or an array of the shape of one input, or a structure of these.
        values: tensors [batch, ...].
    """
    if not keras.tree.is_nested(baseline):
        baseline = keras.tree.map_structure(lambda _: baseline, values)
    return keras.tree.map_structure(
        lambda x, start: tf.broadcast_to(tf.cast(start, x.dtype), tf.shape(x)), values, baseline
    )


def sum_per_row(attributions):
    """The sum of each row over all values of a structure of tensors, [batch]."""
    leaves = keras.tree.flatten(attributions)
    return tf.add_n([tf.reduce_sum(x, axis=range(1, x.shape.rank)) for x in leaves])
