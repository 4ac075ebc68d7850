"""The JSON of classify and regress: `examples` and `context` in, `results` out.

An Example is an object {feature name: value or list of values}. JSON knows no types of features:
whole numbers and booleans make an int64 feature, numbers with a point or an exponent a float
feature, strings and {"b64": ...} a bytes feature; a list must be of one kind.
"""

import tensorflow as tf
from tensorflow_serving.apis import input_pb2

from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.json_text import (
    debug_string,
    decode_base64,
    is_base64,
    quote,
    type_name,
)
from kzoo.serving.server.rest_response import decimals

_MIN_INT64, _MAX_INT64, _MAX_UINT64 = -(2**63), 2**63 - 1, 2**64 - 1


def parse_input(document):
    """Returns the `tensorflow.serving.Input` of a request.

    Args:
        document: the parsed body, an object.

    Raises:
        ServingError: INVALID_ARGUMENT with TensorFlow Serving's text.
    """
    request_input = input_pb2.Input()
    examples = request_input.example_list
    if "context" in document:
        examples = request_input.example_list_with_context
        _fill_example(examples.context, document["context"])
    values = document.get("examples")
    if "examples" not in document:
        reason = "When method is classify, key 'examples' is expected and was not found"
    elif not isinstance(values, list):
        reason = "Expecting 'examples' value to be an list/array"
    elif not values:
        reason = "'examples' value is an empty array"
    else:
        for value in values:
            _fill_example(examples.examples.add(), value)
        return request_input
    raise invalid_argument(f"JSON Value: {debug_string(document)} {reason}")


def encode_classes(classes):
    """Returns the body that answers classify: [label, score] of every class of every Example."""
    rows = [
        ", ".join(
            f"[{quote(label.decode('utf-8', 'surrogateescape'))}, {score}]"
            for label, score in zip(labels, decimals(scores), strict=True)
        )
        for labels, scores in zip(classes.labels, classes.scores, strict=True)
    ]
    body = f'{{\n    "results": [{", ".join(f"[{row}]" for row in rows)}\n    ]\n}}'
    return body.encode("utf-8", "surrogateescape")


def encode_values(values):
    """Returns the body that answers regress: one number per Example."""
    return f'{{\n    "results": [{", ".join(decimals(values))}]\n}}'.encode()


def _fill_example(example, value):
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(value)}")
    for key, content in value.items():
        name = key.partition("\0")[0]
        feature = _feature(name, content if isinstance(content, list) else [content])
        example.features.feature[_utf8(name)].CopyFrom(feature)


def _utf8(name):
    """Returns a name that a message can hold; with bytes replaced no graph looks for it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _feature(name, values):
    """Returns the Feature of a list of JSON values."""
    feature, kinds = tf.train.Feature(), set(map(type, values))
    if not values:
        return feature
    if kinds == {float}:
        feature.float_list.value.extend(values)
    elif kinds == {str}:
        feature.bytes_list.value.extend(map(_encode, values))
    elif kinds == {int} and min(values) >= _MIN_INT64 and max(values) <= _MAX_INT64:
        feature.int64_list.value.extend(values)
    else:
        for value in values:
            _add_value(feature, name, value)
    return feature


def _add_value(feature, name, value):
    kind = _kind(value)
    if kind is None:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
        )
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: "
            f"{present.removesuffix('_list')}"
        )
    getattr(feature, kind).value.append(_convert(value, name, kind))


def _kind(value):
    """Returns the field of Feature that holds a JSON value, or None."""
    if isinstance(value, str) or is_base64(value):
        return "bytes_list"
    if isinstance(value, int) and _MIN_INT64 <= value <= _MAX_UINT64:
        return "int64_list"
    return "float_list" if isinstance(value, int | float) else None


def _convert(value, name, kind):
    if kind == "int64_list":
        if value > _MAX_INT64:
            raise invalid_argument(
                f"Feature: {name} has uint64_t element. Only int64_t is supported."
            )
        return int(value)
    if kind == "float_list":
        return float(value)
    if isinstance(value, str):
        return _encode(value)
    data = decode_base64(value["b64"])
    if data is None:
        raise invalid_argument("Unable to base64 decode")
    return data


def _encode(text):
    return text.encode("utf-8", "surrogateescape")
