"""The embedded server under attack and under load: nothing is lost, mixed up, or without bounds."""

import builtins
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import pathlib
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    model_management_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from kzoo.serving.server import ModelServer
from kzoo.serving.server.http_protocol import ConnectionLimits
from kzoo.serving.server.rest_server import RestServer
from kzoo.serving.server.tensors import to_proto

MEGABYTE = 10**6
LARGE = 100 * MEGABYTE
THREADS = 4 * (os.cpu_count() or 1)  # of each API
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
PREDICT = "/tensorflow.serving.PredictionService/Predict"
HEAD = b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\n"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(base_paths, tmp_path_factory, write_config):
    folder = tmp_path_factory.mktemp("under_fire")
    monitoring = folder / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }")
    models = {name: base_paths[name] for name in ("half", "pair", "text")}
    with ModelServer(
        model_config_file=write_config(folder / "models.config", models),
        grpc_port=0, rest_port=0, file_system_poll_wait_seconds=0,
        monitoring_config_file=monitoring,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def impatient(server):
    """REST on the manager of `server` that waits 0.2 s for a slow client: (host, port)."""
    limits = ConnectionLimits(interval=0.2, progress_bytes=100)
    rest = RestServer(server.manager, server.options, limits)
    yield "127.0.0.1", rest.port
    rest.stop(0.5)


@pytest.fixture(autouse=True)
def nothing_failed(caplog):
    """No request may end in an exception that the server did not foresee."""
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


def assert_serves(client, seconds=5):
    """Both APIs answer."""
    assert client.half([2], timeout=seconds) == [4]
    assert client.post("half:predict", {"instances": [2]}) == (200, {"predictions": [4]})


def refusal(call, *arguments, **keywords):
    """Returns (code, details) of the error that a gRPC call must raise."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.code(), caught.value.details()


@contextlib.contextmanager
def memory_growth_below(megabytes):
    """The process, which is both client and server, never grows by more inside the block."""
    done = threading.Event()
    before = peak = resident()

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert peak - before < megabytes * MEGABYTE


def resident():
    """Bytes of memory of this process, 0 where the system does not say."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


# ---------------------------------------------------------------- large requests


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_rest_body_is_answered(client, chunked):
    padding = b" " * MEGABYTE
    parts = [b'{"instances": [2]', *[padding] * (LARGE // MEGABYTE), b"}"]
    with memory_growth_below(7 * 100):
        body = iter(parts) if chunked else b"".join(parts)
        status, _, text = client.http("POST", "/v1/models/half:predict", body)
    assert (status, json.loads(text)) == (200, {"predictions": [4]})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused_without_being_kept(base_paths, connect, chunked):
    with ModelServer(
        "half", base_paths["half"], grpc_port=None, rest_port=0, max_body_bytes=MEGABYTE
    ) as server:
        padding = b" " * MEGABYTE
        headers = {} if chunked else {"Content-Length": str(LARGE)}
        with memory_growth_below(50):
            connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
            connection.request("POST", "/v1/models/half:predict",
                               (padding for _ in range(LARGE // MEGABYTE)), headers)  # fmt: skip
            response = connection.getresponse()
            assert response.status == 429
            assert json.loads(response.read()) == {"error": "The request body is too large"}
            connection.close()


@pytest.mark.parametrize("as_content", [False, True])
def test_a_large_tensor_over_grpc_is_answered(client, as_content):
    a = to_proto(np.ones([LARGE // 8, 2], np.float32), types_pb2.DT_FLOAT, as_content)
    with memory_growth_below(10 * 100):
        response = client.predict("pair", {"a": a, "b": np.int32([21])}, ["double"])
    assert list(response.outputs["double"].int_val) == [42]


def test_a_gzip_bomb_is_bounded(client):
    bomb = gzip.compress(bytes(300 * 2**20), 1)
    assert len(bomb) < 2 * MEGABYTE
    with memory_growth_below(250):
        status, _, text = client.http(
            "POST", "/v1/models/half:predict", bomb, {"Content-Encoding": "gzip"}
        )
    assert (status, json.loads(text)) == (429, {"error": "The request body is too large"})


def test_a_grpc_bomb_is_bounded(base_paths):
    """The limit on messages holds for what comes out of the compression."""
    arguments = f"grpc.max_receive_message_length={MEGABYTE}"
    with ModelServer("half", base_paths["half"], grpc_port=0, rest_port=None,
                     grpc_channel_arguments=arguments) as server:  # fmt: skip
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "half"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros(10 * MEGABYTE, np.float32)))
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            code, _ = refusal(predict, request, compression=grpc.Compression.Gzip, timeout=10)
    assert code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("model", "alias", "dtype", "values"),
    [
        ("half", "x", types_pb2.DT_FLOAT, {}),
        ("half", "x", types_pb2.DT_FLOAT, {"float_val": [1.0]}),
        ("text", "image_bytes", types_pb2.DT_STRING, {"string_val": [b"a"]}),
        ("text", "image_bytes", types_pb2.DT_STRING, {"tensor_content": b"\x81" * MEGABYTE}),
    ],
)  # fmt: skip
def test_a_small_message_cannot_ask_for_much_memory_or_time(client, model, alias, dtype, values):
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    proto.tensor_shape.dim.add(size=100 * MEGABYTE)
    with memory_growth_below(100):
        code, details = refusal(client.predict, model, {alias: proto}, timeout=5)
    assert (code, details) == (Code.INVALID_ARGUMENT, f"tensor parsing error: {alias}")


# ---------------------------------------------------------------- many, slow and vanishing clients


def test_idle_connections_hold_nobody_up(server, client):
    """1,000 TCP connections, half of them within a request, and 200 gRPC channels."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, files // 4)
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [OWN_CONNECTION])
        for _ in range(min(200, count // 5))
    ]
    sockets = []
    try:
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=10)
        for index in range(count):
            sockets.append(socket.create_connection(("127.0.0.1", server.rest_port)))
            if index % 2:
                sockets[-1].sendall(HEAD)
        assert_serves(client)
    finally:
        for connection in [*sockets, *channels]:
            connection.close()
    assert_serves(client)


def drip(address, data):
    """Sends a byte every 50 ms until the server ends it; returns its answer."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.settimeout(0.05)
        received = b""
        for byte in data:
            with contextlib.suppress(OSError):
                connection.sendall(bytes([byte]))
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                return received
            received += chunk
            if not chunk:
                return received
    pytest.fail("the server never lost its patience")


def test_slow_clients_are_cut_and_hold_nobody_up(impatient, client):
    head, body = HEAD, HEAD + b"Content-Length: 100\r\n\r\n"
    with concurrent.futures.ThreadPoolExecutor(3 * THREADS) as pool:
        slow = [pool.submit(drip, impatient, head) for _ in range(THREADS)]
        with socket.create_connection(impatient) as started:
            started.sendall(body)
            slow += [pool.submit(drip, impatient, body + b" " * 100) for _ in range(THREADS)]
            assert_serves(client)
        answers = [future.result() for future in slow]
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout")


def test_slow_grpc_clients_hold_nobody_up(server, client):
    """More of them than there are threads to work have sent no byte of their message."""
    never = threading.Event()

    def message():
        never.wait()
        yield from ()

    channels = [
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [OWN_CONNECTION])
        for _ in range(2 * THREADS)
    ]
    try:
        calls = [channel.stream_unary(PREDICT).future(message()) for channel in channels]
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=10)
        time.sleep(0.2)
        assert not any(call.done() for call in calls)
        assert_serves(client)
    finally:
        never.set()
        for channel in channels:
            channel.close()


def test_a_client_that_never_reads_its_answer_is_cut(impatient, client):
    text = "a" * (8 * MEGABYTE)
    body = json.dumps({"instances": [text]}).encode()
    head = b"POST /v1/models/text:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        connection.connect(impatient)
        connection.sendall(head % len(body) + body)
        assert_serves(client)
        time.sleep(1.0)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(MEGABYTE):
                received += len(chunk)
    assert received < 2 * len(text)  # of at least twice the text: it comes back in two outputs


def reset(connection):
    """Closes a TCP connection as a crash does: with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_vanish_leave_no_trace(server, client):
    sleep = b'{"signature_name": "sleep", "inputs": [0.05]}'
    echo = json.dumps({"instances": ["a" * MEGABYTE]}).encode()
    requests = [
        HEAD[:9],
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n{",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(sleep) + sleep,
        HEAD.replace(b"half", b"text") + b"Content-Length: %d\r\n\r\n" % len(echo) + echo,
    ]
    for _ in range(5):
        for request in requests:
            connection = socket.create_connection(("127.0.0.1", server.rest_port))
            connection.sendall(request)
            time.sleep(0.01)
            reset(connection)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for start in (preface[:9], preface + b"\0\0\x12\x04", b"?" * 99):
            connection = socket.create_connection(("127.0.0.1", server.grpc_port))
            connection.sendall(start)
            reset(connection)
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "half", "sleep"
    request.inputs["seconds"].CopyFrom(tf.make_tensor_proto(np.float64([0.2])))
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [OWN_CONNECTION])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    calls = [stub.Predict.future(request) for _ in range(2 * THREADS)]
    time.sleep(0.05)
    channel.close()
    assert {call.code() for call in calls} <= {Code.CANCELLED, Code.OK}
    assert calls[-1].code() == Code.CANCELLED
    assert_serves(client)


# ---------------------------------------------------------------- names that try to be paths

NAMES = [
    "..", "../half", "../../etc", "/etc/passwd", ".", "half/1", "half\0", "\0", "half\n", " half",
    "\U0001f600" * 2500, "n" * 10_000, "%2e%2e", "C:\\half", "~", "$HOME", "-rf",
]  # fmt: skip


@pytest.fixture
def untouched_files(monkeypatch):
    """Any look at the file system is noted in this list."""
    looks = []
    for module, names in (
        (tf.io.gfile, ("isdir", "listdir", "exists", "stat", "glob")),
        (os, ("listdir", "scandir", "stat", "open")),
        (builtins, ("open",)),
    ):
        for name in names:
            original = getattr(module, name)

            def look(*arguments, original=original, **keywords):
                looks.append(arguments)
                return original(*arguments, **keywords)

            monkeypatch.setattr(module, name, look)
    return looks


def test_names_never_reach_the_file_system(client, untouched_files, assert_clean):
    for name in NAMES:
        code, details = refusal(client.predict, name, {"x": np.float32([1])}, timeout=5)
        assert code == Code.NOT_FOUND
        assert details.startswith("Servable not found for request: Latest(")
        assert len(details.encode()) <= 1024 + len("...TRUNCATED")  # it travels in a header
        quoted = urllib.parse.quote(name, safe="")
        for method, path in [("POST", f"{quoted}:predict"), ("GET", quoted),
                             ("GET", f"{quoted}/metadata")]:  # fmt: skip
            status, _, text = client.http(method, f"/v1/models/{path}", b'{"instances": [1]}')
            assert status == 404, path
            assert_clean(json.loads(text)["error"])
    assert untouched_files == []
    assert_serves(client)


@pytest.mark.parametrize(
    "path",
    ["../half:predict", "%2e%2e/half:predict", "half/../half:predict", "/etc/passwd", "",
     "half:predict?x=1", "half:predict/..", "half/versions/..:predict", "half/versions/-1:predict"],
)  # fmt: skip
def test_paths_with_tricks_are_malformed(client, path):
    status, _, text = client.http("POST", f"/v1/models/{path}", b'{"instances": [1]}')
    assert status == 400
    assert json.loads(text) == {"error": f"Malformed request: POST /v1/models/{path}"}


def test_a_model_of_any_name_stays_in_its_base_path(base_paths, connect, tmp_path):
    """The name of a configured model is no path either."""
    name = "../../etc"
    with ModelServer(name, base_paths["half"], grpc_port=0, rest_port=0) as server:
        client = connect(server)
        response = client.predict(name, {"x": np.float32([2])}, ["y"])
        assert list(response.outputs["y"].float_val) == [4]
        path = urllib.parse.quote(name, safe="")
        assert client.post(f"{path}:predict", {"instances": [2]}) == (200, {"predictions": [4]})
        client.close()


def test_names_that_are_no_utf8_do_not_break_the_metrics(client):
    for path in ("%ff", "%ed%a0%80", "a%22b%0ac"):
        assert client.http("GET", f"/v1/models/{path}")[0] == 404
    status, _, text = client.http("GET", "/monitoring/prometheus/metrics")
    assert status == 200
    assert "request_count" in text


# ---------------------------------------------------------------- load


class Load:
    """Threads that ask without a pause, half over gRPC, half over REST, and check every answer.

    Rows are random, so that an answer that belongs to someone else is seen. What a request ended
    with is counted in `outcomes`: True, a `grpc.StatusCode` or an HTTP status.
    """

    def __init__(self, grpc_port, rest_port, offsets, threads=8, models=("half", "text")):
        self._grpc_port, self._rest_port = grpc_port, rest_port
        self._offsets = offsets
        self._models = models
        self._done = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.asked, self.outcomes, self.errors = [0] * threads, [], []
        self._running = [
            self._pool.submit(self._ask, index, self._over_rest if index % 2 else self._over_grpc)
            for index in range(threads)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Lets every thread finish its request; raises what went wrong in them."""
        self._done.set()
        self._pool.shutdown()
        for future in self._running:
            future.result()
        assert len(self.outcomes) == sum(self.asked)

    def wait_for(self, count):
        """Until so many more requests were answered."""
        goal, end = len(self.outcomes) + count, time.monotonic() + 10
        while len(self.outcomes) < goal:
            assert time.monotonic() < end, "the answers stopped"
            assert not any(future.done() for future in self._running)
            time.sleep(0.005)

    def answered(self, model):
        """How many requests for a model were answered."""
        return self.outcomes.count((model, True))

    def refusals(self, model):
        """What requests for a model were refused with."""
        return {outcome for name, outcome in self.outcomes if name == model} - {True}

    def _ask(self, index, over):
        rng = np.random.default_rng(index)
        with over() as (ask, refused):
            while not self._done.is_set():
                model = self._models[rng.integers(len(self._models))]
                rows = rng.integers(0, 2**16, rng.integers(1, 5))
                self.asked[index] += 1
                outcome = ask(model, rows)
                self.outcomes.append((model, outcome))
                if outcome in refused:
                    return

    def _check(self, model, rows, answer):
        if model == "half":
            assert any(answer == [row / 2 + offset for row in rows] for offset in self._offsets)
        else:
            assert answer == [str(row) for row in rows]

    @contextlib.contextmanager
    def _over_grpc(self):
        with grpc.insecure_channel(f"127.0.0.1:{self._grpc_port}", [OWN_CONNECTION]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

            def ask(model, rows):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model
                if model == "half":
                    request.inputs["x"].CopyFrom(tf.make_tensor_proto(rows.astype(np.float32)))
                else:
                    texts = [b"%d" % row for row in rows]
                    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(texts))
                try:
                    outputs = stub.Predict(request, timeout=20).outputs
                except grpc.RpcError as error:
                    self.errors.append(error.details())
                    return error.code()
                if model == "half":
                    self._check(model, rows, list(outputs["y"].float_val))
                else:
                    self._check(model, rows, [b.decode() for b in outputs["copy"].string_val])
                return True

            yield ask, (Code.UNAVAILABLE, Code.CANCELLED)

    @contextlib.contextmanager
    def _over_rest(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._rest_port, timeout=20)

        def ask(model, rows):
            values = rows.tolist() if model == "half" else [str(row) for row in rows]
            fresh = connection.sock is None
            try:
                connection.request(
                    "POST", f"/v1/models/{model}:predict", json.dumps({"instances": values})
                )
                response = connection.getresponse()
                answer = json.loads(response.read())
            except ConnectionError:
                if not fresh:
                    raise  # no request may get lost on a connection that stands
                return 503  # nobody listens any more
            if response.status != 200:
                self.errors.append(answer["error"])
                return response.status
            predictions = answer["predictions"]
            if model == "text":
                predictions = [item["copy"] for item in predictions]
            self._check(model, rows, predictions)
            return True

        yield ask, (503,)
        connection.close()


def config_of(base_paths):
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, path in base_paths.items():
        config.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow"
        )
    return config


@pytest.mark.parametrize("batching", [False, True])
def test_swaps_and_reloads_under_load(
    base_paths, half_version, connect, tmp_path, write_config, assert_clean, batching
):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "1").symlink_to(half_version(2.0))
    models = {"half": tmp_path / "half", "text": base_paths["text"]}
    with ModelServer(
        model_config_file=write_config(tmp_path / "models.config", models),
        grpc_port=0, rest_port=0, file_system_poll_wait_seconds=0, max_num_load_retries=0,
        enable_batching=batching,
    ) as server:  # fmt: skip
        client = connect(server)

        def reload(*names):
            config = config_of({name: models[name] for name in names})
            request = model_management_pb2.ReloadConfigRequest(config=config)
            client.models.HandleReloadConfigRequest(request, timeout=20)

        with Load(server.grpc_port, server.rest_port, offsets=(2.0, 3.0)) as load:
            load.wait_for(100)
            (tmp_path / "half" / "2").symlink_to(half_version(3.0))
            server.manager.poll()
            assert client.half([0]) == [3]
            load.wait_for(100)
            (tmp_path / "half" / "3").mkdir()  # broken: the good one stays
            server.manager.poll()
            load.wait_for(100)
            assert client.half([0]) == [3]
            (tmp_path / "half" / "3").rmdir()
            for _ in range(3):
                reload("half")
                load.wait_for(50)
                reload("half", "text")
                load.wait_for(50)
            models["elsewhere"] = tmp_path / "elsewhere"
            code, details = refusal(reload, "half", "elsewhere")
            assert code == Code.INVALID_ARGUMENT
            assert_clean(details)
            load.wait_for(100)
        client.close()
    assert load.refusals("half") == set()
    assert load.refusals("text") <= {Code.NOT_FOUND, 404}
    assert load.answered("text") > 50
    for error in load.errors:
        assert error == "Servable not found for request: Latest(text)"


def test_sigterm_under_load(half_version, tmp_path, assert_clean):
    """The one test with a process: `kzoo serve` as an operator runs it."""
    arguments = ["serve", "--model_name=half", f"--model_base_path={half_version(2.0).parent}",
                 "--port=0", "--rest_api_port=0", "--embedded"]  # fmt: skip
    root = pathlib.Path(__file__).parents[2]
    with (tmp_path / "log").open("w+") as log, subprocess.Popen(
        [sys.executable, "-m", "kzoo", *arguments], stdout=subprocess.PIPE, stderr=log, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            ports = re.fullmatch(r"Serving gRPC on 127\.0\.0\.1:(\d+) and REST on .*:(\d+)\n", line)
            with Load(int(ports[1]), int(ports[2]), offsets=(2.0,), models=("half",)) as load:
                load.wait_for(200)
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=15) == 0
        finally:
            process.kill()
        rest = process.stdout.read()
        log.seek(0)
        logged = log.read()
    assert load.answered("half") > 200
    assert load.refusals("half") <= {Code.UNAVAILABLE, Code.CANCELLED, 503}
    for text in load.errors:
        assert_clean(text)
    assert "Traceback" not in rest + logged
