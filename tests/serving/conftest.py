"""Tiny SavedModels and one way to ask a server: what the tests of the embedded server share."""

import http.client
import json
import pathlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

TYPES = (
    "bool", "string", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "float32",
    "float64", "float16",
)  # fmt: skip


def _function(method, **specs):
    """A tf.function whose arguments are the named specs."""
    arguments = [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in specs.items()]
    return tf.function(method, input_signature=arguments)


class Half(tf.Module):
    """y = x / 2 + offset, of any batch."""

    def __init__(self, offset):
        super().__init__()
        self.offset = tf.Variable(offset, dtype=tf.float32)
        self.calls = tf.Variable(0)
        self.endpoints = {
            "serving_default": _function(self._half, x=([None], tf.float32)),
            "matrix": _function(self._half, x=([None, 2], tf.float32)),
            "total": _function(self._total),
            "count": _function(self._count, x=([None], tf.float32)),
            "sleep": _function(self._sleep, seconds=([None], tf.float64)),
        }

    def _half(self, x):
        return {"y": x / 2 + self.offset}

    def _total(self):
        return {"calls": tf.identity(self.calls)}

    def _count(self, x):
        return {"calls": tf.fill(tf.shape(x), self.calls.assign_add(1))}

    def _sleep(self, seconds):
        end = tf.timestamp() + tf.reduce_max(seconds)
        rounds = tf.while_loop(lambda n: tf.timestamp() < end, lambda n: (n + 1,), [tf.constant(0)])
        return {"rounds": tf.fill(tf.shape(seconds), rounds[0]), "offset": self.offset}


class Pair(tf.Module):
    """Two inputs, three outputs."""

    def __init__(self):
        super().__init__()
        specs = {"a": ([None, 2], tf.float32), "b": ([None], tf.int32)}
        self.endpoints = {"serving_default": _function(self._call, **specs)}

    @staticmethod
    def _call(a, b):
        return {"sum": a + tf.cast(b, tf.float32)[:, None], "double": 2 * b, "first": b[0]}


class Text(tf.Module):
    """Strings in, strings out."""

    def __init__(self):
        super().__init__()
        self.endpoints = {"serving_default": _function(self._call, image_bytes=([None], tf.string))}

    @staticmethod
    def _call(image_bytes):
        return {
            "copy_bytes": image_bytes,
            "copy": image_bytes,
            "length": tf.strings.length(image_bytes),
        }


class Identity(tf.Module):
    """A signature per type, named after it, that returns its input."""

    def __init__(self):
        super().__init__()
        self.endpoints = {
            name: _function(lambda x: {"y": tf.identity(x)}, x=(None, tf.as_dtype(name)))
            for name in TYPES
        }


class FromExamples(tf.Module):
    """Signatures over serialized Examples with a float `x` (default 0) and a string `name`.

    `classify`, `classes`, `scores`, `regress` and `column` are what Classify and Regress expect;
    those of `WRONG_OUTPUTS` are not.
    """

    def __init__(self):
        super().__init__()
        names = ("classify", "classes", "scores", "regress", "column", *WRONG_OUTPUTS)
        self.endpoints = {name: self._endpoint(name) for name in names}
        self.endpoints["serving_default"] = self.endpoints["classify"]

    def _endpoint(self, name):
        def call(inputs):
            features = {
                "x": tf.io.FixedLenFeature([], tf.float32, 0.0),
                "name": tf.io.FixedLenFeature([], tf.string, "?"),
            }
            example = tf.io.parse_example(inputs, features)
            return self._outputs(name, example["x"], example["name"])

        return _function(call, inputs=([None], tf.string))

    @staticmethod
    def _outputs(name, x, label):
        classes = tf.stack([label, tf.fill(tf.shape(x), "other")], axis=1)
        scores = tf.stack([x, 1 - x], axis=1)
        if name in WRONG_OUTPUTS:
            return WRONG_OUTPUTS[name](x, classes, scores)
        return {
            "classify": {"classes": classes, "scores": scores},
            "classes": {"classes": classes},
            "scores": {"scores": scores},
            "regress": {"outputs": x / 2 + 2},
            "column": {"outputs": x[:, None]},
        }[name]


# Outputs that Classify or Regress must refuse, as functions of x, the classes and the scores.
WRONG_OUTPUTS = {
    "vector_scores": lambda x, classes, scores: {"scores": x},
    "double_scores": lambda x, classes, scores: {"scores": tf.cast(scores, tf.float64)},
    "float_classes": lambda x, classes, scores: {"classes": scores},
    "one_row": lambda x, classes, scores: {"scores": scores[:1]},
    "unequal": lambda x, classes, scores: {"classes": classes[:, :1], "scores": scores},
    "three": lambda x, classes, scores: {"a": x, "b": x, "scores": scores},
    "wide": lambda x, classes, scores: {"outputs": scores},
    "double": lambda x, classes, scores: {"outputs": tf.cast(x, tf.float64)},
    "one_value": lambda x, classes, scores: {"outputs": x[:1]},
    "elsewhere": lambda x, classes, scores: {"y": x},
}


