"""Requests that nobody meant: whatever comes, the server refuses it properly and serves the next.

The requests are made by hypothesis, always the same ones.
"""

import base64
import contextlib
import gzip
import http.client
import json
import logging
import socket

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
)

from kzoo.serving.server import ModelServer
from kzoo.serving.server.tensors import to_numpy

SERVICE = "/tensorflow.serving.PredictionService/"
GOOD_BODIES = {
    "half:predict": b'{"instances": [1, 2.5, -3e2], "signature_name": "serving_default"}',
    "pair:predict": b'{"inputs": {"a": [[1, 2], [3, 4]], "b": [5, 6]}}',
    "text:predict": b'{"instances": [{"b64": "AAECAw=="}, "\\u00e9\\ud83d\\ude00"]}',
    "identity:predict": b'{"inputs": [[1, 0], [255, 7]], "signature_name": "uint8"}',
    "examples:classify": b'{"examples": [{"x": 1.5, "name": "a"}, {}], "context": {"x": [2.5]}}',
    "examples:regress": b'{"examples": [{"x": -1.0}], "signature_name": "regress"}',
}
INTERNAL = {
    # What grpc says of bytes that are no message of the request's type, as the C++ library does.
    "Exception deserializing request!",
}


def fuzz(examples):
    """The settings of a test over so many requests."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def server(base_paths, example_models, tmp_path_factory, write_config):
    folder = tmp_path_factory.mktemp("fuzz")
    models = {**base_paths, "examples": example_models["examples"]}
    with ModelServer(
        model_config_file=write_config(folder / "models.config", models),
        grpc_port=0, rest_port=0, file_system_poll_wait_seconds=0, max_body_bytes=10**7,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def batching_server(server):
    """The same models, with batching."""
    file = server.options.model_config_file
    with ModelServer(
        model_config_file=file, grpc_port=0, rest_port=None, file_system_poll_wait_seconds=0,
        enable_batching=True,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module", params=["server", "batching_server"])
def call(request):
    """call(method, bytes): the bytes of the answer of PredictionService, or the gRPC error."""
    server = request.getfixturevalue(request.param)
    unlimited = [("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", unlimited)

    def ask(method, data):
        try:
            return channel.unary_unary(SERVICE + method)(data, timeout=20)
        except grpc.RpcError as error:
            return error

    yield ask
    channel.close()


@pytest.fixture(scope="module")
def post(server):
    """post(path, body): (status, body) of the answer, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)

    def ask(path, body, **headers):
        connection.request("POST", f"/v1/models/{path}", body, headers)
        response = connection.getresponse()
        return response.status, response.read()

    yield ask
    connection.close()


@pytest.fixture(autouse=True)
def serves_afterwards(client, caplog):
    """After the test both APIs answer, and the server's own code has seen no surprise."""
    caplog.set_level(logging.ERROR, "kzoo")
    yield
    assert client.half([2]) == [4]
    assert client.post("half:predict", {"instances": [2]}) == (200, {"predictions": [4]})
    records = caplog.get_records("call")
    assert not [record for record in records if record.name.startswith("kzoo") and record.exc_info]


def assert_proper(answer, assert_clean):
    """The gRPC call was answered, or refused for what the client did."""
    if isinstance(answer, bytes):
        return
    refused = answer.details() in INTERNAL or answer.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    )
    assert refused, (answer.code(), answer.details())
    assert_clean(answer.details())


# ---------------------------------------------------------------- protos


@st.composite
def mutated(draw, data):
    """Bytes near the good ones: some replaced, cut out, doubled or put in."""
    data = bytearray(draw(data))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(start + 8, len(data))))
        piece = draw(st.binary(max_size=4) | st.just(bytes(data[start:stop]) * 2))
        data[start:stop] = piece
    return bytes(data)


SIZES = st.integers(0, 3) | st.sampled_from([-1, -(2**63), 2**16, 2**31, 2**62, 2**63 - 1])
SHAPES = st.one_of(
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(SIZES, max_size=4),
    st.sampled_from([[1] * 65, [1] * 300, [2**40, 0], [0, 2**62, 2**62]]),
)
DTYPES = st.sampled_from([*sorted(types_pb2.DataType.values()), 99, -1])
REAL = st.floats(width=32)
VALUES_OF_TENSORS = {
    "tensor_content": st.binary(max_size=16),
    "float_val": st.lists(REAL, max_size=4),
    "double_val": st.lists(st.floats(), max_size=2),
    "int_val": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
    "uint32_val": st.lists(st.integers(0, 2**32 - 1), max_size=2),
    "uint64_val": st.lists(st.integers(0, 2**64 - 1), max_size=2),
    "string_val": st.lists(st.binary(max_size=5), max_size=3),
    "bool_val": st.lists(st.booleans(), max_size=3),
    "half_val": st.lists(st.integers(-5, 2**31 - 1), max_size=3),
    "scomplex_val": st.lists(REAL, max_size=3),
}


