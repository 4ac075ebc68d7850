"""Starts a server in the foreground: TensorFlow Serving where it is installed, else the embedded.

The arguments carry the names of TensorFlow Serving's own flags.
"""

import contextlib
import dataclasses
import gc
import importlib.metadata
import logging
import os
import shutil
import signal
import subprocess
import threading

import tensorflow as tf

from kzoo.serving.server import flags as command_line_flags
from kzoo.serving.server import options as server_options
from kzoo.serving.server.errors import ServingError
from kzoo.serving.server.server import ModelServer

log = logging.getLogger(__name__)

BINARY = "tensorflow_model_server"
FAILED = 255
_REST_PORT = 8501
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Terminated(BaseException):
    """A signal arrived while the server was starting."""


def main(arguments):
    """Runs `kzoo serve`.

    Args:
        arguments: the command line after `kzoo serve`.

    Returns:
        The exit code, as `run`.
    """
    flags = command_line_flags.parse(arguments)
    if flags.pop("version", False):
        print(f"TensorFlow ModelServer: kzoo {importlib.metadata.version('kzoo')} (embedded)")
        print(f"TensorFlow Library: {tf.__version__}")
        return 0
    return run(**flags)


def run(embedded: bool = False, grace: float = 5.0, **flags) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        embedded: the embedded server even where TensorFlow Serving is installed.
        grace: seconds that running requests of the embedded server have to finish after the
            signal.
        flags: TensorFlow Serving's flags under their names there, and what only the embedded
            server has; see `ServerOptions`. The base path is made absolute here; REST is on port
            8501 unless it is said otherwise; `port=0, rest_api_port=0` picks two free ports.

    Returns:
        The exit code: 0 after a signal, 255 if the server could not start. TensorFlow Serving
        itself dies of the signal, which a shell reports as 143 or 130; here requests finish first.
    """
    fields = dataclasses.fields(server_options.ServerOptions)
    known = {server_options.flag_name(field): field for field in fields}
    if unknown := flags.keys() - known.keys():
        raise TypeError(f"run() got unknown flags: {', '.join(sorted(unknown))}")
    binary = None if embedded else shutil.which(BINARY)
    if binary is None:
        return _run_embedded(grace, flags)
    for name in [name for name in flags if known[name].metadata.get("embedded")]:
        log.warning("--%s=%s is not handed on: %s has no such flag", name, flags.pop(name), BINARY)
    command = command_line(binary, flags)
    log.info("Starting %s", " ".join(command))
    log.warning("TensorFlow Serving listens on every address of this machine.")
    return _run_binary(command)


def command_line(binary, flags):
    """Returns the command that starts TensorFlow Serving with the same meaning."""
    flags = {"rest_api_port": _REST_PORT, **flags}
    base_path = flags.get("model_base_path")
    if base_path and "://" not in os.fspath(base_path):
        flags["model_base_path"] = os.path.abspath(base_path)
    return [
        binary,
        *(f"--{name}={_as_text(value)}" for name, value in flags.items() if value is not None),
    ]


def _as_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    # The only number that may have decimals here and not there: seconds between looks.
    return str(max(1, round(value)) if isinstance(value, float) and value > 0 else value)


def _run_binary(command):
    with subprocess.Popen(command) as process:
        stopped = threading.Event()

        def stop(*_):
            stopped.set()
            process.terminate()

        with _on_signal(stop):
            code = process.wait()
    return 0 if stopped.is_set() else code


def _run_embedded(grace, flags):
    stopped, started = threading.Event(), threading.Event()

    def stop(*_):
        stopped.set()
        if not started.is_set():
            raise _Terminated

    with _on_signal(stop):
        try:
            server = ModelServer(**server_options.from_flags(flags))
            server.start()
            started.set()
            # What is there now stays. Without this, the lists of a large JSON request make the
            # garbage collector go through all of TensorFlow's objects again and again.
            gc.collect()
            gc.freeze()
        except ServingError as error:
            print(f"Failed to start server. Error: {error}", flush=True)
            return FAILED
        except _Terminated:
            return 0
        print(_greeting(server, server.options), flush=True)
        stopped.wait()
        server.stop(grace)
    return 0


def _greeting(server, options):
    host = f"[{options.host}]" if ":" in options.host else options.host
    places = [f"gRPC on unix:{options.grpc_socket_path}"] if options.grpc_socket_path else []
    if server.grpc_port is not None:
        places.append(f"gRPC on {host}:{server.grpc_port}")
    if server.rest_port is not None:
        places.append(f"REST on {host}:{server.rest_port}")
    reach = "\nOnly this machine can reach it; --host=0.0.0.0 opens it to others."
    return f"Serving {' and '.join(places)}{reach if options.host in _LOOPBACK else ''}"


@contextlib.contextmanager
def _on_signal(handler):
    """SIGTERM and SIGINT call `handler` inside the block."""
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
