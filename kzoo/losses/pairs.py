"""What losses over the pairs of a batch share: unit vectors, cosines, masks, sums of exponentials.

Every function works on one batch and is differentiable; all [n, n] matrices have the anchor in the
row. Under a `tf.distribute` strategy the pairs are those within a replica's part of the batch.
"""

import keras
import tensorflow as tf

_NORM_TOLERANCE = 1e-2


def loss_dtype():
    """The dtype that pair losses compute in: float32, or float64 under that floatx.

    Keras brings class numbers to the dtype of a loss too, and 16 bits would merge them.
    """
    return "float64" if keras.config.floatx() == "float64" else "float32"


def class_numbers(y_true):
    """Labels [batch] or [batch, 1] as int32 [batch].

    Raises:
        ValueError: for another shape, such as one-hot rows.
    """
    y_true = tf.convert_to_tensor(y_true)
    if y_true.shape.rank == 2 and y_true.shape[-1] == 1:
        y_true = tf.squeeze(y_true, -1)
    if y_true.shape.rank != 1:
        raise ValueError(
            "`y_true` must be class numbers, [batch] or [batch, 1]. "
            f"Received: shape {tuple(y_true.shape)}"
        )
    return tf.cast(y_true, tf.int32)


def unit_embeddings(embeddings, normalize):
    """Embeddings of length 1, [..., d].

    Args:
        embeddings: floats [..., d].
        normalize: whether to divide by the length; a zero vector stays zero. False demands vectors
            of length 1 to within 1 %.

    Raises:
        tf.errors.InvalidArgumentError: where `normalize` is False and a length is not 1. (XLA drops
            such checks.)
    """
    if normalize:
        return tf.math.l2_normalize(embeddings, axis=-1)
    squares = tf.reduce_sum(tf.square(embeddings), axis=-1)
    check = tf.debugging.assert_near(
        squares,
        tf.ones_like(squares),
        rtol=0.0,
        atol=2 * _NORM_TOLERANCE,
        message="`y_pred` must be embeddings of length 1 with `normalize=False`; their squares are",
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(embeddings)


def pair_masks(labels):
    """(positive, negative), bool [n, n]: same class but another example, and another class."""
    same = labels[:, tf.newaxis] == labels[tf.newaxis, :]
    return same & other_examples(labels), ~same


def other_examples(labels):
    """bool [n, n], False on the diagonal."""
    return ~tf.eye(tf.shape(labels)[0], dtype=tf.bool)


def masked_logsumexp(values, mask):
    """log sum exp over the entries of each row that the mask lets through.

    A row without any gives a number so low that its exponential is 0, even added to another such
    number; it takes no gradient.
    """
    low = values.dtype.min / 4
    return tf.reduce_logsumexp(tf.where(mask, values, low), axis=-1)
