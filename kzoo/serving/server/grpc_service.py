"""TensorFlow Serving's gRPC services over the embedded engine."""

import functools
import logging
import time

import grpc
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kzoo.serving.server import classifier, metrics, regressor, request_context
from kzoo.serving.server.errors import Code, ServingError, invalid_argument
from kzoo.serving.server.inference import fill_model_spec, infer, multi_inference
from kzoo.serving.server.predict import predict
from kzoo.serving.server.tensors import to_proto

log = logging.getLogger(__name__)

SIGNATURE_DEF = "signature_def"
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


_COUNTED = ("Predict", "Classify", "Regress")  # what TensorFlow Serving has metrics of


def _rpc(method):
    """Answers a `ServingError` with its gRPC status, and anything else with INTERNAL.

    The method runs when it is its turn: the service's `turns` is a semaphore.
    """
    api = method.__name__

    @functools.wraps(method)
    def call(self, request, context):
        start = time.perf_counter()
        with self.turns:
            response, code, message = _run(method, self, request, context.time_remaining())
        if api in _COUNTED:
            elapsed = time.perf_counter() - start
            metrics.record_request(request.model_spec.name, api, "GRPC", code, elapsed)
        if code is not Code.OK:
            context.abort(_STATUS_CODES[code], message)
        return response

    return call


def _run(method, service, request, remaining):
    """Returns (response or None, `Code`, message) of a request with `remaining` seconds left."""
    try:
        if remaining is not None and remaining <= 0:  # waited too long for a thread
            raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
        request_context.begin(method.__name__, remaining)
        return method(service, request), Code.OK, ""
    except ServingError as error:
        return None, error.code, error.grpc_message
    except Exception as error:
        log.exception("%s failed", method.__name__)
        return None, Code.INTERNAL, f"{type(error).__name__}: {error}"


def _check_spec(request):
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec


def find_model(manager, spec):
    """Returns the `LoadedModel` that a ModelSpec names."""
    choice = spec.WhichOneof("version_choice")
    return manager.find(
        spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


def model_status(manager, name, version=None):
    """Returns the GetModelStatusResponse of a model, or of one of its versions."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state in manager.states(name, version):
        entry = response.model_version_status.add(version=number, state=state.state)
        entry.status.SetInParent()
        if state.error is not None:
            entry.status.error_code = state.error.code
            entry.status.error_message = state.error.message
    return response


def model_metadata(model):
    """Returns the GetModelMetadataResponse of a loaded model: its signatures."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = model.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
        signatures.signature_def[name].ClearField("defaults")
    packed = any_pb2.Any()
    packed.Pack(signatures)
    response.metadata[SIGNATURE_DEF].CopyFrom(packed)
    return response


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        manager: `ModelManager`.
        turns: context manager around the work of each request.
        as_content: answer in `tensor_content` instead of the repeated fields.
    """

    def __init__(self, manager, turns, as_content=False):
        self._manager = manager
        self.turns = turns
        self._as_content = as_content

    @_rpc
    def Predict(self, request):
        spec = _check_spec(request)
        model = find_model(self._manager, spec)
        key, signature = model.signature(spec.signature_name)
        response = predict_pb2.PredictResponse()
        fill_model_spec(response.model_spec, spec.name, model, key)
        for name, array in predict(model, request).items():
            dtype = signature.outputs[name].dtype
            to_proto(array, dtype, self._as_content, response.outputs[name])
        return response

    @_rpc
    def GetModelMetadata(self, request):
        spec = _check_spec(request)
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        return model_metadata(find_model(self._manager, spec))

    @_rpc
    def Classify(self, request):
        return self._infer(request, classifier, classification_pb2.ClassificationResponse)

    @_rpc
    def Regress(self, request):
        return self._infer(request, regressor, regression_pb2.RegressionResponse)

    @_rpc
    def MultiInference(self, request):
        # Every task names the model; the version is the first one's.
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        return multi_inference(find_model(self._manager, spec), request)

    def _infer(self, request, method, response_type):
        spec = _check_spec(request)
        model = find_model(self._manager, spec)
        result = infer(model, method, spec.signature_name, request.input)
        response = response_type(result=method.to_proto(result))
        fill_model_spec(response.model_spec, spec.name, model, spec.signature_name)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        manager: `ModelManager`.
        turns: context manager around the work of each request.
        metric_value: function from the name of a metric to its value, for clients that want to
            know by how much it grew during a reload; unknown ones are 0.
    """

    def __init__(self, manager, turns, metric_value=lambda name: 0):
        self._manager = manager
        self.turns = turns
        self._metric_value = metric_value

    @_rpc
    def GetModelStatus(self, request):
        spec = _check_spec(request)
        version = spec.version.value if spec.HasField("version") else None
        return model_status(self._manager, spec.name, version)

    def HandleReloadConfigRequest(self, request, context):
        return self._reload((request, context), context)

    @_rpc
    def _reload(self, call):
        request, context = call  # which knows when the client has gone: that ends the wait
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        before = {name: self._metric_value(name) for name in request.metric_names}
        self._manager.reload(request.config, gone=lambda: not context.is_active())
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name, value in before.items():
            growth = self._metric_value(name) - value
            response.metric.add(name=name, int64_value_increase=growth)
        return response
