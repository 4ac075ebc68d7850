"""Replays the warm-up requests of a SavedModel, so that the first client does not wait for it."""

import os
import re

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from kzoo.serving.server import classifier, regressor
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    invalid_argument,
    runtime_errors,
    unimplemented,
)
from kzoo.serving.server.inference import infer, multi_inference
from kzoo.serving.server.predict import predict

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
# What the eager runtime puts around the message of a kernel.
_DECORATION = re.compile(r"^\{\{.*?\}\} | \[Op:.*$", re.DOTALL)


def replay(model, path):
    """Runs every record of the warm-up file (TFRecord of `PredictionLog`), if there is one.

    Args:
        model: `LoadedModel`.
        path: the version directory.

    Raises:
        ServingError: a record cannot be read or fails, or there are too many of them.
    """
    file = os.path.join(path, FILE)
    if not tf.io.gfile.exists(file):
        return
    iterations = model.options.num_request_iterations_for_warmup
    for count, record in enumerate(_records(file), 1):
        entry = _parse(record, file)
        for _ in range(iterations if iterations > 0 else 1):
            _replay_record(model, entry)
        if count > MAX_RECORDS:
            raise invalid_argument(
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
            )


def _records(file):
    try:
        with runtime_errors():
            yield from tf.data.TFRecordDataset(file).as_numpy_iterator()
    except ServingError as error:
        if error.code != Code.DATA_LOSS:
            raise
        reason = _DECORATION.sub("", error.message)
        raise ServingError(
            Code.DATA_LOSS, f"{reason}. Please verify your warmup data is in TFRecord format."
        ) from error


def _parse(record, file):
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        text = record.decode("utf-8", "replace")
        raise invalid_argument(f"Failed to parse warmup record: {text} from {file}") from error


def _replay_record(model, entry):
    kind = entry.WhichOneof("log_type")
    if kind == "predict_log":
        predict(model, entry.predict_log.request)
    elif kind == "classify_log":
        _infer(model, classifier, entry.classify_log.request)
    elif kind == "regress_log":
        _infer(model, regressor, entry.regress_log.request)
    elif kind == "multi_inference_log":
        multi_inference(model, entry.multi_inference_log.request)
    elif kind is not None:
        number = entry.DESCRIPTOR.fields_by_name[kind].number
        raise unimplemented(f"Unsupported log_type for warmup: {number}")


def _infer(model, method, request):
    infer(model, method, request.model_spec.signature_name, request.input)
