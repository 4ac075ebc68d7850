"""How bytes reach the embedded server: sockets, TLS, limits on connections and time, shutdown."""

import concurrent.futures
import contextlib
import gzip
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from kzoo.serving.server import Code, ModelServer, ServingError, request_context
from kzoo.serving.server.grpc_server import channel_arguments
from kzoo.serving.server.http_protocol import ConnectionLimits
from kzoo.serving.server.rest_server import RestServer
from kzoo.serving.server.session_run import SessionRun

SLEEP = {"signature_name": "sleep"}


@pytest.fixture(scope="module")
def server(base_paths):
    """One server with all that can be switched on."""
    with ModelServer(
        "transport", base_paths["half"], grpc_port=0, rest_port=0,
        enable_grpc_healthcheck_service=True, rest_api_enable_cors_support=True,
        max_body_bytes=1_000_000,
    ) as running:  # fmt: skip
        yield running


def half(client, x, timeout=20):
    reply = client.predict("transport", {"x": np.float32(x)}, ["y"], timeout=timeout)
    return list(reply.outputs["y"].float_val)


@pytest.fixture(scope="module")
def over(connect):
    """over(channel): a client on another channel."""

    def make(channel):
        client = connect.__new__(connect)
        client.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return client

    return make


# ---------------------------------------------------------------- gRPC: sockets, TLS, options


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """{name: PEM bytes} of an authority, a server's and a client's certificate and keys."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", "csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", "csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-extfile", "names", "-out", f"{name}.crt")  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ssl_config(folder, **fields):
    """Writes an SSLConfig; returns its path."""
    path = folder / "ssl.config"
    texts = {name: json.dumps(value) for name, value in fields.items()}  # JSON's escapes are valid
    path.write_text("\n".join(f"{name}: {text}" for name, text in texts.items()))
    return path


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(base_paths, certificates, over, tmp_path, mutual):
    files = {name: data.decode() for name, data in certificates.items()}
    verify = {"custom_ca": files["ca.crt"], "client_verify": True} if mutual else {}
    path = ssl_config(
        tmp_path, server_key=files["server.key"], server_cert=files["server.crt"], **verify
    )
    own = (certificates["client.key"], certificates["client.crt"])
    anonymous = grpc.ssl_channel_credentials(certificates["ca.crt"])
    known = grpc.ssl_channel_credentials(certificates["ca.crt"], *own)
    socket_path = tmp_path / "grpc.sock"
    with ModelServer(
        "transport", base_paths["half"], grpc_port=0, rest_port=None,
        ssl_config_file=path, grpc_socket_path=str(socket_path),
    ) as server:  # fmt: skip
        address = f"localhost:{server.grpc_port}"
        with grpc.secure_channel(address, known) as channel:
            assert half(over(channel), [2]) == [4]
        same_name = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"unix:{socket_path}", known, same_name) as channel:
            assert half(over(channel), [2]) == [4]
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            half(over(channel), [2], timeout=2)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with grpc.secure_channel(address, anonymous) as channel:
            if not mutual:
                assert half(over(channel), [2]) == [4]
                return
            with pytest.raises(grpc.RpcError) as caught:
                half(over(channel), [2], timeout=2)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("server_key: 3", "Invalid protobuf file: '{path}'"),
        ("server_cert: '-----BEGIN'", "`server_key` in {path} must be PEM text"),
        ("server_key: '-----BEGIN'", "`server_cert` in {path} must be PEM text"),
        (
            "server_key: '-----BEGIN' server_cert: '-----BEGIN' client_verify: true",
            "`client_verify` in {path} needs `custom_ca`",
        ),
    ],
)
def test_a_bad_ssl_config_is_refused(base_paths, tmp_path, text, error):
    path = tmp_path / "ssl.config"
    path.write_text(text)
    server = ModelServer("transport", base_paths["half"], grpc_port=0, rest_port=None,
                         ssl_config_file=path)  # fmt: skip
    with pytest.raises(ServingError) as caught:
        server.start()
    assert (caught.value.code, caught.value.message) == (
        Code.INVALID_ARGUMENT, error.format(path=path)
    )  # fmt: skip


def test_a_unix_socket_instead_of_the_port(base_paths, over, tmp_path):
    path = tmp_path / "grpc.sock"
    with ModelServer("transport", base_paths["half"], grpc_port=None, rest_port=None,
                     grpc_socket_path=str(path)) as server:  # fmt: skip
        assert server.grpc_port is None
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert half(over(channel), [2]) == [4]


def test_channel_arguments():
    text = "grpc.max_connection_age_ms=2000,grpc.primary_user_agent=zoo,a=-1,b=99999999999,c="
    assert channel_arguments(text) == [
        ("grpc.max_connection_age_ms", 2000), ("grpc.primary_user_agent", "zoo"), ("a", -1),
        ("b", "99999999999"), ("c", ""),
    ]  # fmt: skip
    assert channel_arguments("") == []


@pytest.mark.parametrize("text", ["grpc.x", "a=1,,b=2", "=1"])
def test_bad_channel_arguments_are_refused(text):
    with pytest.raises(ServingError, match="must be name=value,name=value. Received") as caught:
        channel_arguments(text)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_channel_arguments_and_thread_limit_reach_grpc(base_paths, connect):
    with ModelServer(
        "transport", base_paths["half"], grpc_port=0, rest_port=None, grpc_max_threads=1,
        grpc_channel_arguments="grpc.max_receive_message_length=1000",
    ) as server:  # fmt: skip
        client = connect(server)
        with pytest.raises(grpc.RpcError) as caught:
            half(client, np.zeros(1000))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            seconds = {"seconds": np.float64([0.6])}
            slow = pool.submit(client.predict, "transport", seconds, **SLEEP)
            time.sleep(0.2)
            with pytest.raises(grpc.RpcError) as caught:
                half(client, [2])
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert slow.result().model_spec.version.value == 7
        assert half(client, [2]) == [4]
        client.close()


def test_health_service(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "ModelService", "PredictionService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert check(request).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_health_service_is_off_unless_asked_for(base_paths):
    with ModelServer("transport", base_paths["half"], grpc_port=0, rest_port=None) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_graph_stops_at_the_deadline(base_paths, connect):
    """A single thread serves; it would be busy for 30 s if the graph ran on."""
    with ModelServer(
        "transport", base_paths["half"], grpc_port=0, rest_port=None, grpc_max_threads=1
    ) as server:
        client = connect(server)
        half(client, [2])
        with pytest.raises(grpc.RpcError) as caught:
            client.predict("transport", {"seconds": np.float64([30])}, timeout=0.2, **SLEEP)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        answers, end = [], time.monotonic() + 5
        while not answers and time.monotonic() < end:
            with contextlib.suppress(grpc.RpcError):  # the thread is still taken
                answers = half(client, [2])
            time.sleep(0.02)
        assert answers == [4]
        client.close()


class FakeSession:
    """Notes how each run was asked for; a run takes `seconds`."""

    def __init__(self):
        self.runs, self.seconds = [], 0.0

    def _make_callable_from_options(self, options):
        def call():
            self.runs.append(options.run_options.timeout_in_ms)
            time.sleep(self.seconds)

        return call


def test_only_a_run_that_may_take_too_long_goes_through_the_pool():
    session = FakeSession()
    run = SessionRun(session, ("x",), ("y",))
    for seconds, remaining in [
        (0.02, 5.0),  # nothing is known yet: limited
        (0.02, 5.0),  # 20 ms are far less than 5 s
        (0.02, None),
        (0.02, 0.1),  # 20 ms are more than a tenth of 100 ms
        (0.0, 0.001),
    ]:
        session.seconds = seconds
        request_context.begin("Predict", remaining)
        run()
    request_context.begin("Predict", None)
    assert session.runs == [8192, 0, 0, 128, 16]


# ---------------------------------------------------------------- REST: CORS and bodies

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/transport", 200),
        ("GET", "/v1/models/none", 404),
        ("POST", "/v1/models/transport:predict", 400),
        ("OPTIONS", "/v1/models/transport:predict", 400),
    ],
)
def test_every_answer_of_the_api_has_the_cors_headers(client, method, path, status):
    got, headers, _ = client.http(method, path)
    assert got == status
    assert {name: headers[name] for name in CORS} == CORS


def test_pages_outside_of_the_api_have_no_cors_headers(client):
    _, headers, _ = client.http("GET", "/v2/models")
    assert not CORS.keys() & set(headers)


@pytest.mark.parametrize(
    ("origin", "status"), [("https://a.example", 200), ("http://a", 200), ("file://a", 400)]
)
def test_preflight(client, origin, status):
    path = "/v1/models/transport:predict"
    got, headers, body = client.http("OPTIONS", path, headers={"Origin": origin})
    assert (got, body) == (status, "")
    assert headers["Access-Control-Allow-Origin"] == "*"


def test_a_gzip_bomb_is_refused_before_it_is_inflated(client):
    bomb = gzip.compress(b" " * 2_000_000)
    assert len(bomb) < 5000
    path, headers = "/v1/models/transport:predict", {"Content-Encoding": "gzip"}
    status, _, text = client.http("POST", path, bomb, headers)
    assert (status, json.loads(text)) == (429, {"error": "The request body is too large"})
    for broken in (b"no gzip", gzip.compress(b'{"instances": [1]}')[:-9]):
        status, _, text = client.http("POST", path, broken, headers)
        assert (status, json.loads(text)) == (
            400, {"error": "JSON Parse error: The document is empty"}
        )  # fmt: skip


def test_a_large_body_is_refused_and_the_connection_survives(client):
    path = "/v1/models/transport:predict"
    status, _, text = client.http("POST", path, b" " * 1_000_001)
    assert (status, json.loads(text)) == (429, {"error": "The request body is too large"})
    status, _, text = client.http("POST", path, iter([b" " * 600_000] * 2))  # chunked
    assert status == 429


def test_version_numbers_beyond_int64(client):
    digits = "9" * 5000
    status, answer = client.get(f"/transport/versions/{digits}")
    assert status == 400
    assert answer == {"error": f"Failed to convert version: {digits} to numeric."}
    assert client.get("/transport/versions/000000000000000000000000007")[0] == 200


# ---------------------------------------------------------------- REST: connections


@pytest.fixture(scope="module")
def limited(server):
    """REST with tight limits on the manager of `server`: (host, port)."""
    limits = ConnectionLimits(connections=4, head_bytes=2000, interval=0.2, progress_bytes=100)
    rest = RestServer(server.manager, server.options, limits)
    yield "127.0.0.1", rest.port
    rest.stop(0.5)


def ask(address, *parts, pause=0.0):
    """Sends the parts, returns all that comes until the server closes, at most 3 seconds long."""
    with socket.create_connection(address, timeout=3) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
        return received


HEAD = b"POST /v1/models/transport:predict HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"\x16\x03\x01 no HTTP\r\n\r\n"], b"400 Bad Request"),
        ([HEAD + b"X: " + b"a" * 5000], b"431 Request Header Fields Too Large"),
        ([HEAD, *[b"X: a\r\n" * 100] * 5], b"431 Request Header Fields Too Large"),
        ([HEAD], b"408 Request Timeout"),
        ([HEAD + b"Content-Length: 9\r\n\r\n", b"{"], b"408 Request Timeout"),
        ([], b"408 Request Timeout"),
    ],
)
def test_what_never_becomes_a_request_is_ended(limited, parts, status):
    answer = ask(limited, *parts)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"<TITLE>" + status + b"</TITLE>" in answer


def test_a_steady_client_may_take_its_time(limited):
    body = b'{"instances": [2' + b" " * 1500 + b"]}"
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    parts = [head, *(body[start : start + 200] for start in range(0, len(body), 200))]
    answer = ask(limited, *parts, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"predictions": [4.0]}


def test_a_slow_answer_is_waited_for(limited):
    body = b'{"signature_name": "sleep", "inputs": [0.8]}'
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert ask(limited, head + body).startswith(b"HTTP/1.1 200 OK")


def test_connections_beyond_the_limit_are_refused(limited):
    connections = [socket.create_connection(limited) for _ in range(4)]
    time.sleep(0.05)
    try:
        assert ask(limited).startswith(b"HTTP/1.1 503 Service Unavailable")
    finally:
        for connection in connections:
            connection.close()
    time.sleep(0.05)
    assert ask(limited, b"GET /v1/models/transport HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_thousand_idle_connections(server, client):
    address = ("127.0.0.1", server.rest_port)
    connections = [socket.create_connection(address) for _ in range(1000)]
    try:
        assert client.post("transport:predict", {"instances": [2]}) == (200, {"predictions": [4]})
        assert half(client, [2]) == [4]
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_vanishes_leaves_no_trace(server, client, caplog):
    address = ("127.0.0.1", server.rest_port)
    body = b'{"signature_name": "sleep", "inputs": [0.3]}'
    head = HEAD + b"Content-Length: 44\r\n\r\n"
    for sent in (HEAD, head, head + body):
        with socket.create_connection(address) as connection:
            connection.sendall(sent)
            time.sleep(0.05)
    assert client.post("transport:predict", {"instances": [2]}) == (200, {"predictions": [4]})
    assert not [record for record in caplog.records if record.exc_info]


# ---------------------------------------------------------------- shutdown


def test_stop_under_load_answers_or_refuses_everything(base_paths, connect):
    server = ModelServer("transport", base_paths["half"], grpc_port=0, rest_port=0).start()
    client, outcomes = connect(server), []

    def load_grpc():
        while True:
            try:
                outcomes.append(half(client, [2]))
            except grpc.RpcError as error:
                outcomes.append(error.code())
                return

    def load_rest():
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=5)
        with contextlib.closing(connection):
            while True:
                connection.request("POST", "/v1/models/transport:predict", '{"instances": [2]}')
                answer = connection.getresponse()
                outcomes.append((answer.status, json.load(answer)))
                if answer.will_close:
                    return

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(load) for load in [load_grpc, load_rest] * 3]
        time.sleep(0.4)
        server.stop(grace=5)
        for load in loads:
            load.result()
    client.close()
    codes = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    answered = 200, {"predictions": [4.0]}
    refused = [outcome for outcome in outcomes if outcome not in ([4.0], answered)]
    assert len(refused) == 3
    assert codes.issuperset(refused)
    assert outcomes.count(answered) > 3


def test_rest_requests_beyond_the_grace_are_refused_with_their_code(base_paths, connect):
    server = ModelServer("transport", base_paths["half"], grpc_port=None, rest_port=0).start()
    address = ("127.0.0.1", server.rest_port)
    body = b'{"signature_name": "sleep", "inputs": [1.5]}'
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, address, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)
        stopped = threading.Thread(target=server.stop, args=(0.2,))
        stopped.start()
        answer = slow.result()
        stopped.join()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "The server is shutting down"}
