"""The signatures of an export, as concrete functions of tensors with the batch first."""

import keras
import tensorflow as tf

from kzoo.explain.graph import final_activation, input_structure, linear_output
from kzoo.ops.map_fn import map_fn
from kzoo.serving.check import ExportError
from kzoo.serving.overlay import overlay_png

_IMAGE_BYTES = tf.TensorSpec([None], tf.string, "image_bytes")
_TARGET = tf.TensorSpec([None], tf.int32, "target")


def make_signatures(model, specs, explainers, rescale, overlays):
    """Returns {signature name: concrete function}.

    Args:
        model: the model, whose inputs are `specs`, see `named_specs`.
        explainers: {method: Explainer}.
        rescale, overlays: as for `kzoo.serving.export.export`.

    Raises:
        ExportError: if there shall be overlays of something that is no image.
    """
    signatures = {"serving_default": _predict(model, specs)}
    if _is_image(specs):
        signatures["predict_bytes"] = _predict_bytes(model, specs["inputs"], rescale)
    for method, explainer in explainers.items():
        signatures[f"explain_{method}"] = _explain(explainer, specs)
        if overlays:
            signatures[f"explain_{method}_png"] = _explain_png(explainer, specs, rescale)
    return signatures


def named_specs(model):
    """{name: TensorSpec} of the model's inputs; a lone input is called "inputs"."""
    structure = input_structure(model)
    if structure is None:
        raise ExportError(
            f"The inputs of the subclassed model {model.name!r} are not known. Wrap it: "
            "keras.Model(x, model(x)) with x = keras.Input(...)."
        )
    if not keras.tree.is_nested(structure):
        specs = {"inputs": structure}
    elif isinstance(structure, dict):
        specs = dict(structure)
    else:
        specs = {tensor.name: tensor for tensor in keras.tree.flatten(structure)}
    return {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
        for name, tensor in specs.items()
    }


def _pack(model, specs, tensors):
    """The model's input structure from tensors in the order of `specs`."""
    structure = input_structure(model)
    if isinstance(structure, dict):
        return dict(zip(specs, tensors, strict=True))
    return keras.tree.pack_sequence_as(structure, tensors)


def _predict(model, specs):
    def predict(*tensors):
        return _outputs(model, _pack(model, specs, tensors))

    return tf.function(predict, autograph=False).get_concrete_function(*specs.values())


def _outputs(model, inputs):
    with linear_output(model):
        return _named_outputs(model, model(inputs, training=False))


def _named_outputs(model, outputs):
    """{name: tensor} of what the model gives without its final softmax or sigmoid."""
    activation = final_activation(model)
    if keras.tree.is_nested(outputs):
        named = (
            outputs
            if isinstance(outputs, dict)
            else dict(zip(model.output_names, outputs, strict=True))
        )
        return {name: _float32(value) for name, value in named.items()}
    if activation is None and outputs.shape.rank != 2:
        return {"outputs": _float32(outputs)}
    if activation is None:
        activation = tf.nn.softmax if outputs.shape[-1] > 1 else tf.nn.sigmoid
    logits = _float32(outputs)
    return {"logits": logits, "probabilities": activation(logits)}


def _float32(x):
    return tf.cast(x, tf.float32) if x.dtype.is_floating else x


def _is_image(specs):
    return set(specs) == {"inputs"} and (
        specs["inputs"].shape.rank == 4
        and specs["inputs"].shape[-1] in (1, 3)
        and None not in specs["inputs"].shape[1:]
    )


def _predict_bytes(model, spec, rescale):
    def predict_bytes(image_bytes):
        return _outputs(model, _decode(image_bytes, spec, rescale))

    function = tf.function(predict_bytes, autograph=False)
    return function.get_concrete_function(_IMAGE_BYTES)


def _decode(image_bytes, spec, rescale):
    """JPEG or PNG bytes [batch] as the model's images."""
    height, width, channels = spec.shape[1:]
    scale, offset = rescale

    def decode(encoded):
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        image = tf.image.resize(tf.cast(image, tf.float32), [height, width], antialias=True)
        return tf.cast(scale * image + offset, spec.dtype)

    shape = tf.TensorSpec(spec.shape[1:], spec.dtype)
    return map_fn(decode, image_bytes, fn_output_signature=shape)


def _explain(explainer, specs):
    extra = _request_specs(explainer, specs)

    def explain(*tensors):
        inputs, (target, *request) = tensors[: len(specs)], tensors[len(specs) :]
        inputs = _pack(explainer.model, specs, inputs)
        return _answer(explainer, specs, inputs, target, dict(zip(extra, request, strict=True)))

    function = tf.function(explain, autograph=False)
    return function.get_concrete_function(*specs.values(), _TARGET, *extra.values())


def _request_specs(explainer, specs):
    return explainer.request_specs(_pack(explainer.model, specs, list(specs.values())))


def _answer(explainer, specs, inputs, target, request):
    """What an explanation answers: {output: tensor}, with what the model predicts."""
    result = explainer.explain(inputs, target, **request)
    answer = _named_outputs(explainer.model, result.pop("predictions"))
    attributions = result.pop("attributions")
    if keras.tree.is_nested(attributions):
        parts = zip(specs, keras.tree.flatten(attributions), strict=True)
        result |= {f"attributions_{name}": part for name, part in parts}
    else:
        result["attributions"] = attributions
    clash = answer.keys() & result.keys()
    if clash:
        raise ExportError(
            f"The model's outputs {', '.join(clash)} have names of what an explanation answers."
        )
    return answer | {name: _float32(value) for name, value in result.items()}


def _explain_png(explainer, specs, rescale):
    extra = _request_specs(explainer, specs)
    if not _is_image(specs) or any(spec.dtype.is_floating for spec in extra.values()):
        raise ExportError(
            "`overlays` are for models of one image [height, width, 1 or 3] of a known size, and "
            "explainers whose requests bring no further image."
        )

    def explain_png(image_bytes, target, *request):
        images = _decode(image_bytes, specs["inputs"], rescale)
        request = dict(zip(extra, request, strict=True))
        answer = _answer(explainer, specs, images, target, request)
        return answer | {"overlay_bytes": overlay_png(image_bytes, answer["attributions"])}

    function = tf.function(explain_png, autograph=False)
    return function.get_concrete_function(_IMAGE_BYTES, _TARGET, *extra.values())
