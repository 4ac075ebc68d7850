"""TensorFlow Serving's REST API as an ASGI application.

The event loop only moves bytes; parsing, the graph and printing run in the application's pool.
"""

import asyncio
import logging
import re
import time
import urllib.parse
import zlib
from http import HTTPStatus
from typing import NamedTuple

from google.protobuf.json_format import MessageToJson
from starlette.responses import Response
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from kzoo.serving.server import classifier, metrics, regressor, request_context
from kzoo.serving.server.engine import DEFAULT_SIGNATURE
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    http_status,
    invalid_argument,
)
from kzoo.serving.server.grpc_service import SIGNATURE_DEF, model_metadata, model_status
from kzoo.serving.server.http_protocol import error_page
from kzoo.serving.server.inference import infer
from kzoo.serving.server.json_text import error_body
from kzoo.serving.server.page import Page
from kzoo.serving.server.rest_examples import encode_classes, encode_values, parse_input
from kzoo.serving.server.rest_json import decode_inputs, parse_request
from kzoo.serving.server.rest_response import encode_outputs

log = logging.getLogger(__name__)

_MAX_INT64 = 2**63 - 1
_MAX_INFLATED_BYTES = 100 * 2**20  # of a gzip body, as in TensorFlow Serving
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say that there is a gzip header
_PLAIN_TEXT = {"content-type": "text/plain"}
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
_API = re.compile(r"/v1/.*", re.IGNORECASE)
_MODEL = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_INFERENCE = re.compile(rf"/v1/models/([^/:]+){_MODEL}:(classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(rf"/v1/models(?:/([^/:]+))?{_MODEL}(?:/(metadata))?", re.IGNORECASE)


class RestApp:
    """The ASGI application.

    Args:
        manager: `ModelManager`.
        pool: executor that the requests run in.
        options: `ServerOptions`.
    """

    def __init__(self, manager, pool, options):
        self._manager = manager
        self._pool = pool
        limit_ms = options.rest_api_timeout_in_ms
        self._timeout = limit_ms / 1000 if limit_ms > 0 else None
        self._limit = options.max_concurrent_requests
        self._max_body_bytes = options.max_body_bytes
        self._cors = _CORS if options.rest_api_enable_cors_support else None
        self._metrics_path = metrics.page_path(options.monitoring_config_file)
        self._page = Page(manager, options)
        self._running = 0

    async def __call__(self, scope, receive, send):
        path = full_path = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:  # part of the path for TensorFlow Serving, so it fits no route
            full_path += "?" + scope["query_string"].decode("latin-1")
        try:
            if path == self._metrics_path:
                response = _metrics_page(path, full_path)
            elif _API.fullmatch(full_path):
                response = await self._api(scope, receive, full_path)
            elif path == "/" and scope["method"] in ("GET", "HEAD"):
                response = await self._people_page()
            else:
                response = _not_found_page()
        except _ClientGoneError:
            return
        await response(scope, receive, send)

    async def _people_page(self):
        loop = asyncio.get_running_loop()
        document = await loop.run_in_executor(self._pool, self._page.render)
        return Response(document, headers=self._page.headers, media_type="text/html")

    async def _api(self, scope, receive, path):
        """Returns the response to a request below /v1/, and counts it."""
        start = time.perf_counter()
        target = _Target.of(scope["method"], path)
        if scope["method"] == "OPTIONS":
            response = _preflight(_header(scope, b"origin"))
            code = Code.OK if response.status_code == HTTPStatus.OK else Code.FAILED_PRECONDITION
        else:
            code, body = await self._answer(scope, receive, path, target)
            response = _json(http_status(code), body)
        if self._cors:
            response.headers.update(self._cors)
        api = target.action if scope["method"] == "POST" else ""
        metrics.record_request(target.name, api, "REST", code, time.perf_counter() - start)
        return response

    async def _answer(self, scope, receive, path, target):
        """Returns (`Code`, body)."""
        self._running += 1
        try:
            if self._running > self._limit:
                raise ServingError(Code.RESOURCE_EXHAUSTED, "Too many concurrent requests")
            body = await _read(scope, receive, self._max_body_bytes)
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, self._work, scope, path, target, body)
            async with asyncio.timeout(self._timeout):
                return Code.OK, await work
        except TimeoutError:
            return _error(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        except asyncio.CancelledError:  # by the server, when it stops and its grace is over
            return _error(Code.UNAVAILABLE, "The server is shutting down")
        except ServingError as error:
            return _error(error.code, error.message)
        except _ClientGoneError:
            raise
        except Exception as error:
            log.exception("%s %s failed", scope["method"], path)
            return _error(Code.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            self._running -= 1

    def _work(self, scope, path, target, body):
        request_context.begin(target.action.capitalize(), self._timeout)
        if "gzip" in _header(scope, b"content-encoding"):
            body = _inflate(body, min(self._max_body_bytes, _MAX_INFLATED_BYTES))
        return self._process(scope["method"], path, target, body)

    def _process(self, method, path, target, body):
        """Returns the body of the answer to one request."""
        spec = target.spec()
        if method == "POST":
            if target.action == "predict":
                return self._predict(spec, body)
            if target.action == "classify":
                return encode_classes(self._infer(classifier, spec, body))
            if target.action == "regress":
                return encode_values(self._infer(regressor, spec, body))
        elif method == "GET" and target.matched:
            if not target.name:
                raise invalid_argument("Missing model name in request.")
            if target.action == "metadata":
                return _metadata_json(self._manager.find(*spec))
            return _message_json(model_status(self._manager, *spec[:2])).encode()
        raise invalid_argument(f"Malformed request: {method} {path}")

    def _predict(self, spec, body):
        document = parse_request(body)
        model = self._manager.find(*spec)
        name = document.get("signature_name") or DEFAULT_SIGNATURE
        if name not in model.signatures:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        signature = model.signatures[name]
        if not signature.inputs:
            sent = document.get("signature_name") or "DEFAULT"
            raise invalid_argument(f"Failed to get input map for signature: {sent}")
        inputs, row = decode_inputs(document, signature.inputs)
        outputs = model.predict(name, inputs)
        return encode_outputs(outputs, signature.outputs, row)

    def _infer(self, method, spec, body):
        document = parse_request(body)
        request_input = parse_input(document)
        model = self._manager.find(*spec)
        return infer(model, method, document.get("signature_name"), request_input)


class _ClientGoneError(Exception):
    """The connection is lost; nobody waits for an answer."""


class _Target(NamedTuple):
    """What the path of a request names, decoded; empty strings for what is absent."""

    matched: bool = False
    name: str = ""
    version: str = ""
    label: str = ""
    action: str = ""

    @classmethod
    def of(cls, method, path):
        pattern = {"POST": _INFERENCE, "GET": _STATUS}.get(method)
        match = pattern and pattern.fullmatch(path)
        if not match:
            return cls()
        name, version, label, action = match.groups("")
        return cls(True, _unquote(name), version, _unquote(label), action)

    def spec(self):
        """Returns (name, version, label), None for what is absent."""
        digits = self.version.lstrip("0")
        if len(digits) > len(str(_MAX_INT64)) or int(digits or 0) > _MAX_INT64:
            raise invalid_argument(f"Failed to convert version: {self.version} to numeric.")
        return self.name, int(digits or 0) if self.version else None, self.label or None


async def _read(scope, receive, limit):
    """Returns the body as it was sent."""
    too_large = ServingError(Code.RESOURCE_EXHAUSTED, "The request body is too large")
    if int(_header(scope, b"content-length") or 0) > limit:
        raise too_large
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        chunks.append(message["body"])
        size += len(message["body"])
        if size > limit:
            raise too_large
        if not message["more_body"]:
            return b"".join(chunks)


def _header(scope, name):
    """Returns the first header of that name (bytes, lower case) as text, empty if there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _inflate(body, limit):
    """Returns what a gzip body holds; empty if it is broken, as TensorFlow Serving takes it."""
    inflater = zlib.decompressobj(wbits=_GZIP)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:
        return b""
    if len(inflated) > limit:
        raise ServingError(Code.RESOURCE_EXHAUSTED, "The request body is too large")
    return inflated if inflater.eof else b""


def _unquote(text):
    return urllib.parse.unquote(text or "", errors="surrogateescape")


def _message_json(message, preserve_names=False):
    text = MessageToJson(
        message,
        indent=1,
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=preserve_names,
    )
    return text + "\n"


def _metadata_json(model):
    response = model_metadata(model)
    signatures = SignatureDefMap()
    response.metadata[SIGNATURE_DEF].Unpack(signatures)
    spec = _message_json(response.model_spec, preserve_names=True)
    return (
        f'{{\n"model_spec":{spec},\n"metadata": {{'
        f'"signature_def": {_message_json(signatures, preserve_names=True)}}}\n}}\n'
    ).encode()


def _json(status, body):
    return Response(body, status, media_type="application/json")


def _error(code, message):
    return code, error_body(message)


def _preflight(origin):
    """Returns the response to OPTIONS, which browsers ask before a page uses another origin."""
    return Response(b"", 200 if re.search("https?://", origin) else 400)


def _metrics_page(path, full_path):
    if path != full_path:
        text = f"Unexpected path: {full_path}. Should be {path}"
        return Response(text, 400, headers=_PLAIN_TEXT)
    # A label may hold what a client sent as a model's name, which need not be UTF-8.
    page = metrics.page().encode("utf-8", "replace")
    return Response(page, headers=_PLAIN_TEXT)


def _not_found_page():
    return Response(error_page(404), 404, media_type="text/html")
