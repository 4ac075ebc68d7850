"""The same requests to a server and in this process give the same tensors, bit for bit.

The servers are the embedded one, with and without batching, and `tensorflow_model_server` itself
where it is on the PATH: all of them serve the same configuration file. The latter is another build
of the same kernels, which may round differently.
"""

import base64
import json
import shutil
import socket
import subprocess
import time
from typing import NamedTuple

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    regression_pb2,
)

from kzoo.serving.export import export
from kzoo.serving.server import ModelServer

BINARY = "tensorflow_model_server"
AVAILABLE = 30
START_SECONDS = 60
FIELDS = {
    "float32": "float_val", "float64": "double_val", "float16": "half_val", "int64": "int64_val",
    "int32": "int_val", "int16": "int_val", "int8": "int_val", "uint8": "int_val",
    "uint32": "uint32_val", "uint64": "uint64_val", "bool": "bool_val", "object": "string_val",
}  # fmt: skip


class Case(NamedTuple):
    """One request: what a signature is fed, and what of REST can express it.

    Attributes:
        model, signature: what is asked.
        inputs: {name: array}.
        rest: the formats that can; the row format needs a row of every output per row of inputs.
        batches: whether batching can, which needs the same.
    """

    model: str
    signature: str
    inputs: dict
    rest: tuple = ("row", "column")
    batches: bool = True


def picture(seed, height=12, width=9):
    """PNG bytes of a random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, [height, width, 3])
    return tf.io.encode_png(pixels.astype(np.uint8)).numpy()


def make_cases():
    rng = np.random.default_rng(0)
    x = np.float32([0, -0.0, 1e-45, 3e38, 1 / 3, np.nan, np.inf, -np.inf, 0.1])
    texts = np.array([b"", b"\0\xff\xfe", 'é\n"\\'.encode(), bytes(range(256))], object)
    a, b = rng.normal(size=[3, 2]).astype(np.float32), np.int32([7, -(2**30), 0])
    images = rng.uniform(size=[3, 8, 8, 3]).astype(np.float32)
    pictures = np.array([picture(seed) for seed in range(3)], object)
    target = np.int32([2, -1, 0])
    examples = np.array([
        example(x=0.1, name=b"a").SerializeToString(), example().SerializeToString()
    ], object)  # fmt: skip
    cases = [
        Case("half", "serving_default", {"x": x}),
        Case("half", "matrix", {"x": rng.normal(size=[4, 2]).astype(np.float32)}),
        Case("pair", "serving_default", {"a": a, "b": b}, rest=("column",), batches=False),
        Case("text", "serving_default", {"image_bytes": texts}),
        Case("examples", "classify", {"inputs": examples}),
        Case("digits", "serving_default", {"inputs": images}),
        Case("digits", "serving_default", {"inputs": images[:1]}),
        Case("digits", "predict_bytes", {"image_bytes": pictures}),
    ]
    for method in ("saliency", "grad_cam"):
        cases += [
            Case("digits", f"explain_{method}", {"inputs": images, "target": target}),
            Case("digits", f"explain_{method}_png", {"image_bytes": pictures, "target": target}),
        ]
    return cases + [Case("identity", *case) for case in extremes()]


def extremes():
    """(type, inputs, formats of REST) of the model that returns its input."""
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"):
        limits = np.iinfo(name)
        yield name, {"x": np.array([[limits.min, limits.max], [1, 0]], name)}
    for name in ("float32", "float64"):
        limits = np.finfo(name)
        numbers = [limits.max, limits.tiny, -limits.eps, 1 / 3, np.nan, -np.inf]
        yield name, {"x": np.array(numbers, name).reshape(2, 3)}
    yield "float16", {"x": np.float16([[0.1], [-65504]])}, ()
    yield "bool", {"x": np.array([[True, False]])}
    yield "string", {"x": np.array([[b"a", b""], [b"\xc3\xa9", b"\0"]], object)}


def example(**features):
    """An Example of floats and bytes."""
    kinds = {
        name: {"bytes_list": {"value": [value]}}
        if isinstance(value, bytes)
        else {"float_list": {"value": [value]}}
        for name, value in features.items()
    }
    return tf.train.Example(features={"feature": kinds})


CASES = make_cases()
IDS = [f"{case.model}-{case.signature}-{len(next(iter(case.inputs.values())))}" for case in CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=IDS)


# ---------------------------------------------------------------- models and servers


@pytest.fixture(scope="module")
def models(base_paths, example_models, tmp_path_factory):
    """{model name: base path}; `digits` is a real export, with explanations and overlays."""
    keras.utils.set_random_seed(0)
    cnn = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    path = tmp_path_factory.mktemp("parity") / "digits"
    export(cnn, path, ["saliency", "grad_cam"], overlays=True)
    return {**base_paths, "examples": example_models["examples"], "digits": path}


@pytest.fixture(scope="module")
def config_file(models, tmp_path_factory, write_config):
    return write_config(tmp_path_factory.mktemp("config") / "models.config", models)


@pytest.fixture(scope="module")
def in_process(models):
    """in_process(case): {output: array} of TensorFlow's own loader."""
    loaded = {}

    def run(case):
        if case.model not in loaded:
            version = max(
                (path for path in models[case.model].iterdir() if path.name.isdigit()),
                key=lambda path: int(path.name),
            )
            loaded[case.model] = tf.saved_model.load(str(version))
        signature = loaded[case.model].signatures[case.signature]
        inputs = {name: tf.constant(value) for name, value in case.inputs.items()}
        return {name: value.numpy() for name, value in signature(**inputs).items()}

    return run


