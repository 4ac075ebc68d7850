"""Observable propagation: a functional of the logits, taken back to directions in the inside.

An observable is a linear functional n of the logits, such as the logit of "she" less that of "he".
On a path down from the logits, with attention patterns as they are, it becomes

    y <- W^T y                      through a linear layer; W_OV^T y through head h, W_OV = W_O W_V
    y <- gradient of y . f at x0    through layer normalization or an MLP, at a point x0
    A_tj y . x_j                    is what the head takes from token j to token t, seen by n
    C(y1, y2) = y1 . y2 / ||y1||^2                                   (coupling coefficient)

For x uniform on a sphere with x . y1 = k, the mean of x . y2 is k C(y1, y2). Normalization hardly
turns a vector: in d dimensions the gradient of n . LN(x) has the direction of n but for the parts
of n along x and along (1, ..., 1).

"Observable Propagation: A Data-Efficient Approach to Uncover Feature Vectors in Transformers",
Dunefsky, Cohan, 2023, arXiv 2312.16291; sections 2 (propagation) and 3 (normalization, coupling).

Deviations: none. Open choices: the explainer sums over all paths from a head to the observable with
attention patterns frozen, and linearises at the input itself; biases of the value projection are no
token's contribution and left out.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.attention import (
    AttentionExplainer,
    emptied_by_calls,
    probabilities,
    replace_attention,
    widened,
)
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Observable Propagation: A Data-Efficient Approach to Uncover Feature Vectors in "
    "Transformers",
    authors=("Jacob Dunefsky", "Arman Cohan"),
    year=2023,
    arxiv="2312.16291",
)


@component(PAPER, not_served="a score that explainers are made with")
class Observable:
    """A linear functional of the logits, which is a `score` for every explainer.

    Args:
        weights: its vector n, [classes] numbers, not all zero; or a dict from class to number, for
            the classes that are not 0, with `classes`.
        classes: number of classes, for a dict of weights.
        position: for logits [batch, tokens, classes], the token whose logits are observed.
            Defaults to -1, the last.

    Example:

    >>> she_over_he = Observable({17: 1, 4: -1}, classes=1000)
    >>> result = Saliency(model, score=she_over_he)(inputs)
    """

    def __init__(self, weights, classes=None, position=-1):
        if isinstance(weights, dict):
            weights = _from_dict(weights, classes)
        self.vector = np.asarray(weights, "float64")
        if self.vector.ndim != 1 or not self.vector.any() or not np.isfinite(self.vector).all():
            raise ValueError(
                "`weights` must be finite numbers [classes], not all 0. Received an array of shape "
                f"{self.vector.shape}: {weights!r}"
            )
        self.position = position

    def __call__(self, outputs, target):
        """Logits [batch, classes] or [batch, tokens, classes] -> (scores [batch], target)."""
        logits = outputs[:, self.position] if outputs.shape.rank == 3 else outputs
        if logits.shape.rank != 2 or logits.shape[1] != len(self.vector):
            raise ValueError(
                f"The observable is one of logits [batch, {len(self.vector)}] or [batch, tokens, "
                f"{len(self.vector)}]. Received: {outputs.shape}"
            )
        return tf.linalg.matvec(logits, tf.constant(self.vector, logits.dtype)), target


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """One head of an attention layer, as a step of a path: its output-value circuit.

    Args:
        layer: a built keras.layers.MultiHeadAttention or GroupQueryAttention.
        index: which of its (query) heads.
    """

    layer: keras.Layer
    index: int

    def __post_init__(self):
        attention = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
        if not isinstance(self.layer, attention) or not self.layer.built:
            raise ValueError(
                "`layer` must be a built keras.layers.MultiHeadAttention or GroupQueryAttention. "
                f"Received: {self.layer!r}"
            )
        heads = self.layer._output_dense.kernel.shape[0]
        if not 0 <= self.index < heads:
            raise ValueError(f"`index` must be one of {heads} heads. Received: {self.index}")

    def __call__(self, x):
        """x [..., features] as it is attended to -> what the head writes, without biases."""
        value, output = self.layer._value_dense.kernel, self.layer._output_dense.kernel
        mine = self.index * value.shape[1] // output.shape[0]
        return x @ tf.cast(value[:, mine] @ output[self.index], x.dtype)

    @property
    def features(self):
        return self.layer._value_dense.kernel.shape[0]


@component(PAPER, not_served="it is a function of tensors that explainers are made of")
def feature_vector(observable, path):
    """The feature vector of an observable: what direction it measures at the start of a path.

    Args:
        observable: an `Observable`, or a vector [features] at the end of the path.
        path: the steps of the path from the logits down. A step is an `AttentionHead`; a layer
            with a kernel and without an activation; or a pair (layer or other function of
            [..., features], point [features] where it is linearised).

    Returns:
        float32 or float64 array [features], by the dtype of the layers.

    Raises:
        ValueError: for a step that does not fit the vector, or needs a point.

    Example:

    >>> y = feature_vector(she_over_he, [unembed, (final_norm, x), AttentionHead(attention, 3)])

    Reference:
        Dunefsky and Cohan (2023), section 2, arxiv.org/abs/2312.16291
    """
    vector = observable.vector if isinstance(observable, Observable) else np.asarray(observable)
    if vector.ndim != 1:
        raise ValueError(f"`observable` must be a vector. Received: one of shape {vector.shape}")
    vector = tf.constant(vector, keras.config.floatx())
    for step in path:
        vector = _back(step, vector)
    return vector.numpy()


@component(PAPER, not_served="it is a function of tensors that explainers are made of")
def coupling_coefficient(first, second):
    """C(y1, y2) = y1 . y2 / ||y1||^2: how much y2 measures where y1 measures 1, on average.

    Args:
        first, second: feature vectors [..., features]; `first` not 0.

    Returns:
        array [...].

    Reference:
        Dunefsky and Cohan (2023), section 3, arxiv.org/abs/2312.16291
    """
    first, second = np.asarray(first), np.asarray(second)
    square = np.sum(first * first, -1)
    if not np.all(square > 0):
        raise ValueError("`first` must not be 0, for the coefficient is divided by its square.")
    return np.sum(first * second, -1) / square


@component(PAPER)
class ObservablePropagation(AttentionExplainer):
    """What each head takes from each token for an observable, with attention patterns frozen.

    The observable is the model's score: the logit of the target class, or, by `score`, an
    `Observable` or any other function.

    Args:
        model: see `AttentionExplainer`, as is `score`. All its attention is to as many tokens, by
            as many heads.

    Returns (when called): `attributions` [batch, attention calls, heads, tokens], the sum over the
    tokens attending of A_tj y_t . x_j; `score`, `target`, `predictions`.

    Reference:
        Dunefsky and Cohan (2023), section 2, arxiv.org/abs/2312.16291
    """

    def attribute(self, values, target, inputs):
        attentions, sources, contexts = [], [], []

        def attend(layer, query, key, value, mask):
            products = tf.einsum("bthd,bshd->bhts", query, key)
            attention = tf.stop_gradient(probabilities(layer, products, mask))
            context = tf.einsum("bhts,bshd->bthd", attention, value)
            tape.watch(context)
            attentions.append(attention)
            sources.append(value - _value_bias(layer, value))
            contexts.append(context)
            return context, attention

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with replace_attention(self.model, attend), emptied_by_calls(self.model, attentions):
                scored = self.scores(values, target, inputs)
        calls = len(attentions)
        sources, contexts = sources[-calls:], contexts[-calls:]
        vectors = tape.gradient(
            scored["score"], contexts, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        contributions = [
            tf.einsum("bhts,bthd,bshd->bhs", *each)
            for each in zip(*map(widened, (attentions, vectors, sources)), strict=True)
        ]
        shapes = {tuple(each.shape[1:]) for each in contributions}
        if len(shapes) > 1:
            raise ValueError(
                "Contributions are of as many heads and tokens in every attention layer. Received "
                f"layers with {' and '.join(map(str, sorted(shapes)))} heads and tokens."
            )
        return {"attributions": tf.stack(contributions, axis=1), **scored}


def _from_dict(weights, classes):
    if not isinstance(classes, int) or not all(0 <= each < classes for each in weights):
        raise ValueError(
            "`classes` must be the number of classes, above all in `weights`. Received: "
            f"classes={classes!r}, weights={weights!r}"
        )
    vector = np.zeros(classes)
    for index, weight in weights.items():
        vector[index] = weight
    return vector


def _back(step, vector):
    """The gradient of vector . step(x) at the step's point, any for one that is linear."""
    function, point = step if isinstance(step, tuple) else (step, None)
    point = np.zeros(_features_in(function)) if point is None else point
    x = tf.constant(point, vector.dtype)[tf.newaxis]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        y = function(x)
        if y.shape[-1] != vector.shape[0]:
            raise ValueError(
                f"{_name(function)} must give vectors of the {vector.shape[0]} features of the "
                f"step before it. Received: {y.shape[-1]}"
            )
        seen = tf.linalg.matvec(y, tf.cast(vector, y.dtype))
    return tape.gradient(seen, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)[0]


def _features_in(function):
    """How many features a linear step takes."""
    if isinstance(function, AttentionHead):
        return function.features
    kernel = getattr(function, "kernel", None)
    activation = getattr(function, "activation", None)
    is_linear = activation is None or activation is keras.activations.linear
    if kernel is None or not is_linear:
        raise ValueError(
            f"{_name(function)} is not known to be linear. Pass a pair of it and the point "
            "[features] where it is linearised."
        )
    return kernel.shape[0]


def _name(function):
    return repr(getattr(function, "name", function))


def _value_bias(layer, value):
    """What the layer adds to each projected value [batch, sources, heads, size]."""
    bias = layer._value_dense.bias
    if bias is None:
        return tf.zeros([], value.dtype)
    bias = tf.cast(bias, value.dtype)
    return tf.repeat(bias, value.shape[2] // bias.shape[0], axis=0)
