"""How well embeddings retrieve their class: recall@k, MAP@R, and NMI of their clusters.

    recall@k = mean over queries of [one of the k nearest is of the query's class]
    MAP@R    = mean over queries of 1/R sum_{i <= R} P(i) rel(i)

where R is the number of the others in the query's class, P(i) the part of the i nearest that is of
that class, and rel(i) whether the i-th is. Every embedding is a query among all the others. MAP@R
is 1 only if each class stands apart from the others; recall@1 does not see more than the nearest.

"Circle Loss: A Unified Perspective of Pair Similarity Optimization", Sun et al., 2020, arXiv
2002.10857, reports recall@k. MAP@R is from "A Metric Learning Reality Check", Musgrave, Belongie,
Lim, 2020, arXiv 2003.08505.

Open choices: the only member of a class has nothing to retrieve and is left out of the mean; of
equal similarities, the earlier example comes first; without any query the result is 0.
"""

import numpy as np
import tensorflow as tf

from kzoo.losses.circle import PAPER
from kzoo.papers import Paper, component

REALITY_CHECK = Paper(
    title="A Metric Learning Reality Check",
    authors=("Kevin Musgrave", "Serge Belongie", "Ser-Nam Lim"),
    year=2020,
    arxiv="2003.08505",
)

_BLOCK = 256
_SIMILARITIES = ("cosine", "euclidean")


@component(PAPER)
def recall_at_k(embeddings, labels, k=1, similarity="cosine"):
    """The part of the embeddings that have one of their class among their k nearest.

    Memory: 256 rows of similarities at a time.

    Args:
        embeddings: floats [n, d].
        labels: integers [n].
        k: number of neighbours, at least 1.
        similarity: "cosine" or "euclidean".

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: for arguments out of range or of a wrong shape.

    Example:

    >>> recall_at_k([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 0], k=1)
    1.0

    Reference:
        Sun et al. (2020), section 4.4, arxiv.org/abs/2002.10857
    """
    check_positive("k", k)
    embeddings, labels = _checked(embeddings, labels, similarity)
    return float(mean_over_queries(embeddings, labels, len(labels), recall_measure(k), similarity))


@component(REALITY_CHECK)
def map_at_r(embeddings, labels, similarity="cosine"):
    """Mean average precision at R: how much the R nearest are the R others of the class.

    Memory: 256 rows of similarities at a time.

    Args:
        embeddings: floats [n, d].
        labels: integers [n].
        similarity: "cosine" or "euclidean".

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: for arguments out of range or of a wrong shape.

    Reference:
        Musgrave et al. (2020), section 3.2, arxiv.org/abs/2003.08505
    """
    embeddings, labels = _checked(embeddings, labels, similarity)
    longest = int(np.unique(labels, return_counts=True)[1].max())
    measure = average_precision_measure(longest)
    return float(mean_over_queries(embeddings, labels, len(labels), measure, similarity))


