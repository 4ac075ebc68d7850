"""Start, versions that come and go, warm-up, shutdown: the embedded server over time."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_status_pb2, prediction_log_pb2

from kzoo.serving.server import Code, ModelServer, ServingError

AVAILABLE, UNLOADING, END = 30, 40, 50
WARMUP = "assets.extra/tf_serving_warmup_requests"


@pytest.fixture
def base(tmp_path, half_version):
    """An empty base path with `add(version, offset)`, which is atomic, and `path`."""

    class Base:
        path = tmp_path / "half"

        def add(self, version, offset):
            copy = tmp_path / f"copy-{version}"
            shutil.copytree(half_version(offset), copy)
            copy.rename(self.path / str(version))
            return self.path / str(version)

    Base.path.mkdir()
    return Base()


@pytest.fixture
def serve(connect):
    """serve(**arguments): a started server's `Client`; all are stopped after the test."""
    clients = []

    def start(**arguments):
        server = ModelServer(**{"grpc_port": 0, "rest_port": 0, **arguments}).start()
        clients.append(connect(server))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
        client.server.stop(grace=0)


def states(client, name="half"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    entries = client.models.GetModelStatus(request).model_version_status
    return {entry.version: entry.state for entry in entries}


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def refused(**arguments):
    """Returns the error that a server does not start with."""
    arguments = {"grpc_port": 0, "rest_port": 0, "max_num_load_retries": 0, **arguments}
    with pytest.raises(ServingError) as caught:
        ModelServer(**arguments).start()
    return caught.value


# ---------------------------------------------------------------- versions


def test_hot_swap_loses_no_request(base, serve):
    base.add(1, 2.0)
    client = serve(model_name="half", base_path=base.path, file_system_poll_wait_seconds=0.05)
    answers, done = [], threading.Event()

    def ask():
        while not done.is_set():
            response = client.predict("half", {"x": np.float32([0])})
            status, answer = client.post("half:predict", {"instances": [0]})
            answers.append((response.outputs["y"].float_val[0], status, answer["predictions"][0]))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        wait_for(lambda: len(answers) > 10)
        base.add(2, 3.0)
        wait_for(lambda: answers[-1][0] == 3.0)
        wait_for(lambda: states(client) == {2: AVAILABLE, 1: END})
        done.set()
        for future in asking:
            future.result()
    assert {y for y, _, _ in answers} == {2.0, 3.0}
    assert {status for _, status, _ in answers} == {200}


def test_a_request_finishes_on_the_version_it_started_on(base, serve):
    base.add(1, 2.0)
    client = serve(model_name="half", base_path=base.path, file_system_poll_wait_seconds=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        inputs = {"seconds": np.float64([0.8])}
        slow = pool.submit(client.predict, "half", inputs, signature_name="sleep")
        time.sleep(0.2)
        base.add(2, 3.0)
        client.server.manager.poll()
        assert client.half([0]) == [3.0]
        assert states(client) == {2: AVAILABLE, 1: UNLOADING}
        response = slow.result()
    assert response.outputs["offset"].float_val[0] == 2.0
    assert response.model_spec.version.value == 1
    wait_for(lambda: states(client) == {2: AVAILABLE, 1: END})


def test_a_broken_newer_version_leaves_the_old_one_serving(base, serve):
    base.add(1, 2.0)
    client = serve(
        model_name="half",
        base_path=base.path,
        file_system_poll_wait_seconds=0,
        max_num_load_retries=0,
    )
    (base.path / "2").mkdir()
    client.server.manager.poll()
    assert client.half([0]) == [2.0]
    assert states(client) == {2: END, 1: AVAILABLE}
    _, answer = client.get("/half/versions/2")
    status = answer["model_version_status"][0]["status"]
    assert status["error_code"] == "NOT_FOUND"
    assert status["error_message"].startswith("Could not find SavedModel .pb or .pbtxt at supplied")
    # Once the broken directory has gone, the number may be used again.
    (base.path / "2").rmdir()
    client.server.manager.poll()
    base.add(2, 3.0)
    client.server.manager.poll()
    assert client.half([0]) == [3.0]


def test_a_garbled_saved_model_is_refused(base):
    broken = base.add(1, 2.0)
    (broken / "saved_model.pb").write_bytes(b"\xff" * 100)
    error = refused(model_name="half", base_path=base.path)
    assert error.code == Code.UNKNOWN
    assert re.match(
        r"1 servable\(s\) did not become available: \{\{\{name: half version: 1\} due to error: ",
        error.message,
    )


def test_removed_versions_are_unloaded(base, serve):
    shutil.rmtree(base.add(1, 2.0))
    kept, dropped = base.add(3, 2.0), base.add(4, 3.0)
    client = serve(model_name="half", base_path=base.path, file_system_poll_wait_seconds=0)
    assert states(client) == {4: AVAILABLE}
    shutil.rmtree(dropped)
    client.server.manager.poll()
    assert client.half([0]) == [2.0]
    shutil.rmtree(kept)
    client.server.manager.poll()
    assert client.post("half:predict", {"instances": [0]})[0] == 404
    # A base path that is gone altogether is taken for an outage: nothing changes.
    base.add(5, 3.0)
    client.server.manager.poll()
    base.path.rename(base.path.with_name("away"))
    client.server.manager.poll()
    assert client.half([0]) == [3.0]


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", {4}),
        ("model_version_policy { latest { num_versions: 2 } }", {3, 4}),
        ("model_version_policy { all {} }", {1, 3, 4}),
        ("model_version_policy { specific { versions: 1 versions: 4 versions: 9 } }", {1, 4}),
    ],
)
def test_version_policies(tmp_path, half_version, serve, policy, served):
    (tmp_path / "half").mkdir()
    for name in ("1", "003", "4", "5-temp", "latest"):
        (tmp_path / "half" / name).symlink_to(half_version(2.0))
    (tmp_path / "half" / "17").write_text("a file is no version")
    file = tmp_path / "models.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "half" base_path: "{tmp_path / "half"}" '
        f'model_platform: "tensorflow" {policy} }} }}'
    )
    client = serve(model_config_file=file)
    assert states(client) == dict.fromkeys(served, AVAILABLE)