@st.composite
def tensors(draw, dtype):
    """TensorProtos of a dtype (mostly), whose shape and values do not fit together (mostly)."""
    if draw(st.integers(0, 7)) == 0:
        dtype = draw(DTYPES)
    shape = {"dim": [{"size": size} for size in draw(SHAPES)]}
    if draw(st.integers(0, 30)) == 0:
        shape["unknown_rank"] = True
    fields = draw(st.sets(st.sampled_from(sorted(VALUES_OF_TENSORS)), max_size=4))
    values = {name: draw(VALUES_OF_TENSORS[name]) for name in sorted(fields)}
    return tensor_pb2.TensorProto(dtype=dtype, tensor_shape=shape, **values)


# (model, signature, input, dtype) that exist
INPUTS_OF_MODELS = [
    ("half", "", "x", types_pb2.DT_FLOAT),
    ("half", "matrix", "x", types_pb2.DT_FLOAT),
    ("half", "count", "x", types_pb2.DT_FLOAT),
    ("pair", "serving_default", "a", types_pb2.DT_FLOAT),
    ("text", "", "image_bytes", types_pb2.DT_STRING),
    ("examples", "classify", "inputs", types_pb2.DT_STRING),
    ("examples", "regress", "inputs", types_pb2.DT_STRING),
    *(
        ("identity", name, "x", tf.as_dtype(name).as_datatype_enum)
        for name in ("bool", "string", "int8", "int64", "uint64", "float16", "float64")
    ),
]
VERSIONS = st.sampled_from([1, 1, 2, 7, 0, -1, 2**63 - 1])


@st.composite
def predictions(draw):
    """PredictRequests, of which most would be good but for their tensor."""
    model, signature, alias, dtype = draw(st.sampled_from(INPUTS_OF_MODELS))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = draw(st.just(model) | st.just(model) | st.text(max_size=5))
    request.model_spec.signature_name = signature
    request.inputs[alias].CopyFrom(draw(tensors(dtype)))
    if model == "pair":
        request.inputs["b"].CopyFrom(draw(tensors(types_pb2.DT_INT32)))
    kind = draw(st.integers(0, 11))
    if kind == 0:
        request.inputs[draw(st.sampled_from(["x", "", "\0", "é"]))].CopyFrom(draw(tensors(1)))
    elif kind == 1:
        names = st.sampled_from(["y", "sum", "copy", "", "first"])
        request.output_filter.extend(draw(st.lists(names, max_size=2)))
    elif kind == 2:
        request.model_spec.version.value = draw(VERSIONS)
    elif kind == 3:
        request.model_spec.version_label = draw(st.text(max_size=3))
    return request


FEATURES = st.one_of(
    st.builds(lambda values: tf.train.Feature(float_list={"value": values}),
              st.lists(st.floats(width=32), max_size=2)),
    st.builds(lambda values: tf.train.Feature(bytes_list={"value": values}),
              st.lists(st.binary(max_size=4), max_size=2)),
    st.builds(lambda values: tf.train.Feature(int64_list={"value": values}),
              st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)),
)  # fmt: skip
EXAMPLES = st.dictionaries(st.sampled_from(["x", "name", "z"]), FEATURES, max_size=2).map(
    lambda features: tf.train.Example(features={"feature": features})
)
INPUTS = st.builds(
    lambda examples, context: (
        input_pb2.Input(example_list_with_context={"examples": examples, "context": context})
        if context
        else input_pb2.Input(example_list={"examples": examples})
    ),
    st.lists(EXAMPLES, max_size=3),
    st.none() | EXAMPLES,
)
SIGNATURES = ["classify", "classes", "scores", "regress", "column", "vector_scores", "one_row", "x"]
SPECS = st.builds(
    lambda name, signature: model_pb2.ModelSpec(name=name, signature_name=signature),
    st.sampled_from(["examples"] * 6 + ["half", "", "none"]),
    st.sampled_from(SIGNATURES),
)
CLASSIFY = st.builds(
    lambda spec, request_input: classification_pb2.ClassificationRequest(
        model_spec=spec, input=request_input
    ),
    SPECS,
    INPUTS,
)
METHODS = st.sampled_from([tf.saved_model.CLASSIFY_METHOD_NAME] * 3
                          + [tf.saved_model.REGRESS_METHOD_NAME] * 3 + ["", "x"])  # fmt: skip
