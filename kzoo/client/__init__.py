"""A client for TensorFlow Serving and kzoo's embedded server that needs no TensorFlow.

REST needs NumPy only; gRPC needs grpcio and protobuf as well, REST of `AsyncClient` needs aiohttp
(`pip install kzoo[client]`). They are imported when a client of theirs is made.
"""

from kzoo.client.async_client import AsyncClient
from kzoo.client.client import Client
from kzoo.client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    ServingError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from kzoo.client.examples import ClassScore
from kzoo.client.metadata import Signature, TensorInfo, VersionStatus

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "ClassScore",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "ServingError",
    "Signature",
    "TensorInfo",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "VersionStatus",
]