# ---------------------------------------------------------------- refusals at start


def test_arguments_are_checked(tmp_path, base):
    error = refused()
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message == (
        "Both server_options.model_base_path and server_options.model_config_file are empty!"
    )
    error = refused(base_path=tmp_path, grpc_port=70000)
    assert "`grpc_port` must be an integer in 0..65535. Received: 70000" in error.message
    error = refused(model_name="half", base_path="relative/path")
    assert error.message == (
        "Expected model half to have an absolute path or URI; got base_path()=relative/path"
    )
    error = refused(model_name="half", base_path=tmp_path / "none")
    assert error.message.startswith(f"Could not find base path {tmp_path / 'none'} for servable")
    error = refused(model_name="half", base_path=base.path)
    assert error.code == Code.NOT_FOUND
    assert error.message == (
        f"Unable to find a numerical version path for servable half at: {base.path}"
    )


MODEL = 'config {{ name: "m" base_path: "/{0}" {1} }}'
TENSORFLOW, ONNX = 'model_platform: "tensorflow"', 'model_platform: "onnx"'


@pytest.mark.parametrize(
    ("models", "error"),
    [
        ([("m", "")], "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
         "ModelServerConfig::model_platform, model name is m"),
        ([("m", ONNX)], "Model m requests unsupported platform onnx"),
        ([("m", f"model_type: TENSORFLOW {TENSORFLOW}")], "Illegal setting both ModelServerConfig::"
         "model_type (deprecated) and ModelServerConfig::model_platform, model name is m"),
        ([("m", "model_type: OTHER")], "ModelServerConfig::model_type choice 2 not supported."),
        ([("m", TENSORFLOW), ("n", TENSORFLOW)],
         "Illegal to list model m multiple times in config list"),
    ],
)  # fmt: skip
def test_bad_configurations(tmp_path, models, error):
    file = tmp_path / "models.config"
    entries = " ".join(MODEL.format(*model) for model in models)
    file.write_text(f"model_config_list {{ {entries} }}")
    assert refused(model_config_file=file).message == error


