"""The REST API of the embedded server: routes, both formats, every type, every refusal."""

import base64
import concurrent.futures
import gzip
import http.client
import json
import time

import grpc
import numpy as np
import pytest

from kzoo.serving.server import ModelServer

CONFIG = """
model_config_list {{
  config {{
    name: "half" base_path: "{half}" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 2 versions: 7 }} }}
    version_labels {{ key: "stable" value: 2 }} version_labels {{ key: "canary" value: 7 }}
  }}
  config {{ name: "pair" base_path: "{pair}" model_platform: "tensorflow" }}
  config {{ name: "text" base_path: "{text}" model_platform: "tensorflow" }}
  config {{ name: "identity" base_path: "{identity}" model_platform: "tensorflow" }}
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
        rest_api_timeout_in_ms=1000,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        client = connect(server)
        yield client
        client.close()


# ---------------------------------------------------------------- formats


def test_row_format_in_the_layout_of_tensorflow_serving(client):
    status, headers, text = client.http(
        "POST", "/v1/models/half:predict", '{"instances": [1.0, 2.0, 5.0]}'
    )
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert text == '{\n    "predictions": [3.5, 4.0, 5.5\n    ]\n}'


def test_row_format_of_matrices(client):
    body = '{"signature_name": "matrix", "instances": [[1, 2], [3, 4]]}'
    _, _, text = client.http("POST", "/v1/models/half:predict", body)
    assert text == '{\n    "predictions": [[3.5, 4.0], [4.5, 5.0]\n    ]\n}'


def test_column_format_in_the_layout_of_tensorflow_serving(client):
    _, _, text = client.http("POST", "/v1/models/half:predict", '{"inputs": [1.0, 2.0]}')
    assert text == '{\n    "outputs": [\n        3.5,\n        4.0\n    ]\n}'


def test_named_inputs_and_outputs_as_columns(client):
    status, answer = client.post("pair:predict", {"inputs": {"a": [[1, 2], [3, 4]], "b": [10, 20]}})
    assert status == 200
    expected = {"sum": [[11.0, 12.0], [23.0, 24.0]], "double": [20, 40], "first": 10}
    assert answer == {"outputs": expected}


def test_named_inputs_as_rows_and_a_scalar_output_is_refused(client):
    rows = [{"a": [1, 2], "b": 10}, {"b": 20, "a": [3, 4]}]
    status, answer = client.post("pair:predict", {"instances": rows})
    assert status == 400
    assert answer == {"error": "Tensor name: first has no shape information "}


def test_rows_of_several_outputs_are_objects(client):
    body = {"instances": [{"b64": base64.b64encode(b"\xff\x00").decode()}, "abc"]}
    status, _, text = client.http("POST", "/v1/models/text:predict", json.dumps(body))
    assert status == 200
    assert text.startswith('{\n    "predictions": [\n        {\n            "copy": "')
    first, second = json.loads(text)["predictions"]
    assert first == {"copy": "\udcff\x00", "copy_bytes": {"b64": "/wA="}, "length": 2}
    assert second == {"copy": "abc", "copy_bytes": {"b64": "YWJj"}, "length": 3}


def test_one_named_input_may_be_bare_or_an_object(client):
    expected = {"predictions": [3.5]}
    assert client.post("half:predict", {"instances": [{"x": 1}]}) == (200, expected)
    assert client.post("half:predict", {"instances": [1]}) == (200, expected)
    assert client.post("half:predict", {"inputs": {"x": [1]}}) == (200, {"outputs": [3.5]})


def test_binary_inputs_arrive_and_bytes_outputs_leave_in_base64(client):
    data = bytes(range(256))
    value = {"b64": base64.b64encode(data).decode()}
    status, _, text = client.http(
        "POST", "/v1/models/identity:predict",
        json.dumps({"signature_name": "string", "inputs": value}),
    )  # fmt: skip
    assert status == 200
    assert '"outputs": "' in text  # y is no *_bytes: a plain string
    status, _, text = client.http(
        "POST", "/v1/models/text:predict", json.dumps({"inputs": [value, {"b64": "YWI"}]})
    )
    assert status == 200
    assert f'"b64": "{value["b64"]}"' in text
    assert '"b64": "YWI="' in text


def test_unicode_text(client):
    body = '{"signature_name": "string", "instances": ["Größe \\u00e9\\n\\ud83d\\ude00"]}'
    status, answer = client.post("identity:predict", body)
    assert (status, answer) == (200, {"predictions": ["Größe é\n😀"]})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bool", [True, False]),
        ("string", ["", "a"]),
        ("int8", [-128, 127]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint8", [0, 255]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("float32", [0.1, -2.5e-8]),
        ("float64", [0.1, -1e300]),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_every_type_survives_the_round_trip(client, name, values, key):
    status, answer = client.post(
        "identity:predict", {"signature_name": name, key: [values, values]}
    )
    assert status == 200
    assert answer == {{"instances": "predictions", "inputs": "outputs"}[key]: [values, values]}


def test_scalars_and_empty_tensors_in_column_format(client):
    def ask(value):
        return client.post("identity:predict", {"signature_name": "int32", "inputs": value})

    assert ask(7) == (200, {"outputs": 7})
    assert ask([]) == (200, {"outputs": []})
    assert ask([[], []]) == (200, {"outputs": [[], []]})


def test_numbers_that_json_does_not_know(client):
    body = '{"signature_name": "float32", "instances": [NaN, Infinity, -Infinity, 1e2, 1E-2, 1e39]}'
    status, _, text = client.http("POST", "/v1/models/identity:predict", body)
    assert status == 200
    assert "[NaN, Infinity, -Infinity, 100.0, 0.01, Infinity" in text


def test_floats_have_as_many_digits_as_they_need(client):
    third32, third64 = np.float32(1) / 3, 1 / 3
    for name, value in [("float32", float(third32)), ("float64", third64)]:
        body = json.dumps({"signature_name": name, "inputs": [value, 16777216, 1e20, 0.1]})
        _, _, text = client.http("POST", "/v1/models/identity:predict", body)
        tokens = text.split("[")[1].split("]")[0].replace(" ", "").replace("\n", "").split(",")
        digits = {"float32": "0.333333343", "float64": "0.33333333333333331"}[name]
        assert tokens == [digits, "16777216.0", "1e+20", "0.1"]


def test_narrow_integers_wrap_as_in_tensorflow_serving(client):
    body = {"signature_name": "uint8", "instances": [300, -1]}
    assert client.post("identity:predict", body) == (200, {"predictions": [44, 255]})


def test_a_large_batch(client):
    rows = np.random.default_rng(0).normal(size=[500, 2]).astype(np.float32)
    body = {"signature_name": "matrix", "instances": rows.tolist()}
    _, answer = client.post("half:predict", body)
    np.testing.assert_array_equal(np.float32(answer["predictions"]), rows / 2 + 3)


def test_gzip_body_and_trailing_text(client):
    body = gzip.compress(b'{"instances": [1]}')
    headers = {"Content-Encoding": "gzip"}
    status, _, text = client.http("POST", "/v1/models/half:predict", body, headers)
    assert (status, json.loads(text)) == (200, {"predictions": [3.5]})
    status, _, text = client.http("POST", "/v1/models/half:predict", b"no gzip", headers)
    assert (status, json.loads(text)["error"]) == (400, "JSON Parse error: The document is empty")
    assert client.post("half:predict", '{"instances": [1]} trailing') == (
        200, {"predictions": [3.5]}
    )  # fmt: skip


# ---------------------------------------------------------------- routes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("half:predict", 3.5),
        ("half/versions/2:predict", 2.5),
        ("half/versions/007:predict", 3.5),
        ("half/labels/stable:predict", 2.5),
        ("half/labels/c%61nary:predict", 3.5),
        ("h%61lf:predict", 3.5),
    ],
)
def test_versions_and_labels(client, path, expected):
    assert client.post(path, {"instances": [1]}) == (200, {"predictions": [expected]})


def test_paths_ignore_case(client):
    status, _, _ = client.http("POST", "/V1/Models/half:predict", '{"instances": [1]}')
    assert status == 200


def test_status_text_is_that_of_tensorflow_serving(client):
    status, headers, text = client.http("GET", "/v1/models/half/versions/2")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert text == (
        '{\n "model_version_status": [\n  {\n   "version": "2",\n   "state": "AVAILABLE",\n'
        '   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
    )
    _, answer = client.get("/half")
    assert [entry["version"] for entry in answer["model_version_status"]] == ["7", "2"]
    assert client.get("/half/labels/stable") == (200, answer)  # labels select nothing here


def test_metadata(client):
    status, answer = client.get("/pair/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "pair", "version": "1", "signature_name": ""}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["b"]["dtype"] == "DT_INT32"
    assert signature["inputs"]["a"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
        "unknown_rank": False,
    }
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert client.get("/half/labels/stable/metadata")[1]["model_spec"]["version"] == "2"


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("POST", "/v1/foo", 400, "Malformed request: POST /v1/foo"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("POST", "/v1/models", 400, "Malformed request: POST /v1/models"),
        ("GET", "/v1/models/half/other", 400, "Malformed request: GET /v1/models/half/other"),
        ("GET", "/v1/models/half:predict", 400, "Malformed request: GET /v1/models/half:predict"),
        ("POST", "/v1/models/half", 400, "Malformed request: POST /v1/models/half"),
        ("POST", "/v1/models/half/metadata", 400,
         "Malformed request: POST /v1/models/half/metadata"),
        ("POST", "/v1/models/half:PREDICT", 400, "Malformed request: POST /v1/models/half:PREDICT"),
        ("POST", "/v1/models/half:predict?x=1", 400,
         "Malformed request: POST /v1/models/half:predict?x=1"),
        ("POST", "/v1/models/half/versions/HELLO:predict", 400,
         "Malformed request: POST /v1/models/half/versions/HELLO:predict"),
        ("POST", "/v1/models/half/versions/2/labels/stable:predict", 400,
         "Malformed request: POST /v1/models/half/versions/2/labels/stable:predict"),
        ("POST", f"/v1/models/half/versions/{2**64}:predict", 400,
         f"Failed to convert version: {2**64} to numeric."),
        ("PUT", "/v1/models/half", 400, "Malformed request: PUT /v1/models/half"),
        ("POST", "/v1/models/nobody:predict", 404,
         "Servable not found for request: Latest(nobody)"),
        ("POST", "/v1/models/half/versions/3:predict", 404,
         "Servable not found for request: Specific(half, 3)"),
        ("POST", "/v1/models/half/labels/no:predict", 400,
         "Unrecognized servable version label: no"),
        ("GET", "/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("GET", "/v1/models/half/versions/3", 404, "Could not find version 3 of model half"),
        ("GET", "/v1/models/nobody/metadata", 404,
         "Servable not found for request: Latest(nobody)"),
    ],
)  # fmt: skip
def test_refused_routes(client, method, path, status, error):
    body = '{"instances": [1]}' if method == "POST" else None
    got, headers, text = client.http(method, path, body)
    assert (got, json.loads(text)) == (status, {"error": error})
    assert headers["Content-Type"] == "application/json"


def test_paths_outside_of_the_api_are_not_found(client):
    for path in ("/index.html", "/statuspage", "/v2/models/half", "/monitoring/prometheus/metrics"):
        status, headers, text = client.http("GET", path)
        assert status == 404
        assert headers["Content-Type"].startswith("text/html")
        assert "404 Not Found" in text


# ---------------------------------------------------------------- malformed bodies


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "The document is empty"),
        (" \n", "The document is empty. at offset: 2"),
        ("instances = [1, 2]", "Invalid value. at offset: 0"),
        ("{", "Missing a name for object member. at offset: 1"),
        ("{1: 2}", "Missing a name for object member. at offset: 1"),
        ('{"a"', "Missing a colon after a name of object member. at offset: 4"),
        ('{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        ('{"a": ', "Invalid value. at offset: 6"),
        ('{"a": 1', "Missing a comma or '}' after an object member. at offset: 7"),
        ('{"a": 1 "b": 2}', "Missing a comma or '}' after an object member. at offset: 8"),
        ('{"a": 1,}', "Missing a name for object member. at offset: 8"),
        ('{"a": [1, 2', "Missing a comma or ']' after an array element. at offset: 11"),
        ('{"a]": [1 2]}', "Missing a comma or ']' after an array element. at offset: 10"),
        ('{"a": [1,]}', "Invalid value. at offset: 9"),
        ('{"a": nul}', "Invalid value. at offset: 9"),
        ('{"a": tRue}', "Invalid value. at offset: 7"),
        ('{"a": 1.}', "Miss fraction part in number. at offset: 8"),
        ('{"a": 1e+}', "Miss exponent in number. at offset: 9"),
        ('{"a": 01}', "Missing a comma or '}' after an object member. at offset: 7"),
        ('{"a": "b', "Missing a closing quotation mark in string. at offset: 8"),
        ('{"a": "\\x"}', "Invalid escape character in string. at offset: 7"),
        ('{"a": "\\u12x4"}', "Incorrect hex digit after \\u escape in string. at offset: 7"),
        ('{"a": "\\ud800"}', "The surrogate pair in string is invalid. at offset: 7"),
        ('{"a": "\\\\ud800\\udc00"}', "The surrogate pair in string is invalid. at offset: 14"),
        ('{"a": "\x01"}', "Invalid encoding in string. at offset: 7"),
        ('{"ä": x}', "Invalid value. at offset: 7"),  # the offset counts bytes
        ("[" * 100_000, "The document is nested too deeply."),
        ('{"a": 1' + "0" * 5000 + "}", "Number too big to be stored in double. at offset: 6"),
        ('{"1e999": -1e999}', "Number too big to be stored in double. at offset: 10"),
    ],
)
def test_malformed_json(client, body, error):
    status, answer = client.post("half:predict", body)
    assert (status, answer) == (400, {"error": f"JSON Parse error: {error}"})


def test_bytes_that_are_not_utf8_are_kept(client):
    body = b'{"inputs": ["\xff\xfe"]}'
    status, _, text = client.http("POST", "/v1/models/text:predict", body)
    assert status == 200
    assert json.loads(text)["outputs"]["copy_bytes"] == [{"b64": "//4="}]


@pytest.mark.parametrize(
    ("model", "body", "error"),
    [
        ("half", "[1]", "JSON Value: [1] Is not object"),
        ("half", "null", "JSON Value: null Is not object"),
        ("half", "{}", "Missing 'inputs' or 'instances' key"),
        ("half", '{"signature_name": 1, "instances": [1]}',
         'JSON Value: {\n    "signature_name": 1,\n    "instances": [1]\n} not formatted '
         "correctly. 'signature_name' key must be a string value."),
        ("half", '{"signature_name": "no", "instances": [1]}',
         'Serving signature name: "no" not found in signature def'),
        ("half", '{"signature_name": "total", "inputs": {}}',
         "Failed to get input map for signature: total"),
        ("half", '{"instances": [1], "inputs": [1]}',
         'JSON Value: {\n    "instances": [1],\n    "inputs": [1]\n} Not formatted correctly '
         "expecting only one of 'inputs' or 'instances' keys to exist "),
        ("half", '{"instances": 1}',
         'JSON Value: {\n    "instances": 1\n} Expecting \'instances\' to be an list/array'),
        ("half", '{"instances": []}',
         'JSON Value: {\n    "instances": []\n} No values in \'instances\' array'),
        ("pair", '{"instances": [1]}',
         "instances is a plain list, but expecting list of objects as multiple input tensors "
         "required as per tensorinfo_map"),
        ("pair", '{"inputs": [1]}',
         "inputs is a plain value/list, but expecting an object as multiple input tensors "
         "required as per tensorinfo_map"),
        ("pair", '{"inputs": {"a": [[1, 2]]}}', "Missing named input: b in 'inputs' object."),
        ("pair", '{"inputs": {"a": [[1, 2], [3]], "b": [1, 2]}}',
         "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ("pair", '{"inputs": {"a": [[1, 2], 3], "b": [1, 2]}}',
         "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ("pair", '{"inputs": {"a": [[1, [2]]], "b": [1]}}',
         "Encountered list at unexpected level: 2 expected < 2"),
        ("half", '{"inputs": [true]}',
         "JSON Value: true Type: True is not of expected type: float"),
        ("half", '{"inputs": [null]}',
         "JSON Value: null Type: Null is not of expected type: float"),
        ("half", '{"inputs": [{"b64": "AA=="}]}',
         'JSON Value: {\n    "b64": "AA=="\n} Type: Object is not of expected type: float'),
        ("text", '{"inputs": [1]}', "JSON Value: 1 Type: Number is not of expected type: string"),
        ("text", '{"inputs": [{"b64": "a"}]}', "Unable to base64 decode"),
        ("pair", '{"instances": [{"b64": "AA=="}]}',
         "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: "
         '{\n    "b64": "AA=="\n} Type: Object is not of expected type: float'),
        ("half", f'{{"inputs": [1{"0" * 400}]}}',
         "JSON Parse error: Number too big to be stored in double. at offset: 12"),
        ("half", f'{{"inputs": {"[" * 300}1{"]" * 300}}}',
         "Tensors of more than 64 dimensions are not supported"),
        ("half", f'{{"inputs": [{"[" * 900}{"]" * 900}, 1]}}',
         "Tensors of more than 64 dimensions are not supported"),
        ("text", '{"inputs": [{"b64": 1}]}',
         'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    ],
)  # fmt: skip
def test_refused_bodies(client, model, body, error):
    assert client.post(f"{model}:predict", body) == (400, {"error": error})


@pytest.mark.parametrize(
    ("model", "instances", "error"),
    [
        ("half", '["x"]', '0 of # Error: INVALID_ARGUMENT: JSON Value: "x" Type: String is not of '
         "expected type: float"),
        ("half", "[1, [2]]", "1 of # Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]"),
        ("half", "[[1, 2], [3]]",
         "1 of # Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"),
        ("half", "[[[1], [2]], [[3, 4]]]",
         "1 of # Error: INVALID_ARGUMENT: Expecting shape [2,1] but got: [1,2]"),
        ("pair", '[{"a": [1, 2]}]',
         '0 of # JSON object: {\n    "a": [1, 2]\n} keys must be equal to: a,b'),
        ("pair", '[{"a": [1, 2], "b": 1, "c": 1}]',
         "0 key: c of # Error: INVALID_ARGUMENT: JSON object: does not have named input: c"),
        ("pair", '[{"a": [1, 2], "b": 1}, {"a": [1, 2], "b": 1.5}]',
         "1 key: b of # Error: INVALID_ARGUMENT: JSON Value: 1.5 Type: Number is not of expected "
         "type: int32"),
        ("pair", '[{"a": [1, 2], "b": 1}, {"a": [1, 2], "b": 3000000000}]',
         "1 key: b of # Error: INVALID_ARGUMENT: JSON Value: 3000000000 Type: Number is not of "
         "expected type: int32"),
    ],
)  # fmt: skip
def test_refused_instances(client, model, instances, error):
    error = error.replace(" #", " 'instances' list." if " # " in error else "")
    status, answer = client.post(f"{model}:predict", f'{{"instances": {instances}}}')
    assert (status, answer) == (400, {"error": f"Failed to process element: {error}"})


def test_mixed_lists_and_objects(client):
    assert client.post("half:predict", '{"instances": [{"x": 1}, 1]}') == (
        400, {"error": "Expecting object but got list at item 1 of input list"}
    )  # fmt: skip
    assert client.post("half:predict", '{"instances": [1, {"x": 1}]}') == (
        400, {"error": "Expecting value/list but got object at item 1 of input list"}
    )  # fmt: skip


def test_a_long_value_is_cut_in_the_error(client):
    body = json.dumps({"signature_name": 1, "instances": list(range(1000))})
    _, answer = client.post("half:predict", body)
    assert len(answer["error"]) < 400
    assert "999" not in answer["error"]


def test_types_that_json_cannot_carry(client):
    body = {"signature_name": "float16", "inputs": [1.5]}
    assert client.post("identity:predict", body) == (
        501, {"error": "Conversion of JSON Value: 1.5 to type: half"}
    )  # fmt: skip
    body["inputs"] = []
    status, answer = client.post("identity:predict", body)
    assert (status, answer) == (
        400, {"error": "Failed to write JSON value for tensor type: half"}
    )  # fmt: skip


def test_runtime_errors_name_the_node(client):
    status, answer = client.post("pair:predict", {"inputs": {"a": [[1, 2]] * 2, "b": [1, 2, 3]}})
    assert status == 400
    assert "Incompatible shapes: [3,1] vs. [2,2]" in answer["error"]


def test_timeout(client):
    body = {"signature_name": "sleep", "instances": [2.0]}
    status, answer = client.post("half:predict", body)
    assert status == 504
    assert "Timed out" in answer["error"]


def test_requests_beyond_the_limit_are_refused(base_paths, connect):
    with ModelServer(
        "half", base_paths["half"], grpc_port=0, rest_port=0, max_concurrent_requests=1
    ) as server:
        limited = connect(server)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            body = {"signature_name": "sleep", "inputs": [0.6]}
            over_rest = pool.submit(limited.post, "half:predict", body)
            seconds = {"seconds": np.float64([0.6])}
            over_grpc = pool.submit(limited.predict, "half", seconds, signature_name="sleep")
            time.sleep(0.3)
            status, answer = limited.post("half:predict", {"instances": [1]})
            assert (status, answer) == (429, {"error": "Too many concurrent requests"})
            with pytest.raises(grpc.RpcError) as caught:
                limited.half([1])
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert over_rest.result()[0] == 200
            assert over_grpc.result().model_spec.version.value == 7
        assert limited.post("half:predict", {"instances": [1]})[0] == 200
        limited.close()


def test_keep_alive_connections_survive_an_error(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.server.rest_port, timeout=20)
    try:
        for body, expected in [(b"{", 400), (b'{"instances": [1]}', 200)]:
            connection.request("POST", "/v1/models/half:predict", body)
            response = connection.getresponse()
            response.read()
            assert response.status == expected
    finally:
        connection.close()
