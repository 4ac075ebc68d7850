"""JSON to tensors and back, in the two formats of TensorFlow Serving's REST API.

Row format: `instances`, a list whose items are batched; answered by `predictions`. Column format:
`inputs`, whole tensors; answered by `outputs`. Numbers are checked and converted level by level in
C speed; only a body that is refused is walked again, value by value, for its error
(`rest_json_errors`).
"""

import itertools

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from kzoo.serving.server import rest_json_errors as errors
from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.json_text import (
    debug_string,
    decode_base64,
    is_base64,
    parse,
)

_FLOATS = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE}
_INTEGERS = set(errors.INTEGER_RANGES)


def parse_request(body):
    """Parses a request body, as bytes.

    Returns:
        The top-level object.

    Raises:
        ServingError: malformed JSON, not an object, or a `signature_name` that is no string.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {debug_string(document)} Is not object")
    if not isinstance(document.get("signature_name", ""), str):
        raise invalid_argument(
            f"JSON Value: {debug_string(document)} not formatted correctly. 'signature_name' key "
            "must be a string value."
        )
    return document


def decode_inputs(document, infos):
    """Decodes the tensors of a predict request.

    Args:
        document: the parsed request.
        infos: {input name: TensorInfo} of the signature.

    Returns:
        ({input name: array}, whether the request is in row format).

    Raises:
        ServingError: with TensorFlow Serving's text.
    """
    row = "instances" in document
    if row and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {debug_string(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    dtypes = {name: infos[name].dtype for name in sorted(infos)}
    if row:
        return _decode_rows(document, dtypes), True
    if "inputs" in document:
        return _decode_columns(document["inputs"], dtypes), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _decode_rows(document, dtypes):
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid_argument(
            f"JSON Value: {debug_string(document)} Expecting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid_argument(
            f"JSON Value: {debug_string(document)} No values in 'instances' array"
        )
    if len(dtypes) > 1 and not isinstance(instances[0], dict):
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    columns = _columns(instances, dtypes)
    arrays = {name: _dense(values, dtypes[name]) for name, values in columns.items()}
    if not arrays or any(array is None for array in arrays.values()):
        errors.explain_rows(instances, dtypes)
    return arrays


def _columns(instances, dtypes):
    """Returns {input name: list of its values}, empty if the items do not fit together."""
    named = [isinstance(item, dict) and not is_base64(item) for item in instances]
    if not any(named):
        return {next(iter(dtypes)): instances}
    if not all(named) or any(item.keys() != dtypes.keys() for item in instances):
        return {}
    return {name: [item[name] for item in instances] for name in dtypes}


def _decode_columns(value, dtypes):
    if not isinstance(value, dict) or is_base64(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(dtypes)): value}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _dense(value[name], dtype)
        if arrays[name] is None:
            errors.explain_tensor(value[name], dtype)
    return arrays


def _dense(value, dtype):
    """Returns the array of a nested list, or None if TensorFlow Serving refuses it."""
    shape, level, kinds = [], [value], {type(value)}
    while list in kinds:
        sizes = set(map(len, level)) if kinds == {list} else ()
        if len(sizes) != 1:
            return None
        shape.extend(sizes)
        errors.check_rank(shape)
        level = list(itertools.chain.from_iterable(level))
        kinds = set(map(type, level))
    flat = _flat_array(level, kinds, dtype)
    return None if flat is None else flat.reshape(shape)


def _flat_array(values, kinds, dtype):
    numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype
    if not values:
        return np.empty(0, numpy_dtype)
    if dtype == types_pb2.DT_STRING and kinds <= {str, dict}:
        return _strings(values)
    if dtype == types_pb2.DT_BOOL and kinds == {bool}:
        return np.array(values, bool)
    if dtype in _FLOATS and kinds <= {int, float}:
        return _float_array(values, numpy_dtype)
    if dtype in _INTEGERS and kinds == {int}:
        low, high = errors.INTEGER_RANGES[dtype]
        if low <= min(values) and max(values) <= high:
            wide = np.array(values, np.uint64 if high > 2**63 else np.int64)
            return wide.astype(numpy_dtype)  # wraps for 8 and 16 bits, as TensorFlow Serving does
    return None


def _float_array(values, dtype):
    doubles = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        return doubles.astype(dtype, copy=False)


def _strings(values):
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        if isinstance(value, str):
            array[index] = value.encode("utf-8", "surrogateescape")
        elif is_base64(value):
            array[index] = decode_base64(value["b64"])
        else:
            return None
    return None if any(value is None for value in array) else array
