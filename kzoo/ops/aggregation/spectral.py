"""The eigenvalues of a Gramian of which rounding leaves something."""

import tensorflow as tf


def positive_eigenvalues(gramian):
    """(eigenvalues float64 [m] ascending, which are above rounding bool [m], eigenvectors [m, m]).

    Eigenvalues below m times the precision of the largest count as zero.
    """
    values, vectors = tf.linalg.eigh(gramian)
    count = tf.cast(tf.shape(gramian)[0], tf.float64)
    return values, values > count * 2.3e-16 * tf.reduce_max(values), vectors
