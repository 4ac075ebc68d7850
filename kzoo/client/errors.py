"""The errors of both transports: one class per canonical code."""


class ServingError(RuntimeError):
    """What a server, or the way to it, answered instead of a result.

    Args:
        code: a canonical code as gRPC names it, for example "NOT_FOUND".
        message: the server's text, unchanged; or the client's own, for what it refused itself.

    Attributes:
        chunk: of a call in chunks the index of the one that failed, from 0; None for other calls.
    """

    def __init__(self, code, message):
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.chunk = None

    def __str__(self):
        place = "" if self.chunk is None else f" (chunk {self.chunk})"
        return f"{self.code}: {self.message}{place}"


class Cancelled(ServingError):
    """The call was cancelled."""


class Unknown(ServingError):
    """An error without a known code."""


class InvalidArgument(ServingError, ValueError):
    """The request is wrong: an input's name, dtype or shape, or the signature."""


class DeadlineExceeded(ServingError):
    """The time allowed for the call ran out."""


class NotFound(ServingError):
    """No such model, version or explanation method."""


class AlreadyExists(ServingError):
    """What was to be created is there."""


class PermissionDenied(ServingError):
    """The caller may not do this."""


class ResourceExhausted(ServingError):
    """A quota, a message size or a thread limit was exceeded."""


class FailedPrecondition(ServingError):
    """The server is not in a state for this call."""


class Aborted(ServingError):
    """A conflict ended the call."""


class OutOfRange(ServingError):
    """A value is outside of its range."""


class Unimplemented(ServingError):
    """The server or the transport cannot do this, for example a dtype that JSON lacks."""


class Internal(ServingError):
    """The server broke, or its answer could not be understood."""


class Unavailable(ServingError):
    """Nobody answers, or the server asks to come back later; the only error that is retried."""


class DataLoss(ServingError):
    """Data are lost or corrupt."""


class Unauthenticated(ServingError):
    """The caller is not known."""


# REST carries no canonical code. Where several share an HTTP status, the most frequent one stands
# for all: FAILED_PRECONDITION and OUT_OF_RANGE come as INVALID_ARGUMENT.
_BY_HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error(code, message):
    """Returns the `ServingError` of the canonical code `code`: "NOT_FOUND" gives a `NotFound`."""
    cls = globals().get(code.title().replace("_", ""), ServingError)
    return cls(code, message)


def error_of_http_status(status, message):
    """Returns the `ServingError` that TensorFlow Serving's REST API means by an HTTP status."""
    return error(_BY_HTTP_STATUS.get(status, "UNKNOWN"), message)
