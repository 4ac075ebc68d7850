"""Retrieval measures as Keras metrics: `kzoo.metrics.retrieval` on a stream of embeddings.

"Circle Loss: A Unified Perspective of Pair Similarity Optimization", Sun et al., 2020, arXiv
2002.10857, for recall@k; "A Metric Learning Reality Check", Musgrave, Belongie, Lim, 2020, arXiv
2003.08505, for MAP@R.
"""

import keras
import tensorflow as tf

from kzoo.losses.circle import PAPER
from kzoo.losses.pairs import class_numbers
from kzoo.metrics.retrieval import (
    REALITY_CHECK,
    average_precision_measure,
    check_positive,
    check_similarity,
    mean_over_queries,
    recall_measure,
)
from kzoo.ops.distribute import num_replicas
from kzoo.papers import component


class _Retrieval(keras.metrics.Metric):
    """Keeps what it is fed, and measures it when asked."""

    def __init__(self, dim, capacity, similarity, name, dtype):
        super().__init__(name=name, dtype=dtype)
        check_positive("dim", dim)
        check_positive("capacity", capacity)
        check_similarity(similarity)
        self.dim = dim
        self.capacity = capacity
        self.similarity = similarity
        self._embeddings = self.add_variable((capacity, dim), "zeros", "float32", name="embeddings")
        self._labels = self.add_variable((capacity,), "zeros", "int32", name="labels")
        self._count = self.add_variable((), "zeros", "int32", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds embeddings `y_pred`, float [batch, dim], of the classes `y_true`, int [batch]."""
        if sample_weight is not None:
            raise ValueError("`sample_weight` has no meaning for retrieval. Received one.")
        if num_replicas() > 1:
            raise ValueError(
                f"{type(self).__name__} compares all embeddings with each other, so it must be "
                "fed outside of a strategy of several replicas."
            )
        embeddings = tf.cast(y_pred, tf.float32)
        if embeddings.shape.rank != 2 or embeddings.shape[-1] != self.dim:
            raise ValueError(
                f"`y_pred` must be embeddings [batch, {self.dim}]. Received: {embeddings.shape}"
            )
        begin = tf.convert_to_tensor(self._count)
        places = begin + tf.range(tf.shape(embeddings)[0])
        check = tf.debugging.assert_less(
            places, self.capacity, message="more embeddings than the `capacity` of the metric"
        )
        with tf.control_dependencies([check] if check is not None else []):
            places = tf.identity(places)[:, tf.newaxis]
        for variable, rows in (
            (self._embeddings, embeddings),
            (self._labels, class_numbers(y_true)),
        ):
            variable.assign(tf.tensor_scatter_nd_update(variable.value, places, rows))
        self._count.assign(begin + tf.shape(embeddings)[0])

    def result(self):
        """The measure of what was added since the last reset, a float scalar."""
        value = mean_over_queries(
            tf.convert_to_tensor(self._embeddings),
            tf.convert_to_tensor(self._labels),
            tf.convert_to_tensor(self._count),
            self._measure(),
            self.similarity,
        )
        return tf.cast(value, self.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "capacity": self.capacity,
            "similarity": self.similarity,
        }


@component(PAPER)
class RecallAtK(_Retrieval):
    """`recall_at_k` of all embeddings since the last reset.

    Keras asks for the result after every batch, at the price of comparing all that came so far with
    each other: with large sets call `update_state` by hand, or `recall_at_k` once.

    Args:
        dim: size of the embeddings, d.
        capacity: the most embeddings that it will hold, at least 1; it reserves their memory.
        k: number of neighbours, at least 1. Defaults to 1.
        similarity: "cosine" or "euclidean". Defaults to "cosine".
        name: of the metric.
        dtype: of the result.

    Raises:
        ValueError: for arguments out of range, sample weights, or several replicas.
        tf.errors.InvalidArgumentError: for more embeddings than `capacity`. (XLA drops the check,
            and the embeddings.)

    Example:

    >>> metric = RecallAtK(dim=2, capacity=100)
    >>> metric.update_state([0, 0, 1], [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> float(metric.result())
    1.0

    Reference:
        Sun et al. (2020), section 4.4, arxiv.org/abs/2002.10857
    """

    def __init__(self, dim, capacity, k=1, similarity="cosine", name="recall_at_k", dtype=None):
        super().__init__(dim, capacity, similarity, name, dtype)
        check_positive("k", k)
        self.k = k

    def _measure(self):
        return recall_measure(self.k)

    def get_config(self):
        return {**super().get_config(), "k": self.k}


@component(REALITY_CHECK)
class MeanAveragePrecisionAtR(_Retrieval):
    """`map_at_r` of all embeddings since the last reset.

    See `RecallAtK` for what it costs in `fit`.

    Args:
        dim: size of the embeddings, d.
        capacity: the most embeddings that it will hold, at least 1; it reserves their memory.
        similarity: "cosine" or "euclidean". Defaults to "cosine".
        name: of the metric.
        dtype: of the result.

    Raises:
        ValueError: for arguments out of range, sample weights, or several replicas.
        tf.errors.InvalidArgumentError: for more embeddings than `capacity`. (XLA drops the check,
            and the embeddings.)

    Reference:
        Musgrave et al. (2020), section 3.2, arxiv.org/abs/2003.08505
    """

    def __init__(self, dim, capacity, similarity="cosine", name="map_at_r", dtype=None):
        super().__init__(dim, capacity, similarity, name, dtype)

    def _measure(self):
        return average_precision_measure(self.capacity)
