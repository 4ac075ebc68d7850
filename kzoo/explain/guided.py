"""Guided backpropagation and the deconvnet: gradients with another backward rule at each ReLU.

With y = relu(x) and g the gradient that arrives at y, the gradient that leaves x is

    gradient    (x > 0) g
    deconvnet   max(g, 0)
    guided      (x > 0) max(g, 0)

Everything but the ReLU is the plain gradient: a deconvnet's transposed convolutions and unpooling
switches are that already.

"Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
Simonyan, Vedaldi, Zisserman, 2013, arXiv 1312.6034, section 4; "Striving for Simplicity: The All
Convolutional Net", Springenberg, Dosovitskiy, Brox, Riedmiller, 2014, arXiv 1412.6806, figure 1;
"Visualizing and Understanding Convolutional Networks", Zeiler, Fergus, 2013, arXiv 1311.2901.

Deviations: the whole way is from a class score, not from one unit of a chosen layer.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import (
    flatten_operations,
    on_output,
    replace_activation,
    replace_call,
    require_layers,
)
from kzoo.papers import Example, Paper, component

GUIDED_PAPER = Paper(
    title="Striving for Simplicity: The All Convolutional Net",
    authors=("Jost Tobias Springenberg", "Alexey Dosovitskiy", "Thomas Brox", "Martin Riedmiller"),
    year=2014,
    arxiv="1412.6806",
)

DECONVNET_PAPER = Paper(
    title="Visualizing and Understanding Convolutional Networks",
    authors=("Matthew D. Zeiler", "Rob Fergus"),
    year=2013,
    arxiv="1311.2901",
)

_RELU_FUNCTIONS = (
    keras.activations.relu, keras.activations.relu6, keras.ops.relu, keras.ops.relu6,
    tf.nn.relu, tf.nn.relu6,
)  # fmt: skip


@contextlib.contextmanager
def replace_relus(model, make_call):
    """Within the context, every reachable ReLU of `model` computes `make_call(its own call)`.

    Reached are `activation`s of layers, `keras.layers.ReLU` and the ReLU operations of functional
    graphs, also with an upper bound; a leaky one is no ReLU. Not reached is a `tf.nn.relu` or
    `keras.ops.relu` that a layer or a subclassed model calls in its own code.
    """
    with contextlib.ExitStack() as stack:
        # A shared layer is met more than once.
        for operation in {id(each): each for each in flatten_operations(model)}.values():
            if _is_relu(operation):
                stack.enter_context(replace_call(operation, make_call))
            # A recurrent layer has its activation from its cell, which is met by itself.
            elif vars(operation).get("activation") in _RELU_FUNCTIONS:
                activation = make_call(operation.activation)
                stack.enter_context(replace_activation(operation, activation))
        yield


def _is_relu(operation):
    if isinstance(operation, keras.Layer):
        is_relu = isinstance(operation, keras.layers.ReLU)
    else:
        is_relu = type(operation).__name__ in ("ReLU", "Relu", "Relu6")
    return is_relu and not getattr(operation, "negative_slope", 0)


@tf.custom_gradient
def _rectify_gradient(x):
    return tf.identity(x), tf.nn.relu


def _deconvnet_call(call):
    @tf.custom_gradient
    def forward(x):
        return call(x), tf.nn.relu

    return forward


class _ModifiedBackprop(Explainer):
    """Base of the two methods, which differ by `relu_call`, for `replace_relus`."""

    relu_call = None

    def __init__(self, model, score=None, tap=None):
        require_layers(model)
        super().__init__(model, score=score, tap=tap)

    def gradients(self, values, target, inputs):
        with replace_relus(self.model, self.relu_call):
            return super().gradients(values, target, inputs)

    def attribute(self, values, target, inputs):
        gradients, scored = self.gradients(values, target, inputs)
        return {"attributions": gradients, **scored}

    def get_config(self):
        return {}


@component(GUIDED_PAPER, example=Example())
class GuidedBackprop(_ModifiedBackprop):
    """Gradients that pass a ReLU only where both its input and the gradient are positive.

    Sharp pictures of what excites the network, but hardly of one class rather than another: they
    change little when the upper layers are randomized. `GuidedGradCAM` mends that.

    ReLUs that a layer or a subclassed model calls in its own code (`tf.nn.relu`) cannot be reached
    and keep their gradient; without any other ReLU the result is the plain gradient.

    Args:
        model: see `Explainer`, as are `score` and `tap`.

    Returns (when called): `attributions` of the input's shape, signed; `score`, `target` [batch].

    Reference:
        Springenberg et al. (2014), figure 1, arxiv.org/abs/1412.6806
    """

    relu_call = staticmethod(on_output(_rectify_gradient))


@component(DECONVNET_PAPER, example=Example())
class Deconvnet(_ModifiedBackprop):
    """Gradients that pass a ReLU where they are positive, whatever its input was.

    The limits are those of `GuidedBackprop`.

    Args:
        model: see `Explainer`, as are `score` and `tap`.

    Returns (when called): `attributions` of the input's shape, signed; `score`, `target` [batch].

    Reference:
        Zeiler and Fergus (2013), section 2.1, arxiv.org/abs/1311.2901; Simonyan et al. (2013),
        section 4, arxiv.org/abs/1312.6034
    """

    relu_call = staticmethod(_deconvnet_call)
