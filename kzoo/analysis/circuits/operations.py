"""What the operations of `keras.ops` are as operations of a circuit."""

import inspect
import itertools
import math

import keras
import numpy as np

from kzoo.analysis.circuits.dense import heads_attend
from kzoo.analysis.circuits.layers import lower_layer
from kzoo.analysis.circuits.trace import Value

_BINARY = {
    "Add": "add", "Divide": "divide", "TrueDivide": "divide", "Maximum": "maximum",
    "Minimum": "minimum", "Multiply": "multiply", "Power": "power", "Subtract": "subtract",
}  # fmt: skip
_UNARY = {
    "Abs": "abs", "Absolute": "abs", "Exp": "exp", "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu", "Log": "log", "Negative": "negative", "Relu": "relu",
    "Relu6": "relu6", "Rsqrt": "rsqrt", "Selu": "selu", "Sigmoid": "sigmoid", "Silu": "silu",
    "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt", "Square": "square",
    "Tanh": "tanh",
}  # fmt: skip
_REDUCTIONS = {"Max": "max", "Mean": "mean", "Min": "min", "Prod": "prod", "Sum": "sum"}
_OTHERS: dict = {}


def lower(build, operation, arguments, options):
    """The operations of a layer or of an operation of `keras.ops`."""
    name, kind = operation.name, type(operation).__name__
    arguments, options = keras.tree.map_structure(
        lambda each: _value(build, name, each), (arguments, options)
    )
    if isinstance(operation, keras.Layer):
        return lower_layer(build, operation, arguments, options)
    arguments = inspect.signature(operation.call).bind(*arguments, **options).args
    if kind in _BINARY:
        return build.elementwise(name, _BINARY[kind], *arguments)
    if kind in _UNARY:
        return build.elementwise(name, _UNARY[kind], *arguments)
    if kind in _REDUCTIONS:
        return _reduce(build, operation, *arguments)
    if kind not in _OTHERS:
        known = ", ".join(sorted([*_BINARY, *_UNARY, *_REDUCTIONS, *_OTHERS]))
        raise ValueError(
            f"Operation {name!r} is a {kind}, which cannot be drawn as a circuit. Supported of "
            f"`keras.ops`: {known}."
        )
    return _OTHERS[kind](build, operation, *arguments)


def _value(build, name, each):
    """An array among the arguments is a constant of the circuit."""
    if (
        isinstance(each, Value)
        or each is None
        or isinstance(each, bool | int | float | slice | str)
    ):
        return each
    array = keras.ops.convert_to_numpy(each)
    return array.item() if array.ndim == 0 else build.constant(f"{name}.constant", array)


def _operation(function):
    _OTHERS[function.__name__.lstrip("_").title().replace("_", "")] = function
    return function


def _axes(axis, x):
    if axis is None:
        raise ValueError("An operation over all axes, the batch too, cannot be drawn.")
    return [axis] if isinstance(axis, int) else list(axis)


def _reduce(build, operation, x):
    function = _REDUCTIONS[type(operation).__name__]
    axes = _axes(operation.axis, x)
    return build.reduce(operation.name, function, x, axes, operation.keepdims)


@_operation
def _einsum(build, operation, *operands):
    terms, result = _explicit(operation.subscripts, operands)
    letters = dict.fromkeys("".join(terms) + result)
    number = {letter: index for index, letter in enumerate(letters)}
    terms = [[number[letter] for letter in term] for term in terms]
    result = [number[letter] for letter in result]
    return _products(build, operation.name, operands, terms, result)


def _explicit(subscripts, operands):
    """Terms and result with letters in place of ellipses."""
    terms, arrow, result = subscripts.replace(" ", "").partition("->")
    if not arrow:
        counts = {c: terms.count(c) for c in sorted(set(terms) - set(",."))}
        result = ("..." if "..." in terms else "") + "".join(c for c in counts if counts[c] == 1)
    terms = terms.split(",")
    free = [c for c in map(chr, range(0x3B1, 0x3C9)) if c not in subscripts]
    longest = 0
    for at, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        if "..." in term:
            count = len(operand.axes) - len(term.replace("...", ""))
            terms[at] = term.replace("...", "".join(free[:count][::-1]))
            longest = max(longest, count)
    return terms, result.replace("...", "".join(free[:longest][::-1]))


@_operation
def _matmul(build, operation, first, second):
    """[..., n, k] with [..., k, m]; leading axes are broadcast."""
    ranks = len(first.axes), len(second.axes)
    if min(ranks) < 2:
        raise ValueError(f"Operation {operation.name!r} must have operands of rank 2 or more.")
    lead = max(ranks) - 2
    row, inner, column = lead, lead + 1, lead + 2
    terms = [
        [*range(lead - ranks[0] + 2, lead), row, inner],
        [*range(lead - ranks[1] + 2, lead), inner, column],
    ]
    return _products(build, operation.name, [first, second], terms, [*range(lead), row, column])


