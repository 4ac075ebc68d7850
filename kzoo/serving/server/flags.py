"""The command line of `kzoo serve`: TensorFlow Serving's flags, read off `ServerOptions`.

As TensorFlow's own parser: `--flag=value`, a bare `--flag` for true, `true` and `false` for truth
values, numbers in full. Besides, `--flag value`, `1` and `0`, and dashes for underscores.
"""

import argparse
import dataclasses
import re
import sys
import typing

from kzoo.serving.server.options import ServerOptions, flag_default, flag_name

BAD_FLAGS = 255
_INTEGERS = (-(2**63), 2**63 - 1)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}

_DESCRIPTION = """\
Serve SavedModels: by tensorflow_model_server where it is on the PATH, else by the embedded server,
which speaks the same gRPC and REST API. The flags are TensorFlow Serving's; write --port=9000 or
--port 9000, --enable_batching or --enable_batching=false, --model_name or --model-name."""

_EXAMPLES = """\
examples:
  kzoo serve --model_name=digits --model_base_path=saved_models/digits
      The newest version in saved_models/digits, on localhost:8500 (gRPC) and :8501 (REST);
      a newer version takes over as soon as it is there.
  kzoo serve --model_config_file=models.config --model_config_file_poll_wait_seconds=60
      Several models, with version policies and labels; the file may change while they serve.
  kzoo serve --model_base_path=/models/digits --enable_batching --batching_parameters_file=b.config
      Requests that arrive together run together.
  kzoo serve --model_base_path=/models/digits --host=0.0.0.0
      For other machines too. Who reaches the gRPC port may load any SavedModel of this machine.
  kzoo serve --model_base_path=/models/digits --port=0 --rest_api_port=0
      On two free ports, which are printed.

exit codes: 0 after SIGTERM or SIGINT, 255 for bad flags or a server that cannot start."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(BAD_FLAGS, f"{message}\nSee `{self.prog} --help`.\n")


def parse(arguments):
    """Returns {flag: value} of the flags that are set, for `launch.run`.

    Besides those of `ServerOptions` there are `embedded`, `grace` and `version`.

    Args:
        arguments: what follows `kzoo serve`.

    Raises:
        SystemExit: 255 for a flag or a value that is unknown (TensorFlow Serving would go on with
            the rest of the flags), 0 after `--help`.
    """
    flags, unknown = _parser().parse_known_args(arguments)
    if unknown:
        print(f"unknown argument: {unknown[0]}\nSee `kzoo serve --help`.", file=sys.stderr)
        raise SystemExit(BAD_FLAGS)
    return vars(flags)


def _parser():
    parser = _Parser(
        prog="kzoo serve",
        usage="kzoo serve --model_base_path=FOLDER [flags]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(ServerOptions):
        if title := field.metadata.get("group"):
            group = parser.add_argument_group(title)
        note = " (embedded server only)" if field.metadata.get("embedded") else ""
        text = f"{field.metadata['help']}{note}{_shown_default(flag_default(field))}"
        _add(group, flag_name(field), _kind(field.type), text)
    group = parser.add_argument_group("This command")
    _add(group, "embedded", bool, "The embedded server even where TensorFlow Serving is installed.")
    _add(group, "grace", float, "Seconds for running requests after a signal (embedded server).")
    _add(group, "version", bool, "Print the versions and exit.")
    return parser


def _add(group, flag, kind, text):
    optional_value = {"nargs": "?", "const": True} if kind is bool else {}
    common = {"dest": flag, "type": _CONVERTERS[kind], **optional_value}
    text = text.replace("%", "%%")
    group.add_argument(f"--{flag}", metavar=_METAVARS[kind], help=text, **common)
    if "_" in flag:
        group.add_argument(f"--{flag.replace('_', '-')}", help=argparse.SUPPRESS, **common)


def _kind(annotation):
    """Returns the type of `int` and of `int | None`."""
    return next(iter(typing.get_args(annotation)), annotation)


def _shown_default(default):
    if default in (None, "") or default is False:
        return ""
    return f" [{str(default).lower() if default is True else default}]"


def _truth(text):
    if text not in _TRUTH:
        raise argparse.ArgumentTypeError(f"Couldn't interpret value {text}: true or false")
    return _TRUTH[text]


def _integer(text):
    low, high = _INTEGERS
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text, re.ASCII) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"Couldn't interpret value {text}: an integer")
    return int(text)


def _number(text):
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text, re.ASCII) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"Couldn't interpret value {text}: a number") from None


_CONVERTERS = {bool: _truth, int: _integer, float: _number, str: str}
_METAVARS = {bool: "BOOL", int: "INT", float: "NUMBER", str: "TEXT"}