def test_a_file_that_is_no_configuration(tmp_path, caplog):
    file = tmp_path / "models.config"
    for content in (b"improper model config", b"\xff\xfe"):
        file.write_bytes(content)
        error = refused(model_config_file=file)
        assert (error.code, error.message) == (
            Code.INVALID_ARGUMENT,
            f"Invalid protobuf file: '{file}'",
        )
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:" in caplog.text
    error = refused(model_config_file=tmp_path / "x")
    assert (error.code, error.message) == (
        Code.NOT_FOUND,
        f"{tmp_path / 'x'}; No such file or directory",
    )


def test_a_custom_configuration_is_refused(tmp_path):
    file = tmp_path / "models.config"
    file.write_text('custom_model_config { type_url: "x" }')
    assert refused(model_config_file=file).code == Code.UNIMPLEMENTED


def test_labels_of_unloaded_versions_can_be_forbidden(tmp_path, half_version):
    file = tmp_path / "models.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "half" base_path: "{half_version(2.0).parent}" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 1 } } }'
    )
    error = refused(
        model_config_file=file, allow_version_labels_for_unavailable_models=False
    )  # fmt: skip
    assert error.code == Code.FAILED_PRECONDITION
    assert error.message == (
        "Request to assign label to version 1 of model half, which is not currently available for "
        "inference"
    )


def test_a_taken_port_is_an_error(half_version, serve):
    path = half_version(2.0).parent
    client = serve(model_name="half", base_path=path)
    for name in ("grpc_port", "rest_port"):
        error = refused(base_path=path, **{name: getattr(client.server, name)})
        assert error.code == Code.UNAVAILABLE
        assert "Could not open 127.0.0.1:" in error.message


# ---------------------------------------------------------------- warm-up


def write_warmup(version, *records):
    (version / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(version / WARMUP)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(x, signature_name="serving_default"):
    entry = prediction_log_pb2.PredictionLog()
    request = entry.predict_log.request
    request.model_spec.signature_name = signature_name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
    return entry.SerializeToString()


def test_warm_up_runs_the_records(base, serve):
    version = base.add(1, 2.0)
    count = warmup_record(np.float32([1]), "count")
    write_warmup(version, count, warmup_record(np.float32([1])), count)
    client = serve(model_name="half", base_path=base.path)
    # The model counts its calls in a variable: two came from the records.
    body = {"signature_name": "count", "inputs": [0, 0]}
    assert client.post("half:predict", body) == (200, {"outputs": [3, 3]})
    assert client.post("half:predict", body) == (200, {"outputs": [4, 4]})


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (warmup_record(np.float64([1])), "Expects arg[0] to be float but double is provided"),
        (warmup_record(np.float32([1]), "no"), 'Serving signature key "no" not found.'),
        (b"\xff\xff", "Failed to parse warmup record"),
    ],
)
def test_a_failing_warm_up_record_fails_the_load(base, serve, record, error):
    write_warmup(base.add(1, 2.0), record)
    assert error in refused(model_name="half", base_path=base.path).message
    serve(model_name="half", base_path=base.path, enable_model_warmup=False)


def test_too_many_warm_up_records(base):
    write_warmup(base.add(1, 2.0), *[warmup_record(np.float32([1]))] * 1001)
    error = refused(model_name="half", base_path=base.path)
    assert "Number of warmup records exceeds the maximum (1000)" in error.message


# ---------------------------------------------------------------- signature defaults


