"""Two small servers around one fake model: TensorFlow Serving's gRPC API and its REST API.

The gRPC one uses the published stubs, the REST one writes its JSON by hand: neither shares code
with the client. Their model computes in NumPy.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

# {signature: (inputs, outputs)}, each {name: (dtype, shape)}.
X = {"x": ("DT_FLOAT", [-1, 3])}
EXPLAIN = {**X, "target": ("DT_INT32", [-1])}
EXPLAINED = {
    "attributions": ("DT_FLOAT", [-1, 3]),
    "score": ("DT_FLOAT", [-1]),
    "target": ("DT_INT32", [-1]),
}
MIXED = {"text_bytes": ("DT_STRING", [-1]), "n": ("DT_INT64", [-1]), "flag": ("DT_BOOL", [-1])}
SIGNATURES = {
    "serving_default": (X, {"double": ("DT_FLOAT", [-1, 3]), "top": ("DT_INT64", [-1])}),
    "single": (X, {"double": ("DT_FLOAT", [-1, 3])}),
    "mixed": (MIXED, MIXED),
    "free": ({"y": ("DT_HALF", None)}, {"z": ("DT_DOUBLE", None)}),
    "explain_saliency": (EXPLAIN, EXPLAINED),
    "explain_path": (EXPLAIN, {**EXPLAINED, "convergence_delta": ("DT_FLOAT", [-1])}),
    "__saved_model_init_op": ({}, {"__saved_model_init_op": ("DT_INVALID", None)}),
}
NUMPY = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_HALF": np.float16,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_BOOL": np.bool_,
    "DT_STRING": object,
}
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "UNKNOWN": 500, "INTERNAL": 500,
    "DATA_LOSS": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


class Refusal(Exception):
    """Raised by the model: code and text of the server's error."""


class FakeModel:
    """Model "digits", version 3 with label "stable" (and 2, which failed to load).

    Attributes:
        failures: (code, message) for the next predict calls, in order.
        calls: how often each of predict, metadata and status was asked.
        specs: the (version, label) of each predict and metadata call.
        delay: seconds that a predict call takes.
        states: what status answers: (version, state, code, message).
        received: the inputs of the last predict call; output_filter: its filter, over gRPC.
        under_way, most_under_way: predict calls, now and at most.
        connections: how many connections REST has accepted.
        paths: the paths of REST's requests.
        drops_connections: whether REST closes each connection after one answer.
    """

    def __init__(self):
        self.signatures = dict(SIGNATURES)
        self.failures = []
        self.calls = {"predict": 0, "metadata": 0, "status": 0}
        self.specs = []
        self.delay = 0.0
        self.states = [(3, "AVAILABLE", "OK", ""), (2, "END", "NOT_FOUND", "no saved_model.pb")]
        self.received = None
        self.output_filter = None
        self.under_way = self.most_under_way = 0
        self.connections = 0
        self.paths = []
        self.drops_connections = False
        self._lock = threading.Lock()

    def count(self, what, name, version=None, label=None):
        with self._lock:
            self.calls[what] += 1
            self.specs.append((version, label))
        if name != "digits" or version not in (None, 2, 3) or label not in (None, "stable"):
            raise Refusal("NOT_FOUND", f"Servable not found for request: {name}")

    def check(self):
        with self._lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self.delay)
        with self._lock:
            self.under_way -= 1
            failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise Refusal(*failure)

    def predict(self, signature, inputs):
        missing = set(self.signatures[signature][0]) - set(inputs)
        if missing:
            raise Refusal("INVALID_ARGUMENT", f"Missing inputs: {missing}")
        self.received = inputs
        if signature == "mixed":
            return dict(inputs)
        if signature == "free":
            return {"z": inputs["y"].astype(np.float64)}
        x = inputs["x"]
        if not signature.startswith("explain_"):
            return {"double": 2 * x, "top": np.argmax(x, -1).astype(np.int64)}
        top = np.argmax(x, -1).astype(np.int32)
        target = np.where(inputs["target"] < 0, top, inputs["target"])
        score = np.take_along_axis(x, target[:, None].astype(int), 1)[:, 0]
        return {
            "attributions": x * np.float32(0.1),
            "score": score,
            "target": target,
            "convergence_delta": np.zeros_like(score),
        }

    def status(self, version):
        return [state for state in self.states if version in (None, state[0])]


def _tensor_info(dtype, shape):
    if shape is not None:
        shape = [None if size < 0 else size for size in shape]
    return meta_graph_pb2.TensorInfo(
        name="unused:0",
        dtype=types_pb2.DataType.Value(dtype),
        tensor_shape=tf.TensorShape(shape).as_proto(),
    )


