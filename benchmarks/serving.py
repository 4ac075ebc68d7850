"""The embedded server under load: requests per second and latencies over gRPC and REST.

A multilayer perceptron of 16 features and a small CNN for 28x28 images, their predictions and
explanations; 1, 8 and 32 clients in this process, the server in another, on the same cores. Two
limits stand beside it: the same signature called in process, and an echo service that decodes
nothing, on the same gRPC and HTTP libraries. Where `tensorflow_model_server` is on the PATH it is
measured as well.
"""

import concurrent.futures
import contextlib
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.report import main
from kzoo.client import Client
from kzoo.client.load import closed_loop, open_loop

_SHAPES = {"mlp": (16,), "cnn": (28, 28, 1)}
_BATCHING = """
max_batch_size { value: 32 } batch_timeout_micros { value: 0 } num_batch_threads { value: 2 }
max_enqueued_batches { value: 100 }
"""


def measure(options, report):
    seconds = options.pick(4.0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        _export_models(folder)
        config = _write_configs(folder)
        with _servers(folder, config) as servers:
            _measure_mlp(servers, seconds, report)
            _measure_cnn(servers, folder, seconds, report)
            _measure_latency(servers, seconds, report)
            _measure_memory(servers, options.pick(100_000, 500), report)


def _measure_mlp(servers, seconds, report):
    for api in ("gRPC", "REST"):
        for clients in (1, 8, 32):
            rates = {
                name: _rate(server, api, "mlp", 1, clients, seconds)
                for name, server in servers.items()
                if name not in ("threads", "batching")
            }
            _say(report, f"MLP, batch 1, {api}, {clients} clients", rates)
            goal = 0.8 if clients == 32 else None
            report.add_ratio(
                f"MLP, batch 1, {api}, {clients} clients: requests over the echo's",
                rates["kzoo"] / rates["echo"],
                at_least=goal,
            )
            _against_real(report, f"MLP, batch 1, {api}, {clients} clients", rates)


def _measure_cnn(servers, folder, seconds, report):
    signatures = ("serving_default", "explain_saliency", "explain_integrated_gradients")
    for signature in signatures:
        in_process = _in_process_rate(folder / "cnn" / "1", signature, seconds)
        for api in ("gRPC", "REST"):
            rates = {
                name: 32 * _rate(server, api, "cnn", 32, 8, seconds, signature)
                for name, server in servers.items()
                if name not in ("threads", "batching", "echo")
            }
            what = f"CNN, {signature}, batch 32, {api}, 8 clients"
            _say(report, f"{what}: rows", {**rates, "in process": in_process})
            goal = 0.9 if api == "gRPC" and signature == "serving_default" else None
            report.add_ratio(
                f"{what}: rows over those in process", rates["kzoo"] / in_process, at_least=goal
            )
            _against_real(report, what, rates)
    for api in ("gRPC", "REST"):
        rates = {
            name: _rate(servers[name], api, "cnn", 1, 32, seconds)
            for name in ("kzoo", "threads", "batching")
        }
        _say(report, f"CNN, single rows, {api}, 32 clients", rates)
        report.add_ratio(
            f"CNN, single rows, {api}, 32 clients: with batching over without",
            rates["batching"] / max(rates["kzoo"], rates["threads"]),
            at_least=1.5,
        )


def _measure_latency(servers, seconds, report):
    for model in ("mlp", "cnn"):
        full = _rate(servers["kzoo"], "gRPC", model, 1, 32, seconds)
        with Client(servers["kzoo"].address("gRPC"), model) as client:
            load = open_loop(client, _inputs(model, 1), 0.7 * full, seconds=2 * seconds)
        p50, p99 = load.percentile(50), load.percentile(99)
        report.add_fact(
            f"{model} at 70 % load ({0.7 * full:.0f} requests/s)",
            f"p50 {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms, {sum(load.errors.values())} errors",
        )
        report.add_ratio(f"{model}, gRPC, at 70 % load: p99 over p50", p99 / p50, at_most=5)


def _measure_memory(servers, requests, report):
    """What the server has grown by over the second half of `requests`."""
    server, sizes, sent = servers["kzoo"], [], 0
    with Client(server.address("gRPC"), "mlp") as client:
        while sent < requests:
            load = closed_loop(
                client, _inputs("mlp", 1), clients=8, seconds=2.0 if requests > 1000 else 0.2
            )
            sent += len(load.latencies)
            sizes.append((sent, server.resident_mebibytes()))
    half = next(size for count, size in sizes if count >= requests / 2)
    report.add_fact(
        f"MiB of the server, up to {sent} requests",
        [round(size) for _, size in sizes[:: len(sizes) // 8 or 1]],
    )
    report.add_ratio(
        "memory after all requests over that after half", sizes[-1][1] / half, at_most=1.01
    )


def _rate(server, api, model, rows, clients, seconds, signature="serving_default"):
    """Requests per second of a closed loop."""
    if server.is_echo:
        # The request is the real one; what comes back is as long as a real answer.
        load = closed_loop(
            _Recorded(server, api, model, rows), None, clients=clients, seconds=seconds
        )
    else:
        with Client(server.address(api), model) as client:
            inputs = _inputs(model, rows, client.metadata()[signature].inputs)
            load = closed_loop(client, inputs, signature, clients, seconds)
    if load.errors:
        raise RuntimeError(f"{model} over {api}: {dict(load.errors)}")
    return load.rate


class _Recorded:
    """The encoded request for another server, with the echo's address."""

    def __init__(self, echo, api, model, rows):
        with Client(echo.model_server.address(api), model) as client:
            url, self._body = client.encode(_inputs(model, rows))
        address = echo.address(api)
        self._url = f"grpc://{address}" if api == "gRPC" else address + url[url.index("/v1") :]

    def encode(self, inputs, signature_name):
        return self._url, self._body


def _in_process_rate(path, signature, seconds):
    """Rows per second of the signature in a plain session here, best of one and two threads."""
    from kzoo.serving.server.engine import LoadedModel
    from kzoo.serving.server.options import ServerOptions

    model = LoadedModel("cnn", 1, str(path), ServerOptions(base_path=str(path.parent)))
    inputs = _inputs("cnn", 32, model.signatures[signature].inputs)
    model.predict(signature, inputs)

    def loop():
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            model.predict(signature, inputs)
            count += 1
        return count

    rates = []
    for threads in (1, 2):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            calls = sum(future.result() for future in [pool.submit(loop) for _ in range(threads)])
            rates.append(32 * calls / (time.perf_counter() - start))
    return max(rates)


def _inputs(model, rows, names=("inputs",)):
    """{name: array}; an explanation's target and number of steps are left to it."""
    values = np.random.default_rng(0).random((rows, *_SHAPES[model]), np.float32)
    return {name: values if name == "inputs" else np.full(rows, -1, np.int32) for name in names}


def _say(report, what, rates):
    report.add_fact(what, ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()))


def _against_real(report, what, rates):
    if "tensorflow_model_server" in rates:
        report.add_ratio(
            f"{what}: over tensorflow_model_server",
            rates["kzoo"] / rates["tensorflow_model_server"],
        )


class _Server:
    """A server process.

    Args:
        command: its command line; it prints two ports, unless they are given.
        ports: of gRPC and REST.
        model_server: for an echo, the server whose requests it gets.
    """

    def __init__(self, command, ports=None, model_server=None):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._ports = ports or re.findall(r":(\d+)", self._process.stdout.readline())
        if len(self._ports) != 2:
            raise RuntimeError(f"{' '.join(command)} did not start")
        self.model_server = model_server
        self.is_echo = model_server is not None

    def address(self, api):
        grpc_port, rest_port = self._ports
        return f"127.0.0.1:{grpc_port}" if api == "gRPC" else f"http://127.0.0.1:{rest_port}"

    def resident_mebibytes(self):
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def stop(self):
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _servers(folder, config):
    kzoo = [
        *(sys.executable, "-c", "import kzoo.cli; kzoo.cli.main()", "serve", "--embedded"),
        *("--port=0", "--rest_api_port=0", f"--model_config_file={config}"),
    ]
    batching = f"--batching_parameters_file={folder / 'batching.config'}"
    # A batch holds no more requests than there are threads that wait for it.
    threads = ["--grpc_max_threads=40", "--rest_api_num_threads=40"]
    servers = {}
    try:
        servers["kzoo"] = _Server(kzoo)
        servers["threads"] = _Server([*kzoo, *threads])
        servers["batching"] = _Server([*kzoo, *threads, "--enable_batching", batching])
        echo = [sys.executable, "-m", "benchmarks.serving_echo", "300"]
        servers["echo"] = _Server(echo, model_server=servers["kzoo"])
        binary = shutil.which("tensorflow_model_server")
        if binary:
            ports = _free_ports()
            flags = [
                f"--port={ports[0]}",
                f"--rest_api_port={ports[1]}",
                f"--model_config_file={config}",
            ]
            servers["tensorflow_model_server"] = _Server([binary, *flags], ports)
            with Client(servers["tensorflow_model_server"].address("gRPC"), "mlp") as client:
                client.wait_ready()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def _free_ports():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return one.getsockname()[1], two.getsockname()[1]


def _write_configs(folder):
    (folder / "batching.config").write_text(_BATCHING)
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}\n'
        for name in ("mlp", "cnn")
    )
    config = folder / "models.config"
    config.write_text(f"model_config_list {{\n{models}}}\n")
    return str(config)


def _export_models(folder):
    import keras

    from kzoo.serving.export import export

    keras.utils.set_random_seed(0)
    layers = keras.layers
    mlp = [layers.Dense(64, "relu"), layers.Dense(64, "relu")]
    cnn = [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
    ]
    for name, body in {"mlp": mlp, "cnn": cnn}.items():
        inputs = keras.Input(_SHAPES[name], name="inputs")
        model = keras.Sequential([inputs, *body, layers.Dense(10, "softmax")])
        export(model, folder / name, ["saliency", "integrated_gradients"])


if __name__ == "__main__":
    main("serving", "Serving", measure, __doc__)