MULTI = st.builds(
    lambda tasks, request_input: inference_pb2.MultiInferenceRequest(
        tasks=[{"model_spec": spec, "method_name": name} for spec, name in tasks],
        input=request_input,
    ),
    st.lists(st.tuples(SPECS, METHODS), max_size=2),
    INPUTS,
)
REQUESTS = st.one_of(
    st.tuples(st.just("Predict"), predictions()),
    st.tuples(st.just("Classify"), CLASSIFY),
    st.tuples(st.just("Regress"), CLASSIFY),
    st.tuples(st.just("MultiInference"), MULTI),
)


@fuzz(250)
@given(request=REQUESTS)
def test_requests_that_lie(call, assert_clean, request):
    method, proto = request
    assert_proper(call(method, proto.SerializeToString()), assert_clean)


@fuzz(100)
@given(data=st.data(), request=REQUESTS)
def test_mutated_messages(call, assert_clean, data, request):
    method, proto = request
    bytes_ = data.draw(mutated(st.just(proto.SerializeToString())))
    assert_proper(call(method, bytes_), assert_clean)


@fuzz(100)
@given(
    bytes_=st.binary(max_size=50),
    method=st.sampled_from(["Predict", "Classify", "GetModelMetadata", "None"]),
)
def test_bytes_that_are_no_message(call, assert_clean, bytes_, method):
    assert_proper(call(method, bytes_), assert_clean)


@fuzz(100)
@given(
    name=st.sampled_from(["float_val", "double_val"]),
    values=st.lists(st.floats(width=32), max_size=200),
    after=st.sampled_from([b"", b"\x38\x01", b"\x98\x06\x01", b"\x2a\x04\0\0\x80\x3f"]),
)
def test_floats_are_read_whatever_follows_them(name, values, after):
    """Nothing, an int_val, an unknown field, or one more float."""
    proto = tensor_pb2.TensorProto(dtype=f"DT_{name.removesuffix('_val').upper()}")
    getattr(proto, name).extend(values)
    proto.MergeFromString(after)
    expected = list(getattr(proto, name))
    proto.tensor_shape.dim.add(size=len(expected))
    np.testing.assert_array_equal(to_numpy(proto, "x"), expected)


# ---------------------------------------------------------------- JSON

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, True, None]),
)
VALUES = st.recursive(
    NUMBERS | st.text(max_size=3) | st.just({"b64": "AA=="}) | st.just({"b64": "?"}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "a", "b", "b64", "name", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.one_of(
    st.lists(NUMBERS, min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 9) | NUMBERS, min_size=2, max_size=2), max_size=3),
    st.lists(st.text(max_size=3) | st.just({"b64": "AA=="}), min_size=1, max_size=3),
    VALUES,
)
FEATURES_OF_JSON = st.dictionaries(st.sampled_from(["x", "name"]), ROWS | NUMBERS, max_size=2)


@st.composite
def documents(draw):
    """Bodies with the right keys, mostly, and any values."""
    keys = draw(st.sampled_from(["instances", "inputs", "examples"]) | st.just("instances inputs"))
    document = {}
    for key in keys.split():
        columns = st.fixed_dictionaries({"a": ROWS, "b": ROWS})
        values = {"inputs": ROWS | columns, "examples": st.lists(FEATURES_OF_JSON, max_size=3)}
        document[key] = draw(values.get(key, ROWS))
    if draw(st.integers(0, 4)) == 0:
        document["context"] = draw(FEATURES_OF_JSON | VALUES)
    if draw(st.integers(0, 2)) == 0:
        names = ["uint8", "float64", "string", "bool", "int64", "float16", "regress", "matrix", ""]
        document["signature_name"] = draw(st.sampled_from(names) | VALUES)
    return document


PATHS = st.sampled_from(list(GOOD_BODIES))


def assert_refused_properly(answer, assert_clean):
    status, body = answer
    assert status in (200, 400, 404, 501), body
    if status != 200:
        text = json.loads(body.decode("utf-8", "replace"))["error"]
        assert isinstance(text, str)
        assert_clean(text.replace("Error: ", ""))  # which is a part of TensorFlow Serving's texts


@fuzz(300)
@given(path=PATHS, document=documents())
def test_documents_that_do_not_fit(post, assert_clean, path, document):
    assert_refused_properly(post(path, json.dumps(document).encode()), assert_clean)


@fuzz(300)
@given(data=st.data(), path=PATHS)
def test_mutated_bodies(post, assert_clean, data, path):
    body = data.draw(mutated(st.just(GOOD_BODIES[path])))
    assert_refused_properly(post(path, body), assert_clean)


