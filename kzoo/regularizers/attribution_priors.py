"""Attribution priors: what is expected of explanations, as penalties on attributions.

With phi the attributions, and phi_bar_i = mean over the batch of |phi_i|:

    pixel    mean over the batch of sum_ij |phi_(i+1)j - phi_ij| + |phi_i(j+1) - phi_ij|
    graph    sum over the edges W_ij (phi_bar_i - phi_bar_j)^2 = phi_bar' L phi_bar
    sparse   - sum_ij |phi_bar_i - phi_bar_j| / (n sum_i phi_bar_i) = -2 Gini(phi_bar)

"Improving performance of deep learning models with axiomatic attribution priors and expected
gradients", Erion, Janizek, Sturmfels, Lundberg, Lee, 2019, arXiv 1906.10670; section "Attribution
priors" and its three experiments (images, gene expression, health care).

Deviations: the pixel prior is a mean over the batch, as in the authors' code, where the paper has a
sum over the data. L = D - W counts an edge once, so the sum runs over edges, not over ordered
pairs. Under `tf.distribute` every mean is that over the global batch.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.distribute import sum_over_replicas
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Improving performance of deep learning models with axiomatic attribution priors and "
    "expected gradients",
    authors=(
        "Gabriel Erion", "Joseph D. Janizek", "Pascal Sturmfels", "Scott Lundberg", "Su-In Lee",
    ),
    year=2019,
    arxiv="1906.10670",
)  # fmt: skip


def global_batch_mean(x, weight=None):
    """The mean over the rows of all replicas, differentiable on each of them.

    Args:
        x: float tensor [batch, ...], finite.
        weight: [batch], at least 0. None for equal weights.

    Returns:
        sum_r weight_r x_r / sum_r weight_r, of the shape [...]; 0 where all weights are.
    """
    weight = tf.ones(tf.shape(x)[:1], x.dtype) if weight is None else tf.cast(weight, x.dtype)
    total, count = sum_over_replicas([tf.tensordot(weight, x, 1), tf.reduce_sum(weight)])
    return tf.math.divide_no_nan(total, count)


@component(
    PAPER,
    example=Example(inputs=lambda rng, batch: rng.normal(size=(batch, 4, 5, 2)).astype("float32")),
)
class AttributionTotalVariation(keras.regularizers.Regularizer):
    """The mean total variation of attributions of images: neighbours should matter alike.

    Call argument:
        attributions: [batch, height, width] or [batch, height, width, channels].

    Returns:
        Scalar, at least float32.

    Example:

    >>> float(AttributionTotalVariation()([[[1.0, 2.0], [4.0, 0.0]]]))
    10.0

    Reference:
        Erion et al. (2019), section "Attribution priors", arxiv.org/abs/1906.10670
    """

    def __call__(self, attributions):
        x = _wide(attributions)
        if x.shape.rank not in (3, 4):
            raise ValueError(
                "`attributions` must have the shape [batch, height, width] or [batch, height, "
                f"width, channels]. Received: {x.shape}"
            )
        down, right = tf.abs(x[:, 1:] - x[:, :-1]), tf.abs(x[:, :, 1:] - x[:, :, :-1])
        axes = range(1, x.shape.rank)
        return global_batch_mean(tf.reduce_sum(down, axes) + tf.reduce_sum(right, axes))

    def get_config(self):
        return {}


@component(
    PAPER, example=Example(inputs=lambda rng, batch: rng.normal(size=(batch, 6)).astype("float32"))
)
class AttributionGini(keras.regularizers.Regularizer):
    """Minus twice the Gini coefficient of the mean absolute attributions: few should matter.

    From 0, where all features matter alike, to -2 (n - 1) / n, where one of n does. It does not
    depend on the scale of the attributions.

    Call argument:
        attributions: [batch, ...], each position a feature.

    Returns:
        Scalar, at least float32; 0 where all attributions are.

    Example:

    >>> float(AttributionGini()([[0.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 4.0]]))
    -1.5

    Reference:
        Erion et al. (2019), section "Attribution priors", arxiv.org/abs/1906.10670
    """

    def __call__(self, attributions):
        mean = _mean_magnitude(attributions)
        count = tf.size(mean)
        # Sorted, a value stands above rank - 1 others and below count - rank.
        rank = tf.range(1, count + 1)
        surplus = tf.cast(2 * rank - count - 1, mean.dtype)
        differences = 2 * tf.reduce_sum(surplus * tf.sort(mean))
        total = tf.cast(count, mean.dtype) * tf.reduce_sum(mean)
        return -tf.math.divide_no_nan(differences, total)

    def get_config(self):
        return {}


@component(
    PAPER,
    example=Example(
        kwargs={"edges": [[0, 1], [1, 3], [4, 5]], "weights": [1.0, 0.5, 2.0]},
        inputs=lambda rng, batch: rng.normal(size=(batch, 6)).astype("float32"),
    ),
)
class AttributionGraphLaplacian(keras.regularizers.Regularizer):
    """Squared differences of the mean absolute attributions along the edges of a graph of features.

    Features that are known to belong together should matter alike.

    Args:
        edges: [edges, 2] numbers of features, each undirected edge once; for example
            `list(graph.edges)` of a networkx graph.
        weights: [edges], at least 0. Defaults to 1 for each.

    Call argument:
        attributions: [batch, ...], whose positions after the batch, flattened, are the features.

    Returns:
        Scalar, at least float32.

    Example:

    >>> prior = AttributionGraphLaplacian(edges=[[0, 1], [1, 2]], weights=[1.0, 2.0])
    >>> float(prior([[1.0, -2.0, 5.0]]))
    19.0

    Reference:
        Erion et al. (2019), section "Attribution priors", arxiv.org/abs/1906.10670
    """

    def __init__(self, edges, weights=None):
        edges = np.asarray(edges)
        if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
            raise ValueError(
                "`edges` must be integers of the shape [edges, 2]. Received: "
                f"{edges.dtype} of the shape {list(edges.shape)}"
            )
        if edges.size == 0 or edges.min() < 0:
            raise ValueError("`edges` must name features from 0, in at least one edge.")
        weights = np.ones(len(edges)) if weights is None else np.asarray(weights, "float64")
        if weights.shape != (len(edges),) or not np.all(weights >= 0) or np.isinf(weights).any():
            raise ValueError(
                f"`weights` must be {len(edges)} finite numbers of at least 0, one for each edge. "
                f"Received: {weights.tolist()}"
            )
        self.edges = edges.tolist()
        self.weights = weights.tolist()

    def __call__(self, attributions):
        mean = _mean_magnitude(attributions)
        edges = np.asarray(self.edges)
        if mean.shape[0] is not None and edges.max() >= mean.shape[0]:
            raise ValueError(
                f"`edges` name the feature {edges.max()}. Received attributions of "
                f"{mean.shape[0]} features, counted from 0."
            )
        difference = tf.gather(mean, edges[:, 0]) - tf.gather(mean, edges[:, 1])
        return tf.reduce_sum(tf.constant(self.weights, mean.dtype) * tf.square(difference))

    def get_config(self):
        return {"edges": self.edges, "weights": self.weights}


def _mean_magnitude(attributions):
    """mean over the global batch of |attributions|, [features]"""
    x = _wide(attributions)
    if x.shape.rank is None or x.shape.rank < 2:
        raise ValueError(f"`attributions` must have the shape [batch, ...]. Received: {x.shape}")
    features = x.shape[1:].num_elements() or -1
    return global_batch_mean(tf.abs(tf.reshape(x, [tf.shape(x)[0], features])))


def _wide(attributions):
    x = tf.convert_to_tensor(attributions)
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x
