"""The gRPC API of the embedded server, asked with the stubs of tensorflow-serving-api."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from kzoo.serving.server import ModelServer

CONFIG = """
model_config_list {{
  config {{
    name: "half" base_path: "{half}" model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 2 }} version_labels {{ key: "canary" value: 7 }}
    version_labels {{ key: "future" value: 8 }}
  }}
  config {{ name: "pair" base_path: "{pair}" model_platform: "tensorflow" }}
  config {{ name: "text" base_path: "{text}" model_type: TENSORFLOW }}
  config: {{ name: 'identity', base_path: '{identity}', model_platform: 'tensorflow' }},
}}
"""


@pytest.fixture(scope="module")
def client(base_paths, connect, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "models.config"
    file.write_text(CONFIG.format(**base_paths))
    with ModelServer(
        model_config_file=file,
        grpc_port=0,
        rest_port=0,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        client = connect(server)
        yield client
        client.close()


def refusal(call, *args, **kwargs):
    """Returns (code name, details) of the RpcError that the call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


def test_latest_version_answers_and_is_named_in_the_response(client):
    response = client.predict("half", {"x": np.float32([1, 2, 5])})
    assert list(response.outputs["y"].float_val) == [3.5, 4.0, 5.5]
    assert not response.outputs["y"].tensor_content
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 7, "serving_default")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [({"version": 2}, 2.5), ({"version": 7}, 3.5), ({"version_label": "stable"}, 2.5),
     ({"version_label": "canary"}, 3.5)],
)  # fmt: skip
def test_versions_and_labels(client, spec, expected):
    assert client.half([1], **spec) == [expected]


def test_tensor_content_and_repeated_fields_mean_the_same(client):
    x = np.float32([[1, 2], [3, 4]])
    content = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=x.tobytes())
    values = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=x.ravel().tolist())
    for proto in (content, values):
        for size in x.shape:
            proto.tensor_shape.dim.add(size=size)
        response = client.predict("half", {"x": proto}, signature_name="matrix")
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), x / 2 + 3)


def test_output_filter(client):
    inputs = {"a": np.float32([[1, 2]]), "b": np.int32([10])}
    assert set(client.predict("pair", inputs).outputs) == {"sum", "double", "first"}
    response = client.predict("pair", inputs, ["double", "sum"])
    assert set(response.outputs) == {"double", "sum"}
    assert list(response.outputs["double"].int_val) == [20]
    assert list(response.outputs["sum"].float_val) == [11.0, 12.0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bool", [True, False]),
        ("string", [b"\x00\xff", b"text"]),
        ("int8", [-128, 127]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint8", [0, 255]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("float16", [0.5, np.inf]),
        ("float32", [np.float32(0.1), -np.inf]),
        ("float64", [0.1, 1e300]),
    ],
)
def test_every_type_survives_the_round_trip(client, name, values):
    dtype = tf.as_dtype(name)
    proto = tf.make_tensor_proto(np.array(values, dtype.as_numpy_dtype))
    response = client.predict("identity", {"x": proto}, signature_name=name)
    assert response.outputs["y"].dtype == dtype.as_datatype_enum
    assert tf.make_ndarray(response.outputs["y"]).tolist() == tf.make_ndarray(proto).tolist()


def test_short_value_lists_repeat_the_last_value_and_surplus_is_dropped(client):
    def ask(values):
        proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, int64_val=values)
        proto.tensor_shape.dim.add(size=3)
        response = client.predict("identity", {"x": proto}, signature_name="int64")
        return list(response.outputs["y"].int64_val)

    assert ask([4]) == [4, 4, 4]
    assert ask([1, 2]) == [1, 2, 2]
    assert ask([1, 2, 3, 4]) == [1, 2, 3]
    assert ask([]) == [0, 0, 0]


def test_strings_in_tensor_content_are_lengths_then_bytes(client):
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING)
    proto.tensor_shape.dim.add(size=2)
    proto.tensor_content = b"\xac\x02\x02" + b"a" * 300 + b"bc"  # 300 = 0xac 0x02
    response = client.predict("identity", {"x": proto}, signature_name="string")
    assert list(response.outputs["y"].string_val) == [b"a" * 300, b"bc"]


def test_a_signature_without_inputs(client):
    response = client.predict("half", {}, signature_name="total")
    assert list(response.outputs["calls"].int_val) == [0]


def test_an_empty_batch_and_a_scalar(client):
    response = client.predict("half", {"x": np.zeros([0], np.float32)})
    assert tf.make_ndarray(response.outputs["y"]).shape == (0,)
    scalar = client.predict("identity", {"x": np.int32(5)}, signature_name="int32").outputs["y"]
    assert tf.make_ndarray(scalar) == 5
    assert not scalar.tensor_shape.dim
    text = client.predict("identity", {"x": tf.make_tensor_proto("a")}, signature_name="string")
    assert tf.make_ndarray(text.outputs["y"]) == b"a"


INVALID, MISSING = "INVALID_ARGUMENT", "NOT_FOUND"


@pytest.mark.parametrize(
    ("model", "spec", "expected"),
    [
        ("nobody", {}, (MISSING, "Servable not found for request: Latest(nobody)")),
        ("half", {"version": 3}, (MISSING, "Servable not found for request: Specific(half, 3)")),
        ("half", {"version_label": "no"}, (INVALID, "Unrecognized servable version label: no")),
        ("half", {"version_label": "future"},
         (MISSING, "Servable not found for request: Specific(half, 8)")),
        ("", {}, (INVALID, "ModelSpec has no name specified.")),
        ("half", {"signature_name": "no"},
         ("FAILED_PRECONDITION", 'Serving signature key "no" not found.')),
    ],
)  # fmt: skip
def test_unknown_model_version_label_and_signature(client, model, spec, expected):
    assert refusal(client.predict, model, {"x": np.float32([1])}, **spec) == expected


