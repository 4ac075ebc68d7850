"""Classify, Regress and MultiInference of the embedded server, over gRPC and REST."""

import json
import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from kzoo.serving.server import ModelServer
from kzoo.serving.server import examples as examples_module
from kzoo.serving.server.classifier import Classes
from kzoo.serving.server.classifier import to_proto as classes_to_proto
from kzoo.serving.server.engine import LoadedModel
from kzoo.serving.server.errors import Code, ServingError
from kzoo.serving.server.examples import serialized_examples
from kzoo.serving.server.options import ServerOptions
from kzoo.serving.server.rest_examples import encode_classes, encode_values, parse_input

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
CONFIG = """
model_config_list {{
  config {{
    name: "examples" base_path: "{examples}" model_platform: "tensorflow"
    version_labels {{ key: "stable" value: 1 }}
  }}
  config {{ name: "shared" base_path: "{shared}" model_platform: "tensorflow" }}
  config {{ name: "half" base_path: "{half}" model_platform: "tensorflow" }}
}}
"""


@pytest.fixture(scope="module")
def client(base_paths, example_models, connect, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "models.config"
    file.write_text(CONFIG.format(half=base_paths["half"], **example_models))
    with ModelServer(
        model_config_file=file,
        grpc_port=0,
        rest_port=0,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        client = connect(server)
        yield client
        client.close()


@pytest.fixture(scope="module")
def strict(example_models, connect):
    """The model `shared`, here named `strict`, on a server that checks method names."""
    path = example_models["shared"]
    with ModelServer(
        "strict", path, grpc_port=0, rest_port=0, enable_signature_method_name_check=True
    ) as server:
        client = connect(server)
        yield client
        client.close()


def example(**features):
    """An Example with float features from numbers and bytes features from bytes."""
    proto = tf.train.Example()
    for name, value in features.items():
        feature = proto.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return proto


def example_list(*examples, context=None):
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=examples))
    return input_pb2.Input(
        example_list_with_context=input_pb2.ExampleListWithContext(
            examples=examples, context=context
        )
    )


TWO = example_list(example(x=0.25, name=b"cat"), example(x=2))


def ask(client, request_type, model, signature="", request_input=TWO, **spec):
    """Sends a Classify or Regress request."""
    request = request_type(input=request_input)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec.pop("version")
    for key, value in spec.items():
        setattr(request.model_spec, key, value)
    name = "Classify" if request_type is classification_pb2.ClassificationRequest else "Regress"
    return getattr(client.prediction, name)(request, timeout=20)


def classify(client, *args, **kwargs):
    return ask(client, classification_pb2.ClassificationRequest, *args, **kwargs)


def regress(client, *args, **kwargs):
    return ask(client, regression_pb2.RegressionRequest, *args, **kwargs)


def multi_inference(client, *tasks, request_input=TWO):
    """Sends [(model, signature, method name)] as one request."""
    request = inference_pb2.MultiInferenceRequest(input=request_input)
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    return client.prediction.MultiInference(request, timeout=20)