@component(PAPER)
def clustering_nmi(embeddings, labels, clusters=None, similarity="cosine", seed=0):
    """Normalized mutual information of the classes and of k-means clusters of the embeddings.

    Both steps are scikit-learn's: `KMeans` with ten starts, and `normalized_mutual_info_score`,
    normalized by the arithmetic mean of the entropies.

    Args:
        embeddings: floats [n, d].
        labels: integers [n].
        clusters: number of clusters, in [1, n]. Defaults to the number of classes.
        similarity: "cosine" brings the embeddings to length 1 before; or "euclidean".
        seed: of k-means.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: for arguments out of range or of a wrong shape.

    Reference:
        Musgrave et al. (2020), section 2.1, on what it leaves out, arxiv.org/abs/2003.08505;
        it stands next to recall@k in the literature that Sun et al. (2020),
        arxiv.org/abs/2002.10857, compare with
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    embeddings, labels = _checked(embeddings, labels, similarity)
    clusters = len(np.unique(labels)) if clusters is None else clusters
    if not isinstance(clusters, int) or not 1 <= clusters <= len(labels):
        raise ValueError(f"`clusters` must be in [1, {len(labels)}]. Received: {clusters!r}")
    points = _comparable(embeddings, similarity).numpy()
    found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(points)
    return float(normalized_mutual_info_score(labels, found))


def recall_measure(k):
    """Whether one of the k nearest is relevant, for `mean_over_queries`."""

    def measure(similarity, relevant):
        nearest = tf.math.top_k(similarity, tf.minimum(k, similarity.shape[-1])).indices
        return tf.cast(
            tf.reduce_any(tf.gather(relevant, nearest, batch_dims=1), -1), similarity.dtype
        )

    return measure


def average_precision_measure(longest):
    """Average precision at R, for `mean_over_queries`; `longest` is at least R of every query."""

    def measure(similarity, relevant):
        nearest = tf.math.top_k(similarity, longest).indices
        hits = tf.cast(tf.gather(relevant, nearest, batch_dims=1), similarity.dtype)
        size = tf.reduce_sum(tf.cast(relevant, similarity.dtype), -1, keepdims=True)
        rank = tf.range(1, longest + 1, dtype=similarity.dtype)
        precision = tf.where(rank <= size, tf.cumsum(hits, -1) / rank, 0)
        return tf.reduce_sum(hits * precision / tf.maximum(size, 1), -1)

    return measure


def mean_over_queries(embeddings, labels, count, measure, similarity):
    """The mean of a measure over those of the first `count` rows that have something to find.

    Args:
        embeddings: [n, d].
        labels: [n].
        count: rows that are filled.
        measure: function of the similarities [rows, n], -inf for what is no candidate, and of
            whether each is relevant; gives [rows].
        similarity: "cosine" or "euclidean".
    """
    points = _comparable(embeddings, similarity)
    lengths = tf.reduce_sum(tf.square(points), axis=-1) / 2
    places = tf.range(points.shape[0])
    block = min(_BLOCK, points.shape[0])

    def step(begin, total, queries):
        rows = begin + tf.range(block)
        inside = rows < count
        rows = tf.where(inside, rows, 0)
        candidate = (places != rows[:, tf.newaxis]) & (places < count)
        # Half the squared distance, but for a part that is the same for all of a row.
        closeness = tf.matmul(tf.gather(points, rows), points, transpose_b=True) - lengths
        closeness = tf.where(candidate, closeness, -np.inf)
        relevant = (tf.gather(labels, rows)[:, tf.newaxis] == labels) & candidate
        counted = tf.cast(inside & tf.reduce_any(relevant, -1), points.dtype)
        total += tf.reduce_sum(measure(closeness, relevant) * counted)
        return begin + block, total, queries + tf.reduce_sum(counted)

    zero = tf.zeros([], points.dtype)
    _, total, queries = tf.while_loop(
        lambda begin, *_: begin < count, step, (0, zero, zero), parallel_iterations=1
    )
    return tf.math.divide_no_nan(total, queries)


def _comparable(embeddings, similarity):
    """Points whose distances are in the order of the similarity."""
    if similarity == "cosine":
        return tf.math.l2_normalize(embeddings, axis=-1)
    return tf.convert_to_tensor(embeddings)


def _checked(embeddings, labels, similarity):
    check_similarity(similarity)
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if embeddings.dtype not in (np.float32, np.float64):
        embeddings = embeddings.astype("float32")
    if embeddings.ndim != 2 or not len(embeddings) or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "`embeddings` must be [n, d] and `labels` [n], with n at least 1. "
            f"Received: shapes {embeddings.shape} and {labels.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("`embeddings` must be finite. Received: NaN or infinity among them")
    return embeddings, np.unique(labels, return_inverse=True)[1].astype("int32")


def check_positive(name, value):
    """Raises a ValueError that names the argument, unless it is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")


def check_similarity(similarity):
    """Raises a ValueError for an unknown similarity."""
    if similarity not in _SIMILARITIES:
        raise ValueError(f"`similarity` must be one of {_SIMILARITIES}. Received: {similarity!r}")
