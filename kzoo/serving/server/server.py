"""The embedded server: models, gRPC and REST together."""

import threading

from kzoo.serving.server.batching import Batching
from kzoo.serving.server.engine import LoadedModel
from kzoo.serving.server.grpc_server import GrpcServer
from kzoo.serving.server.manager import ModelManager
from kzoo.serving.server.options import ServerOptions
from kzoo.serving.server.rest_server import RestServer
from kzoo.serving.server.session_config import session_config


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
        session_config(self.options)  # a bad file is refused here, not with the first version
        self._batching = Batching(self.options) if self.options.enable_batching else None
        self._manager = ModelManager(self.options, self._load)
        self._grpc = self._rest = None
        self._stopped = threading.Event()

    def _load(self, name, version, path):
        return LoadedModel(name, version, path, self.options, self._batching)

    @property
    def grpc_port(self):
        """The port of the gRPC API; the real one after `start`."""
        return self.options.grpc_port if self._grpc is None else self._grpc.port

    @property
    def rest_port(self):
        """The port of the REST API; the real one after `start`."""
        return self.options.rest_port if self._rest is None else self._rest.port

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
            if self.options.grpc_port is not None or self.options.grpc_socket_path:
                self._grpc = GrpcServer(self._manager, self.options)
            if self.options.rest_port is not None:
                self._rest = RestServer(self._manager, self.options)
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
        if self._batching is not None:
            self._batching.close(grace)
        self._stopped.set()

    def wait(self, timeout=None):
        """Blocks until `stop` is done; False if `timeout` seconds pass before."""
        return self._stopped.wait(timeout)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()
