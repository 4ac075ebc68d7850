"""The HTTP side of the server: uvicorn in a thread of its own, around the REST application."""

import concurrent.futures
import functools
import os
import socket
import threading

import uvicorn

from kzoo.serving.server.errors import Code, ServingError
from kzoo.serving.server.http_protocol import ConnectionLimits, HttpProtocol
from kzoo.serving.server.rest_app import RestApp

_START_SECONDS = 30.0
_KEEP_ALIVE_SECONDS = 50  # as TensorFlow Serving's HTTP library has it
_DRAIN_SECONDS = 0.25
_BACKLOG = 1024
_THREADS = 4 * (os.cpu_count() or 1)


class RestServer:
    """TensorFlow Serving's REST API on a TCP port.

    Args:
        manager: `ModelManager`.
        options: `ServerOptions`.
        limits: `ConnectionLimits`.

    Raises:
        ServingError: an option is invalid, or the port cannot be opened.
    """

    def __init__(self, manager, options, limits=None):
        threads = options.rest_api_num_threads or _THREADS
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "kzoo-rest")
        app = RestApp(manager, self._pool, options)
        listener = _listen(options.host, options.rest_port)
        self.port = listener.getsockname()[1]
        protocol = functools.partial(
            HttpProtocol, limits=limits or ConnectionLimits(), drain_seconds=_DRAIN_SECONDS
        )
        config = uvicorn.Config(
            app,
            http=protocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            backlog=_BACKLOG,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="kzoo-rest", daemon=True
        )
        self._thread.start()
        self._await_started()

    def stop(self, grace):
        """Stops accepting; requests have `grace` seconds to finish, then they are refused."""
        self._server.config.timeout_graceful_shutdown = grace
        self._server.should_exit = True
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _await_started(self):
        pause = threading.Event()
        waited = 0.0
        while not self._server.started:
            if not self._thread.is_alive() or waited > _START_SECONDS:
                raise ServingError(Code.INTERNAL, "The HTTP server did not start")
            pause.wait(0.01)
            waited += 0.01


def _listen(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ServingError(
            Code.UNAVAILABLE, f"Could not open {host}:{port} for the REST API: {error}"
        ) from error
