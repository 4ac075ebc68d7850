"""The settings of a server: TensorFlow Serving's command-line flags, with its names and meaning.

Each is declared once, here: `ModelServer` takes them by name, `kzoo serve` offers them as flags,
and they are handed on to `tensorflow_model_server` where that runs instead of the embedded server.
"""

import dataclasses

from kzoo.serving.server.errors import invalid_argument

_MAX_PORT = 65535


def _option(default, text, flag=None, **metadata):
    return dataclasses.field(default=default, metadata={"help": text, "flag": flag, **metadata})


def _embedded(default, text):
    """An option that TensorFlow Serving does not have."""
    return _option(default, text, embedded=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a server serves, and how.

    A field's metadata holds its `help`, the `flag` where that is not the field's name, and
    `embedded` for what TensorFlow Serving does not have.

    Raises:
        ServingError: a value is outside of its range, or two values exclude each other.
    """

    model_name: str = _option("default", "Name of the single model.")
    base_path: str | None = _option(
        None, "Its base path, one folder per version.", flag="model_base_path"
    )
    model_config_file: str | None = _option(
        None, "A ModelServerConfig in text format, for several models; instead of the two above."
    )
    model_config_file_poll_wait_seconds: int = _option(
        0, "Seconds between readings of the config file; 0 reads it once."
    )
    file_system_poll_wait_seconds: float = _option(
        1, "Seconds between looks for new versions; 0 looks once, below 0 never."
    )
    allow_version_labels_for_unavailable_models: bool = _option(
        False, "Accept new version labels of versions that are not loaded yet."
    )
    saved_model_tags: str = _option("serve", "Tags of the meta graph to load, with commas.")
    max_num_load_retries: int = _option(5, "Further attempts after a load that failed.")
    load_retry_interval_micros: int = _option(
        60_000_000, "Microseconds between the attempts; below 0 without a pause."
    )
    num_load_threads: int = _option(0, "Threads that load versions; 0 loads one after another.")
    num_unload_threads: int = _option(0, "Threads that unload versions; 0 for one after another.")
    enable_model_warmup: bool = _option(True, "Replay the warm-up requests of a SavedModel.")
    num_request_iterations_for_warmup: int = _option(1, "How often each of them is replayed.")
    enable_signature_method_name_check: bool = _option(
        False, "Classify and Regress only signatures whose method name says so."
    )

    enable_batching: bool = _option(False, "Merge concurrent requests into batches.")
    batching_parameters_file: str | None = _option(
        None, "BatchingParameters in text format; needs --enable_batching."
    )
    enable_per_model_batching_parameters: bool = _option(
        False, "Read batching_params.pbtxt in the version's folder."
    )

    host: str = _embedded("127.0.0.1", "Address to listen on.")
    grpc_port: int | None = _option(8500, "gRPC port; 0 turns gRPC off.", flag="port")
    grpc_socket_path: str | None = _option(None, "UNIX socket for gRPC, besides the port.")
    ssl_config_file: str | None = _option(None, "SSLConfig in text format: gRPC over TLS.")
    grpc_channel_arguments: str | None = _option(None, "gRPC settings: name=value,name=value.")
    grpc_max_threads: int | None = _option(None, "gRPC threads; four per CPU unless set.")
    enable_grpc_healthcheck_service: bool = _option(False, "Answer gRPC's health service.")
    enable_serialization_as_tensor_content: bool = _option(
        False, "Answer Predict in `tensor_content` instead of `float_val` and its like."
    )
    rest_port: int | None = _option(8501, "REST port; 0 turns REST off.", flag="rest_api_port")
    rest_api_num_threads: int | None = _option(None, "REST threads; four per CPU unless set.")
    rest_api_timeout_in_ms: int = _option(30_000, "A REST request is given up after this time.")
    rest_api_enable_cors_support: bool = _option(
        False, "Let pages of other origins use the REST API."
    )
    monitoring_config_file: str | None = _option(
        None, "MonitoringConfig in text format: Prometheus metrics on the REST port."
    )
    max_concurrent_requests: int = _embedded(
        1024, "Requests of each API beyond this number are refused."
    )
    max_body_bytes: int = _embedded(2**31 - 1, "The largest REST body, inflated.")

    tensorflow_session_parallelism: int = _option(0, "Threads of a session, of both kinds.")
    tensorflow_intra_op_parallelism: int = _option(0, "Threads inside an operation.")
    tensorflow_inter_op_parallelism: int = _option(0, "Operations that run at once.")
    tensorflow_session_config_file: str | None = _option(None, "ConfigProto in text format.")
    per_process_gpu_memory_fraction: float = _option(0.0, "Share of the GPU's memory.")
    mixed_precision: str | None = _option(None, "Only 'bfloat16'.")
    xla_cpu_compilation_enabled: bool = _option(False, "Compile with XLA what asks for it.")

    def __post_init__(self):
        if (self.base_path is None) == (self.model_config_file is None):
            raise invalid_argument(
                "Exactly one of `base_path` and `model_config_file` must be given. Received: "
                f"base_path={self.base_path!r}, model_config_file={self.model_config_file!r}"
            )
        for name in ("grpc_port", "rest_port"):
            port = getattr(self, name)
            if port is not None and not (isinstance(port, int) and 0 <= port <= _MAX_PORT):
                raise invalid_argument(
                    f"`{name}` must be an integer in 0..{_MAX_PORT}. Received: {port!r}"
                )
        if self.batching_parameters_file and not self.enable_batching:
            raise invalid_argument(
                "`batching_parameters_file` is set without setting `enable_batching` to true."
            )
