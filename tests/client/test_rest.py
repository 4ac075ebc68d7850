"""What only REST has: kept-alive connections, HTTP statuses, answers that are not as expected."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from kzoo.client import DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown
from tests.client.servers import rest_server

BATCH = np.ones((2, 3), np.float32)


@pytest.fixture
def client(connect, model):
    with rest_server(model) as address, connect(address, "digits", retries=0) as client:
        yield client


@contextlib.contextmanager
def answering(*pieces, pause=0.0, received=None):
    """The address of a server that sends these bytes to its first caller and hangs up."""

    def serve():
        connection, _ = listener.accept()
        listener.close()
        with connection:
            request = connection.recv(65536)
            if received is not None:
                received.append(request)
            for piece in pieces:
                time.sleep(pause)
                with contextlib.suppress(OSError):
                    connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def http(status, body):
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_calls_share_one_connection(client, model):
    for _ in range(5):
        client.predict(BATCH)
    assert model.connections == 1


def test_reconnects_after_the_server_closed_a_kept_alive_connection(client, model):
    model.drops_connections = True
    for pause in (0.0, 0.05, 0.0):  # before and after the close has arrived
        client.predict(BATCH)
        time.sleep(pause)
    assert model.connections == 4  # metadata and three predictions, without a retry


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (http(503, b'{"error": "busy"}'), Unavailable, "busy"),
        (http(502, b"<html>bad gateway"), Unknown, "<html>bad gateway"),
        (http(418, b""), Unknown, "HTTP status 418"),
        (http(200, b"<html>hello"), Internal, "not a JSON object: <html>hello"),
        (http(200, b'{"other": 1}'), Internal, "another form than expected"),
        (http(200, b'{"model_version_status"')[:-5], Unavailable, "IncompleteRead|PayloadError"),
        (b"", Unavailable, "Disconnected|Connect call failed"),  # aiohttp asks once more
        (b"SSH-2.0\r\n", Unavailable, "SSH-2.0"),
    ],
)
def test_strange_answers_become_errors(connect, answer, error, message):
    with answering(answer) as address, connect(address, "digits", retries=0) as client:
        with pytest.raises(error, match=message):
            client.status()


def test_a_trickling_server_cannot_outlast_the_deadline(connect):
    answer = http(200, b'{"model_version_status": []}')
    pieces = [answer[:-20], *(answer[i : i + 1] for i in range(-20, -1))]
    with answering(*pieces, pause=0.05) as address, connect(address, "digits") as client:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            client.status(timeout=0.3)
        assert time.monotonic() - start < 0.6


def test_outputs_that_the_signature_lacks(client, model):
    client.metadata()
    model.signatures["serving_default"] = model.signatures["single"]
    with pytest.raises(Internal, match="another form than expected"):
        client.predict(BATCH)
    assert list(client.predict(BATCH)) == ["double"]  # with fresh metadata


def test_complex_numbers_need_grpc(client, model):
    model.signatures["single"] = ({"x": ("DT_COMPLEX64", [-1, 3])}, {"y": ("DT_FLOAT", [-1, 3])})
    with pytest.raises(Unimplemented, match="use gRPC"):
        client.predict(BATCH, "single")


def test_path_before_the_api(connect):
    body = b'{"model_version_status": [{"version": "7", "state": "AVAILABLE"}]}'
    received = []
    with answering(http(200, body), received=received) as address:
        with connect(f"{address}/gate/", "m") as client:
            assert client.status()[0].version == 7
    assert received[0].startswith(b"GET /gate/v1/models/m HTTP/1.1")


def test_large_bodies(client):
    batch = np.ones((75_000, 3), np.float32)  # more than 1 MB of JSON
    np.testing.assert_array_equal(client.predict(batch, "single")["double"], 2 * batch)
