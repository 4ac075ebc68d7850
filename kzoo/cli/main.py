"""`kzoo COMMAND`: each command is a thin program over the library, with a module of its own."""

import logging
import os
import sys

import typer

from kzoo.cli import (
    bench_serve,
    explain,
    export,
    find_learning_rate,
    register,
    reproduce,
    serve,
    train,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Papers as Keras parts: train with them, export, serve, and explain every prediction.",
)
app.command(no_args_is_help=True)(train.train)
app.command(no_args_is_help=True)(find_learning_rate.find_lr)
app.command(no_args_is_help=True)(export.export)
app.command(**serve.SETTINGS)(serve.serve)
app.command(no_args_is_help=True)(bench_serve.bench_serve)
app.command(no_args_is_help=True)(explain.explain)
app.command()(reproduce.reproduce)
app.command()(register.papers)
app.command("list", no_args_is_help=True)(register.list_parts)
app.command(no_args_is_help=True)(register.show)


def main():
    # TensorFlow's notes on its build and its own deprecations are not for the user of a command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        app()
    # The library's errors speak of arguments, which are the user's here: no traceback.
    except (ValueError, OSError, RuntimeError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
