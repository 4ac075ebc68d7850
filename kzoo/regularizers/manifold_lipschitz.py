"""Smoothness along a manifold: a Laplacian penalty with a multiplier for each point.

Points x_1 ... x_n of the manifold, labelled or not, make a graph with the heat kernel's weights

    w_ij = exp(-||x_i - x_j||^2 / (4 t))      for near neighbours, 0 else

The local gradient of a function f is that of the pairs of a point, and the penalty their weighted
sum, a Laplacian whose edge weights follow the multipliers:

    g_i = 1 / c_i sum_j w_ij ||f(x_i) - f(x_j)||^2,   c_i = sum_j w_ij ||x_i - x_j||^2 / dimension
    penalty = sum_i mu_i g_i

and with c_i = 1, sum over the edges of w_ij (mu_i + mu_j) ||f(x_i) - f(x_j)||^2, which is
2 mu tr(F' L F) where all mu are the same, L the graph's Laplacian.

"Learning Globally Smooth Functions on Manifolds", Cerviño, Chamon, Haeffele, Vidal, Ribeiro, 2022,
arXiv 2210.00301. To learn the smoothest function that fits, min rho subject to a loss of at most
epsilon and ||grad_M f(x_i)|| <= rho, is to weigh manifold regularization by multipliers that grow
where f is steep; `kzoo.training.PrimalDualTraining` does.

Open choices: the graph is made symmetric, with an edge where either point is among the other's
neighbours; t is a quarter of the median squared length of the edges unless it is given; c_i makes
g_i the squared gradient of a linear function on evenly spread neighbours, whatever the density, so
that its root estimates a Lipschitz constant.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Learning Globally Smooth Functions on Manifolds",
    authors=(
        "Juan Cerviño",
        "Luiz F. O. Chamon",
        "Benjamin D. Haeffele",
        "René Vidal",
        "Alejandro Ribeiro",
    ),
    year=2022,
    arxiv="2210.00301",
)


@component(PAPER)
def heat_kernel_graph(points, neighbors=10, temperature=None):
    """The graph of near neighbours with the heat kernel's weights.

    Args:
        points: [n, ...], compared by the Euclidean distance of all their values.
        neighbors: number of nearest neighbours of each point, from 1 to n - 1. Defaults to 10.
        temperature: t, above 0. None for a quarter of the median squared length of the edges.

    Returns:
        (edges, weights, lengths): int32 [edges, 2] with the smaller number first, float64 [edges]
        in (0, 1], and float64 [edges], the distances.

    Raises:
        ValueError: for arguments out of range, or points that all lie in one place.

    Reference:
        Cerviño et al. (2022), arxiv.org/abs/2210.00301
    """
    from scipy import sparse
    from sklearn.neighbors import kneighbors_graph

    points = np.asarray(points, "float64")
    if points.ndim < 2 or len(points) < 2:
        raise ValueError(f"`points` must be [n, ...], two or more. Received: {list(points.shape)}")
    if not isinstance(neighbors, int) or not 1 <= neighbors < len(points):
        raise ValueError(
            f"`neighbors` must be an integer from 1 to {len(points) - 1}. Received: {neighbors!r}"
        )
    if temperature is not None and not temperature > 0:
        raise ValueError(f"`temperature` must be above 0. Received: {temperature!r}")
    near = kneighbors_graph(points.reshape(len(points), -1), neighbors, mode="connectivity")
    upper = sparse.triu(near.maximum(near.T), k=1).tocoo()
    edges = np.stack([upper.row, upper.col], axis=1).astype("int32")
    differences = points[edges[:, 0]] - points[edges[:, 1]]
    lengths = np.linalg.norm(differences.reshape(len(edges), -1), axis=1)
    if temperature is None:
        temperature = np.median(lengths**2) / 4
        if temperature == 0:
            raise ValueError("`points` must lie apart, or `temperature` be given.")
    return edges, np.exp(-(lengths**2) / (4 * temperature)), lengths


@component(
    PAPER,
    example=Example(
        kwargs={"edges": [[0, 1], [1, 3], [2, 3]], "weights": [1.0, 0.5, 2.0]},
        inputs=lambda rng, batch: rng.normal(size=(batch, 2)).astype("float32"),
    ),
)
class LaplacianPenalty(keras.regularizers.Regularizer):
    """Squared differences of a function along the edges of a graph of points, weighed by point.

    Args:
        edges: [edges, 2] numbers of points, each undirected edge once.
        weights: [edges], at least 0.

    Call arguments:
        outputs: f at the points in their order, [points, ...].
        multipliers: mu [points], at least 0; None for 1 for each.

    Returns:
        sum over the edges of w_ij (mu_i + mu_j) ||f_i - f_j||^2, a scalar, at least float32.

    Example:

    >>> penalty = LaplacianPenalty(edges=[[0, 1], [1, 2]], weights=[1.0, 2.0])
    >>> float(penalty([[1.0], [2.0], [5.0]], multipliers=[1.0, 0.0, 3.0]))
    55.0

    Reference:
        Cerviño et al. (2022), arxiv.org/abs/2210.00301
    """

    def __init__(self, edges, weights):
        edges, weights = np.asarray(edges), np.asarray(weights, "float64")
        if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
            raise ValueError(
                "`edges` must be integers of the shape [edges, 2]. Received: "
                f"{edges.dtype} of the shape {list(edges.shape)}"
            )
        if edges.size == 0 or edges.min() < 0:
            raise ValueError("`edges` must name points from 0, in at least one edge.")
        if weights.shape != (len(edges),) or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError(
                f"`weights` must be {len(edges)} finite numbers of at least 0, one an edge."
            )
        self.edges = edges.tolist()
        self.weights = weights.tolist()

    def __call__(self, outputs, multipliers=None):
        edges = np.asarray(self.edges)
        squared = squared_differences(outputs, edges)
        weights = tf.constant(self.weights, squared.dtype)
        if multipliers is None:
            return 2 * tf.reduce_sum(weights * squared)
        multipliers = tf.cast(multipliers, squared.dtype)
        both = tf.gather(multipliers, edges[:, 0]) + tf.gather(multipliers, edges[:, 1])
        return tf.reduce_sum(weights * both * squared)

    def get_config(self):
        return {"edges": self.edges, "weights": self.weights}


@component(PAPER)
def squared_local_gradients(outputs, edges, weights, lengths, dimension=1):
    """How steep a function is at each point of a graph, along the manifold.

    Args:
        outputs: f at the points, float [points, ...].
        edges, weights, lengths: what `heat_kernel_graph` returns.
        dimension: of the manifold, at least 1. Defaults to 1; a value that is too small gives
            gradients that are too small, by the root of the ratio.

    Returns:
        g, [points], at least float32, an estimate of ||grad_M f||^2; for several outputs the sum of
        theirs. 0 for a point without neighbours or on top of them.

    Reference:
        Cerviño et al. (2022), arxiv.org/abs/2210.00301
    """
    squared = squared_differences(outputs, edges)
    weights, lengths = tf.cast(weights, squared.dtype), tf.cast(lengths, squared.dtype)
    points = tf.shape(outputs)[0]
    rises, runs = (
        _sum_at_ends(weights * each, edges, points) for each in (squared, tf.square(lengths))
    )
    return tf.cast(dimension, squared.dtype) * tf.math.divide_no_nan(rises, runs)


def squared_differences(outputs, edges):
    """||f_i - f_j||^2 for each edge, [edges], at least float32."""
    f = tf.convert_to_tensor(outputs)
    f = tf.cast(f, tf.float32) if f.dtype.size < 4 else f
    f = tf.reshape(f, [tf.shape(f)[0], -1])
    return tf.reduce_sum(tf.square(tf.gather(f, edges[:, 0]) - tf.gather(f, edges[:, 1])), axis=1)


def _sum_at_ends(values, edges, points):
    """For each point the sum over its edges."""
    first, second = (tf.math.unsorted_segment_sum(values, edges[:, i], points) for i in (0, 1))
    return first + second
