"""The command line: TensorFlow Serving's flags, their spelling, and what becomes of them."""

import dataclasses
import os
import re
import signal
import threading

import pytest
import tensorflow as tf
import typer.testing
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow_serving.config import model_server_config_pb2

from kzoo.cli.main import app
from kzoo.serving.server import Code, ServingError, flags, launch, text_proto
from kzoo.serving.server.options import ServerOptions, flag_name, from_flags
from kzoo.serving.server.session_config import session_config

# Every flag of TensorFlow Serving 2.21's main.cc but --version.
OFFICIAL = set(
    """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
batching_parameters_file enable_per_model_batching_parameters model_config_file
model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads
max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds
flush_filesystem_caches tensorflow_session_parallelism tensorflow_session_config_file
tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file
platform_config_file per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments
grpc_max_threads enable_model_warmup num_request_iterations_for_warmup monitoring_config_file
remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
num_tflite_interpreters_per_pool enable_signature_method_name_check xla_cpu_compilation_enabled
xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file mixed_precision
skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
""".split()  # noqa: SIM905
)


def options(**flag_values):
    return ServerOptions(**from_flags({"model_base_path": "/m", **flag_values}))


def refused(**flag_values):
    with pytest.raises(ServingError) as caught:
        options(**flag_values)
    return caught.value


def kzoo_serve(*arguments):
    return typer.testing.CliRunner().invoke(app, ["serve", *arguments])


# ---------------------------------------------------------------- spelling


def test_every_flag_of_tensorflow_serving_is_offered_once():
    fields = dataclasses.fields(ServerOptions)
    ours = [flag_name(field) for field in fields if not field.metadata.get("embedded")]
    assert sorted(ours) == sorted(OFFICIAL)
    shown = re.findall(r"^  --(\w+)", kzoo_serve("--help").output, re.MULTILINE)
    assert set(shown) >= OFFICIAL
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model_name=x"], {"model_name": "x"}),
        (["--model_name", "x"], {"model_name": "x"}),
        (["--model-name=x"], {"model_name": "x"}),
        (["--model-name", "x"], {"model_name": "x"}),
        (["--model_name=a=b"], {"model_name": "a=b"}),
        (["--model_name="], {"model_name": ""}),
        (["--enable_batching"], {"enable_batching": True}),
        (["--enable_batching", "--port=1"], {"enable_batching": True, "port": 1}),
        (["--enable_batching=true"], {"enable_batching": True}),
        (["--enable-batching=1"], {"enable_batching": True}),
        (["--enable_model_warmup=false"], {"enable_model_warmup": False}),
        (["--enable_model_warmup=0"], {"enable_model_warmup": False}),
        (["--file_system_poll_wait_seconds=-1"], {"file_system_poll_wait_seconds": -1}),
        (["--file_system_poll_wait_seconds", "-1"], {"file_system_poll_wait_seconds": -1}),
        (["--file_system_poll_wait_seconds=0.5"], {"file_system_poll_wait_seconds": 0.5}),
        (["--load_retry_interval_micros=9000000000"], {"load_retry_interval_micros": 9 * 10**9}),
        (["--port=1", "--port=2"], {"port": 2}),
        ([], {}),
    ],
)
def test_spellings(arguments, expected):
    assert flags.parse(arguments) == expected


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--no_such_flag=1", "unknown argument: --no_such_flag=1"),
        ("--model", "unknown argument: --model"),  # no abbreviations
        ("stray", "unknown argument: stray"),
        ("--port=http", "Couldn't interpret value http"),
        ("--port=1.5", "Couldn't interpret value 1.5"),
        ("--port=", "Couldn't interpret value "),
        ("--enable_batching=yes", "Couldn't interpret value yes"),
        ("--enable_batching=True", "Couldn't interpret value True"),
        ("--per_process_gpu_memory_fraction=half", "Couldn't interpret value half"),
        ("--model_name", "expected one argument"),
    ],
)
def test_bad_flags_exit_with_255(argument, complaint):
    result = kzoo_serve(argument)
    assert result.exit_code == 255
    assert complaint in result.output
    assert "kzoo serve --help" in result.output


