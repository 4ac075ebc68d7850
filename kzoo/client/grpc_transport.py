"""TensorFlow Serving's gRPC API."""

import grpc

from kzoo.client import protocol
from kzoo.client.errors import error
from kzoo.client.metadata import (
    Signature,
    TensorInfo,
    VersionStatus,
    callable_signatures,
    dtype_name,
    shape_of,
)
from kzoo.client.tensor_protos import from_proto, to_proto

CHANNEL_OPTIONS = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # The client counts its attempts itself, and a new connection must be tried by the next one.
    "grpc.enable_retries": 0,
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.min_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 1000,
    # Straight to the server and alone, as the REST transport.
    "grpc.enable_http_proxy": 0,
    "grpc.use_local_subchannel_pool": 1,
}
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


class GrpcTransport:
    """One model of a gRPC server.

    Args:
        target: "host:port".
        model: the model's name.
        version: a version's number, or None.
        label: a version's label, or None.
    """

    def __init__(self, target, model, version=None, label=None):
        self._target = target
        self._model = model
        self._version = version
        self._label = label
        self._channel = grpc.insecure_channel(target, options=list(CHANNEL_OPTIONS.items()))
        self._predict = self._method(PREDICT, protocol.PredictResponse)
        self._metadata = self._method(METADATA, protocol.GetModelMetadataResponse)
        self._status = self._method(STATUS, protocol.GetModelStatusResponse)

    def predict(self, signature_name, signature, inputs, outputs, deadline):
        """Returns the arrays named in `outputs`; `inputs` are arrays of the signature's dtypes."""
        request = self._request(signature_name, signature, inputs, outputs)
        tensors = _call(self._predict, request, deadline).outputs
        missing = [name for name in outputs if name not in tensors]
        if missing:
            message = f"The answer does not fit signature {signature_name!r}: no {missing}"
            raise error("INTERNAL", message)
        return {name: from_proto(tensors[name]) for name in outputs}

    def encode(self, *request):
        """Returns the URL and the body of the request that `predict` sends."""
        return f"grpc://{self._target}", self._request(*request).SerializeToString()

    def _request(self, signature_name, signature, inputs, outputs):
        request = protocol.PredictRequest(model_spec=self._spec(signature_name=signature_name))
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_proto(array))
        if set(outputs) != set(signature.outputs):
            request.output_filter.extend(outputs)
        return request

    def status(self, deadline):
        """Returns a list of `VersionStatus`."""
        spec = self._spec()
        spec.ClearField("version_label")
        request = protocol.GetModelStatusRequest(model_spec=spec)
        answer = _call(self._status, request, deadline)
        return [_version_status(entry) for entry in answer.model_version_status]

    def metadata(self, deadline):
        """Returns {name: `Signature`}."""
        request = protocol.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        answer = _call(self._metadata, request, deadline)
        signatures = protocol.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
        return callable_signatures(
            (name, _signature(value)) for name, value in signatures.signature_def.items()
        )

    def close(self):
        self._channel.close()

    def _method(self, name, response):
        return self._channel.unary_unary(
            name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _spec(self, signature_name=""):
        spec = protocol.ModelSpec(name=self._model, signature_name=signature_name)
        if self._version is not None:
            spec.version.value = self._version
        if self._label is not None:
            spec.version_label = self._label
        return spec


def _call(method, request, deadline):
    try:
        return method(request, timeout=deadline.left())
    except grpc.RpcError as problem:
        raise error(problem.code().name, problem.details()) from None


def _version_status(entry):
    return VersionStatus(
        version=entry.version,
        state=protocol.enum_name("tensorflow.serving.ModelVersionStatus.State", entry.state),
        error_code=protocol.enum_name("tensorflow.error.Code", entry.status.error_code),
        error_message=entry.status.error_message,
    )


def _signature(value):
    return Signature(
        inputs={name: _tensor_info(info) for name, info in sorted(value.inputs.items())},
        outputs={name: _tensor_info(info) for name, info in sorted(value.outputs.items())},
    )


def _tensor_info(info):
    shape = info.tensor_shape
    return TensorInfo(
        dtype_name(protocol.enum_name("tensorflow.DataType", info.dtype)),
        shape_of([dim.size for dim in shape.dim], shape.unknown_rank),
    )
