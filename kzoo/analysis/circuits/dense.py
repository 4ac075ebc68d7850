"""Dense layers, embeddings and attention as operations of a circuit: Einstein sums."""

import math

import keras
import numpy as np

from kzoo.analysis.circuits.layers import activate, add_bias, lowering, weight

layers = keras.layers


def einsum_dense(build, layer, x, kernel, bias, equation, units=None):
    """A dense layer by its equation "abc,cd->abd"; letters of the kernel alone are its units.

    Args:
        units: {letter: axis} of those; None for axes of this layer.
    """
    terms, result = equation.replace(" ", "").split("->")
    term, kernel_term = terms.split(",")
    if "..." in term:
        # The axes of the ellipsis get letters that the equation has not.
        count = len(x.axes) - len(term.replace("...", ""))
        free = [c for c in map(chr, range(0x3B1, 0x3C9)) if c not in equation][:count]
        term, result = (each.replace("...", "".join(free)) for each in (term, result))
    new = [c for c in result if c not in term]
    made = units or {
        c: build.learned_axis(layer, c if len(new) > 1 else "", size)
        for c, size in zip(kernel_term, kernel.shape, strict=True)
        if c in new
    }
    number = {c: at for at, c in enumerate(dict.fromkeys(term + kernel_term))}
    x = build.einsum(
        layer.name,
        [x, build.constant(f"{layer.name}.kernel", kernel)],
        [[number[c] for c in term], [number[c] for c in kernel_term]],
        [number[c] for c in result],
        {number[c]: axis for c, axis in made.items()},
    )
    return add_bias(build, layer, x, bias)


@lowering(layers.Dense)
def _dense(build, layer, inputs):
    kernel = weight(layer.kernel)
    x = einsum_dense(build, layer, inputs, kernel, layer.bias, "...x,xy->...y")
    return activate(build, layer.name, x, layer.activation)


@lowering(layers.EinsumDense)
def _einsum_dense(build, layer, inputs):
    kernel = weight(layer.kernel)
    x = einsum_dense(build, layer, inputs, kernel, layer.bias, layer.equation)
    return activate(build, layer.name, x, layer.activation)


@lowering(layers.Embedding)
def _embedding(build, layer, inputs):
    if layer.mask_zero:
        raise ValueError(f"Layer {layer.name!r} has mask_zero=True; masks cannot be drawn.")
    table = build.constant(f"{layer.name}.embeddings", weight(layer.embeddings))
    made = build.learned_axis(layer, "", layer.output_dim)
    rank = len(inputs.axes)
    terms, result = [range(rank), [rank + 1, rank]], range(rank + 1)
    axes = [*inputs.axes, made]
    return build.emit("gather", layer.name, [inputs, table], terms, result, axes, [rank + 1])


def heads_attend(build, name, query, key, value, causal=False):
    """Attention of [batch, positions, heads, units] with as many heads each, scaled before."""
    batch, head, at, other, size = range(5)
    terms = [[batch, at, head, size], [batch, other, head, size]]
    scores = build.einsum(name, [query, key], terms, [batch, head, at, other])
    scores = _weights(build, name, scores, causal)
    terms = [[batch, head, at, other], [batch, other, head, size]]
    return build.einsum(name, [scores, value], terms, [batch, at, head, size])


def _weights(build, name, scores, causal):
    if causal:
        mask = np.where(np.tri(*scores.shape[-2:], dtype=bool), 0, -1e9).astype("float32")
        scores = build.with_constant(name, "add", scores, mask, f"{name}.mask")
    return build.along("softmax", name, scores, [-1], function="softmax")


@lowering(layers.Attention)
def _dot_attention(build, layer, inputs, use_causal_mask=False, return_attention_scores=False):
    if layer.score_mode != "dot":
        raise ValueError(f"Layer {layer.name!r} must have score_mode='dot' to be drawn.")
    query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])
    batch, at, other, size = range(4)
    terms = [[batch, at, size], [batch, other, size]]
    scores = build.einsum(layer.name, [query, key], terms, [batch, at, other])
    if layer.scale is not None:
        scale = weight(layer.scale)
        scores = build.with_constant(layer.name, "multiply", scores, scale, layer.name)
    scores = _weights(build, layer.name, scores, use_causal_mask)
    terms = [[batch, at, other], [batch, other, size]]
    x = build.einsum(layer.name, [scores, value], terms, [batch, at, size])
    return (x, scores) if return_attention_scores else x


@lowering(layers.MultiHeadAttention)
def _attention(build, layer, query, value, key=None, use_causal_mask=False, **others):
    others = [name for name, given in others.items() if given is not False]
    key = value if key is None else key
    if others or {len(each.axes) for each in (query, key, value)} != {3}:
        raise ValueError(
            f"Layer {layer.name!r} must attend between tensors of rank 3, without "
            f"{', '.join(others) or 'attention_axes'}, to be drawn."
        )
    heads = build.learned_axis(layer, "heads", layer.num_heads)
    key_units = build.learned_axis(layer, "key", layer.key_dim)
    value_units = build.learned_axis(layer, "value", layer.value_dim or layer.key_dim)

    def project(dense, x, units):
        return einsum_dense(
            build, dense, x, weight(dense.kernel), dense.bias, "btd,dhk->bthk",
            {"h": heads, "k": units},
        )  # fmt: skip

    q = project(layer.query_dense, query, key_units)
    k = project(layer.key_dense, key, key_units)
    v = project(layer.value_dense, value, value_units)
    q = build.elementwise(layer.name, "multiply", q, 1 / math.sqrt(layer.key_dim))
    x = heads_attend(build, layer.name, q, k, v, use_causal_mask)
    dense = layer.output_dense
    return einsum_dense(build, dense, x, weight(dense.kernel), dense.bias, "bthv,hvd->btd")
