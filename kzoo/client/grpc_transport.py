"""Calls over gRPC, blocking and asynchronous."""

import asyncio
import functools

import grpc

from kzoo.client.errors import error
from kzoo.client.grpc_requests import PREDICT

__all__ = ["CHANNEL_OPTIONS", "PREDICT", "AsyncGrpcTransport", "GrpcTransport"]

CHANNEL_OPTIONS = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # The client counts its attempts itself, and a new connection must be tried by the next one.
    "grpc.enable_retries": 0,
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 1000,
    # Straight to the server and alone, as the REST transport.
    "grpc.enable_http_proxy": 0,
    "grpc.use_local_subchannel_pool": 1,
}


class GrpcTransport:
    """A channel to a server: one connection, which all calls share.

    Args:
        address: `Address` of scheme "grpc", "grpcs" or "unix".
        tls: `Tls`; used if the address is secure, and for a UNIX socket if anything is given.
    """

    def __init__(self, address, tls):
        self._channel = _open(grpc, address.target, _credentials(address, tls))

    async def send(self, call, deadline):
        """Returns the serialized answer to a `Call`, without ever suspending."""
        try:
            return self._channel.unary_unary(call.path)(call.body, timeout=deadline.left())
        except grpc.RpcError as problem:
            raise _serving_error(problem) from None

    async def close(self):
        self._channel.close()


class AsyncGrpcTransport:
    """The same for an event loop: that of the first call."""

    def __init__(self, address, tls):
        credentials = _credentials(address, tls)
        self._open = functools.partial(_open, grpc.aio, address.target, credentials)
        self._channel = None
        self._closed = False

    async def send(self, call, deadline):
        """Returns the serialized answer to a `Call`."""
        if self._channel is None:
            self._channel = self._open()
        try:
            return await self._channel.unary_unary(call.path)(call.body, timeout=deadline.left())
        except grpc.RpcError as problem:
            raise _serving_error(problem) from None
        except asyncio.CancelledError:
            if self._closed and not asyncio.current_task().cancelling():
                raise error("CANCELLED", "The client was closed.") from None
            raise

    async def close(self):
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


def _credentials(address, tls):
    return tls.channel_credentials() if address.is_secure or tls else None


def _open(api, target, credentials):
    options = list(CHANNEL_OPTIONS.items())
    if credentials is None:
        return api.insecure_channel(target, options)
    return api.secure_channel(target, credentials, options)


def _serving_error(problem):
    return error(problem.code().name, problem.details())
