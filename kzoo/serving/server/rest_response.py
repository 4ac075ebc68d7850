"""Tensors to the body of a predict response, in TensorFlow Serving's layout and number format."""

import base64

import numpy as np
from tensorflow.core.framework import types_pb2

from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.json_text import newline, quote
from kzoo.serving.server.tensors import dtype_name

_INTEGERS = {
    types_pb2.DT_INT8, types_pb2.DT_INT16, types_pb2.DT_INT32, types_pb2.DT_INT64,
    types_pb2.DT_UINT8, types_pb2.DT_UINT32, types_pb2.DT_UINT64,
}  # fmt: skip
# Significant digits that read back as the same number.
_DIGITS = {types_pb2.DT_FLOAT: 9, types_pb2.DT_DOUBLE: 17}


def encode_outputs(outputs, infos, row):
    """Returns the response body, as bytes.

    Args:
        outputs: {output name: array}.
        infos: {output name: TensorInfo} of the signature.
        row: row format (`predictions`, one item per example) or column format (`outputs`).

    Raises:
        ServingError: INVALID_ARGUMENT for outputs that the format cannot express.
    """
    if row:
        _check_batch(outputs)
    columns = {
        name: _Column(name, array, infos[name].dtype, row) for name, array in outputs.items()
    }
    body = _rows(columns, next(iter(outputs.values())).shape[0]) if row else _columns(columns)
    return body.encode("utf-8", "surrogateescape")


def _check_batch(outputs):
    batch = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if batch not in (None, array.shape[0]):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: "
                f"{batch}"
            )
        batch = array.shape[0]


def _rows(columns, batch):
    named = len(columns) > 1
    items = []
    for index in range(batch):
        if named:
            members = [
                f"{newline(3)}{quote(name)}: {column.item(index, depth=3)}"
                for name, column in columns.items()
            ]
            items.append(f"{newline(2)}{{{','.join(members)}{newline(2)}}}")
        else:
            (column,) = columns.values()
            items.append(column.item(index, depth=2))
    # Named items stand on lines of their own; bare ones are written in one line.
    separator = "," if named else ", "
    end = newline(1) if batch else ""
    return f'{{\n    "predictions": [{separator.join(items)}{end}]\n}}'


def _columns(columns):
    if len(columns) == 1:
        (column,) = columns.values()
        return f'{{\n    "outputs": {column.whole(depth=1)}\n}}'
    members = [
        f"{newline(2)}{quote(name)}: {column.whole(depth=2)}" for name, column in columns.items()
    ]
    return f'{{\n    "outputs": {{{",".join(members)}{newline(1)}}}\n}}'


class _Column:
    """One output: its values as JSON tokens, in row-major order."""

    def __init__(self, name, array, dtype, single_line):
        self._shape = array.shape
        self._single_line = single_line
        self._bytes = dtype == types_pb2.DT_STRING and name.endswith("_bytes")
        self._tokens = _tokens(array.ravel(), dtype, self._bytes)

    def item(self, index, depth):
        """Returns the value of one example."""
        size = len(self._tokens) // self._shape[0]
        return self._nested(self._shape[1:], index * size, size, depth)

    def whole(self, depth):
        return self._nested(self._shape, 0, len(self._tokens), depth)

    def _nested(self, shape, start, size, depth):
        if not shape:
            return self._leaf(self._tokens[start], depth)
        if shape[0] == 0:
            return "[]"
        step = size // shape[0]
        if len(shape) == 1 and not self._bytes:
            items = self._tokens[start : start + size]
        else:
            items = [
                self._nested(shape[1:], start + index * step, step, depth + 1)
                for index in range(shape[0])
            ]
        if self._single_line:
            return f"[{', '.join(items)}]"
        lead = newline(depth + 1)
        return f"[{lead}{f',{lead}'.join(items)}{newline(depth)}]"

    def _leaf(self, token, depth):
        if not self._bytes:
            return token
        return f'{{{newline(depth + 1)}"b64": {token}{newline(depth)}}}'


def _tokens(values, dtype, as_base64):
    if dtype in _DIGITS:
        return decimals(values, _DIGITS[dtype])
    if dtype in _INTEGERS:
        return list(map(str, values.tolist()))
    if dtype == types_pb2.DT_BOOL:
        return ["true" if value else "false" for value in values.tolist()]
    if dtype == types_pb2.DT_STRING:
        if as_base64:
            return [f'"{base64.b64encode(value).decode()}"' for value in values]
        return [quote(value.decode("utf-8", "surrogateescape")) for value in values]
    raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype_name(dtype)}")


def decimals(values, digits=_DIGITS[types_pb2.DT_FLOAT]):
    """Returns the JSON tokens of a 1-D array of floats, of float32 unless `digits` says otherwise.

    Six significant digits where they read back as the same number, else all of them.
    """
    numbers = values.tolist()
    short = [f"{number:.6g}" for number in numbers]
    exact = np.array(short, np.float64).astype(values.dtype) == values if short else ()
    return [
        _decimal(text if same else f"{number:.{digits}g}")
        for text, same, number in zip(short, exact, numbers, strict=True)
    ]


def _decimal(text):
    if "n" in text:  # nan, inf
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[text]
    return text if "." in text or "e" in text else text + ".0"
