"""The settings of a server: TensorFlow Serving's command-line flags, with its names and meaning.

Each is declared once, here: `ModelServer` takes them by name, `kzoo serve` offers them as flags
(flags.py), and they are handed on to `tensorflow_model_server` where that runs instead of the
embedded server.
"""

import dataclasses
import logging
import os

from kzoo.serving.server.errors import invalid_argument, unimplemented

log = logging.getLogger(__name__)

_MAX_PORT = 65535
_MAX_THREADS = 2**31 - 1
_THREADS = (
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "num_load_threads",
)


def _option(default, text, flag=None, **metadata):
    return dataclasses.field(default=default, metadata={"help": text, "flag": flag, **metadata})


def _embedded(default, text):
    """An option that TensorFlow Serving does not have."""
    return _option(default, text, embedded=True)


def _idle(default, text):
    """An option that is accepted, and changes nothing here."""
    return _option(default, text, idle=True)


def _refused(default, text):
    """An option that may not be set, because the embedded server cannot do what it asks for."""
    return _option(default, text, refused=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a server serves, and how.

    A field's metadata holds its `help`, the `flag` where that is not the field's name, the
    `flag_default` where that is not the field's default, `embedded` for what TensorFlow Serving
    does not have, `idle` for what has no effect here, `refused` for what may not be set, and
    `group` where a new group of flags begins.

    Raises:
        ServingError: a value is outside of its range, or two values exclude each other.
    """

    model_name: str = _option("default", "Name of the single model.", group="Models")
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
        1,
        "Seconds between looks for new versions; 0 looks once (and after each reload), below 0 "
        "never.",
    )
    allow_version_labels_for_unavailable_models: bool = _option(
        False, "Accept new version labels of versions that are not loaded yet."
    )
    fail_if_no_model_versions_found: bool = _option(
        True,
        "Refuse to start, or to reload, if a base path holds no version; else wait for one, as "
        "TensorFlow Serving does.",
        embedded=True,
        flag_default=False,
    )
    saved_model_tags: str = _option("serve", "Tags of the meta graph to load, with commas.")
    max_num_load_retries: int = _option(5, "Further attempts after a load that failed.")
    load_retry_interval_micros: int = _option(
        60_000_000, "Microseconds between the attempts; below 0 without a pause."
    )
    num_load_threads: int = _option(0, "Threads that load versions; 0 loads one after another.")
    num_unload_threads: int = _idle(0, "Unloading takes no thread: the last request does it.")
    enable_model_warmup: bool = _option(True, "Replay the warm-up requests of a SavedModel.")
    num_request_iterations_for_warmup: int = _option(1, "How often each of them is replayed.")
    enable_signature_method_name_check: bool = _option(
        False, "Classify and Regress only signatures whose method name says so."
    )

    enable_batching: bool = _option(
        False, "Merge concurrent requests into batches.", group="Batching"
    )
    batching_parameters_file: str | None = _option(
        None, "BatchingParameters in text format; needs --enable_batching."
    )
    enable_per_model_batching_parameters: bool = _option(
        False, "Read batching_params.pbtxt in the version's folder."
    )

    host: str = _option("127.0.0.1", "Address to listen on.", embedded=True, group="Network")
    grpc_port: int | None = _option(8500, "gRPC port; 0 turns gRPC off.", flag="port")
    grpc_socket_path: str | None = _option(None, "UNIX socket for gRPC, besides the port.")
    ssl_config_file: str | None = _option(None, "SSLConfig in text format: gRPC over TLS.")
    grpc_channel_arguments: str | None = _option(None, "gRPC settings: name=value,name=value.")
    grpc_max_threads: int | None = _option(None, "gRPC threads; four per CPU unless set.")
    enable_grpc_healthcheck_service: bool = _option(False, "Answer gRPC's health service.")
    enable_serialization_as_tensor_content: bool = _option(
        False, "Answer Predict in `tensor_content` instead of `float_val` and its like."
    )
    rest_port: int | None = _option(
        8501,
        "REST port; 0 turns REST off. TensorFlow Serving's is off unless set.",
        flag="rest_api_port",
    )
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
    max_body_bytes: int = _embedded(2**29, "The largest REST body.")

    tensorflow_session_parallelism: int = _option(
        0, "Threads of a session, of both kinds below; 0 leaves it to TensorFlow.", group="Sessions"
    )
    tensorflow_intra_op_parallelism: int = _option(0, "Threads inside an operation.")
    tensorflow_inter_op_parallelism: int = _option(0, "Operations that run at once.")
    tensorflow_session_config_file: str | None = _option(
        None, "ConfigProto in text format; the flags of this group override it."
    )
    per_process_gpu_memory_fraction: float = _option(
        0.0, "Share of the GPU's memory; 0 leaves it to TensorFlow."
    )
    mixed_precision: str | None = _option(None, "Only 'bfloat16'.")
    xla_cpu_compilation_enabled: bool = _option(
        False, "Models may compile with XLA; the embedded server only warns of those that do."
    )
    xla_gpu_compilation_enabled: bool = _idle(False, "XLA is always there for who asks for it.")

    flush_filesystem_caches: bool = _option(
        True, "The file system's caches are left alone.", idle=True, group="Accepted, no effect"
    )
    remove_unused_fields_from_bundle_metagraph: bool = _idle(
        True, "Only signatures are kept, always."
    )
    enable_profiler: bool = _idle(True, "There is no profiler service.")
    num_tflite_pools: int | None = _idle(None, "There is no TensorFlow Lite.")
    num_tflite_interpreters_per_pool: int = _idle(1, "There is no TensorFlow Lite.")
    skip_initialize_tpu: bool = _idle(False, "There is no TPU.")

    use_alts_credentials: bool = _option(
        False, "Google's ALTS; see --ssl_config_file.", refused=True, group="Refused"
    )
    platform_config_file: str | None = _refused(
        None, "Settings of other platforms than TensorFlow."
    )
    prefer_tflite_model: bool = _refused(False, "TensorFlow Lite models.")
    thread_pool_factory_config_file: str | None = _refused(None, "Thread pools of one's own.")

    def __post_init__(self):
        for name in ("grpc_port", "rest_port"):
            port = getattr(self, name)
            if port is not None and not (isinstance(port, int) and 0 <= port <= _MAX_PORT):
                raise invalid_argument(
                    f"`{name}` must be an integer in 0..{_MAX_PORT}. Received: {port!r}"
                )
        self._check_effects()
        self._check_models()
        if self.batching_parameters_file and not self.enable_batching:
            raise invalid_argument(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        for name in _THREADS:
            number = getattr(self, name)
            if not (isinstance(number, int) and 0 <= number <= _MAX_THREADS):
                raise invalid_argument(
                    f"`{name}` must be an integer in 0..{_MAX_THREADS}. Received: {number!r}"
                )

    def _check_models(self):
        if not self.base_path and not self.model_config_file:
            raise invalid_argument(
                "Both server_options.model_base_path and server_options.model_config_file are "
                "empty!"
            )
        if self.base_path and self.model_config_file:
            log.warning("The model's name and base path are ignored: a model_config_file is set.")

    def _check_effects(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default:
                continue
            if field.metadata.get("refused"):
                raise unimplemented(
                    f"The embedded server does not support `{field.name}`: {field.metadata['help']}"
                )
            if field.metadata.get("idle"):
                log.info("`%s` has no effect here: %s", field.name, field.metadata["help"])


def flag_name(field):
    """Returns the name that TensorFlow Serving's command line has for a field."""
    return field.metadata["flag"] or field.name


def flag_default(field):
    """Returns the value of a flag that is not set."""
    return field.metadata.get("flag_default", field.default)


def from_flags(flags):
    """Returns the arguments of `ServerOptions` that TensorFlow Serving would run with.

    Args:
        flags: {flag name: value} of those that are set. As in TensorFlow Serving an empty text is
            not set, port 0 turns an API off, and a base path without a version is waited for;
            here, both ports 0 and no socket means two free ports, and a base path may be relative.

    Raises:
        ServingError: gRPC is turned off, which TensorFlow Serving refuses.
    """
    fields = {flag_name(field): field for field in dataclasses.fields(ServerOptions)}
    options = {field.name: flag_default(field) for field in fields.values()}
    options |= {fields[flag].name: value for flag, value in flags.items() if value != ""}
    if (base_path := options["base_path"]) and "://" not in os.fspath(base_path):
        options["base_path"] = os.path.abspath(base_path)
    return options | _ports(**options)


def _ports(grpc_port, rest_port, grpc_socket_path, **_):
    if grpc_port == rest_port == 0 and not grpc_socket_path:
        return {}
    if grpc_port == 0 and not grpc_socket_path:
        raise invalid_argument(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be "
            "set."
        )
    if grpc_port == rest_port:
        log.error(
            "server_options.http_port cannot be same as grpc_port. Please use a different port for "
            "HTTP/REST API. Skipped exporting HTTP/REST API."
        )
        rest_port = 0
    return {"grpc_port": grpc_port or None, "rest_port": rest_port or None}