def save_shared_graph(path):
    """Writes a TensorFlow 1 SavedModel: two signatures with method names over one random draw."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = tf.compat.v1.placeholder(tf.string, [None])
        draw = tf.random.uniform(tf.shape(inputs))
        info = tf.compat.v1.saved_model.build_tensor_info
        methods = {
            "classify": (tf.saved_model.CLASSIFY_METHOD_NAME, {"scores": info(draw[:, None])}),
            "regress": (tf.saved_model.REGRESS_METHOD_NAME, {"outputs": info(draw)}),
            "unnamed": ("", {"outputs": info(draw)}),
        }
        builder = tf.compat.v1.saved_model.Builder(str(path))
        build = tf.compat.v1.saved_model.build_signature_def
        signatures = {
            key: build({"inputs": info(inputs)}, outputs, method)
            for key, (method, outputs) in methods.items()
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def save(module, base_path, version):
    """Writes a version of `module` below `base_path`; returns its directory."""
    path = pathlib.Path(base_path, str(version))
    tf.saved_model.save(module, str(path), signatures=module.endpoints)
    return path


@pytest.fixture(scope="session")
def half_version(tmp_path_factory):
    """half_version(offset): the directory of an exported `Half`, made once per offset."""
    made = {}

    def make(offset):
        if offset not in made:
            made[offset] = save(Half(offset), tmp_path_factory.mktemp("half"), 1)
        return made[offset]

    return make


@pytest.fixture(scope="session")
def base_paths(tmp_path_factory, half_version):
    """{model name: base path}; `half` has versions 2 (offset 2) and 7 (offset 3)."""
    root = tmp_path_factory.mktemp("models")
    save(Pair(), root / "pair", 1)
    save(Text(), root / "text", 1)
    save(Identity(), root / "identity", 1)
    (root / "half").mkdir()
    (root / "half" / "00002").symlink_to(half_version(2.0))
    (root / "half" / "7").symlink_to(half_version(3.0))
    (root / "half" / "temp-9").mkdir()
    return {path.name: path for path in root.iterdir()}


class Client:
    """Talks to both ports of a server."""

    def __init__(self, server):
        self.server = server
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self):
        self._channel.close()

    def http(self, method, path, body=None, headers=()):
        """Returns (status, headers, body as text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.rest_port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return (
                response.status,
                response.headers,
                response.read().decode("utf-8", "surrogateescape"),
            )
        finally:
            connection.close()

    def post(self, path, body):
        """Returns (status, parsed answer); `body` may be bytes, text or a document."""
        if not isinstance(body, bytes | str):
            body = json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        status, _, text = self.http("POST", f"/v1/models/{path}", data)
        return status, json.loads(text)

    def get(self, path):
        """Returns (status, parsed answer)."""
        status, _, text = self.http("GET", f"/v1/models{path}")
        return status, json.loads(text)

    def predict(self, model, inputs, output_filter=(), timeout=20, **spec):
        """Returns the PredictResponse; inputs are arrays or TensorProtos."""
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = model
        if "version" in spec:
            request.model_spec.version.value = spec.pop("version")
        for key, value in spec.items():
            setattr(request.model_spec, key, value)
        for name, value in inputs.items():
            proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
            request.inputs[name].CopyFrom(proto)
        return self.prediction.Predict(request, timeout=timeout)

    def half(self, x, **spec):
        """Returns y of the model `half` for a list of numbers, over gRPC."""
        return list(
            self.predict("half", {"x": np.float32(x)}, ["y"], **spec).outputs["y"].float_val
        )


@pytest.fixture(scope="session")
def connect():
    """connect(server): a `Client`."""
    return Client


@pytest.fixture(scope="session")
def example_models(tmp_path_factory):
    """{model name: base path} of the models over Examples: `examples` and `shared`."""
    root = tmp_path_factory.mktemp("example_models")
    save(FromExamples(), root / "examples", 1)
    (root / "shared").mkdir()
    save_shared_graph(root / "shared" / "1")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def write_config():
    """write_config(file, {model name: base path}): writes a ModelServerConfig; returns its path."""

    def write(file, base_paths):
        entries = "".join(
            f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}\n'
            for name, path in base_paths.items()
        )
        file.write_text(f"model_config_list {{\n{entries}}}\n")
        return file

    return write


@pytest.fixture(scope="session")
def assert_clean():
    """assert_clean(text): nothing of Python's inside is in what a client, or a log, got to see."""

    def check(text):
        for trace in ("Traceback", 'File "', ".py", "most recent call", "Error: "):
            assert trace not in text, text

    return check


@pytest.fixture(scope="module")
def client(server, connect):
    """A `Client` of the module's own fixture `server`."""
    made = connect(server)
    yield made
    made.close()
