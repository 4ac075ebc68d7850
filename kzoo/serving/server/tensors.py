"""TensorProto to NumPy and back, without a copy where the wire format allows it."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from kzoo.serving.server.errors import invalid_argument

# A request must not make the server allocate more than it could have sent.
MAX_TENSOR_BYTES = 2**31 - 1
# Nor fill in more than this for the values that a shape promises and the message leaves out.
MAX_FILLED_BYTES = 2**26

_PACKED = {"float_val": 5, "double_val": 6}  # field numbers; their wire format is that of arrays
_MAX_VARINT32_SHIFT = 28

# dtype -> the repeated field that holds its values; 16-bit floats travel as their bit patterns.
_VALUE_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
}
_DTYPES = {number: np.dtype(tf.as_dtype(number).as_numpy_dtype) for number in _VALUE_FIELDS}


def dtype_name(dtype):
    """Returns TensorFlow's name of a DataType number: 1 -> "float", 9 -> "int64"."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def to_numpy(proto, alias):
    """Decodes a TensorProto.

    Follows `tensorflow::Tensor::FromProto`: `tensor_content` must have exactly the right size; of
    the repeated fields, surplus values are dropped, missing ones repeat the last, none means zeros.

    Args:
        proto: the `TensorProto`.
        alias: the input's name, for the error.

    Returns:
        An array; numeric `tensor_content` is not copied and therefore read-only.

    Raises:
        ServingError: INVALID_ARGUMENT, with TensorFlow Serving's text, if it cannot be decoded.
    """
    try:
        return _decode(proto)
    except (ValueError, OverflowError, IndexError) as error:
        raise invalid_argument(f"tensor parsing error: {alias}") from error


def to_proto(array, dtype, as_content=False, proto=None):
    """Encodes an array.

    Args:
        array: any array of the runtime; strings are object arrays of bytes.
        dtype: its DataType number.
        as_content: `tensor_content` instead of the repeated fields (TensorFlow Serving's
            `--enable_serialization_as_tensor_content`); strings always use `string_val`.
        proto: the empty TensorProto to fill. None for a new one.
    """
    proto = tensor_pb2.TensorProto() if proto is None else proto
    proto.dtype = dtype
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    field = _VALUE_FIELDS[dtype]
    if field == "string_val":
        proto.string_val.extend(array.ravel().tolist())
    elif as_content:
        proto.tensor_content = array.tobytes()
    elif field in _PACKED:
        _merge_packed(proto, _PACKED[field], array)
    elif field == "half_val":
        proto.half_val.extend(array.ravel().view(np.uint16).tolist())
    elif field in ("scomplex_val", "dcomplex_val"):
        getattr(proto, field).extend(array.ravel().view(array.real.dtype).tolist())
    else:
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


def _decode(proto):
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in _VALUE_FIELDS:
        raise ValueError("unknown dtype")
    if proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise ValueError("unknown shape")
    dtype = _DTYPES[proto.dtype]
    size = math.prod(shape)
    if size * dtype.itemsize > MAX_TENSOR_BYTES:
        raise ValueError("too large")
    if proto.tensor_content:
        values = _from_content(proto, dtype, size)
    else:
        values = _pad(_from_values(proto, dtype), size, dtype)
    return values.reshape(shape)


def _from_content(proto, dtype, size):
    if proto.dtype == types_pb2.DT_STRING:
        return _split_strings(proto.tensor_content, size)
    if len(proto.tensor_content) != size * dtype.itemsize:
        raise ValueError("wrong size of tensor_content")
    return np.frombuffer(proto.tensor_content, dtype)


def _from_values(proto, dtype):
    field = _VALUE_FIELDS[proto.dtype]
    values = getattr(proto, field)
    if field in _PACKED:
        packed = _packed(proto, _PACKED[field], len(values), dtype)
        if packed is not None:
            return packed
    if proto.dtype == types_pb2.DT_STRING:
        return np.fromiter(values, object, len(values))
    if proto.dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):
        return np.fromiter(values, np.int64, len(values)).astype(np.uint16).view(dtype)
    if dtype.kind == "c":
        return np.fromiter(values, dtype.type(0).real.dtype, len(values)).view(dtype)
    if dtype.itemsize < 4 and dtype.kind in "iu":  # int_val wraps as a C++ cast does
        return np.fromiter(values, np.int32, len(values)).astype(dtype)
    return np.fromiter(values, dtype, len(values))


def _pad(values, size, dtype):
    if len(values) >= size:
        return values[:size]
    if (size - len(values)) * dtype.itemsize > MAX_FILLED_BYTES:
        raise ValueError("too many values left out")
    if len(values) == 0:
        return np.full(size, b"", object) if dtype.kind == "O" else np.zeros(size, dtype)
    return np.concatenate([values, np.repeat(values[-1:], size - len(values))])


def _split_strings(content, size):
    """`tensor_content` of strings: `size` varint lengths, then the bytes of all of them."""
    lengths, position = [], 0
    for _ in range(size):
        length, shift = 0, 0
        while True:
            byte = content[position]
            position += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > _MAX_VARINT32_SHIFT:
                raise ValueError("a length of more than 32 bits")
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError("wrong size of tensor_content")
    values = np.empty(size, object)
    for index, length in enumerate(lengths):
        values[index] = content[position : position + length]
        position += length
    return values


def _packed(proto, field, count, dtype):
    """Returns the values of a packed repeated field, None unless they end the message.

    Iterating over them would take thirty times as long, and let no other thread run.
    """
    data, size = proto.SerializeToString(), count * dtype.itemsize
    start = len(data) - size
    if not data[:start].endswith(bytes([field << 3 | 2]) + _varint(size)):
        return None
    values = np.frombuffer(data, dtype.newbyteorder("<"), count, start)
    return values.astype(dtype, copy=False)


def _merge_packed(proto, field, array):
    """Fills a packed repeated field: its wire format is the array's own little-endian bytes."""
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if data:
        proto.MergeFromString(bytes([field << 3 | 2]) + _varint(len(data)) + data)


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
