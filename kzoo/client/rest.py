"""TensorFlow Serving's REST API, over kept-alive connections of the standard library."""

import collections
import contextlib
import http.client
import json
import urllib.parse

from kzoo.client.errors import error, error_of_http_status
from kzoo.client.metadata import (
    Signature,
    TensorInfo,
    VersionStatus,
    callable_signatures,
    dtype_name,
    shape_of,
)
from kzoo.client.tensors import from_json, to_json

_CHUNK = 1 << 20


class RestTransport:
    """One model of a REST server.

    Args:
        netloc: "host:port".
        prefix: path before "/v1", for servers behind a gateway; empty or without its last "/".
        model: the model's name.
        version: a version's number, or None.
        label: a version's label, or None.
    """

    def __init__(self, netloc, prefix, model, version=None, label=None):
        self._netloc = netloc
        self._idle = collections.deque()  # connections; its methods are safe between threads
        self._status_path = f"{prefix}/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self._status_path += f"/versions/{version}"
        # A server's status knows no labels; without this, the transports would differ.
        self._path = self._status_path
        if label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"

    def predict(self, signature_name, signature, inputs, outputs, deadline):
        """Returns the arrays named in `outputs`; `inputs` are arrays of the signature's dtypes."""
        body = _predict_body(signature_name, inputs)
        answer = self._request("POST", f"{self._path}:predict", deadline, body)
        with _understanding(answer):
            values = answer["outputs"]
            if len(signature.outputs) == 1:  # then the value comes without its name
                values = dict.fromkeys(signature.outputs, values)
            return {name: from_json(values[name], signature.outputs[name]) for name in outputs}

    def encode(self, signature_name, signature, inputs, outputs):
        """Returns the URL and the body of the request that `predict` sends."""
        return f"http://{self._netloc}{self._path}:predict", _predict_body(signature_name, inputs)

    def status(self, deadline):
        """Returns a list of `VersionStatus`."""
        answer = self._request("GET", self._status_path, deadline)
        with _understanding(answer):
            return [_version_status(entry) for entry in answer["model_version_status"]]

    def metadata(self, deadline):
        """Returns {name: `Signature`}."""
        answer = self._request("GET", f"{self._path}/metadata", deadline)
        with _understanding(answer):
            signatures = answer["metadata"]["signature_def"]["signature_def"].items()
            return callable_signatures((name, _signature(value)) for name, value in signatures)

    def close(self):
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _request(self, method, path, deadline, body=None):
        """Returns the answer's JSON; raises a `ServingError` for all that is not HTTP 200."""
        request = method, path, body, deadline
        try:
            with contextlib.suppress(IndexError, ConnectionError):
                # Servers close idle connections without a word. What was sent into one of those
                # is sent again at once, on a new one; that is no retry of a failed call.
                return self._send(self._idle.pop(), *request)
            return self._send(http.client.HTTPConnection(self._netloc), *request)
        except TimeoutError:
            message = f"No answer within {deadline.timeout:g} s."
            raise error("DEADLINE_EXCEEDED", message) from None
        except (OSError, http.client.HTTPException) as problem:
            raise error("UNAVAILABLE", f"{self._netloc}: {problem!r}") from problem

    def _send(self, connection, method, path, body, deadline):
        try:
            status, data = _exchange(connection, method, path, body, deadline)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return _parse(status, data)


def _predict_body(signature_name, inputs):
    columns = {name: to_json(array) for name, array in inputs.items()}
    return json.dumps({"signature_name": signature_name, "inputs": columns}).encode()


def _exchange(connection, method, path, body, deadline):
    """Sends the request and returns (HTTP status, body) before the deadline."""
    connection.timeout = deadline.left()
    if connection.sock is None:
        connection.connect()
    sock = connection.sock
    sock.settimeout(deadline.left())
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    sock.settimeout(deadline.left())
    with connection.getresponse() as response:
        chunks = []
        # One receive at a time, so that a server that trickles cannot outlast the deadline.
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            sock.settimeout(deadline.left())
        if response.length:
            raise http.client.IncompleteRead(chunks[-1] if chunks else b"", response.length)
        return response.status, b"".join(chunks)


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


def _version_status(entry):
    status = entry.get("status", {})
    return VersionStatus(
        version=int(entry["version"]),
        state=entry["state"],
        error_code=status.get("error_code", "OK"),
        error_message=status.get("error_message", ""),
    )


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
