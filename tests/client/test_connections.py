"""TLS, UNIX sockets, and what becomes of connections that are closed or cancelled."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time

import grpc
import numpy as np
import pytest

from kzoo.client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Unavailable,
)
from tests.client.event_loop import wait
from tests.client.servers import grpc_server, rest_server

BATCH = np.array([[1.0, 5.0, 2.0], [0.1, 0.0, -3.0]], dtype=np.float32)


def pem(folder, name):
    return (folder / name).read_bytes()


@pytest.fixture(params=["grpc", "rest"])
def serve_tls(request, certificates):
    """serve_tls(model, mutual): a server that proves to be localhost."""
    names = ("server.key", "server.crt")

    def serve(model, mutual=False):
        if request.param == "grpc":
            pair = tuple(pem(certificates, name) for name in names)
            authority = pem(certificates, "ca.crt") if mutual else None
            return grpc_server(
                model, credentials=grpc.ssl_server_credentials([pair], authority, mutual)
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificates / "ca.crt")
        return rest_server(model, context=context)

    return serve


@pytest.mark.parametrize("read", [pem, lambda folder, name: str(folder / name)])
def test_tls(connect, serve_tls, model, certificates, read):
    trust = {"root_certificates": read(certificates, "ca.crt")}
    with serve_tls(model) as address, connect(address, "digits", **trust) as client:
        np.testing.assert_array_equal(client.predict(BATCH)["double"], 2 * BATCH)
        assert client.encode(BATCH)[0].startswith(address)


def test_an_unknown_authority_is_not_trusted(connect, serve_tls, model, certificates):
    other = {"root_certificates": pem(certificates, "client.crt")}
    with serve_tls(model) as address:
        for trust in (other, {}):
            with connect(address, "digits", retries=0, **trust) as client:
                with pytest.raises(Unavailable):
                    client.status()
    assert model.calls["status"] == 0


def test_a_server_of_another_name_is_not_trusted(connect, serve_tls, model, certificates):
    trust = {"root_certificates": pem(certificates, "ca.crt")}
    with serve_tls(model) as address:
        address = address.replace("localhost", "127.0.0.1")
        with connect(address, "digits", retries=0, **trust) as client:
            with pytest.raises(Unavailable):
                client.status()


@pytest.mark.parametrize("as_path", [False, True])
def test_mutual_tls(connect, serve_tls, model, certificates, as_path):
    def given(name):
        return certificates / name if as_path else pem(certificates, name)

    trust = {"root_certificates": given("ca.crt")}
    own = {"private_key": given("client.key"), "certificate_chain": given("client.crt")}
    with serve_tls(model, mutual=True) as address:
        with connect(address, "digits", **trust, **own) as client:
            np.testing.assert_array_equal(client.predict(BATCH)["double"], 2 * BATCH)
        with connect(address, "digits", retries=0, timeout=2.0, **trust) as client:
            with pytest.raises(Unavailable):
                client.status()


@pytest.mark.parametrize("address", ["https://localhost", "grpcs://localhost:1"])
def test_refuses_certificates_that_cannot_work(address, certificates, tmp_path):
    def refused(message, **arguments):
        with pytest.raises(ValueError, match=message) as caught:
            Client(address, "digits", **arguments)
        assert "PRIVATE" not in str(caught.value)

    key, chain = pem(certificates, "client.key"), pem(certificates, "client.crt")
    refused("`root_certificates` holds no PEM", root_certificates=b"certificate")
    refused("`root_certificates` must be PEM bytes or the path", root_certificates=tmp_path / "no")
    refused("`root_certificates` must be PEM bytes or the path", root_certificates=3)
    refused("belong together. Received: only `private_key`", private_key=key)
    refused("belong together. Received: only `certificate_chain`", certificate_chain=chain)
    refused(
        "`private_key` must be bytes or a path", private_key=key.decode(), certificate_chain=chain
    )
    other = pem(certificates, "server.key")
    refused("of one key that is not encrypted", private_key=other, certificate_chain=chain)
    refused("must be PEM, of one key", private_key=b"key", certificate_chain=chain)


@pytest.mark.parametrize("address", ["http://localhost", "localhost:1"])
def test_certificates_need_an_address_of_tls(address, certificates):
    with pytest.raises(ValueError, match="need an address of grpcs://, https:// or unix:"):
        Client(address, "digits", root_certificates=certificates / "ca.crt")


def test_unix_sockets(connect, model, tmp_path):
    path = tmp_path / "grpc.sock"
    with grpc_server(model, path=path):
        for address in (f"unix:{path}", f"unix://{path}"):
            with connect(address, "digits") as client:
                np.testing.assert_array_equal(client.predict(BATCH)["double"], 2 * BATCH)
                assert client.encode(BATCH)[0] == f"unix:{path}"
    with connect(f"unix:{tmp_path}/nobody", "digits", retries=0) as client:
        with pytest.raises(Unavailable):
            client.status()


@contextlib.contextmanager
def slow_way(address, seconds):
    """The address of a relay to a server whose answers take `seconds` to begin."""
    scheme, _, location = address.rpartition("://")

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def relay():
        near, _ = listener.accept()
        with near, socket.create_connection(location.split(":")) as far:
            threading.Thread(target=pump, args=(near, far)).start()
            time.sleep(seconds)
            pump(far, near)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=relay)
        thread.start()
        yield f"{scheme or 'grpc'}://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_slow_connection_is_one_attempt(connect, address):
    with slow_way(address, 0.3) as relay, connect(relay, "digits", retries=0) as client:
        assert client.status()[0].version == 3


def test_asynchronous_calls_run_at_the_same_time(address, model):
    model.delay = 0.2

    async def ask():
        async with AsyncClient(address, "digits") as client:
            await client.metadata()
            return await asyncio.gather(*(client.predict(n * BATCH) for n in range(5)))

    for n, result in enumerate(wait(ask())):
        np.testing.assert_array_equal(result["double"], 2 * n * BATCH)
    assert model.most_under_way == 5


def test_a_cancelled_call_leaves_the_client_usable(address, model):
    async def ask():
        async with AsyncClient(address, "digits") as client:
            await client.metadata()
            model.delay = 0.3
            other = asyncio.create_task(client.predict(3 * BATCH))
            task = asyncio.create_task(client.predict(BATCH))
            await asyncio.sleep(0.1)
            task.cancel()
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - start < 0.1
            model.delay = 0.0
            return await other, await client.predict(2 * BATCH)

    other, result = wait(ask())
    np.testing.assert_array_equal(other["double"], 6 * BATCH)
    np.testing.assert_array_equal(result["double"], 4 * BATCH)


def test_deadlines_of_calls_at_the_same_time_are_their_own(address, model):
    async def ask():
        async with AsyncClient(address, "digits") as client:
            await client.metadata()
            model.delay = 0.3
            slow, fast = client.predict(BATCH), client.predict(BATCH, timeout=0.1)
            return await asyncio.gather(slow, fast, return_exceptions=True)

    slow, fast = wait(ask())
    np.testing.assert_array_equal(slow["double"], 2 * BATCH)
    assert isinstance(fast, DeadlineExceeded)


def test_closing_ends_the_calls_under_way(address, model):
    async def ask():
        client = AsyncClient(address, "digits")
        await client.metadata()
        model.delay = 0.3
        task = asyncio.create_task(client.predict(BATCH))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(Cancelled, match="client was closed"):
            await task

    wait(ask())
