"""What Classify and Regress share when they look at signatures and tensors, and name them."""

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2

from kzoo.serving.server.errors import invalid_argument


def check_method_name(signature, expected, kind):
    """Refuses a signature whose method name is not the expected one.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if signature.method_name != expected:
        raise invalid_argument(
            f"Expected {kind} signature method_name to be {expected}. Was: {signature.method_name}"
        )


def debug_string(message):
    """Returns a message as error texts show it."""
    return text_format.MessageToString(message)


def data_type_name(dtype):
    """Returns the DataType's name: float32 -> "DT_FLOAT"."""
    return types_pb2.DataType.Name(tf.as_dtype(dtype).as_datatype_enum)


def shape_text(array):
    """Returns the shape as the runtime prints it: "[2,3]"."""
    return f"[{','.join(map(str, array.shape))}]"
