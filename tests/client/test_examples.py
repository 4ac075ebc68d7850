"""classify and regress: what the embedded server's graphs parse from the clients' Examples."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from kzoo.client import ClassScore, InvalidArgument, NotFound
from kzoo.client.examples import features
from kzoo.client.grpc_requests import GrpcRequests
from kzoo.serving.server import ModelServer


class Parse(tf.Module):
    """Signatures over Examples of x (float, 2 values), n (int64) and name (bytes)."""

    def __init__(self):
        super().__init__()
        self.endpoints = {
            name: self._endpoint(name) for name in ("both", "labels", "scores", "sum")
        }
        self.endpoints["serving_default"] = self.endpoints["both"]

    def _endpoint(self, name):
        def call(inputs):
            known = {
                "x": tf.io.FixedLenFeature([2], tf.float32, [0.0, 0.0]),
                "n": tf.io.FixedLenFeature([], tf.int64, 0),
                "name": tf.io.FixedLenFeature([], tf.string, "?"),
            }
            example = tf.io.parse_example(inputs, known)
            labels = tf.stack([example["name"], tf.strings.as_string(example["n"])], axis=1)
            return {
                "both": {"classes": labels, "scores": example["x"]},
                "labels": {"classes": labels},
                "scores": {"scores": example["x"]},
                "sum": {"outputs": tf.reduce_sum(example["x"], 1)},
            }[name]

        spec = tf.TensorSpec([None], tf.string, "inputs")
        return tf.function(call, input_signature=[spec])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("parse")
    module = Parse()
    tf.saved_model.save(module, str(base / "1"), signatures=module.endpoints)
    with ModelServer("parse", str(base), grpc_port=0, rest_port=0) as server:
        yield server


@pytest.fixture(params=["grpc", "rest"])
def client(connect, server, request):
    address = (
        f"127.0.0.1:{server.grpc_port}"
        if request.param == "grpc"
        else f"http://127.0.0.1:{server.rest_port}"
    )
    with connect(address, "parse", timeout=30.0) as client:
        yield client


EXAMPLES = [
    {"x": [0.1, 2], "n": -(2**62), "name": "Zürich"},
    {"x": np.array([[-1e-30], [1e30]]), "n": np.int8(3), "name": [b"b"]},
    {"n": True},
]


def test_classify_gives_pairs(client):
    tenth, tiny, huge = (float(np.float32(value)) for value in (0.1, -1e-30, 1e30))
    assert client.classify(EXAMPLES) == [
        [("Zürich", tenth), (str(-(2**62)), 2.0)],
        [("b", tiny), ("3", huge)],
        [("?", 0.0), ("1", 0.0)],
    ]
    assert client.classify(EXAMPLES[:1])[0][0] == ClassScore(label="Zürich", score=tenth)


def test_classify_without_scores_or_labels(client):
    assert client.classify(EXAMPLES[:1], "labels") == [[("Zürich", 0.0), (str(-(2**62)), 0.0)]]
    result = client.classify([{"x": [np.nan, np.inf]}], "scores")
    assert [pair.label for pair in result[0]] == ["", ""]
    assert str([pair.score for pair in result[0]]) == "[nan, inf]"


def test_labels_that_are_no_text(client):
    assert client.classify([{"name": b"a\xff"}])[0][0].label == "a\ufffd"


def test_regress_gives_an_array(client):
    result = client.regress([{"x": [1, 2.5]}, {}, {"x": np.float16([0.5, 0.25])}], "sum")
    assert result.dtype == np.float32
    assert result.tolist() == [3.5, 0.0, 0.75]


def test_a_context_is_shared(client):
    context = {"name": "all", "x": [4.0, 5.0]}
    assert client.classify([{"n": 1}, {"n": 2, "name": "own"}], context=context) == [
        [("all", 4.0), ("1", 5.0)],
        [("own", 4.0), ("2", 5.0)],
    ]
    assert client.regress([{}, {"x": [1.0, 1.0]}], "sum", context=context).tolist() == [9, 2]


def test_errors_of_the_server(client):
    with pytest.raises(InvalidArgument):
        client.classify([])
    with pytest.raises(InvalidArgument):
        client.regress(EXAMPLES, "both")
    with pytest.raises((InvalidArgument, NotFound)):
        client.classify(EXAMPLES, "missing")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"x": [1.0]}, "`examples` must be a list of dicts, one per Example. Received: dict"),
        ([{}, [1.0]], r"`examples\[1\]` must be a dict of features. Received: list"),
        ([{"x": ["a", 1]}], r"`examples\[0\]` must have values of .* Received: 1 among strings"),
        ([{"x": None}], "must have values of bytes, str, int, bool or float.*Received: None"),
        ([{"x": 2**63}], "Received: 9223372036854775808"),
        ([{"x": [2**63, -1]}], r"Received: \[9223372036854775808, -1\]"),
        ([{"x": [[1], [1, 2]]}], "must have values of"),
        ([{3: 1}], "Received: the name 3"),
    ],
)
def test_refuses_what_no_feature_holds(client, examples, message):
    with pytest.raises(InvalidArgument, match=message):
        client.classify(examples)
    with pytest.raises(InvalidArgument, match="`context` must be"):
        client.regress([{}], "sum", context=[1])


def test_kinds_of_features():
    kinds = {
        "text": "a", "bytes": [b"\x00", "b"], "whole": [1, True], "flag": np.array([True]),
        "mixed": [1, 0.5], "none": [], "matrix": np.arange(4.0).reshape(2, 2), "big": 1e300,
    }  # fmt: skip
    assert features(kinds, "x") == {
        "text": ("bytes", [b"a"]),
        "bytes": ("bytes", [b"\x00", b"b"]),
        "whole": ("int64", [1, 1]),
        "flag": ("int64", [1]),
        "mixed": ("float", [1.0, 0.5]),
        "none": ("int64", []),
        "matrix": ("float", [0.0, 1.0, 2.0, 3.0]),
        "big": ("float", [np.inf]),
    }


@pytest.mark.parametrize("context", [None, {"name": ("bytes", [b"c"])}])
def test_requests_have_the_published_bytes(context):
    """TensorFlow's own messages read what the client wrote, and write the same."""
    example = {"x": ("float", [0.5, 2.0]), "n": ("int64", [-1]), "none": ("int64", [])}
    requests = GrpcRequests("m", 3)
    for call, published in (
        (requests.classify("s", [example], context), classification_pb2.ClassificationRequest),
        (requests.regress("s", [example], context), regression_pb2.RegressionRequest),
    ):
        request = published.FromString(call.body)
        assert (request.model_spec.name, request.model_spec.version.value) == ("m", 3)
        assert request.model_spec.signature_name == "s"
        kind = request.input.WhichOneof("kind")
        assert kind == ("example_list" if context is None else "example_list_with_context")
        examples = getattr(request.input, kind).examples
        assert len(examples) == 1
        feature = examples[0].features.feature
        assert list(feature["x"].float_list.value) == [0.5, 2.0]
        assert list(feature["n"].int64_list.value) == [-1]
        assert feature["none"].WhichOneof("kind") is None
        if context is not None:
            given = request.input.example_list_with_context.context.features.feature["name"]
            assert list(given.bytes_list.value) == [b"c"]
        assert len(request.SerializeToString()) == len(call.body)
