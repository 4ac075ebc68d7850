"""TensorFlow Serving's REST API as an ASGI application.

The event loop only moves bytes; parsing, the graph and printing run in the application's pool.
"""

import asyncio
import logging
import re
import urllib.parse
import zlib
from http import HTTPStatus

from google.protobuf.json_format import MessageToJson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

from kzoo.serving.server.engine import DEFAULT_SIGNATURE
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    http_status,
    invalid_argument,
    unimplemented,
)
from kzoo.serving.server.grpc_service import SIGNATURE_DEF, model_metadata, model_status
from kzoo.serving.server.json_text import error_body
from kzoo.serving.server.rest_json import decode_inputs, parse_request
from kzoo.serving.server.rest_response import encode_outputs

log = logging.getLogger(__name__)

_MAX_INT64 = 2**63 - 1
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
        self._timeout = options.rest_api_timeout_in_ms / 1000
        self._limit = options.max_concurrent_requests
        self._max_body_bytes = options.max_body_bytes
        self._running = 0

    async def __call__(self, scope, receive, send):
        request = Request(scope, receive)
        path = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:  # part of the path for TensorFlow Serving, so it fits no route
            path += "?" + scope["query_string"].decode("latin-1")
        try:
            if _API.fullmatch(path):
                response = await self._answer(request, path)
            else:
                response = _not_found_page()
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request, path):
        self._running += 1
        try:
            if self._running > self._limit:
                raise ServingError(Code.RESOURCE_EXHAUSTED, "Too many concurrent requests")
            body = await _read(request, self._max_body_bytes)
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, self._process, request.method, path, body)
            async with asyncio.timeout(self._timeout):
                return _json(200, await work)
        except TimeoutError:
            return _error(Code.DEADLINE_EXCEEDED, "Timed out waiting for the request")
        except ServingError as error:
            return _error(error.code, error.message)
        except ClientDisconnect:
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, path)
            return _error(Code.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            self._running -= 1

    def _process(self, method, path, body):
        """Returns the body of the answer to one request."""
        if method == "POST" and (match := _INFERENCE.fullmatch(path)):
            *model, action = match.groups()
            spec = _model_spec(*model)
            if action == "predict":
                return self._predict(spec, body)
            if action in ("classify", "regress"):
                raise unimplemented(f"{action} is not implemented by the embedded server.")
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            *model, metadata = match.groups()
            name, version, label = _model_spec(*model)
            if not name:
                raise invalid_argument("Missing model name in request.")
            if metadata == "metadata":
                return _metadata_json(self._manager.find(name, version, label))
            return _message_json(model_status(self._manager, name, version)).encode()
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


async def _read(request, limit):
    """Returns the body; gzip is inflated, what cannot be inflated counts as empty."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ServingError(Code.RESOURCE_EXHAUSTED, "The request body is too large")
        chunks.append(chunk)
    body = b"".join(chunks)
    if "gzip" not in request.headers.get("content-encoding", ""):
        return body
    try:
        return zlib.decompressobj(wbits=31).decompress(body, limit)
    except zlib.error:
        return b""


def _model_spec(name, version, label):
    """Returns (name, version, label) of a matched path, decoded; None for what is absent."""
    if version is not None and int(version) > _MAX_INT64:
        raise invalid_argument(f"Failed to convert version: {version} to numeric.")
    return (
        _unquote(name),
        None if version is None else int(version),
        None if label is None else _unquote(label),
    )


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
    return _json(http_status(code), error_body(message))


def _not_found_page():
    reason = f"{HTTPStatus.NOT_FOUND} {HTTPStatus.NOT_FOUND.phrase}"
    return Response(
        f"<HTML><HEAD>\n<TITLE>{reason}</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n"
        "</BODY></HTML>\n",
        404,
        media_type="text/html",
    )
