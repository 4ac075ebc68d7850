"""Ways into a model of any build: find a layer, replace what it computes, drop the last activation.

All of it works by swapping what a layer object calls while the model is traced, so it is the same
for functional, Sequential, subclassed and nested models, and leaves the model as it was.
"""

import contextlib
import difflib

import keras

_NORMALIZING = ("softmax", "sigmoid", "log_softmax")


def input_structure(model):
    """The `KerasTensor`s of a functional or Sequential model's inputs; None for another model."""
    functional = getattr(model, "_functional", None) or model
    structure = getattr(functional, "_inputs_struct", None)
    # Keras takes a lone tensor for a list of one; so does kzoo.
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure


def require_layers(model):
    """Refuses a function where a method looks into the layers of a model."""
    if not isinstance(model, keras.Layer):
        raise TypeError(
            "`model` must be a Keras model, into whose layers the method looks. "
            f"Received: {type(model).__name__}"
        )


def flatten_layers(model):
    """Yields the layers of a model depth first, those of nested models and layers included."""
    require_layers(model)
    for layer in model._flatten_layers(include_self=False, recursive=False):
        yield layer
        yield from flatten_layers(layer)


def flatten_operations(model):
    """Yields the layers of a model and the `keras.ops` of its functional graph, nested or not."""
    yield from flatten_layers(model)
    for graph in (model, *flatten_layers(model)):
        for operation in getattr(graph, "operations", ()):
            if not isinstance(operation, keras.Layer):
                yield operation


def last_feature_map(model):
    """Returns the operation of a functional or Sequential model that makes its last feature map.

    That is the last one, also inside of nested models, with an output of rank 4 ([batch, height,
    width, channels]) and more than one position; of rank 3 where there is none of rank 4.

    Raises:
        ValueError: if there is none, or the model is subclassed and has no graph to look at.
    """
    require_layers(model)
    for rank in (4, 3):
        found = _last_of_rank(model, rank)
        if found is not None:
            return found
    raise ValueError(
        f"{model.name!r} has no graph in which to find the last feature map, or none in it. Pass "
        f"`layer`, one of: {', '.join(dict.fromkeys(each.name for each in flatten_layers(model)))}"
    )


def _last_of_rank(model, rank):
    functional = getattr(model, "_functional", None) or model
    for operation in reversed(getattr(functional, "operations", ())):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        outputs = keras.tree.flatten(operation.output)
        shape = outputs[0].shape
        if len(outputs) == 1 and len(shape) == rank and any(n != 1 for n in shape[1:-1]):
            return operation
        inner = _last_of_rank(operation, rank)
        if inner is not None:
            return inner
    return None


def find_layer(model, layer):
    """Returns the layer of `model` that has the given name, also inside of nested models.

    Args:
        layer: a name, an index into `model.layers`, or a layer, which is returned as it is.

    Raises:
        ValueError: if no layer, or more than one, has this name, or the index is out of range.
    """
    if isinstance(layer, keras.Operation):
        return layer
    require_layers(model)
    if isinstance(layer, int):
        if not -len(model.layers) <= layer < len(model.layers):
            raise ValueError(
                f"`layer` must be an index into the {len(model.layers)} layers of {model.name!r}. "
                f"Received: {layer}"
            )
        return model.layers[layer]
    found = {id(each): each for each in flatten_operations(model) if each.name == layer}
    if len(found) != 1:
        names = list(dict.fromkeys(each.name for each in flatten_layers(model)))
        near = difflib.get_close_matches(str(layer), names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`layer` must name exactly one layer of {model.name!r}. Received: {layer!r}, which "
            f"names {len(found)}.{hint} The layers are: {', '.join(names)}"
        )
    return next(iter(found.values()))


@contextlib.contextmanager
def replace_call(layer, make_call):
    """Within the context, `layer` computes `make_call(its own call)`."""
    replaced = layer.__dict__.get("call")
    # Past Keras's attribute tracking, which has no use for it; the class keeps its own method.
    object.__setattr__(layer, "call", make_call(layer.call))
    try:
        yield
    finally:
        if replaced is None:
            layer.__dict__.pop("call")
        else:
            object.__setattr__(layer, "call", replaced)


@contextlib.contextmanager
def replace_activation(layer, activation):
    """Within the context, `layer` has another `activation`."""
    original = layer.activation
    layer.activation = activation
    try:
        yield
    finally:
        layer.activation = original


def on_output(function):
    """For `replace_call`: the layer returns `function(its own output)`."""
    return lambda call: lambda *args, **kwargs: function(call(*args, **kwargs))


def final_activation(model):
    """The softmax or sigmoid that ends `model`, a function of tensors; None if it has none."""
    final = _final_layer(model)
    if final is None or not _normalizes(final):
        return None
    if isinstance(final, keras.layers.Softmax):
        return lambda logits: keras.ops.softmax(logits, axis=final.axis)
    return final.activation


def linear_output(model):
    """A context in which `model` returns logits, without its final softmax or sigmoid.

    The final layer of a functional or Sequential model is known; of a subclassed model it is taken
    to be the only layer with such an activation. A model without one returns logits already.

    Raises:
        ValueError: for a subclassed model in which several layers have such an activation.
    """
    final = _final_layer(model)
    if final is None or not _normalizes(final):
        return contextlib.nullcontext()
    if isinstance(final, keras.layers.Softmax):
        return replace_call(final, lambda call: lambda inputs, mask=None: inputs)
    return replace_activation(final, keras.activations.linear)


def _outside_attention(model):
    """The layers of a model without the parts of attention, whose softmax ends nothing."""
    for layer in model._flatten_layers(include_self=False, recursive=False):
        yield layer
        if not isinstance(
            layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention
        ):
            yield from _outside_attention(layer)


def _normalizes(layer):
    activation = getattr(layer, "activation", None)
    return isinstance(layer, keras.layers.Softmax) or (
        getattr(activation, "__name__", None) in _NORMALIZING
    )


def _final_layer(model):
    if isinstance(model, keras.Sequential):
        return _final_layer(model.layers[-1]) if model.layers else None
    if isinstance(model, keras.Model) and not hasattr(model, "operations"):
        candidates = [layer for layer in _outside_attention(model) if _normalizes(layer)]
        if len(candidates) > 1:
            raise ValueError(
                f"Which activation ends {model.name!r}? Several layers have one that normalizes: "
                f"{', '.join(layer.name for layer in candidates)}. Pass `score`, a function of the "
                "model's outputs and the targets, that takes the logits."
            )
        return candidates[0] if candidates else None
    if isinstance(model, keras.Model):
        outputs = keras.tree.flatten(model.outputs)
        # Several outputs need a `score` of their own, which sees them as they are.
        return _final_layer(outputs[0]._keras_history.operation) if len(outputs) == 1 else None
    return model