def test_missing_model_spec(client):
    for call, request in [
        (client.prediction.Predict, predict_pb2.PredictRequest()),
        (client.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
        (client.prediction.GetModelMetadata, get_model_metadata_pb2.GetModelMetadataRequest()),
    ]:
        assert refusal(call, request) == (INVALID, "Missing ModelSpec")


def test_wrong_input_names_name_the_difference(client):
    a, b = np.float32([[1, 2]]), np.int32([1])
    assert refusal(client.predict, "pair", {"a": a}) == (
        INVALID,
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
        "Missing but required: {b}.",
    )
    assert refusal(client.predict, "pair", {"a": a, "b": b, "c": b}) == (
        INVALID,
        "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: {c}. "
        "Missing but required: {}.",
    )
    code, details = refusal(client.predict, "pair", {"a": a, "c": b})
    assert code == INVALID
    assert details.startswith("Signature input alias: b(feed name: serving_default_b:0) not found")


def test_bad_tensors(client):
    wrong_size = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=b"1234567")
    wrong_size.tensor_shape.dim.add(size=2)
    huge = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1])
    huge.tensor_shape.dim.add(size=10**12)
    negative = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1])
    negative.tensor_shape.dim.add(size=-1)
    for proto in (wrong_size, huge, negative, tensor_pb2.TensorProto(dtype=99)):
        assert refusal(client.predict, "half", {"x": proto}) == (
            INVALID, "tensor parsing error: x"
        )  # fmt: skip


def test_wrong_dtype_and_a_shape_that_the_graph_refuses(client):
    assert refusal(client.predict, "half", {"x": np.float64([1])}) == (
        INVALID,
        "Expects arg[0] to be float but double is provided",
    )
    inputs = {"a": np.zeros([4, 2, 5], np.float32), "b": np.int32([1, 2, 3])}
    code, details = refusal(client.predict, "pair", inputs)
    assert code == INVALID
    assert "Incompatible shapes: [3,1] vs. [4,2,5]" in details


def test_bad_output_filter(client):
    inputs = {"x": np.float32([1])}
    assert refusal(client.predict, "half", inputs, ["z"]) == (
        INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    )
    assert refusal(client.predict, "half", inputs, ["y", "y"]) == (
        INVALID,
        "duplicate output tensor alias: y",
    )


def test_long_error_texts_are_cut(client):
    name = "n" * 2000
    code, details = refusal(client.predict, name, {})
    assert code == MISSING
    assert details == f"Servable not found for request: Latest({name}"[:1024] + "...TRUNCATED"


def test_status_lists_versions_newest_first(client):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    response = client.models.GetModelStatus(request)
    states = [(entry.version, entry.state) for entry in response.model_version_status]
    assert states == [(7, 30), (2, 30)]
    request.model_spec.version.value = 2
    (entry,) = client.models.GetModelStatus(request).model_version_status
    assert (entry.version, entry.status.error_code, entry.HasField("status")) == (2, 0, True)
    request.model_spec.version.value = 5
    assert refusal(client.models.GetModelStatus, request) == (
        MISSING,
        "Could not find version 5 of model half",
    )
    request.model_spec.name = "nobody"
    request.model_spec.ClearField("version_choice")
    assert refusal(client.models.GetModelStatus, request) == (
        MISSING,
        "Could not find any versions of model nobody",
    )


def test_metadata_holds_the_signatures(client):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "pair"
    response = client.prediction.GetModelMetadata(request)
    assert response.model_spec.version.value == 1
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert {name: info.dtype for name, info in signature.inputs.items()} == {"a": 1, "b": 3}
    assert [dim.size for dim in signature.inputs["a"].tensor_shape.dim] == [-1, 2]
    assert "__saved_model_init_op" in signatures.signature_def


def test_bad_metadata_requests(client):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "pair"
    assert refusal(client.prediction.GetModelMetadata, request) == (
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("weights")
    assert refusal(client.prediction.GetModelMetadata, request) == (
        INVALID,
        "Metadata field weights is not supported",
    )


def test_deadline(client):
    inputs = {"seconds": np.float64([1.0])}
    code, _ = refusal(client.predict, "half", inputs, signature_name="sleep", timeout=0.2)
    assert code == "DEADLINE_EXCEEDED"


def test_requests_run_concurrently(client):
    """Eight requests of 0.3 s each take far less than the 2.4 s of a queue."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.model_spec.signature_name = "sleep"
    request.inputs["seconds"].CopyFrom(tf.make_tensor_proto(np.float64([0.3])))
    begin = tf.timestamp()
    calls = [client.prediction.Predict.future(request) for _ in range(8)]
    for call in calls:
        assert call.result().outputs["rounds"].int_val[0] > 0
    assert tf.timestamp() - begin < 1.8


def test_answers_as_tensor_content(base_paths, connect):
    with ModelServer(
        "pair", base_paths["pair"], grpc_port=0, rest_port=0,
        enable_serialization_as_tensor_content=True,
    ) as server:  # fmt: skip
        client = connect(server)
        inputs = {"a": np.float32([[1, 2]]), "b": np.int32([10])}
        output = client.predict("pair", inputs).outputs["sum"]
        client.close()
    assert output.tensor_content == np.float32([11, 12]).tobytes()
    assert not output.float_val