def refusal(call, *args, **kwargs):
    """Returns (code name, details) of the RpcError that the call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


def pairs(response):
    """Returns [[(label, score)]] of a ClassificationResponse or an InferenceResult."""
    result = getattr(response, "result", None)
    if not isinstance(result, Message):
        result = response.classification_result
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def values(regression_result):
    return [entry.value for entry in regression_result.regressions]


# ---------------------------------------------------------------- gRPC


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("", [[("cat", 0.25), ("other", 0.75)], [("?", 2.0), ("other", -1.0)]]),
        ("classes", [[("cat", 0.0), ("other", 0.0)], [("?", 0.0), ("other", 0.0)]]),
        ("scores", [[("", 0.25), ("", 0.75)], [("", 2.0), ("", -1.0)]]),
    ],
)
def test_classify(client, signature, expected):
    response = classify(client, "examples", signature)
    assert pairs(response) == expected
    spec = response.model_spec
    assert spec.signature_name == (signature or "serving_default")
    assert (spec.name, spec.version.value) == ("examples", 1)


@pytest.mark.parametrize(
    ("signature", "expected"), [("regress", [2.125, 3.0]), ("column", [0.25, 2])]
)
def test_regress_of_a_vector_or_a_column(client, signature, expected):
    response = regress(client, "examples", signature)
    assert values(response.result) == expected
    assert response.model_spec.signature_name == signature


def test_the_response_names_the_version_and_never_the_label(client):
    for choice in ({"version": 1}, {"version_label": "stable"}):
        spec = regress(client, "examples", "regress", **choice).model_spec
        assert spec.version.value == 1
        assert spec.WhichOneof("version_choice") == "version"


def test_the_context_gives_its_features_to_every_example(client):
    request_input = example_list(
        example(x=1), example(name=b"dog"), context=example(name=b"cat", x=0.5)
    )
    # What an Example brings itself comes later in the bytes, and so wins.
    assert pairs(classify(client, "examples", request_input=request_input)) == [
        [("cat", 1.0), ("other", 0.0)],
        [("dog", 0.5), ("other", 0.5)],
    ]


def test_the_bytes_of_the_context_precede_those_of_each_example():
    context, first = example(a=1), example(b=2)
    array = serialized_examples(example_list(first, tf.train.Example(), context=context))
    prefix = context.SerializeToString()
    assert array.tolist() == [prefix + first.SerializeToString(), prefix]


def test_a_repeated_context_has_a_limit(monkeypatch):
    context = example(name=b"x" * 100)
    request_input = example_list(*[tf.train.Example()] * 3, context=context)
    size = len(context.SerializeToString())
    monkeypatch.setattr(examples_module, "MAX_TENSOR_BYTES", 3 * size)
    assert len(serialized_examples(request_input)) == 3
    monkeypatch.setattr(examples_module, "MAX_TENSOR_BYTES", 3 * size - 1)
    with pytest.raises(ServingError) as caught:
        serialized_examples(request_input)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "request_input",
    [input_pb2.Input(), example_list(), example_list(context=example(x=1))],
)
def test_no_examples(client, request_input):
    error = ("INVALID_ARGUMENT", "Input is empty.")
    assert refusal(classify, client, "examples", request_input=request_input) == error
    assert refusal(regress, client, "examples", "regress", request_input) == error
    task = ("examples", "regress", REGRESS)
    assert refusal(multi_inference, client, task, request_input=request_input) == error


SHAPE = "Expected Tensor shape: [batch_size num_classes] but got "
REGRESSION_SHAPE = (
    "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
)


@pytest.mark.parametrize(
    ("call", "model", "signature", "error"),
    [
        (classify, "examples", "no", "No signature was found with the name: no"),
        (classify, "half", "", "No classification inputs found in SignatureDef: inputs {"),
        (classify, "half", "total", "Expected one input Tensor."),
        (classify, "examples", "three", "Expected one or two output Tensors, found 3"),
        (classify, "examples", "elsewhere",
         'Expected classification signature outputs to contain at least one of "classes" or '
         '"scores". Signature was: inputs {\n  key: "inputs"\n'),
        (classify, "examples", "vector_scores", SHAPE + "[2]"),
        (classify, "examples", "double_scores",
         "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (classify, "examples", "float_classes",
         "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (classify, "examples", "one_row", "Expected scores output batch size of 2. Got: 1"),
        (classify, "examples", "unequal",
         "Tensors class and score should match in dim_size(1). Got 1 vs. 2"),
        (regress, "examples", "no", "No signature was found with the name: no"),
        (regress, "half", "total", "Expected one input Tensor."),
        (regress, "examples", "classify", "Expected one output Tensor."),
        (regress, "half", "", "No regression inputs found in SignatureDef: inputs {"),
        (regress, "examples", "elsewhere", "No regression outputs found in SignatureDef: inputs {"),
        (regress, "examples", "wide", REGRESSION_SHAPE + "[2,2]"),
        (regress, "examples", "one_value",
         "Input batch size did not match output batch size: 2 vs. 1"),
        (regress, "examples", "double", "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)  # fmt: skip
def test_signatures_that_do_not_fit(client, call, model, signature, error):
    code, details = refusal(call, client, model, signature)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(error)


def test_errors_of_the_request_and_of_the_graph(client):
    assert refusal(client.prediction.Classify, classification_pb2.ClassificationRequest()) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )
    assert refusal(regress, client, "nobody") == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nobody)",
    )
    code, details = refusal(
        regress, client, "examples", "regress", example_list(example(x=b"a string"))
    )
    assert code == "INVALID_ARGUMENT"
    assert "Data types don't match." in details


def test_labels_that_are_no_text_do_not_break_the_answer():
    classes = Classes(np.array([[b"\xff", b"a"]], object), np.float32([[0.5, 1]]))
    proto = classes_to_proto(classes)
    assert [c.label for c in proto.classifications[0].classes] == ["\ufffd", "a"]
    assert encode_classes(classes) == b'{\n    "results": [[["\xff", 0.5], ["a", 1.0]]\n    ]\n}'


# ---------------------------------------------------------------- MultiInference


def test_multi_inference_answers_in_the_order_of_the_tasks(client):
    response = multi_inference(
        client,
        ("examples", "regress", REGRESS),
        ("examples", "", CLASSIFY),
        ("examples", "scores", CLASSIFY),
    )
    assert [r.model_spec.signature_name for r in response.results] == [
        "regress", "serving_default", "scores",
    ]  # fmt: skip
    assert {(r.model_spec.name, r.model_spec.version.value) for r in response.results} == {
        ("examples", 1)
    }
    assert values(response.results[0].regression_result) == [2.125, 3.0]
    assert pairs(response.results[1]) == pairs(classify(client, "examples"))
    assert pairs(response.results[2]) == pairs(classify(client, "examples", "scores"))


def test_multi_inference_of_one_task(client):
    (result,) = multi_inference(client, ("examples", "column", REGRESS)).results
    assert values(result.regression_result) == [0.25, 2.0]


def test_multi_inference_runs_the_graph_once(client):
    tasks = [("shared", "classify", CLASSIFY), ("shared", "regress", REGRESS)]
    classes, regression = multi_inference(client, *tasks).results
    drawn = values(regression.regression_result)
    assert [row[0][1] for row in pairs(classes)] == drawn
    assert values(multi_inference(client, *tasks).results[1].regression_result) != drawn


@pytest.mark.parametrize(
    ("tasks", "code", "error"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("", "", CLASSIFY)], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("nobody", "", CLASSIFY)], "NOT_FOUND", "Servable not found for request: Latest(nobody)"),
        ([("examples", "", CLASSIFY), ("", "", CLASSIFY)], "INVALID_ARGUMENT",
         "Found ModelSpec with an empty model name."),
        ([("examples", "", CLASSIFY), ("half", "scores", CLASSIFY)], "INVALID_ARGUMENT",
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([("examples", "", CLASSIFY), ("examples", "serving_default", REGRESS)],
         "INVALID_ARGUMENT", "Duplicate evaluation of signature: serving_default"),
        ([("examples", "no", "nonsense")], "INVALID_ARGUMENT",
         "Requested signature not found in model graph: no"),
        ([("examples", "", "tensorflow/serving/predict")], "UNIMPLEMENTED",
         "Unsupported signature method_name: tensorflow/serving/predict"),
        ([("examples", "", CLASSIFY), ("examples", "classes", REGRESS)], "INVALID_ARGUMENT",
         "No regression outputs found in SignatureDef: "),
        ([("examples", "", CLASSIFY), ("examples", "wide", REGRESS)], "INVALID_ARGUMENT",
         REGRESSION_SHAPE + "[2,2]"),
    ],
)  # fmt: skip
def test_refused_multi_inference(client, tasks, code, error):
    got, details = refusal(multi_inference, client, *tasks)
    assert got == code
    assert details.startswith(error)


# ---------------------------------------------------------------- method names


def test_method_names_are_not_checked_by_default(client):
    assert len(values(regress(client, "shared", "unnamed").result)) == 2
    request_input = {"inputs": np.array([b""], object)}
    assert client.predict("shared", request_input, signature_name="unnamed").outputs


def test_method_names_are_checked_when_asked(strict):
    assert len(values(regress(strict, "strict", "regress").result)) == 2
    assert len(pairs(classify(strict, "strict", "classify"))) == 2
    expected = "Expected {} signature method_name to be tensorflow/serving/{}. Was: {}"
    for call, signature, kind, method, was in [
        (classify, "regress", "classification", "classify", REGRESS),
        (regress, "classify", "regression", "regress", CLASSIFY),
        (regress, "unnamed", "regression", "regress", ""),
    ]:
        assert refusal(call, strict, "strict", signature) == (
            "INVALID_ARGUMENT",
            expected.format(kind, method, was),
        )
    task = ("strict", "unnamed", REGRESS)
    assert refusal(multi_inference, strict, task)[1].startswith("Expected regression signature")


def test_predict_checks_method_names_too(strict):
    inputs = {"inputs": np.array([b""], object)}
    assert strict.predict("strict", inputs, signature_name="regress").outputs
    message = (
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: "
    )
    code, details = refusal(strict.predict, "strict", inputs, signature_name="unnamed")
    assert (code, details) == ("INTERNAL", message)
    body = {"signature_name": "unnamed", "instances": [""]}
    status, answer = strict.post("strict:predict", body)
    assert (status, answer["error"]) == (500, message)


# ---------------------------------------------------------------- Predict and metadata


def test_predict_judges_names_before_values(client):
    broken = tensor_pb2.TensorProto()  # no dtype
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(broken)
    assert refusal(client.prediction.Predict, request)[1] == "tensor parsing error: x"
    request.inputs["y"].CopyFrom(broken)
    assert refusal(client.prediction.Predict, request)[1].startswith(
        "input size does not match signature: 2!=1 len({x,y}) != len({x}). Sent extra: {y}."
    )


def test_metadata_lists_the_initializer(client):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "examples"
    response = client.prediction.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert "__saved_model_init_op" in signatures.signature_def


# ---------------------------------------------------------------- REST


def rest(client, path, **body):
    """Returns (status, body as text)."""
    status, _, text = client.http("POST", f"/v1/models/{path}", json.dumps(body).encode())
    return status, text


def test_rest_classify_layout(client):
    body = {"context": {"name": "cat"}, "examples": [{"x": 0.1}, {"x": [2.0], "name": 'd"og'}]}
    assert rest(client, "examples:classify", **body) == (
        200,
        '{\n    "results": [[["cat", 0.1], ["other", 0.9]], [["d\\"og", 2.0], ["other", -1.0]]\n'
        "    ]\n}",
    )
    scores = rest(client, "examples:classify", signature_name="scores", examples=[{"x": 1e-9}])
    assert scores == (200, '{\n    "results": [[["", 1e-09], ["", 1.0]]\n    ]\n}')


def test_rest_regress_layout(client):
    body = {"signature_name": "column", "examples": [{"x": 0.1}, {}, {"x": 1e20}]}
    assert rest(client, "examples/versions/1:regress", **body) == (
        200,
        '{\n    "results": [0.1, 0.0, 1e+20]\n}',
    )


def test_rest_numbers_that_are_not_finite():
    assert encode_values(np.float32([np.nan, np.inf, -np.inf])) == (
        b'{\n    "results": [NaN, Infinity, -Infinity]\n}'
    )
    nothing = Classes(np.empty((2, 0), object), np.empty((2, 0), np.float32))
    assert encode_classes(nothing) == b'{\n    "results": [[], []\n    ]\n}'


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (1.5, "float_list", [1.5]),
        ([0.5, float("inf")], "float_list", [0.5, float("inf")]),
        ([2**64, 1.5], "float_list", [2.0**64, 1.5]),
        (-(2**63), "int64_list", [-(2**63)]),
        ([2**63 - 1, True, False], "int64_list", [2**63 - 1, 1, 0]),
        ("ä", "bytes_list", ["ä".encode()]),
        (["a", {"b64": "/wA="}], "bytes_list", [b"a", b"\xff\x00"]),
        ([], None, None),
    ],
)
def test_json_values_to_features(content, kind, expected):
    (proto,) = parse_input({"examples": [{"f": content}]}).example_list.examples
    feature = proto.features.feature["f"]
    assert feature.WhichOneof("kind") == kind
    if kind:
        assert list(getattr(feature, kind).value) == expected


def test_json_context_to_input():
    request_input = parse_input({"examples": [{}, {"a": 1}], "context": {"b": "x"}})
    parsed = request_input.example_list_with_context
    assert parsed.context.features.feature["b"].bytes_list.value == [b"x"]
    assert len(parsed.examples) == 2


def test_feature_names_end_at_a_null_and_the_last_of_equal_names_counts():
    (proto,) = parse_input({"examples": [{"a\0b": 1, "a": 2}]}).example_list.examples
    assert {name: f.int64_list.value[:] for name, f in proto.features.feature.items()} == {"a": [2]}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({},
         "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}},
         'JSON Value: {\n    "examples": {}\n} Expecting \'examples\' value to be an list/array'),
        ({"examples": []},
         "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"context": [], "examples": []}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"f": None}]}, "Feature: f has element with unexpected JSON type: Null"),
        ({"examples": [{"f": [[1]]}]}, "Feature: f has element with unexpected JSON type: Array"),
        ({"examples": [{"f": {"b64": 1}}]},
         "Feature: f has element with unexpected JSON type: Object"),
        ({"examples": [{"f": [1, 1.5]}]},
         "Unexpected element type in feature: f expecting type: int64"),
        ({"examples": [{"f": [1.5, True]}]},
         "Unexpected element type in feature: f expecting type: float"),
        ({"examples": [{"f": ["a", 1]}]},
         "Unexpected element type in feature: f expecting type: bytes"),
        ({"examples": [{"f": [2**63]}]},
         "Feature: f has uint64_t element. Only int64_t is supported."),
        ({"examples": [{"f": [2**64, 2**63]}]},
         "Unexpected element type in feature: f expecting type: float"),
        ({"examples": [{"f": {"b64": "*"}}]}, "Unable to base64 decode"),
        ({"signature_name": 1, "examples": [{}]},
         'JSON Value: {\n    "signature_name": 1,\n    "examples": [{}]\n} not formatted '
         "correctly. 'signature_name' key must be a string value."),
    ],
)  # fmt: skip
def test_refused_bodies(client, document, error):
    for method in ("classify", "regress"):
        assert client.post(f"examples:{method}", document) == (400, {"error": error})
        # The body is read before the model is looked for.
        assert client.post(f"nobody:{method}", document)[0] == 400


def test_rest_refusals_of_the_model(client):
    examples = [{"x": 1.0}]
    assert client.post("nobody:regress", {"examples": examples}) == (
        404,
        {"error": "Servable not found for request: Latest(nobody)"},
    )
    assert client.post("examples:classify", {"signature_name": "no", "examples": examples}) == (
        400,
        {"error": "No signature was found with the name: no"},
    )
    status, answer = client.post("examples:regress", {"examples": examples})
    assert (status, answer["error"]) == (400, "Expected one output Tensor.")


def test_rest_names_that_are_no_text_are_unknown_features(client):
    body = b'{"signature_name": "column", "examples": [{"\xff": 1, "x": 0.5}]}'
    assert client.post("examples:regress", body) == (200, {"results": [0.5]})


# ---------------------------------------------------------------- warm-up


def warmup_log(kind, signature, method=None):
    """A PredictionLog of the named kind on `TWO`, serialized."""
    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, f"{kind}_log").request
    if kind == "predict":
        request.inputs["inputs"].CopyFrom(tf.make_tensor_proto([b""]))
    else:
        request.input.CopyFrom(TWO)
    task = request.tasks.add(method_name=method) if kind == "multi_inference" else request
    spec = task.model_spec
    spec.name, spec.signature_name = "examples", signature
    return log.SerializeToString()


@pytest.fixture
def warm(example_models, tmp_path):
    """warm(data, **options): loads `examples` with that warm-up file, bytes or records."""

    def start(data, **options):
        version = tmp_path / "model" / "1"
        shutil.copytree(example_models["examples"] / "1", version)
        (version / "assets.extra").mkdir()
        file = version / "assets.extra" / "tf_serving_warmup_requests"
        if isinstance(data, bytes):
            file.write_bytes(data)
        else:
            with tf.io.TFRecordWriter(str(file)) as writer:
                for record in data:
                    writer.write(record)
        LoadedModel(tmp_path.name, 1, str(version), ServerOptions(base_path="/", **options))

    return start


def refused_load(warm, data):
    with pytest.raises(ServingError) as caught:
        warm(data)
    return caught.value.message


def test_warm_up_replays_every_kind_as_often_as_asked(warm, monkeypatch):
    ran = []

    def run(self, key, signature, *args):
        ran.append(key if isinstance(key, str) else list(signature.inputs))
        return original(self, key, signature, *args)

    original = LoadedModel.run
    monkeypatch.setattr(LoadedModel, "run", run)
    records = [
        warmup_log("predict", "scores"),
        warmup_log("classify", "classes"),
        warmup_log("regress", "regress"),
        warmup_log("multi_inference", "column", REGRESS),
        prediction_log_pb2.PredictionLog().SerializeToString(),
    ]
    warm(records, num_request_iterations_for_warmup=2)
    assert ran == [
        name for name in ("scores", "classes", "regress", ["column_inputs:0"]) for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("kind", "signature", "method", "error"),
    [
        ("predict", "no", None, 'Serving signature key "no" not found.'),
        ("classify", "regress", None, "Expected classification signature outputs"),
        ("regress", "wide", None, REGRESSION_SHAPE),
        ("multi_inference", "wide", "x", "Unsupported signature method_name: x"),
    ],
)
def test_a_failing_record_fails_the_load(warm, kind, signature, method, error):
    assert error in refused_load(warm, [warmup_log(kind, signature, method)])


def test_session_runs_cannot_warm_up(warm):
    log = prediction_log_pb2.PredictionLog(session_run_log={})
    message = refused_load(warm, [log.SerializeToString()])
    assert message == "Unsupported log_type for warmup: 5"


def test_a_warm_up_file_that_is_no_tfrecord(warm):
    message = refused_load(warm, b"no record of any kind")
    assert "corrupted record at 0" in message
    assert message.endswith(". Please verify your warmup data is in TFRecord format.")
    assert "function_node" not in message
