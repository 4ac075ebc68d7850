"""`kzoo serve`."""

import logging

import typer

# The flags are TensorFlow Serving's, and so are their spelling and the exit codes: they are parsed
# where they are declared, not by typer.
SETTINGS = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}


def serve(context: typer.Context):
    """Serve exports: by tensorflow_model_server where it is on the PATH, else embedded."""
    from kzoo.serving.server import launch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    raise typer.Exit(launch.main(context.args))
