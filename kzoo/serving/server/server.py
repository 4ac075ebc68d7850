"""The embedded server: models, gRPC and REST together."""

import concurrent.futures
import logging
import os
import socket
import threading

import grpc
import uvicorn
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from kzoo.serving.server.engine import LoadedModel
from kzoo.serving.server.errors import Code, ServingError
from kzoo.serving.server.grpc_service import ModelService, PredictionService
from kzoo.serving.server.manager import ModelManager
from kzoo.serving.server.options import ServerOptions
from kzoo.serving.server.rest_app import RestApp

log = logging.getLogger(__name__)

_INT32_MAX = 2**31 - 1
_START_SECONDS = 30.0
_THREADS = 4 * (os.cpu_count() or 1)


class ModelServer:
    """Serves SavedModels over TensorFlow Serving's gRPC and REST API, in this process.

    ```python
    with ModelServer("digits", "/models/digits", grpc_port=0, rest_port=0) as server:
        print(server.grpc_port, server.rest_port)
    ```

    Args:
        model_name: the name of the single model.
        base_path: its absolute base path, which holds one sub-directory per version.
        grpc_port, rest_port: TCP ports of the two APIs; here 0 picks a free one, None turns the
            API off.
        options: the other fields of `ServerOptions`, above all `model_config_file` instead of the
            two above.

    Raises:
        ServingError: an option or a configuration file is invalid.
    """

    def __init__(self, model_name="default", base_path=None, **options):
        self.options = ServerOptions(model_name=model_name, base_path=base_path, **options)
        self._manager = ModelManager(self.options, self._load)
        self._grpc_port = self.options.grpc_port
        self._rest_port = self.options.rest_port
        self._grpc = self._rest = None
        self._stopped = threading.Event()

    def _load(self, name, version, path):
        return LoadedModel(name, version, path, self.options)

    @property
    def grpc_port(self):
        """The port of the gRPC API; the real one after `start`."""
        return self._grpc_port

    @property
    def rest_port(self):
        """The port of the REST API; the real one after `start`."""
        return self._rest_port

    @property
    def manager(self):
        """The `ModelManager`: states of the models, and `poll` for those who cannot wait."""
        return self._manager

    def start(self):
        """Loads the models, then opens the ports.

        Raises:
            ServingError: no version of a model could be loaded, or a port is taken.
        """
        try:
            self._manager.start()
            if self._grpc_port is not None:
                self._start_grpc()
            if self._rest_port is not None:
                self._start_rest()
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def stop(self, grace=5.0):
        """Stops accepting, gives running requests `grace` seconds to finish, frees the models."""
        stopping = self._grpc.stop(grace) if self._grpc else None
        if self._rest:
            self._rest.stop(grace)
        if stopping:
            stopping.wait()
        self._manager.stop()
        self._stopped.set()

    def wait(self, timeout=None):
        """Blocks until `stop` is done; False if `timeout` seconds pass before."""
        return self._stopped.wait(timeout)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def _start_grpc(self):
        server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(
                self.options.grpc_max_threads or _THREADS, "kzoo-grpc"
            ),
            options=[
                ("grpc.max_send_message_length", _INT32_MAX),
                ("grpc.max_receive_message_length", _INT32_MAX),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
            ],
            maximum_concurrent_rpcs=self.options.max_concurrent_requests,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._manager, self.options.enable_serialization_as_tensor_content),
            server,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self._manager), server
        )
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        try:
            self._grpc_port = server.add_insecure_port(f"{host}:{self._grpc_port}")
        except RuntimeError as error:
            raise _port_taken("gRPC", self.options.host, self._grpc_port, error) from error
        server.start()
        self._grpc = server
        log.info("Running gRPC ModelServer at %s:%d ...", host, self._grpc_port)

    def _start_rest(self):
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        try:
            listener = socket.create_server((self.options.host, self._rest_port), family=family)
        except OSError as error:
            raise _port_taken("REST", self.options.host, self._rest_port, error) from error
        self._rest_port = listener.getsockname()[1]
        self._rest = _RestServer(self._manager, listener, self.options)
        log.info("Exporting HTTP/REST API at: %s:%d ...", self.options.host, self._rest_port)


class _RestServer:
    """uvicorn in a thread of its own, around the REST application."""

    def __init__(self, manager, listener, options):
        threads = options.rest_api_num_threads or _THREADS
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "kzoo-rest")
        config = uvicorn.Config(
            RestApp(manager, self._pool, options),
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="kzoo-rest", daemon=True
        )
        self._thread.start()
        self._await_started()

    def _await_started(self):
        pause = threading.Event()
        waited = 0.0
        while not self._server.started:
            if not self._thread.is_alive() or waited > _START_SECONDS:
                raise ServingError(Code.INTERNAL, "The HTTP server did not start")
            pause.wait(0.01)
            waited += 0.01

    def stop(self, grace):
        self._server.config.timeout_graceful_shutdown = grace
        self._server.should_exit = True
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _port_taken(api, host, port, error):
    return ServingError(
        Code.UNAVAILABLE, f"Could not open {host}:{port} for the {api} API: {error}"
    )
