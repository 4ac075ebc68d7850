"""TensorFlow Serving's gRPC API as bytes to send and to read; nothing here does I/O."""

import functools

import numpy as np
from google.protobuf.message import DecodeError

from kzoo.client import protocol
from kzoo.client.call import Call
from kzoo.client.errors import error
from kzoo.client.examples import ClassScore
from kzoo.client.metadata import (
    Signature,
    TensorInfo,
    VersionStatus,
    callable_signatures,
    dtype_name,
    shape_of,
)
from kzoo.client.tensor_protos import from_proto, to_proto

_PREDICTION = "/tensorflow.serving.PredictionService"
PREDICT = f"{_PREDICTION}/Predict"
CLASSIFY = f"{_PREDICTION}/Classify"
REGRESS = f"{_PREDICTION}/Regress"
METADATA = f"{_PREDICTION}/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


class GrpcRequests:
    """The calls of one model, for a gRPC transport.

    Args:
        model: the model's name.
        version: a version's number, or None.
        label: a version's label, or None.
    """

    def __init__(self, model, version=None, label=None):
        self._model = model
        self._version = version
        self._label = label

    def predict(self, signature_name, signature, inputs, outputs):
        """Returns the `Call` for the arrays named in `outputs`.

        Args:
            signature_name, signature: of which.
            inputs: {input: array of the signature's dtype}.
            outputs: list of names.
        """
        request = protocol.PredictRequest(model_spec=self._spec(signature_name))
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(to_proto(array))
        if set(outputs) != set(signature.outputs):
            request.output_filter.extend(outputs)
        return _call(PREDICT, request, functools.partial(_arrays, signature_name, outputs))

    def classify(self, signature_name, examples, context):
        """Returns the `Call` for the classes of each Example, as `examples.features` has them."""
        request = protocol.ClassificationRequest(
            model_spec=self._spec(signature_name), input=_input(examples, context)
        )
        return _call(CLASSIFY, request, _classes)

    def regress(self, signature_name, examples, context):
        """Returns the `Call` for a number per Example."""
        request = protocol.RegressionRequest(
            model_spec=self._spec(signature_name), input=_input(examples, context)
        )
        return _call(REGRESS, request, _values)

    def status(self):
        """Returns the `Call` for a list of `VersionStatus`."""
        spec = self._spec()
        spec.ClearField("version_label")
        return _call(STATUS, protocol.GetModelStatusRequest(model_spec=spec), _statuses)

    def metadata(self):
        """Returns the `Call` for {name: `Signature`}."""
        request = protocol.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        return _call(METADATA, request, _signatures)

    def _spec(self, signature_name=""):
        spec = protocol.ModelSpec(name=self._model, signature_name=signature_name)
        if self._version is not None:
            spec.version.value = self._version
        if self._label is not None:
            spec.version_label = self._label
        return spec


def _call(method, request, decode):
    return Call(method, request.SerializeToString(), decode)


def _parse(message, data):
    try:
        return message.FromString(data)
    except DecodeError as problem:
        name = message.DESCRIPTOR.name
        raise error("INTERNAL", f"The answer is no {name}: {problem}") from None


def _arrays(signature_name, outputs, data):
    tensors = _parse(protocol.PredictResponse, data).outputs
    missing = [name for name in outputs if name not in tensors]
    if missing:
        message = f"The answer does not fit signature {signature_name!r}: no {missing}"
        raise error("INTERNAL", message)
    return {name: from_proto(tensors[name]) for name in outputs}


def _input(examples, context):
    if context is None:
        return protocol.Input(
            example_list=protocol.ExampleList(examples=map(_example, examples)),
        )
    return protocol.Input(
        example_list_with_context=protocol.ExampleListWithContext(
            examples=map(_example, examples), context=_example(context)
        )
    )


def _example(features):
    example = protocol.Example()
    for name, (kind, values) in features.items():
        feature = example.features.feature[name]
        if values:
            getattr(feature, f"{kind}_list").value.extend(values)
    return example


def _classes(data):
    result = _parse(protocol.ClassificationResponse, data).result
    return [
        [ClassScore(row.label, row.score) for row in classifications.classes]
        for classifications in result.classifications
    ]


def _values(data):
    regressions = _parse(protocol.RegressionResponse, data).result.regressions
    return np.array([regression.value for regression in regressions], np.float32)


def _statuses(data):
    answer = _parse(protocol.GetModelStatusResponse, data)
    return [_version_status(entry) for entry in answer.model_version_status]


def _version_status(entry):
    return VersionStatus(
        version=entry.version,
        state=protocol.enum_name("tensorflow.serving.ModelVersionStatus.State", entry.state),
        error_code=protocol.enum_name("tensorflow.error.Code", entry.status.error_code),
        error_message=entry.status.error_message,
    )


def _signatures(data):
    packed = _parse(protocol.GetModelMetadataResponse, data).metadata["signature_def"]
    signatures = _parse(protocol.SignatureDefMap, packed.value).signature_def
    return callable_signatures((name, _signature(value)) for name, value in signatures.items())


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
