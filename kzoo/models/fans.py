"""Which axes of a layer's variables count its inputs and which its outputs.

A `Fan` is what muP has to know of a variable: what it is summed over, what it fans out to, how it
was drawn, and, of attention, the axis over which queries meet keys.
"""

import math
from dataclasses import dataclass

import keras

_layers = keras.layers
_init = keras.initializers


@dataclass(frozen=True)
class Fan:
    """A variable and its axes.

    Args:
        variable: the `keras.Variable`.
        inputs: axes that the layer sums over.
        outputs: axes along which the results of those sums lie.
        initializer: what the variable was drawn by.
        attention: axis over which the scores of attention are summed; None but for queries.
    """

    variable: keras.Variable
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    initializer: keras.initializers.Initializer
    attention: int | None = None


# {kinds of layers: {variable: (axes of inputs, axes of outputs, initializer)}}; the axes of
# variables that act on each feature by itself are all outputs.
_ALL = "all"
_KERNEL = ((-2,), (-1,), "kernel_initializer")
_BIAS = ((), _ALL, "bias_initializer")
_DEPTHWISE = ((), (-2, -1), "depthwise_initializer")
_TABLE = {
    (_layers.Dense, _layers.Conv1D, _layers.Conv2D, _layers.Conv3D): {
        "kernel": _KERNEL, "bias": _BIAS,
    },
    (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose): {
        "kernel": ((-1,), (-2,), "kernel_initializer"), "bias": _BIAS,
    },
    (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D): {"kernel": _DEPTHWISE, "bias": _BIAS},
    (_layers.SeparableConv1D, _layers.SeparableConv2D): {
        "depthwise_kernel": _DEPTHWISE,
        "pointwise_kernel": ((-2,), (-1,), "pointwise_initializer"),
        "bias": _BIAS,
    },
    (_layers.Embedding,): {"embeddings": ((0,), (1,), "embeddings_initializer")},
    (_layers.LayerNormalization, _layers.BatchNormalization, _layers.GroupNormalization): {
        "gamma": ((), _ALL, "gamma_initializer"), "beta": ((), _ALL, "beta_initializer"),
    },
    (_layers.RMSNormalization,): {"scale": ((), _ALL, None)},
    (_layers.PReLU,): {"alpha": ((), _ALL, "alpha_initializer")},
}  # fmt: skip

# Their results depend on the width in a way that muP would have to change.
_REFUSED = (_layers.Attention, _layers.GroupQueryAttention)


def fans(model):
    """The `Fan` of every variable of a model, in the order of its layers.

    Raises:
        ValueError: for a model with layers that are not supported, with their names.
    """
    found, queries = [], {}
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    for layer in layers:
        if isinstance(layer, _REFUSED):
            raise _unsupported(f"{layer.name} ({type(layer).__name__})")
        if isinstance(layer, _layers.MultiHeadAttention):
            # Kernel [features, heads, key_dim] and bias [heads, key_dim].
            queries |= {id(variable): -1 for variable in layer.query_dense.variables}
        found += _fans_of_layer(layer)
    covered = {id(fan.variable) for fan in found}
    strangers = [v.path for v in model.trainable_variables if id(v) not in covered]
    if strangers:
        raise _unsupported(", ".join(strangers))
    return [
        Fan(f.variable, f.inputs, f.outputs, f.initializer, queries.get(id(f.variable)))
        for f in found
    ]


def relative_deviation(fan, shape):
    """The standard deviation with which a `Fan`'s variable is drawn in this shape, up to a factor
    that is the same for all shapes.

    Raises:
        ValueError: for an initializer of which it is not known.
    """
    initializer = fan.initializer
    if isinstance(initializer, _init.VarianceScaling):
        fan_in, fan_out = _keras_fans(shape)
        number = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        return 1 / math.sqrt(max(1.0, number[initializer.mode]))
    if isinstance(initializer, _init.Orthogonal):
        return 1 / math.sqrt(max(math.prod(shape[:-1]), shape[-1]))
    fixed = (
        _init.RandomNormal, _init.RandomUniform, _init.TruncatedNormal,
        _init.Zeros, _init.Ones, _init.Constant,
    )  # fmt: skip
    if isinstance(initializer, fixed):
        return 1.0
    raise ValueError(
        f"{fan.variable.path} is drawn by {type(initializer).__name__}, which muP cannot rescale. "
        "Use one of Keras's random initializers that know the shape or have a fixed deviation."
    )


def _unsupported(names):
    return ValueError(
        f"The model has variables or layers for which muP is not defined here: {names}. Supported "
        "are Dense, EinsumDense, convolutions, Embedding, MultiHeadAttention, normalizations, "
        "PReLU, and all layers without variables but Attention."
    )


def _fans_of_layer(layer):
    if isinstance(layer, _layers.EinsumDense):
        axes = _einsum_axes(layer.equation)
        table = {"kernel": (*axes, "kernel_initializer"), "bias": _BIAS}
    else:
        table = next((row for kinds, row in _TABLE.items() if isinstance(layer, kinds)), {})
    found = []
    for name, (inputs, outputs, initializer) in table.items():
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            rank = len(variable.shape)
            outputs = range(rank) if outputs == _ALL else outputs
            positive = [tuple(axis % rank for axis in axes) for axes in (inputs, outputs)]
            drawn_by = getattr(layer, initializer) if initializer else _init.Ones()
            found.append(Fan(variable, *positive, drawn_by))
    return found


def _einsum_axes(equation):
    """(axes of the kernel that are summed over, the others)."""
    inputs, output = equation.replace(" ", "").split("->")
    kernel = inputs.split(",")[1]
    summed = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    return summed, tuple(axis for axis in range(len(kernel)) if axis not in summed)


def _keras_fans(shape):
    """Fan-in and fan-out as Keras's initializers count them."""
    if len(shape) == 1:
        return shape[0], shape[0]
    positions = math.prod(shape[:-2])
    return positions * shape[-2], positions * shape[-1]
