"""The APIs over Examples, for a loaded model: Classify, Regress, and several of them at once."""

from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2

from kzoo.serving.server import classifier, metrics, regressor
from kzoo.serving.server.errors import invalid_argument, unimplemented
from kzoo.serving.server.examples import serialized_examples

DEFAULT_SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
_METHODS = {method.METHOD_NAME: method for method in (classifier, regressor)}
_RESULT_FIELDS = {classifier: "classification_result", regressor: "regression_result"}


def infer(model, method, signature_name, request_input):
    """Runs a signature over Examples.

    Args:
        model: `LoadedModel`.
        method: `classifier` or `regressor`.
        signature_name: empty for `serving_default`.
        request_input: `tensorflow.serving.Input`.

    Returns:
        What `method.result` makes of the outputs.

    Raises:
        ServingError: with TensorFlow Serving's text.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    outputs = method.output_names(model.signatures[name], _checks_method_names(model))
    examples = serialized_examples(request_input)
    return method.result(model.predict(name, {method.INPUT: examples}, outputs), len(examples))


def multi_inference(model, request):
    """Runs several signatures over the same Examples, in one call of the session.

    Args:
        model: `LoadedModel` of the first task.
        request: MultiInferenceRequest.

    Returns:
        The MultiInferenceResponse, its results in the order of the tasks.

    Raises:
        ServingError: with TensorFlow Serving's text.
    """
    plans = _plan(model, request.tasks)
    examples = serialized_examples(request.input)
    response = inference_pb2.MultiInferenceResponse()
    results = _run(model, plans, examples)
    metrics.record_examples(model.name, len(examples))
    for plan, outputs in zip(plans, results, strict=True):
        proto = plan.method.to_proto(plan.method.result(outputs, len(examples)))
        entry = response.results.add(**{_RESULT_FIELDS[plan.method]: proto})
        fill_model_spec(entry.model_spec, plan.model_name, model, plan.signature_name)
    return response


def fill_model_spec(spec, name, model, signature_name):
    """Fills the ModelSpec of a response: the version that answered, never a label."""
    spec.name = name
    spec.version.value = model.version
    spec.signature_name = signature_name or DEFAULT_SIGNATURE


class _Plan(NamedTuple):
    model_name: str
    signature_name: str
    method: Any
    outputs: tuple


def _plan(model, tasks):
    plans = []
    for task in tasks:
        spec = task.model_spec
        if not spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if spec.name != tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = spec.signature_name or DEFAULT_SIGNATURE
        if any(name == plan.signature_name for plan in plans):
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        if name not in model.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _METHODS:
            raise unimplemented(f"Unsupported signature method_name: {task.method_name}")
        method = _METHODS[task.method_name]
        outputs = method.output_names(model.signatures[name], _checks_method_names(model))
        plans.append(_Plan(spec.name, name, method, outputs))
    return plans


def _run(model, plans, examples):
    """Returns {output name: array} for each plan."""
    union = _union(model, plans)
    key = tuple(sorted(union.inputs)), tuple(sorted(union.outputs))
    values = model.run(key, union, dict.fromkeys(union.inputs, examples))
    return [
        {name: values[info.name] for name, info in _output_infos(model, plan).items()}
        for plan in plans
    ]


def _union(model, plans):
    """Returns one SignatureDef for all plans, whose inputs and outputs are named as the tensors."""
    union = meta_graph_pb2.SignatureDef()
    for plan in plans:
        info = model.signatures[plan.signature_name].inputs[plan.method.INPUT]
        union.inputs[info.name].CopyFrom(info)
        for info in _output_infos(model, plan).values():
            union.outputs[info.name].CopyFrom(info)
    return union


def _output_infos(model, plan):
    infos = model.signatures[plan.signature_name].outputs
    return {name: infos[name] for name in plan.outputs}


def _checks_method_names(model):
    return model.options.enable_signature_method_name_check