def test_help_and_version():
    result = kzoo_serve("--help")
    assert result.exit_code == 0
    assert "kzoo serve --model_config_file=models.config" in result.output
    assert "(embedded server only)" in result.output
    result = kzoo_serve("--version")
    assert result.exit_code == 0
    assert f"TensorFlow Library: {tf.__version__}\n" in result.output


# ---------------------------------------------------------------- from flags to options


@pytest.mark.parametrize(
    ("given", "grpc", "rest"),
    [
        ({}, 8500, 8501),
        ({"port": 9000}, 9000, 8501),
        ({"rest_api_port": 0}, 8500, None),
        ({"port": 0, "grpc_socket_path": "s"}, None, 8501),
        ({"port": 0, "rest_api_port": 0, "grpc_socket_path": "s"}, None, None),
        ({"port": 0, "rest_api_port": 0}, 0, 0),  # two free ports
        ({"port": 9000, "rest_api_port": 9000}, 9000, None),
    ],
)
def test_ports(given, grpc, rest):
    made = options(**given)
    assert (made.grpc_port, made.rest_port) == (grpc, rest)


def test_a_server_without_grpc_is_refused():
    assert refused(port=0).message == (
        "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
    )


def test_unset_and_ignored_flags(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert options(model_base_path="m").base_path == str(tmp_path / "m")
    assert options(model_base_path="s3://bucket/m").base_path == "s3://bucket/m"
    assert options(model_config_file="").model_config_file is None
    assert not options().fail_if_no_model_versions_found
    assert options(model_config_file="c").model_config_file == "c"
    assert "base path are ignored" in caplog.text
    error = refused(model_base_path="")
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message == (
        "Both server_options.model_base_path and server_options.model_config_file are empty!"
    )


def test_batching_parameters_need_batching():
    assert refused(batching_parameters_file="b").message == (
        "server_options.batching_parameters_file is set without setting "
        "server_options.enable_batching to true."
    )
    options(batching_parameters_file="b", enable_batching=True)


@pytest.mark.parametrize(
    "given",
    [
        {"use_alts_credentials": True},
        {"platform_config_file": "p"},
        {"prefer_tflite_model": True},
        {"thread_pool_factory_config_file": "t"},
    ],
)
def test_what_cannot_be_done_is_refused(given):
    error = refused(**given)
    assert error.code == Code.UNIMPLEMENTED
    assert f"does not support `{next(iter(given))}`" in error.message
    defaults = {field.name: field.default for field in dataclasses.fields(ServerOptions)}
    options(**{flag: defaults[flag] for flag in given})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("flush_filesystem_caches", False),
        ("remove_unused_fields_from_bundle_metagraph", False),
        ("enable_profiler", False),
        ("num_tflite_pools", 3),
        ("num_unload_threads", 2),
        ("skip_initialize_tpu", True),
    ],
)
def test_what_has_no_effect_is_accepted_and_logged(flag, value, caplog):
    caplog.set_level("INFO")
    options(**{flag: value})
    assert f"`{flag}` has no effect here" in caplog.text


@pytest.mark.parametrize(
    "given", [{"port": 70000}, {"rest_api_port": -1}, {"num_load_threads": -1}]
)
def test_numbers_have_their_ranges(given):
    assert refused(**given).code == Code.INVALID_ARGUMENT


# ---------------------------------------------------------------- sessions


def test_threads_of_a_session():
    def threads(**given):
        config = session_config(options(**given))
        return config.intra_op_parallelism_threads, config.inter_op_parallelism_threads

    assert threads() == (0, 0)
    assert threads(tensorflow_session_parallelism=3) == (3, 3)
    assert threads(tensorflow_intra_op_parallelism=2) == (2, 0)
    assert threads(tensorflow_session_parallelism=3, tensorflow_inter_op_parallelism=2) == (0, 2)
    with pytest.raises(ServingError, match="You cannot configure all"):
        threads(
            tensorflow_session_parallelism=3,
            tensorflow_inter_op_parallelism=2,
            tensorflow_intra_op_parallelism=1,
        )