class Ports(NamedTuple):
    grpc_port: int
    rest_port: int


@pytest.fixture(
    scope="module",
    params=["embedded", "embedded, batching", BINARY, f"{BINARY}, batching"],
)
def client(request, config_file, connect, tmp_path_factory):
    """A `Client` of each server with `batching`, whether it does, and the `tolerance` for it."""
    kind, _, batching = request.param.partition(", ")
    if kind == BINARY and shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not on the PATH")
    options = {
        "model_config_file": str(config_file),
        "file_system_poll_wait_seconds": 0,
        "enable_batching": bool(batching),
    }
    if kind == BINARY:
        yield from real_client(connect, options, tmp_path_factory.mktemp("log") / "log")
        return
    with ModelServer(grpc_port=0, rest_port=0, **options) as server:
        made = connect(server)
        made.batching = bool(batching)
        made.tolerance = 0
        yield made
        made.close()


def real_client(connect, options, log):
    """Yields the `Client` of a `tensorflow_model_server` once it serves; its output is in `log`."""
    ports = Ports(*free_ports(2))
    flags = {"port": ports.grpc_port, "rest_api_port": ports.rest_port, **options}
    arguments = [f"--{name}={str(value).lower() if value in (True, False) else value}"
                 for name, value in flags.items()]  # fmt: skip
    with log.open("w") as output, subprocess.Popen(
        [BINARY, *arguments], stdout=output, stderr=output
    ) as process:  # fmt: skip
        client = connect(ports)
        client.batching = options["enable_batching"]
        client.tolerance = 1e-5  # another build of the same kernels
        try:
            wait_until_it_serves(client, process, log)
            yield client
        finally:
            client.close()
            process.terminate()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_it_serves(client, process, log):
    """Its ports open only after all models are available."""
    request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "half"})
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            answer = client.models.GetModelStatus(request, timeout=5)
            assert answer.model_version_status[0].state == AVAILABLE
            return
        except grpc.RpcError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)


# ---------------------------------------------------------------- encodings


def to_proto(array, as_content):
    """A TensorProto, made without any code of the server."""
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    if as_content and dtype != tf.string:
        proto.tensor_content = array.tobytes()
    else:
        values = array.view(np.uint16) if array.dtype == np.float16 else array
        getattr(proto, FIELDS[array.dtype.name]).extend(values.ravel().tolist())
    return proto


def to_json(array):
    """The array as a document; all strings travel as base64."""
    if array.dtype == object:
        encode = np.frompyfunc(lambda text: {"b64": base64.b64encode(text).decode()}, 1, 1)
        array = encode(array)
    return array.tolist()


def from_json(name, value, expected):
    """What REST answered, as an array like the expected one."""
    if expected.dtype != object:
        return np.array(value, expected.dtype)
    array = np.empty(expected.shape, object)
    for index in np.ndindex(expected.shape):
        item = value
        for position in index:
            item = item[position]
        array[index] = (
            base64.b64decode(item["b64"])
            if name.endswith("_bytes")
            else item.encode("utf-8", "surrogateescape")
        )
    return array