@pytest.mark.parametrize("path", GOOD_BODIES)
def test_the_bodies_that_are_mutated_are_good(post, path):
    assert post(path, GOOD_BODIES[path])[0] == 200


DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + GOOD_BODIES["half:predict"],
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"instances": ' + b"[" * DEEP + b"1" + b"]" * DEEP + b"}",
        b'{"instances": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}",
        b'{"instances": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"instances": [' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"]}",
        b'{"x": ' + b'{"":' * 600 + b"1" + b"}" * 600 + b"}",
        b'{"instances": [' + b"9" * 5000 + b"]}",
        b'{"instances": [1' + b"0" * 400 + b"]}",
        b'{"instances": [1e400]}',
        b'{"instances": [-1e-400, NaN, Infinity, -Infinity]}',
        b'{"instances": [1], "instances": [2], "signature_name": 1, "signature_name": "matrix"}',
        b'{"instances": [{"b64": "' + b"=" * 1000 + b'"}]}',
        b'{"instances": [{"b64": "\xff\xfe"}]}',
        b'{"instances": ["\xed\xa0\x80"], "signature_name": "\xff"}',
        b'{"instances": ["\\ud800"]}',
        b'{"instances": [' + b'"\\' * 20_000,
        b'{"instances": [' + b'"",' * 50_000 + b"}",
        b'{"instances": [' + b"[]," * 50_000 + b"[]]}",
        b'{"inputs": []}',
        b'{"inputs": {"a": [], "b": []}}',
        b'{"examples": [{"x": [1, 2.5, "a"]}]}',
        b'{"examples": [{"x\\u0000y": 1e39}]}',
        b'{"examples": [{"\xff": ["\xff"]}], "context": 3}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_nasty_bodies(post, assert_clean, body):
    for path in GOOD_BODIES:
        assert_refused_properly(post(path, body), assert_clean)


@fuzz(40)
@given(data=st.data())
def test_mutated_gzip(post, assert_clean, data):
    good = gzip.compress(GOOD_BODIES["half:predict"], mtime=0)
    body = data.draw(mutated(st.just(good)))
    answer = post("half:predict", body, **{"Content-Encoding": "gzip"})
    assert_refused_properly(answer, assert_clean)


@fuzz(60)
@given(rows=st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_bytes_come_back_as_they_were(post, rows):
    """Fuzzing of what must work: any bytes through base64."""
    instances = [{"b64": base64.b64encode(row).decode()} for row in rows]
    status, body = post("text:predict", json.dumps({"instances": instances}).encode())
    assert status == 200
    document = json.loads(body.decode("utf-8", "surrogateescape"))
    copies = [item["copy_bytes"]["b64"] for item in document["predictions"]]
    assert [base64.b64decode(copy) for copy in copies] == rows


# ---------------------------------------------------------------- HTTP

REQUEST_METHODS = st.sampled_from(
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT",
     b"PROPFIND", b"get", b"X" * 40, b""]
)  # fmt: skip
SEGMENTS = st.sampled_from(
    [b"v1", b"models", b"half", b"half:predict", b"versions", b"7", b"labels", b"metadata", b"..",
     b"", b"%2e%2e", b"%", b"%zz", b"%00", b"\xff", b"?", b"#", b"*", b"http://a", b":", b"V1"]
)  # fmt: skip
TARGETS = st.lists(SEGMENTS, max_size=6).map(lambda parts: b"/" + b"/".join(parts))
HEADERS = st.sampled_from(
    [b"Content-Length: 3", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
     b"Content-Length: 5, 6", b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", b"Host: a",
     b"Content-Encoding: gzip", b"Upgrade: websocket\r\nConnection: upgrade", b"Upgrade: h2c",
     b"Expect: 100-continue", b"Origin: http://\xff", b"\xff\xfe: \x00", b": x",
     b"Connection: close", b"Range: bytes=0-"]
)  # fmt: skip


@fuzz(150)
@given(
    method=REQUEST_METHODS,
    target=TARGETS,
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""]),
    headers=st.lists(HEADERS, max_size=3),
    body=st.binary(max_size=8),
)
def test_requests_that_are_hardly_http(server, method, target, version, headers, body):
    head = b"\r\n".join([b" ".join([method, target, version]), *headers])
    answer = exchange(server.rest_port, head + b"\r\n\r\n" + body)
    if answer:
        assert answer.startswith(b"HTTP/1.1 ")
        assert answer[9:12] in (b"100", b"200", b"400", b"404", b"429"), answer
    assert b"Traceback" not in answer


def exchange(port, data):
    """Sends the bytes and no more; returns all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        return received
