"""The two terms that tie prototypes to data, and data to prototypes.

    R1 = 1/m sum_j min_i ||p_j - f(x_i)||^2     every prototype is like an example
    R2 = 1/n sum_i min_j ||f(x_i) - p_j||^2     every example is like a prototype

"Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", Li, Liu, Chen, Rudin, 2017, arXiv 1710.04806; the interpretability terms.

As in the paper's training, i runs over a minibatch.
"""

import tensorflow as tf

from kzoo.layers.prototype_distance import PAPER
from kzoo.papers import component


@component(PAPER)
def prototype_interpretability_terms(distances, sample_weight=None):
    """R1 and R2 from the squared distances of a batch to the prototypes.

    Under `tf.distribute` each replica passes the distances of its own rows. R2 is a mean over
    examples, so replicas average to that of the global batch; R1 holds a minimum over the rows of
    the replica, so their average is at least that of the global batch.

    Args:
        distances: floats [batch, prototypes], at least one row, as `kzoo.layers.PrototypeDistance`
            gives them.
        sample_weight: [batch] weights of the examples in R2; the mean is still over their number.
            None for 1. R1 asks for any example, whatever its weight.

    Returns:
        (R1, R2), scalars of the dtype of `distances`.

    Raises:
        ValueError: for distances of another rank.

    Example:

    >>> prototype_interpretability_terms([[1.0, 2.0, 6.0], [4.0, 3.0, 6.0]])
    (3.0, 2.0)

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """
    distances = tf.convert_to_tensor(distances)
    if distances.shape.rank != 2:
        raise ValueError(
            f"`distances` must be [batch, prototypes]. Received: shape {distances.shape}"
        )
    of_prototypes = tf.reduce_min(distances, axis=0)
    of_examples = tf.reduce_min(distances, axis=1)
    if sample_weight is not None:
        of_examples *= tf.reshape(tf.cast(sample_weight, distances.dtype), [-1])
    return tf.reduce_mean(of_prototypes), tf.reduce_mean(of_examples)