def test_the_session_file_comes_first(tmp_path, caplog):
    file = tmp_path / "session.config"
    file.write_text("log_device_placement: true, intra_op_parallelism_threads: 7")
    made = options(
        tensorflow_session_config_file=str(file),
        per_process_gpu_memory_fraction=0.25,
        mixed_precision="bfloat16",
    )
    config = session_config(made)
    assert config.log_device_placement
    assert config.intra_op_parallelism_threads == 0  # the flag's default overrides it, as there
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.25
    rewriting = config.graph_options.rewrite_options
    assert rewriting.auto_mixed_precision_onednn_bfloat16 == rewriter_config_pb2.RewriterConfig.ON
    assert not session_config(options()).graph_options.HasField("rewrite_options")
    session_config(options(mixed_precision="float16"))
    assert "float16 auto mixed precision is not supported" in caplog.text
    file.write_text("no such field")
    with pytest.raises(ServingError, match="Invalid protobuf file"):
        session_config(options(tensorflow_session_config_file=str(file), model_name="other"))


def test_text_formats_of_the_documentation(tmp_path):
    """Colons and commas where they are optional, both quotes, comments."""
    file = tmp_path / "models.config"
    file.write_text(
        "# a comment\nmodel_config_list: {\n config: {\n  name: 'a',\n  base_path: \"/a\",\n"
        "  model_version_policy { specific { versions: [1, 2] } }\n }\n}"
    )
    config = text_proto.read(file, model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].name == "a"
    assert config.model_config_list.config[0].model_version_policy.specific.versions == [1, 2]


# ---------------------------------------------------------------- launch


def test_a_failed_start_is_255_and_says_so_on_stdout(tmp_path, capfd):
    assert launch.run(embedded=True, model_base_path=str(tmp_path), port=0) == 255
    assert capfd.readouterr().out == (
        "Failed to start server. Error: INVALID_ARGUMENT: At least one of "
        "server_options.grpc_port or server_options.grpc_socket_path must be set.\n"
    )
    assert launch.run(embedded=True) == 255
    (tmp_path / "1").mkdir()
    capfd.readouterr()
    ports = {"port": 0, "rest_api_port": 0, "max_num_load_retries": 0}
    assert launch.run(embedded=True, model_base_path=str(tmp_path), **ports) == 255
    assert capfd.readouterr().out.startswith(
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{{name: default version: 1} due to error: NOT_FOUND: Could not find SavedModel"
    )
    threads = dict.fromkeys(
        ("tensorflow_session_parallelism", "tensorflow_intra_op_parallelism",
         "tensorflow_inter_op_parallelism"), 1,
    )  # fmt: skip
    assert launch.run(embedded=True, model_base_path=str(tmp_path), **threads) == 255
    assert "You cannot configure all" in capfd.readouterr().out
    with pytest.raises(TypeError, match="unknown flags: modle_name"):
        launch.run(modle_name="m")


def test_start_waits_for_a_first_version_until_a_signal(tmp_path, caplog):
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert launch.run(embedded=True, model_base_path=str(tmp_path), port=0, rest_api_port=0) == 0
    timer.join()
    assert "No versions of servable default found under base path" in caplog.text
    assert "Did you forget to name your leaf directory as a number" in caplog.text


def test_the_real_server_gets_all_flags(tmp_path, monkeypatch, caplog):
    """A stand-in for the binary writes down its arguments and exits with 7."""
    binary = tmp_path / launch.BINARY
    binary.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nexit 7\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    code = launch.main(
        ["--model_name=m", "--model_base_path=models/m", "--port=9000", "--enable_batching",
         "--enable_model_warmup=false", "--file_system_poll_wait_seconds=0.2", "--host=0.0.0.0",
         "--use_alts_credentials"],
    )  # fmt: skip
    assert code == 7
    assert sorted((tmp_path / "arguments").read_text().split()) == sorted([
        "--model_name=m",
        f"--model_base_path={tmp_path}/models/m",
        "--port=9000",
        "--rest_api_port=8501",
        "--enable_batching=true",
        "--enable_model_warmup=false",
        "--file_system_poll_wait_seconds=1",
        "--use_alts_credentials=true",
    ])  # fmt: skip
    assert "--host=0.0.0.0 is not handed on" in caplog.text
