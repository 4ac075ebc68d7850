"""TensorFlow Serving's REST API as JSON to send and to read; nothing here does I/O."""

import contextlib
import functools
import json
import urllib.parse

import numpy as np

from kzoo.client.call import Call
from kzoo.client.errors import error, error_of_http_status
from kzoo.client.examples import ClassScore
from kzoo.client.metadata import (
    Signature,
    TensorInfo,
    VersionStatus,
    callable_signatures,
    dtype_name,
    shape_of,
)
from kzoo.client.tensors import from_json, to_json


class RestRequests:
    """The calls of one model, for a REST transport. Results are those of `GrpcRequests`.

    Args:
        prefix: path before "/v1"; empty or without its last "/".
        model: the model's name.
        version: a version's number, or None.
        label: a version's label, or None.
    """

    def __init__(self, prefix, model, version=None, label=None):
        self._status_path = f"{prefix}/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self._status_path += f"/versions/{version}"
        # A server's status knows no labels; without this, the transports would differ.
        self._path = self._status_path
        if label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"

    def predict(self, signature_name, signature, inputs, outputs):
        columns = {name: to_json(array) for name, array in inputs.items()}
        return self._post(
            "predict",
            {"signature_name": signature_name, "inputs": columns},
            functools.partial(_arrays, signature, outputs),
        )

    def classify(self, signature_name, examples, context):
        return self._post("classify", _examples(signature_name, examples, context), _classes)

    def regress(self, signature_name, examples, context):
        return self._post("regress", _examples(signature_name, examples, context), _values)

    def status(self):
        return Call(self._status_path, None, functools.partial(_decode, _statuses))

    def metadata(self):
        return Call(f"{self._path}/metadata", None, functools.partial(_decode, _signatures))

    def _post(self, verb, document, read):
        body = json.dumps(document).encode()
        return Call(f"{self._path}:{verb}", body, functools.partial(_decode, read))


def _decode(read, response):
    """Returns what `read` makes of the JSON object that an HTTP response, (status, body), holds.

    Raises:
        ServingError: the status is not 200, or the answer has another form than expected.
    """
    answer = _parse(*response)
    with _understanding(answer):
        return read(answer)


def _parse(status, data):
    # Strings of a model need not be UTF-8: their bytes come through as surrogates.
    text = data.decode("utf-8", "surrogateescape")
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        answer = None
    if status != 200:
        message = answer.get("error", text) if isinstance(answer, dict) else text
        raise error_of_http_status(status, message or f"HTTP status {status}")
    if not isinstance(answer, dict):
        raise error("INTERNAL", f"The answer is not a JSON object: {text[:200]}")
    return answer


@contextlib.contextmanager
def _understanding(answer):
    """Turns the surprises of an answer that has another form than expected into `Internal`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        message = f"The answer has another form than expected ({problem!r}): {str(answer)[:200]}"
        raise error("INTERNAL", message) from problem


def _arrays(signature, outputs, answer):
    values = answer["outputs"]
    if len(signature.outputs) == 1:  # then the value comes without its name
        values = dict.fromkeys(signature.outputs, values)
    return {name: from_json(values[name], signature.outputs[name]) for name in outputs}


def _examples(signature_name, examples, context):
    document = {"signature_name": signature_name, "examples": list(map(_example, examples))}
    return document if context is None else {**document, "context": _example(context)}


def _example(features):
    return {
        name: to_json(np.array(values, object)) if kind == "bytes" else values
        for name, (kind, values) in features.items()
    }


def _classes(answer):
    return [
        # As the message has them: labels of UTF-8 only, scores that are 32 bits wide.
        [ClassScore(_utf8(label), float(np.float32(score))) for label, score in classifications]
        for classifications in answer["results"]
    ]


def _utf8(text):
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _values(answer):
    return np.array(answer["results"], np.float32)


def _statuses(answer):
    return [_version_status(entry) for entry in answer["model_version_status"]]


def _version_status(entry):
    status = entry.get("status", {})
    return VersionStatus(
        version=int(entry["version"]),
        state=entry["state"],
        error_code=status.get("error_code", "OK"),
        error_message=status.get("error_message", ""),
    )


def _signatures(answer):
    signatures = answer["metadata"]["signature_def"]["signature_def"].items()
    return callable_signatures((name, _signature(value)) for name, value in signatures)


def _signature(value):
    return Signature(
        **{
            side: {name: _tensor_info(info) for name, info in sorted(value.get(side, {}).items())}
            for side in ("inputs", "outputs")
        }
    )


def _tensor_info(info):
    shape = info.get("tensor_shape", {})
    sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
    return TensorInfo(dtype_name(info["dtype"]), shape_of(sizes, shape.get("unknown_rank", False)))
