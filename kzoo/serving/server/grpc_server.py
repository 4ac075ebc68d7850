"""The gRPC side of the server: ports and sockets, TLS, limits, the health service."""

import logging
import os
import re
import threading

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from kzoo.serving.server import metrics
from kzoo.serving.server.errors import Code, ServingError, invalid_argument
from kzoo.serving.server.grpc_service import ModelService, PredictionService
from kzoo.serving.server.patient_pool import PatientPool
from kzoo.serving.server.tls import server_credentials

log = logging.getLogger(__name__)

_INT32_MAX = 2**31 - 1
_THREADS = 4 * (os.cpu_count() or 1)
_CHANNEL_ARGUMENTS = {
    "grpc.max_send_message_length": _INT32_MAX,
    "grpc.max_receive_message_length": _INT32_MAX,
    "grpc.so_reuseport": 0,  # a second server on the port must fail, not share it
}
_HEALTH_SERVICES = ("ModelService", "PredictionService")


class GrpcServer:
    """TensorFlow Serving's gRPC services on a TCP port, a UNIX socket or both.

    Args:
        manager: `ModelManager`.
        options: `ServerOptions`.

    Raises:
        ServingError: an option is invalid, or a port or socket cannot be opened.
    """

    def __init__(self, manager, options):
        self._options = options
        self._credentials = (
            server_credentials(options.ssl_config_file) if options.ssl_config_file else None
        )
        limit = options.grpc_max_threads or options.max_concurrent_requests
        threads = options.grpc_max_threads or _THREADS
        turns = threading.BoundedSemaphore(threads)  # of work; others wait for slow clients
        self._server = grpc.server(
            PatientPool(threads, limit, "kzoo-grpc"),
            options={
                **_CHANNEL_ARGUMENTS,
                **dict(channel_arguments(options.grpc_channel_arguments or "")),
            }.items(),
            # A limit that was asked for refuses; the default one lets requests wait their turn.
            maximum_concurrent_rpcs=limit,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(manager, turns, options.enable_serialization_as_tensor_content),
            self._server,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(manager, turns, metrics.value), self._server
        )
        self._health = self._add_health() if options.enable_grpc_healthcheck_service else None
        self.port = self._open_port()
        self._open_socket()
        self._server.start()

    def stop(self, grace):
        """Takes no more requests, gives the running ones `grace` seconds.

        Returns:
            A `threading.Event`, set when the server has stopped.
        """
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        return self._server.stop(grace)

    def _add_health(self):
        servicer = health.HealthServicer()
        for service in _HEALTH_SERVICES:
            servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        return servicer

    def _open_port(self):
        if self._options.grpc_port is None:
            return None
        host = self._options.host
        host = f"[{host}]" if ":" in host else host
        port = self._listen(f"{host}:{self._options.grpc_port}")
        log.info("Running gRPC ModelServer at %s:%d ...", host, port)
        return port

    def _open_socket(self):
        path = self._options.grpc_socket_path
        if path:
            self._listen(f"unix:{path}")
            log.info("Running gRPC ModelServer at UNIX socket %s ...", path)

    def _listen(self, address):
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise ServingError(
                Code.UNAVAILABLE, f"Could not open {address} for the gRPC API: {error}"
            ) from error


def channel_arguments(text):
    """Returns the (name, value) pairs of `--grpc_channel_arguments`.

    Args:
        text: "name=value,name=value"; a value that is a 32-bit integer becomes one.

    Raises:
        ServingError: an argument without "=" or without a name.
    """
    pairs = []
    for argument in text.split(",") if text else ():
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise invalid_argument(
                f"`grpc_channel_arguments` must be name=value,name=value. Received: {text!r}"
            )
        pairs.append((name, _number_or_text(value.partition("=")[0])))
    return pairs


def _number_or_text(value):
    if re.fullmatch(r"\s*[+-]?[0-9]{1,10}\s*", value) and -_INT32_MAX <= int(value) <= _INT32_MAX:
        return int(value)
    return value
