"""Other rules for the way back: layers that compute the same and pass on something else.

Each rule is written as a function with the value of the layer and another gradient, by

    value(y) + (v - stop(v)) * ...

so that it needs no custom gradient, holds for any number of inputs and has derivatives itself.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.explain.graph import flatten_operations, replace_activation, replace_call

_ELEMENTWISE_LAYERS = (
    keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU,
)  # fmt: skip
_ELEMENTWISE_OPERATIONS = {
    "Celu", "Elu", "Gelu", "HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu",
    "LogSigmoid", "Relu", "Relu6", "Selu", "Sigmoid", "Silu", "SoftShrink", "Softplus",
    "Softsign", "Squareplus", "Tanh", "TanhShrink", "Threshold",
}  # fmt: skip
_NOT_ELEMENTWISE = {"linear", "softmax", "log_softmax", "sparsemax", "glu"}


def with_gradient_of(value, surrogate):
    """A tensor with the value of one and the gradient of another."""
    return tf.stop_gradient(value) + (surrogate - tf.stop_gradient(surrogate))


def scale_gradient(x, factor):
    """`x`, whose gradient is multiplied by `factor`."""
    return with_gradient_of(x, x * tf.stop_gradient(factor))


@contextlib.contextmanager
def replace_activations(model, make_call):
    """Within the context, every elementwise activation computes `make_call(its own call)`.

    Reached are `activation`s of layers, activation layers, and the activations among the operations
    of functional graphs. Not reached is what a layer or a subclassed model calls in its own code.
    """
    with contextlib.ExitStack() as stack:
        for operation in {id(each): each for each in flatten_operations(model)}.values():
            activation = vars(operation).get("activation")
            if _is_elementwise(operation):
                stack.enter_context(replace_call(operation, make_call))
            elif callable(activation) and _name(activation) not in _NOT_ELEMENTWISE:
                stack.enter_context(replace_activation(operation, make_call(activation)))
        yield


def _is_elementwise(operation):
    if isinstance(operation, keras.Layer):
        return isinstance(operation, _ELEMENTWISE_LAYERS)
    return type(operation).__name__ in _ELEMENTWISE_OPERATIONS


def _name(activation):
    return getattr(activation, "__name__", type(activation).__name__)
