"""Classify: serialized Examples to classes, each with a label, a score, or both."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2

from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.signature_checks import (
    check_method_name,
    data_type_name,
    debug_string,
    shape_text,
)

METHOD_NAME = tf.saved_model.CLASSIFY_METHOD_NAME
INPUT = tf.saved_model.CLASSIFY_INPUTS
_CLASSES = tf.saved_model.CLASSIFY_OUTPUT_CLASSES
_SCORES = tf.saved_model.CLASSIFY_OUTPUT_SCORES
_DTYPES = {_CLASSES: tf.string, _SCORES: tf.float32}


class Classes(NamedTuple):
    """The classes of each Example: labels (bytes) and float32 scores, both [batch, classes]."""

    labels: np.ndarray
    scores: np.ndarray


def output_names(signature, check_name=False):
    """Returns which outputs a classification reads.

    Args:
        signature: SignatureDef.
        check_name: whether its method name must say that it classifies.

    Raises:
        ServingError: INVALID_ARGUMENT, the signature cannot classify.
    """
    if check_name:
        check_method_name(signature, METHOD_NAME, "classification")
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(
            f"Expected one or two output Tensors, found {len(signature.outputs)}"
        )
    if INPUT not in signature.inputs:
        raise invalid_argument(
            f"No classification inputs found in SignatureDef: {debug_string(signature)}"
        )
    names = [name for name in (_CLASSES, _SCORES) if name in signature.outputs]
    if not names:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {debug_string(signature)}'
        )
    if len({signature.outputs[name].name for name in names}) < len(names):
        names.remove(_SCORES)  # one tensor under both names counts as the classes
    return tuple(names)


def result(outputs, batch):
    """Returns the `Classes` of the arrays {output name: array}, after checking them.

    Raises:
        ServingError: INVALID_ARGUMENT, an array is no classification of `batch` Examples.
    """
    for name, array in outputs.items():
        _check_output(name, array, batch)
    sizes = [array.shape[1] for array in outputs.values()]
    if len(set(sizes)) > 1:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{outputs[_CLASSES].shape[1]} vs. {outputs[_SCORES].shape[1]}"
        )
    shape = (batch, sizes[0])
    labels, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    return Classes(
        np.full(shape, b"", object) if labels is None else labels,
        np.zeros(shape, np.float32) if scores is None else scores,
    )


def _check_output(name, array, batch):
    if array.ndim != 2:
        raise invalid_argument(
            f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array)}"
        )
    if array.dtype != _DTYPES[name].as_numpy_dtype:
        raise invalid_argument(
            f"Expected {name} Tensor of {data_type_name(_DTYPES[name])}. "
            f"Got: {data_type_name(array.dtype)}"
        )
    if len(array) != batch:
        raise invalid_argument(f"Expected {name} output batch size of {batch}. Got: {len(array)}")


def to_proto(classes):
    """Returns the ClassificationResult of `Classes`; what is no UTF-8 in a label is replaced."""
    proto = classification_pb2.ClassificationResult()
    for labels, scores in zip(classes.labels, classes.scores.tolist(), strict=True):
        row = proto.classifications.add().classes
        for label, score in zip(labels, scores, strict=True):
            row.add(label=label.decode("utf-8", "replace"), score=score)
    return proto