def _products(build, name, values, terms, result):
    """An einsum in which axes of size 1 are broadcast against longer ones."""
    lengths = {}
    for term, value in zip(terms, values, strict=True):
        for index, size in zip(term, value.shape, strict=True):
            lengths[index] = size if lengths.get(index, 1) == 1 else lengths[index]
    values, terms = list(values), list(terms)
    for at, (term, value) in enumerate(zip(terms, values, strict=True)):
        units = [i for i, n in enumerate(value.shape) if n == 1 and lengths[term[i]] != 1]
        if units:
            values[at] = build.remove_units(name, value, units)
            terms[at] = [index for axis, index in enumerate(term) if axis not in units]
    return build.einsum(name, values, terms, result)


@_operation
def _dot_product_attention(build, operation, query, key, value, bias=None, mask=None, scale=None):
    plain = bias is mask is operation.attn_logits_soft_cap is None
    if not plain or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"Operation {operation.name!r} must have as many heads for keys as for queries and "
            "neither bias, mask nor cap, to be drawn."
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = build.elementwise(operation.name, "multiply", query, scale)
    return heads_attend(build, operation.name, query, key, value, operation.is_causal)


@_operation
def _transpose(build, operation, x):
    order = operation.axes or range(len(x.axes))[::-1]
    return build.transpose(operation.name, x, order)


@_operation
def _swapaxes(build, operation, x):
    order = list(range(len(x.axes)))
    first, second = operation.axis1, operation.axis2
    order[first], order[second] = order[second], order[first]
    return build.transpose(operation.name, x, order)


@_operation
def _reshape(build, operation, x):
    shape = list(operation.newshape)
    if shape[0] in (-1, None):
        shape[0] = None
    if -1 in shape:
        at = shape.index(-1)
        shape[at] = math.prod(x.shape[1:]) // math.prod(n for n in shape[1:] if n != -1)
    return build.reshape(operation.name, x, shape)


@_operation
def _expand_dims(build, operation, x):
    axes = _axes(operation.axis, x)
    rank = len(x.axes) + len(axes)
    return build.insert_units(operation.name, x, [axis % rank for axis in axes])


@_operation
def _squeeze(build, operation, x):
    axes = _axes(operation.axis, x)
    return build.remove_units(operation.name, x, [axis % len(x.axes) for axis in axes])


@_operation
def _softmax(build, operation, x):
    axes = _axes(operation.axis, x)
    return build.along("softmax", operation.name, x, axes, function="softmax")


@_operation
def _log_softmax(build, operation, x):
    axes = _axes(operation.axis, x)
    return build.along("softmax", operation.name, x, axes, function="log_softmax")


@_operation
def _gelu(build, operation, x):
    return build.elementwise(
        operation.name, "gelu", x, approximate=bool(operation.approximate)
    )  # fmt: skip


@_operation
def _leaky_relu(build, operation, x):
    slope = float(operation.negative_slope)
    return build.elementwise(operation.name, "leaky_relu", x, negative_slope=slope)


@_operation
def _elu(build, operation, x):
    return build.elementwise(operation.name, "elu", x, alpha=float(operation.alpha))


@_operation
def _concatenate(build, operation, values):
    return build.concatenate(operation.name, values, operation.axis)


@_operation
def _stack(build, operation, values):
    axis = operation.axis % (len(values[0].axes) + 1)
    values = [build.insert_units(operation.name, value, [axis]) for value in values]
    return build.concatenate(operation.name, values, axis)


@_operation
def _split(build, operation, x):
    axis, at = operation.axis % len(x.axes), operation.indices_or_sections
    size = x.shape[axis]
    cuts = np.arange(1, at) * (size // at) if isinstance(at, int) else at
    bounds = itertools.pairwise([0, *map(int, cuts), size])
    return [build.slice(operation.name, x, axis, low, high, 1) for low, high in bounds]


@_operation
def _get_item(build, operation, x, key):
    key = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (len(x.axes) - len(key) + 1)
    if not all(isinstance(each, int | slice) for each in key) or key[0] != slice(None):
        raise ValueError(
            f"Operation {operation.name!r} must take numbers and slices of axes other than the "
            f"batch. Received: {key}"
        )
    for axis, each in enumerate(key[1:], 1):
        if isinstance(each, int):
            each = slice(each % x.shape[axis], each % x.shape[axis] + 1)
        x = build.slice(operation.name, x, axis, *each.indices(x.shape[axis]))
    dropped = [axis for axis, each in enumerate(key) if isinstance(each, int)]
    return build.remove_units(operation.name, x, dropped) if dropped else x