class _Grpc(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, model):
        self.model = model

    @contextlib.contextmanager
    def _asked(self, context, what, spec):
        version = spec.version.value if spec.HasField("version") else None
        try:
            self.model.count(what, spec.name, version, spec.version_label or None)
            yield version
        except Refusal as refusal:
            code, message = refusal.args
            context.abort(getattr(grpc.StatusCode, code), message)

    def Predict(self, request, context):
        with self._asked(context, "predict", request.model_spec):
            self.model.check()
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            results = self.model.predict(request.model_spec.signature_name, inputs)
            known = self.model.signatures[request.model_spec.signature_name][1]
            self.model.output_filter = list(request.output_filter)
            response = predict_pb2.PredictResponse()
            for name in request.output_filter or known:
                dtype = NUMPY[known[name][0]]
                tensor = tf.make_tensor_proto(results[name], tf.as_dtype(dtype))
                response.outputs[name].CopyFrom(tensor)
            return response

    def GetModelMetadata(self, request, context):
        with self._asked(context, "metadata", request.model_spec):
            assert list(request.metadata_field) == ["signature_def"]
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, sides in self.model.signatures.items():
                signature = signatures.signature_def[name]
                for side, infos in zip((signature.inputs, signature.outputs), sides, strict=True):
                    for key, info in infos.items():
                        side[key].CopyFrom(_tensor_info(*info))
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(signatures)
            return response

    def GetModelStatus(self, request, context):
        with self._asked(context, "status", request.model_spec) as version:
            response = get_model_status_pb2.GetModelStatusResponse()
            for number, state, code, message in self.model.status(version):
                entry = response.model_version_status.add(version=number)
                entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state)
                entry.status.error_code = error_codes_pb2.Code.Value(code)
                entry.status.error_message = message
            return response


@contextlib.contextmanager
def grpc_server(model, port=0, credentials=None, path=None):
    """Yields the address of a gRPC server for the model; with a path on a UNIX socket as well."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Grpc(model), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Grpc(model), server)
    if path is not None:
        server.add_insecure_port(f"unix:{path}")
    if credentials is None:
        address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    else:
        address = f"grpcs://localhost:{server.add_secure_port(f'localhost:{port}', credentials)}"
    server.start()
    try:
        yield address
    finally:
        server.stop(0).wait()


_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<verb>:predict|/metadata)?"
)


def _from_json(value, dtype):
    def plain(item):
        if isinstance(item, list):
            return [plain(element) for element in item]
        return base64.b64decode(item["b64"]) if isinstance(item, dict) else item

    return np.array(plain(value), dtype=NUMPY[dtype])


def _to_json(name, array):
    if array.dtype != object:
        return array.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(item).decode()} for item in array]
    return [item.decode("utf-8", "surrogateescape") for item in array]


class _Rest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.model.connections += 1

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body):
        try:
            status, answer = 200, self._respond(body)
        except Refusal as refusal:
            status, answer = HTTP_STATUS[refusal.args[0]], {"error": refusal.args[1]}
        data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogateescape")
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        # Without a "Connection: close" that would warn the client.
        self.close_connection = self.close_connection or self.server.model.drops_connections

    def _respond(self, body):
        model, match = self.server.model, _PATH.fullmatch(self.path)
        model.paths.append(self.path)
        name, label = urllib.parse.unquote(match["name"]), match["label"]
        version = int(match["version"]) if match["version"] else None
        what = {":predict": "predict", "/metadata": "metadata", None: "status"}[match["verb"]]
        model.count(what, name, version, label and urllib.parse.unquote(label))
        return getattr(self, f"_{what}")(model, version, body)

    def _predict(self, model, version, body):
        model.check()
        known_inputs, known_outputs = model.signatures[body["signature_name"]]
        inputs = {
            name: _from_json(value, known_inputs[name][0]) for name, value in body["inputs"].items()
        }
        results = model.predict(body["signature_name"], inputs)
        outputs = {name: _to_json(name, results[name]) for name in known_outputs}
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}

    def _metadata(self, model, version, body):
        def info(dtype, shape):
            dims = [{"size": str(size), "name": ""} for size in shape or []]
            return {
                "dtype": dtype,
                "tensor_shape": {"dim": dims, "unknown_rank": shape is None},
                "name": "unused:0",
            }

        signatures = {
            name: {
                "inputs": {key: info(*value) for key, value in inputs.items()},
                "outputs": {key: info(*value) for key, value in outputs.items()},
                "method_name": "tensorflow/serving/predict",
            }
            for name, (inputs, outputs) in model.signatures.items()
        }
        return {
            "model_spec": {"name": "digits", "signature_name": "", "version": "3"},
            "metadata": {"signature_def": {"signature_def": signatures}},
        }

    def _status(self, model, version, body):
        entries = [
            {
                "version": str(number),
                "state": state,
                "status": {"error_code": code, "error_message": message},
            }
            for number, state, code, message in model.status(version)
        ]
        return {"model_version_status": entries}


class _RestServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # refused certificates, and clients that hang up


@contextlib.contextmanager
def rest_server(model, port=0, context=None):
    """Yields the address of a REST server for the model; with an `ssl.SSLContext` over TLS."""
    with _RestServer(("127.0.0.1", port), _Rest) as server:
        server.model = model
        if context is not None:  # hands are shaken in the thread that reads
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            host = "http://127.0.0.1" if context is None else "https://localhost"
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
