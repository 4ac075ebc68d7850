"""One error for the whole server, and what it becomes in gRPC and in HTTP.

The codes are those of `absl::Status` (and of gRPC, which uses the same numbers); the HTTP statuses
are TensorFlow Serving's.
"""

import contextlib
import enum

import tensorflow as tf

# Bytes after which TensorFlow Serving cuts the message of a gRPC status: it travels in a header.
GRPC_MESSAGE_LIMIT = 1024


class Code(enum.IntEnum):
    """Canonical status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class ServingError(Exception):
    """A request or a load that failed: a canonical code and a message for the client."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = Code(code)
        self.message = message

    def __str__(self):
        return f"{self.code.name}: {self.message}"

    @property
    def grpc_message(self):
        """The message as TensorFlow Serving sends it over gRPC."""
        text = self.message.encode("utf-8", "replace")
        if len(text) <= GRPC_MESSAGE_LIMIT:
            return text.decode()
        return text[:GRPC_MESSAGE_LIMIT].decode("utf-8", "ignore") + "...TRUNCATED"


def http_status(code):
    """Returns the HTTP status of a canonical code."""
    return _HTTP[code]


def invalid_argument(message):
    return ServingError(Code.INVALID_ARGUMENT, message)


def not_found(message):
    return ServingError(Code.NOT_FOUND, message)


def unimplemented(message):
    return ServingError(Code.UNIMPLEMENTED, message)


@contextlib.contextmanager
def runtime_errors():
    """Turns what the TensorFlow runtime raises inside the block into a `ServingError`."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ServingError(error.error_code, error.message) from error
    except UnicodeDecodeError as error:  # of a message that quotes bytes of the request
        raise invalid_argument(error.object.decode("utf-8", "surrogateescape")) from error
    except MemoryError as error:
        raise ServingError(Code.RESOURCE_EXHAUSTED, "Out of memory") from error
