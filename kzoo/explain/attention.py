"""The attention in a model of any build: its probabilities, and what else is computed with them.

`keras.layers.MultiHeadAttention` and `GroupQueryAttention` compute their context by a fused kernel,
which has no probabilities to look at. Here it is computed by steps, to the same result.
"""

import contextlib
import math

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import flatten_layers, replace_call

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def attention_layers(model):
    """Returns the attention layers of a model of any build, also inside of other layers.

    Raises:
        ValueError: if there is none, or one that computes its attention in its own way.
    """
    if not isinstance(model, keras.Layer):
        raise ValueError(f"Attention is looked for in a Keras model. Received: {model!r}")
    layers = {id(each): each for each in (model, *flatten_layers(model))
              if isinstance(each, _ATTENTION)}  # fmt: skip
    if not layers:
        raise ValueError(
            f"{model.name!r} must hold layers of the type keras.layers.MultiHeadAttention or "
            "GroupQueryAttention, for there is no other way to its attention. Received none."
        )
    for layer in layers.values():
        if type(layer)._compute_attention not in [each._compute_attention for each in _ATTENTION]:
            raise ValueError(
                f"{layer.name!r} computes attention in a way of its own ({type(layer).__name__} "
                "has its own `_compute_attention`), which cannot be looked into."
            )
    return list(layers.values())


@contextlib.contextmanager
def replace_attention(model, attend):
    """Within the context, attention layers compute `attend(layer, query, key, value, mask)`.

    Args:
        attend: is given query [batch, tokens, heads, size], key and value [batch, sources, heads,
            size], all of them projected and not scaled, and a mask, boolean, that broadcasts to
            [batch, tokens, sources] or [batch, heads, tokens, sources], or None; returns the
            context [batch, tokens, heads, size] and the probabilities [batch, heads, tokens,
            sources].
    """
    with contextlib.ExitStack() as stack:
        for layer in attention_layers(model):
            replaced = _adapt(layer, attend)
            # Past Keras's attribute tracking, as in `replace_call`.
            object.__setattr__(layer, "_compute_attention", replaced)
            stack.callback(layer.__dict__.pop, "_compute_attention")
        yield


@contextlib.contextmanager
def recorded_attention(model, record):
    """Within the context, probabilities go through `record` on their way and are kept.

    Args:
        record: `record(probabilities [batch, heads, tokens, sources])` returns those to go on with.

    Yields:
        list that will hold, for the latest call of the model, what `record` returned for each call
        of an attention layer, in their order.
    """
    seen = []

    def attend(layer, query, key, value, mask):
        scores = tf.einsum("bthd,bshd->bhts", query, key)
        seen.append(record(probabilities(layer, scores, mask)))
        return tf.einsum("bhts,bshd->bthd", seen[-1], value), seen[-1]

    with replace_attention(model, attend), emptied_by_calls(model, seen):
        yield seen


@contextlib.contextmanager
def emptied_by_calls(model, seen):
    """Within the context, a call of the model empties the list: one not built yet is called twice
    by its first call."""

    def make_call(call):
        def replaced(*args, **kwargs):
            seen.clear()
            return call(*args, **kwargs)

        return replaced

    with replace_call(model, make_call):
        yield


def probabilities(layer, scores, mask):
    """Softmax of the products of query and key [batch, heads, tokens, sources], as the layer's.

    A token that may attend to nothing attends to all alike, as Keras's fused kernel has it, or,
    where the layer has dropout and so does not use the kernel, to nothing.
    """
    scores *= attention_scale(layer)
    if mask is None:
        return tf.nn.softmax(scores)
    mask = tf.cast(mask, tf.bool)
    if mask.shape.rank == 3:
        mask = mask[:, tf.newaxis]
    attention = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min / 2))
    return tf.where(mask, attention, 0) if layer.dropout else attention


def attention_scale(layer):
    """What an attention layer multiplies the products of query and key with."""
    grouped = isinstance(layer, keras.layers.GroupQueryAttention)
    return 1 / math.sqrt(layer.head_dim if grouped else layer.key_dim)


class AttentionExplainer(Explainer):
    """Base of the explainers that look at the attention of a model.

    A subclass implements `attribute`, with `attention` or `attention_gradients`.

    Args:
        model: a Keras model with layers of the type keras.layers.MultiHeadAttention or
            GroupQueryAttention; see `Explainer`, as is `score`.
    """

    differentiates_inputs = False

    def __init__(self, model, score=None):
        attention_layers(model)
        super().__init__(model, score=score)

    def attention(self, values, target, inputs):
        """Attention probabilities of every attention call, and what `scores` returns.

        Returns:
            (list of [batch, heads, tokens, sources] in at least float32, what `scores` returns)
        """
        with recorded_attention(self.model, tf.identity) as seen:
            scored = self.scores(values, target, inputs)
        return widened(seen), scored

    def attention_gradients(self, values, target, inputs):
        """As `attention`, with the gradients of the scores with respect to the probabilities.

        Returns:
            (probabilities, gradients, what `scores` returns), the first two lists.
        """

        def record(attention):
            tape.watch(attention)
            return attention

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with recorded_attention(self.model, record) as seen:
                scored = self.scores(values, target, inputs)
        gradients = tape.gradient(
            scored["score"], seen, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return widened(seen), widened(gradients), scored

    def get_config(self):
        return {}


def widened(tensors):
    """Tensors of half precision as float32."""
    return [tf.cast(x, tf.float32) if x.dtype.size < 4 else x for x in tensors]


def _adapt(layer, attend):
    """`attend` in the form of the layer's `_compute_attention`."""

    def compute(query, key, value, attention_mask=None, *_, use_causal_mask=False, **__):
        if query.shape.rank != 4:
            raise ValueError(
                f"{layer.name!r} must attend along one axis, to tokens [batch, tokens, features]. "
                f"Received: a projected query of shape {query.shape}"
            )
        if use_causal_mask:
            causal = layer._compute_causal_mask(query, value)
            attention_mask = causal if attention_mask is None else attention_mask & causal
        return attend(layer, query, key, value, attention_mask)

    return compute
