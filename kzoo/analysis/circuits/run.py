"""What the operations of a circuit compute, in NumPy: einsum, broadcasting, windows."""

import numpy as np
from scipy import special

_FILL = {"zero": 0.0, "lowest": -np.inf}


def execute(operations, values, outputs):
    """Runs operations in their order.

    Args:
        operations: of a circuit.
        values: {name: array} of inputs and constants.
        outputs: names of the tensors to return.
    """
    values = dict(values)
    for operation in operations:
        arguments = [values[name] for name in operation.inputs]
        values[operation.output] = _RUN[operation.kind](operation, *arguments)
    return [values[name] for name in outputs]


def relu(x, negative_slope=0.0, max_value=None, threshold=0.0):
    below = negative_slope * (x - threshold)
    return np.where(x >= threshold, x if max_value is None else np.minimum(x, max_value), below)


def gelu(x, approximate=False):
    if approximate:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


FUNCTIONS = {
    "abs": np.abs,
    "add": np.add,
    "divide": np.divide,
    "elu": elu,
    "exp": np.exp,
    "gelu": gelu,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "leaky_relu": lambda x, negative_slope=0.2: relu(x, negative_slope),
    "log": np.log,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "negative": np.negative,
    "power": np.power,
    "relu": relu,
    "relu6": lambda x: relu(x, max_value=6.0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "selu": lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772),
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sqrt": np.sqrt,
    "square": np.square,
    "subtract": np.subtract,
    "tanh": np.tanh,
}
REDUCTIONS = {"max": np.max, "mean": np.mean, "min": np.min, "prod": np.prod, "sum": np.sum}


def _einsum(operation, *arguments):
    operands = [part for pair in zip(arguments, operation.terms, strict=True) for part in pair]
    return np.einsum(*operands, operation.result, optimize=True)


def _elementwise(operation, *arguments):
    aligned = [
        _align(value, term, operation.result)
        for value, term in zip(arguments, operation.terms, strict=True)
    ]
    remaining = iter(aligned)
    operands = operation.parameters["operands"]
    values = [next(remaining) if number is None else number for number in operands]
    function = FUNCTIONS[operation.parameters["function"]]
    result = function(*values, **operation.parameters["options"])
    dtype = np.result_type(*aligned)
    return np.asarray(result, dtype if dtype.kind == "f" else None)


def _align(value, term, result):
    """`value` with axes of length 1 where `result` has indices that `term` lacks."""
    missing = [at for at, index in enumerate(result) if index not in term]
    order = [term.index(index) for index in result if index in term]
    return np.expand_dims(np.transpose(value, order), missing)


def _positions(operation):
    return tuple(operation.terms[0].index(index) for index in operation.over)


def _reduce(operation, x):
    return REDUCTIONS[operation.parameters["function"]](x, axis=_positions(operation))


def _softmax(operation, x):
    function = getattr(special, operation.parameters["function"])
    return function(x, axis=_positions(operation))


def _normalize(operation, x):
    axes = _positions(operation)
    center = x - np.mean(x, axis=axes, keepdims=True)
    variance = np.mean(np.square(center), axis=axes, keepdims=True)
    return center / np.sqrt(variance + operation.parameters["epsilon"])


def _pad(operation, x):
    widths = [(0, 0)] * x.ndim
    (axis,) = _positions(operation)
    widths[axis] = operation.parameters["padding"]
    return np.pad(x, widths, constant_values=_FILL[operation.parameters["fill"]])


def _window(operation, x):
    (axis,) = _positions(operation)
    rule = operation.parameters
    starts = np.arange(rule["count"])[:, None] * rule["stride"]
    offsets = np.arange(rule["size"]) * rule["dilation"]
    return np.take(_pad(operation, x), starts + offsets, axis=axis)


def _fold(operation, x):
    """The transpose of `_window`: adds what the windows have at each place."""
    places, offsets = _positions(operation)
    x = np.moveaxis(x, (places, offsets), (-2, -1))
    rule, (*lead, count, size) = operation.parameters, x.shape
    low, length, stride = rule["low"], rule["length"], rule["stride"]
    reach = (count - 1) * stride + 1
    result = np.zeros((*lead, max(reach - 1 + size, low + length)), x.dtype)
    for offset in range(size):
        result[..., offset : offset + reach : stride] += x[..., offset]
    return np.moveaxis(result[..., low : low + length], -1, places)


def _rearrange(operation, x):
    (groups,) = operation.terms
    given = dict(enumerate(operation.parameters["sizes"]))
    sizes = {
        index: given[index] or length
        for group, length in zip(groups, x.shape, strict=True)
        for index in group
    }
    inside = [index for group in groups for index in group]
    outside = [index for group in operation.result for index in group]
    x = np.reshape(x, [sizes[index] for index in inside])
    # Indices of length 1 come and go; others that only the result has are repeated.
    kept = [index for index in outside if index in inside]
    gone = [index for index in inside if index not in outside]
    x = np.transpose(x, [inside.index(index) for index in (*kept, *gone)])
    x = np.reshape(x, [sizes.get(index, 1) for index in outside])
    sizes |= {index: given[index] for index in outside if index not in sizes}
    x = np.broadcast_to(x, [sizes[index] for index in outside])
    shape = [int(np.prod([sizes[i] for i in group])) for group in operation.result]
    return np.reshape(x, shape)


def _concatenate(operation, *arguments):
    (index,) = operation.over
    return np.concatenate(arguments, axis=operation.result.index(index))


def _slice(operation, x):
    (axis,) = _positions(operation)
    return x[(slice(None),) * axis + (slice(*operation.parameters["bounds"]),)]


def _gather(operation, indices, table):
    return table[indices.astype("int64")]


_RUN = {
    "concatenate": _concatenate,
    "einsum": _einsum,
    "elementwise": _elementwise,
    "fold": _fold,
    "gather": _gather,
    "normalize": _normalize,
    "pad": _pad,
    "rearrange": _rearrange,
    "reduce": _reduce,
    "slice": _slice,
    "softmax": _softmax,
    "window": _window,
}
