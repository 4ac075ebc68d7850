"""What the layers of Keras are as operations of a circuit."""

import inspect
import math

import keras
import numpy as np

layers = keras.layers
_FUNCTIONS = {
    "celu": "elu",
    "exponential": "exp",
    "hard_swish": "hard_silu",
    "swish": "silu",
}
_PLAIN = (
    "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "leaky_relu", "relu",
    "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "square", "swish", "tanh",
)  # fmt: skip
_LOWERINGS: dict = {}


def lowering(*classes):
    """Registers `function(build, layer, *arguments)` for layers of exactly these classes."""

    def register(function):
        _LOWERINGS.update(dict.fromkeys(classes, function))
        return function

    return register


def lower_layer(build, layer, arguments, options):
    """The operations of a layer.

    Raises:
        ValueError: for a layer that is not known, or an argument of its that is not.
    """
    function = _LOWERINGS.get(type(layer))
    if function is None:
        known = ", ".join(sorted(each.__name__ for each in _LOWERINGS))
        raise ValueError(
            f"Layer {layer.name!r} is a {type(layer).__name__}, which cannot be drawn as a "
            f"circuit. Supported: {known}, nested models and operations of `keras.ops`."
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(f"Layer {layer.name!r} must have data_format='channels_last'.")
    bound = inspect.signature(layer.call).bind(*arguments, **options).arguments
    bound = {k: v for k, v in bound.items() if v is not None and k != "training"}
    known = inspect.signature(function).parameters
    unknown = [name for name in bound if name not in known and "others" not in known]
    if unknown:
        raise ValueError(f"Layer {layer.name!r} is called with {', '.join(unknown)}; unsupported.")
    return function(build, layer, **bound)


def weight(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def activate(build, name, x, activation):
    """An activation given as Keras's function."""
    kind = getattr(activation, "__name__", "linear")
    if activation is None or kind == "linear":
        return x
    if kind in ("softmax", "log_softmax"):
        return build.along("softmax", name, x, [-1], function=kind)
    if kind in _PLAIN and getattr(keras.activations, kind, None) is activation:
        return build.elementwise(name, _FUNCTIONS.get(kind, kind), x)
    raise ValueError(
        f"Layer {name!r} has the activation {kind}. Supported: linear, softmax, log_softmax, "
        f"{', '.join(_PLAIN)}."
    )


def add_bias(build, layer, x, bias):
    if bias is None:
        return x
    return build.with_constant(layer.name, "add", x, weight(bias), f"{layer.name}.bias")


@lowering(layers.InputLayer, layers.Identity, layers.Dropout, layers.SpatialDropout1D,
          layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout,
          layers.AlphaDropout, layers.ActivityRegularization)  # fmt: skip
def _identity(build, layer, inputs):
    return inputs


@lowering(layers.Activation)
def _activation(build, layer, inputs):
    return activate(build, layer.name, inputs, layer.activation)


@lowering(layers.Rescaling)
def _rescaling(build, layer, inputs):
    scale, offset = np.asarray(layer.scale, "float32"), np.asarray(layer.offset, "float32")
    x = build.with_constant(layer.name, "multiply", inputs, scale, f"{layer.name}.scale")
    return build.with_constant(layer.name, "add", x, offset, f"{layer.name}.offset")


@lowering(layers.Normalization)
def _normalization(build, layer, inputs):
    mean = weight(layer.mean)
    deviation = np.maximum(np.sqrt(weight(layer.variance)), keras.config.epsilon())
    steps = [("subtract", mean, "mean"), ("divide", deviation, "deviation")]
    if layer.invert:
        steps = [("multiply", deviation, "deviation"), ("add", mean, "mean")]
    for function, value, label in steps:
        inputs = build.with_constant(layer.name, function, inputs, value, f"{layer.name}.{label}")
    return inputs


@lowering(layers.ReLU)
def _relu(build, layer, inputs):
    options = {"negative_slope": layer.negative_slope, "threshold": layer.threshold}
    options = {key: float(value) for key, value in options.items() if value}
    if layer.max_value is not None:
        options["max_value"] = float(layer.max_value)
    return build.elementwise(layer.name, "relu", inputs, **options)


@lowering(layers.LeakyReLU)
def _leaky_relu(build, layer, inputs):
    slope = float(layer.negative_slope)
    return build.elementwise(layer.name, "leaky_relu", inputs, negative_slope=slope)


@lowering(layers.ELU)
def _elu(build, layer, inputs):
    return build.elementwise(layer.name, "elu", inputs, alpha=float(layer.alpha))


@lowering(layers.Softmax)
def _softmax(build, layer, inputs):
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    return build.along("softmax", layer.name, inputs, axes, function="softmax")


def _merging(function):
    def merge(build, layer, inputs):
        result = inputs[0]
        for each in inputs[1:]:
            result = build.elementwise(layer.name, function, result, each)
        if isinstance(layer, layers.Average):
            result = build.elementwise(layer.name, "divide", result, len(inputs))
        return result

    return merge


for _class, _function in (
    (layers.Add, "add"), (layers.Average, "add"), (layers.Subtract, "subtract"),
    (layers.Multiply, "multiply"), (layers.Maximum, "maximum"), (layers.Minimum, "minimum"),
):  # fmt: skip
    lowering(_class)(_merging(_function))


@lowering(layers.Concatenate)
def _concatenate(build, layer, inputs):
    return build.concatenate(layer.name, inputs, layer.axis)


@lowering(layers.Reshape)
def _reshape(build, layer, inputs):
    shape = list(layer.target_shape)
    if -1 in shape:
        shape[shape.index(-1)] = math.prod(inputs.shape[1:]) // -math.prod(shape)
    return build.reshape(layer.name, inputs, [None, *shape])


@lowering(layers.Flatten)
def _flatten(build, layer, inputs):
    return build.reshape(layer.name, inputs, [None, math.prod(inputs.shape[1:])])


@lowering(layers.Permute)
def _permute(build, layer, inputs):
    return build.transpose(layer.name, inputs, [0, *layer.dims])


@lowering(layers.RepeatVector)
def _repeat_vector(build, layer, inputs):
    x = build.insert_units(layer.name, inputs, [1])
    return build.repeat(layer.name, x, {1: layer.n})


def _affine(build, layer, x, axes):
    """Learned scale and offset along `axes`."""
    for function, value in (("multiply", layer.gamma), ("add", layer.beta)):
        if value is not None:
            label = f"{layer.name}.{'gamma' if function == 'multiply' else 'beta'}"
            x = build.with_constant(layer.name, function, x, weight(value), label, axes)
    return x


@lowering(layers.LayerNormalization)
def _layer_norm(build, layer, inputs):
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = sorted(axis % len(inputs.axes) for axis in axes)
    epsilon = float(layer.epsilon)
    x = build.along("normalize", layer.name, inputs, axes, epsilon=epsilon)
    return _affine(build, layer, x, axes)


@lowering(layers.BatchNormalization)
def _batch_norm(build, layer, inputs):
    axes = [layer.axis % len(inputs.axes)]
    scale = 1 / np.sqrt(weight(layer.moving_variance) + layer.epsilon)
    offset = -weight(layer.moving_mean) * scale
    for value, each in ((layer.gamma, "multiply"), (layer.beta, "add")):
        if value is not None and each == "multiply":
            scale, offset = scale * weight(value), offset * weight(value)
        elif value is not None:
            offset = offset + weight(value)
    x = build.with_constant(layer.name, "multiply", inputs, scale, f"{layer.name}.scale", axes)
    return build.with_constant(layer.name, "add", x, offset, f"{layer.name}.offset", axes)