def assert_same(got, expected, tolerance=0):
    """Same names, types, shapes and, without a tolerance, bits; any NaN is as good as another."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        ours = got[name]
        assert (ours.dtype, ours.shape) == (array.dtype, array.shape), name
        if array.dtype.kind == "f" and tolerance:
            np.testing.assert_allclose(ours, array, tolerance, tolerance, err_msg=name)
            continue
        np.testing.assert_array_equal(ours, array, err_msg=name)
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(ours), np.signbit(array), err_msg=name)


# ---------------------------------------------------------------- parity


@every_case
@pytest.mark.parametrize("as_content", [False, True], ids=["values", "content"])
def test_predict_over_grpc(client, in_process, case, as_content):
    expected = in_process(case)
    if client.batching and not case.batches:
        expected = {name: array for name, array in expected.items() if array.ndim}
    inputs = {name: to_proto(array, as_content) for name, array in case.inputs.items()}
    response = client.predict(case.model, inputs, list(expected), signature_name=case.signature)
    got = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    assert_same(got, expected, client.tolerance)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        pytest.param(case, layout, id=f"{name}-{layout}")
        for case, name in zip(CASES, IDS, strict=True)
        for layout in case.rest
    ],
)
def test_predict_over_rest(client, in_process, case, layout):
    if client.batching and not case.batches:
        pytest.skip("one of its outputs has no rows, and REST asks for all of them")
    expected = in_process(case)
    columns = {name: to_json(array) for name, array in case.inputs.items()}
    body = {"signature_name": case.signature}
    if layout == "row":
        rows = zip(*columns.values(), strict=True)
        body["instances"] = [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        body["inputs"] = columns
    status, answer = client.post(f"{case.model}:predict", json.dumps(body))
    assert status == 200, answer
    answered = answer["predictions" if layout == "row" else "outputs"]
    if len(expected) == 1:
        answered = {next(iter(expected)): answered}
    elif layout == "row":
        answered = {name: [row[name] for row in answered] for name in expected}
    got = {name: from_json(name, value, expected[name]) for name, value in answered.items()}
    assert_same(got, expected, client.tolerance)


EXAMPLES = [example(x=0.1, name=b"a"), example(x=-2.5), example()]
SERIALIZED = np.array([each.SerializeToString() for each in EXAMPLES], object)
JSON_EXAMPLES = [{"x": float(np.float32(0.1)), "name": "a"}, {"x": -2.5}, {}]


def test_classify(client, in_process):
    expected = in_process(Case("examples", "classify", {"inputs": SERIALIZED}))
    request = classification_pb2.ClassificationRequest(
        model_spec={"name": "examples", "signature_name": "classify"},
        input={"example_list": {"examples": EXAMPLES}},
    )
    result = client.prediction.Classify(request, timeout=20).result
    rows = [row.classes for row in result.classifications]
    labels = np.array([[each.label.encode() for each in row] for row in rows], object)
    scores = np.float32([[each.score for each in row] for row in rows])
    assert_same({"classes": labels, "scores": scores}, expected)
    body = {"signature_name": "classify", "examples": JSON_EXAMPLES}
    status, answer = client.post("examples:classify", body)
    assert status == 200
    labels = np.array([[label.encode() for label, _ in row] for row in answer["results"]], object)
    scores = np.float32([[score for _, score in row] for row in answer["results"]])
    assert_same({"classes": labels, "scores": scores}, expected)


@pytest.mark.parametrize("signature", ["regress", "column"])
def test_regress(client, in_process, signature):
    expected = in_process(Case("examples", signature, {"inputs": SERIALIZED}))["outputs"].ravel()
    request = regression_pb2.RegressionRequest(
        model_spec={"name": "examples", "signature_name": signature},
        input={"example_list": {"examples": EXAMPLES}},
    )
    result = client.prediction.Regress(request, timeout=20).result
    np.testing.assert_array_equal(np.float32([each.value for each in result.regressions]), expected)
    body = {"signature_name": signature, "examples": JSON_EXAMPLES}
    status, answer = client.post("examples:regress", body)
    assert status == 200
    np.testing.assert_array_equal(np.float32(answer["results"]), expected)


@pytest.mark.parametrize("model", ["half", "pair", "text", "identity", "examples", "digits"])
def test_metadata(client, models, model):
    """The signatures of the file, and nothing else."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec={"name": model}, metadata_field=["signature_def"]
    )
    response = client.prediction.GetModelMetadata(request, timeout=20)
    got = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(got)
    version = response.model_spec.version.value
    (path,) = [path for path in models[model].iterdir()
               if path.name.isdigit() and int(path.name) == version]  # fmt: skip
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    assert dict(got.signature_def) == dict(graph.signature_def)
