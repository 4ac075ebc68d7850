"""What a model answers for a whole data set, without a look inside."""

import functools

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import final_activation


def class_probabilities(model, x, batch_size=256):
    """The probabilities that a classifier gives to the classes.

    Args:
        model: a Keras model with one output [batch, classes] or [batch, 1]. A model that ends in
            logits is meant for a softmax, with one column for a sigmoid.
        x: the model's inputs, or a structure of them, as NumPy arrays.
        batch_size: rows at once. Defaults to 256.

    Returns:
        float [n, classes]; a single column becomes two classes. The sigmoids of a model with
        several do not add up to 1.
    """
    outputs = predict_in_batches(model, x, batch_size)
    if outputs.ndim != 2:
        raise ValueError(
            f"`model` must have one output of shape [batch, classes]. Received: {outputs.shape}"
        )
    if final_activation(model) is None:
        turn = tf.nn.softmax if outputs.shape[1] > 1 else tf.nn.sigmoid
        outputs = turn(outputs).numpy()
    return outputs if outputs.shape[1] > 1 else np.concatenate([1 - outputs, outputs], axis=1)


def predict_in_batches(function, x, batch_size=256):
    """`function(batch)` for all rows of `x`, a structure of arrays, as one array, at least float32.

    Keras models are called with `training=False`.
    """
    x = keras.tree.map_structure(np.asarray, x)
    arrays = keras.tree.flatten(x)
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"`x` must have rows, the same number in each. Received: {lengths}")
    kwargs = {"training": False} if isinstance(function, keras.Layer) else {}
    # Half precision has no place among NumPy's types. Not the tf.function itself is called, which
    # would warn of retracing where many models are asked.
    spec = keras.tree.map_structure(
        lambda a: tf.TensorSpec([None, *a.shape[1:]], tf.as_dtype(a.dtype)), x
    )
    call = tf.function(lambda batch: _widen(function(batch, **kwargs)), autograph=False)
    call = call.get_concrete_function(spec)
    parts = [
        call(keras.tree.map_structure(functools.partial(_rows, start, start + batch_size), x))
        for start in range(0, lengths.pop(), batch_size)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


def _rows(start, stop, array):
    return tf.convert_to_tensor(array[start:stop])


def _widen(x):
    return tf.cast(x, tf.float32) if x.dtype in (tf.bfloat16, tf.float16) else x
