"""Baselines that attributions are measured from, and the sums that completeness compares."""

import keras
import numpy as np
import tensorflow as tf


def broadcast_baseline(baseline, values):
    """A baseline in the structure and shape of `values`.

    Args:
        baseline: a number or an array of the shape of one input, or, for several inputs, a
            structure of these. Lists stand for arrays as well, as they come from JSON.
        values: tensors [batch, ...].

    Raises:
        ValueError: for a baseline of another structure or shape.
    """
    if not keras.tree.is_nested(values):
        return _broadcast(values, baseline)
    if np.ndim(baseline) == 0 and not isinstance(baseline, dict):
        return keras.tree.map_structure(lambda x: _broadcast(x, baseline), values)
    return keras.tree.map_structure_up_to(values, _broadcast, values, baseline)


def baseline_config(baseline):
    """A baseline as numbers and lists, which JSON can hold."""
    return keras.tree.map_structure(lambda x: np.asarray(x).tolist(), baseline)


def _broadcast(x, start):
    start = np.asarray(start)
    try:
        tf.broadcast_static_shape(x.shape[1:], tf.TensorShape(start.shape))
    except ValueError:
        raise ValueError(
            f"`baseline` must broadcast to the shape {x.shape[1:]} of one input. Received: "
            f"{start.shape}"
        ) from None
    return tf.broadcast_to(tf.cast(start, x.dtype), tf.shape(x))


def sum_per_row(attributions):
    """The sum of each row over all values of a structure of tensors, [batch]."""
    leaves = keras.tree.flatten(attributions)
    return tf.add_n([tf.reduce_sum(x, axis=range(1, x.shape.rank)) for x in leaves])
