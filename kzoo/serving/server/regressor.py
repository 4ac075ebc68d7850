"""Regress: serialized Examples to one number each."""

import tensorflow as tf
from tensorflow_serving.apis import regression_pb2

from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.signature_checks import (
    check_method_name,
    data_type_name,
    debug_string,
    shape_text,
)

METHOD_NAME = tf.saved_model.REGRESS_METHOD_NAME
INPUT = tf.saved_model.REGRESS_INPUTS
_OUTPUT = tf.saved_model.REGRESS_OUTPUTS


def output_names(signature, check_name=False):
    """Returns which outputs a regression reads.

    Args:
        signature: SignatureDef.
        check_name: whether its method name must say that it regresses.

    Raises:
        ServingError: INVALID_ARGUMENT, the signature cannot regress.
    """
    if check_name:
        check_method_name(signature, METHOD_NAME, "regression")
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    for kind, name, infos in (
        ("inputs", INPUT, signature.inputs),
        ("outputs", _OUTPUT, signature.outputs),
    ):
        if name not in infos:
            raise invalid_argument(
                f"No regression {kind} found in SignatureDef: {debug_string(signature)}"
            )
    return (_OUTPUT,)


def result(outputs, batch):
    """Returns the float32 values [batch] of the arrays {output name: array}, after checking them.

    Raises:
        ServingError: INVALID_ARGUMENT, the array is no regression of `batch` Examples.
    """
    array = outputs[_OUTPUT]
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{shape_text(array)}"
        )
    if len(array) != batch:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {batch} vs. {len(array)}"
        )
    if array.dtype != tf.float32.as_numpy_dtype:
        raise invalid_argument(
            f"Expected output Tensor of DT_FLOAT.  Got: {data_type_name(array.dtype)}"
        )
    return array.reshape(-1)


def to_proto(values):
    """Returns the RegressionResult of the values."""
    proto = regression_pb2.RegressionResult()
    for value in values.tolist():
        proto.regressions.add(value=value)
    return proto