def test_signature_defaults_fill_missing_inputs(tmp_path, base_paths, serve):
    version = tmp_path / "pair" / "1"
    shutil.copytree(base_paths["pair"] / "1", version)
    proto = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signature = proto.meta_graphs[0].signature_def["serving_default"]
    signature.defaults["b"].CopyFrom(tf.make_tensor_proto(np.int32([10])))
    (version / "saved_model.pb").write_bytes(proto.SerializeToString())
    client = serve(model_name="pair", base_path=version.parent)
    a = np.float32([[1, 2]])
    assert list(client.predict("pair", {"a": a}).outputs["sum"].float_val) == [11, 12]
    both = client.predict("pair", {"a": a, "b": np.int32([1])})
    assert list(both.outputs["sum"].float_val) == [2, 3]
    with pytest.raises(grpc.RpcError) as caught:
        client.predict("pair", {"a": a, "c": a})
    assert caught.value.details() == (
        "Inputs contains invalid name. Used request inputs: a, request input: a,c"
    )
    _, answer = client.get("/pair/metadata")
    shown = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert shown["defaults"] == {}


# ---------------------------------------------------------------- shutdown


def test_stop_lets_running_requests_finish(half_version, serve):
    client = serve(model_name="half", base_path=half_version(2.0).parent)
    seconds = {"seconds": np.float64([0.8])}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        over_grpc = pool.submit(client.predict, "half", seconds, signature_name="sleep")
        body = {"signature_name": "sleep", "inputs": [0.8]}
        over_rest = pool.submit(client.post, "half:predict", json.dumps(body))
        time.sleep(0.3)
        assert not client.server.wait(timeout=0)
        client.server.stop(grace=5)
        assert over_grpc.result().outputs["rounds"].int_val[0] > 0
        assert over_rest.result()[0] == 200
    assert client.server.wait(timeout=0)
    with pytest.raises(grpc.RpcError):
        client.half([1])
    with pytest.raises(OSError, match="refused"):
        client.get("/half")


def test_stop_gives_up_after_the_grace_period(half_version, serve):
    client = serve(model_name="half", base_path=half_version(2.0).parent)
    request = {"seconds": np.float64([3.0])}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.predict, "half", request, signature_name="sleep")
        time.sleep(0.2)
        begin = time.monotonic()
        client.server.stop(grace=0.3)
        assert time.monotonic() - begin < 2
        assert slow.exception().code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def start_process(*arguments):
    code = (
        "import sys; from kzoo.serving.server.launch import run; "
        "sys.exit(run(model_name='half', model_base_path=sys.argv[1], port=0, rest_api_port=0, "
        "embedded=True))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )


def test_sigterm_finishes_the_running_request_and_exits_with_0(half_version):
    """The one test with a process."""
    with start_process(half_version(2.0).parent) as process:
        try:
            line = process.stdout.readline()
            ports = re.fullmatch(
                r"Serving gRPC on 127\.0\.0\.1:(\d+) and REST on 127\.0\.0\.1:(\d+)\n", line
            )
            assert ports, line
            assert "Only this machine can reach it" in process.stdout.readline()
            body = b'{"signature_name": "sleep", "inputs": [1.0]}'
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(post, int(ports[2]), body)
                time.sleep(0.4)
                process.send_signal(signal.SIGTERM)
                assert answer.result() == 200
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


def post(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/v1/models/half:predict", body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_what_tensorflow_serving_would_not_compile_is_said(tmp_path, serve, caplog):
    class Compiled(tf.Module):
        @tf.function(jit_compile=True, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def double(self, x):
            return {"y": 2 * x}

    module = Compiled()
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), {"serving_default": module.double})
    serve(model_name="m", base_path=tmp_path / "m")
    assert "asks for compilation by XLA" in caplog.text
    caplog.clear()
    serve(model_name="m", base_path=tmp_path / "m", xla_cpu_compilation_enabled=True)
    assert "XLA" not in caplog.text
