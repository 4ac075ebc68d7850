"""A request that is ready to send: what the protocols make and the transports carry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request and how to read its answer; the same for blocking and asynchronous transports.

    Attributes:
        path: gRPC's method, or the path of REST's URL.
        body: the serialized message, or the JSON to post; None for REST's GET.
        decode: returns the result for what the transport received, or raises its `ServingError`:
            a function of the serialized message, or of HTTP's (status, body).
    """

    path: str
    body: bytes | None
    decode: Callable[[Any], Any]
