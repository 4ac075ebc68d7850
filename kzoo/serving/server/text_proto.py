"""Reads TensorFlow Serving's configuration files: protobuf's text format."""

import logging
import os

import tensorflow as tf
from google.protobuf import text_format

from kzoo.serving.server.errors import invalid_argument, runtime_errors

log = logging.getLogger(__name__)


def read(path, message):
    """Parses a file into `message` and returns it.

    Args:
        path: the file; any file system of TensorFlow.
        message: an empty protobuf message of the expected type.

    Raises:
        ServingError: the file cannot be read (what the file system says), or is no text of that
            message (INVALID_ARGUMENT; where and why is logged).
    """
    path = os.fspath(path)
    with runtime_errors(), tf.io.gfile.GFile(path, "rb") as file:
        text = file.read()
    try:
        return text_format.Parse(text.decode(), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        log.error("Error parsing text-format %s: %s", message.DESCRIPTOR.full_name, error)
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from error
