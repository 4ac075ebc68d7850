"""Full-gradients: the score as the sum of what the input and every bias of the network add to it.

    f(x) = <df/dx, x> + sum_l <df/dz_l, b_l>                               (completeness)

z_l is what the bias b_l is added to. A layer may have its bias implicitly: of batch normalization
it is beta - gamma mu / sqrt(var + eps), of an elementwise nonlinearity h, linearised at its input,
h(z) - h'(z) z, which is zero for a ReLU.

"Full-Gradient Representation for Neural Network Visualization", Srinivas, Fleuret, 2019, arXiv
1905.00780; proposition 1 (full-gradients), section on implicit biases.

Deviations: none.
"""

import contextlib
import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from kzoo.explain.baselines import sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import flatten_layers, replace_activation, replace_call
from kzoo.explain.rules import replace_activations
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Full-Gradient Representation for Neural Network Visualization",
    authors=("Suraj Srinivas", "Francois Fleuret"),
    year=2019,
    arxiv="1905.00780",
)

_WITH_BIAS = (
    keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv1D, keras.layers.Conv2D,
    keras.layers.Conv3D, keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D, keras.layers.SeparableConv2D,
)  # fmt: skip
_WITH_OFFSET = (
    keras.layers.BatchNormalization, keras.layers.Normalization, keras.layers.Rescaling,
)  # fmt: skip


class _Record(NamedTuple):
    """A bias added to give `output`; or, with an `input`, a nonlinearity that gives it."""

    name: str
    output: tf.Tensor
    bias: tf.Tensor | None = None
    input: tf.Tensor | None = None


class FullGradients(Explainer):
    """Gives what `full_gradient_decomposition` returns; the base of `FullGrad`."""

    def __init__(self, model, score=None, tap=None):
        super().__init__(model, score=score, tap=tap)
        _check_layers(model)

    def attribute(self, values, target, inputs):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with _recorded_biases(self.model, tape) as records:
                scored = self.scores(values, target, inputs)
        ends = [(record.output, record.input) for record in records]
        ends = [[x for x in pair if x is not None] for pair in ends]
        input_gradients, gradients = tape.gradient(scored["score"], [values, ends])
        input_term = keras.tree.map_structure(_input_term, values, input_gradients)
        bias_terms = {}
        for record, gradient in zip(records, gradients, strict=True):
            # What does not reach the score has no gradient.
            if gradient[0] is not None:
                bias_terms[_unused(record.name, bias_terms)] = _bias_term(record, gradient)
        total = tf.add_n([sum_per_row(x) for x in (input_term, *bias_terms.values())])
        return {
            "input_term": input_term,
            "bias_terms": bias_terms,
            **scored,
            "convergence_delta": total - scored["score"],
        }


@component(PAPER, not_served="it is a function of tensors that explainers are made of")
def full_gradient_decomposition(model, inputs, target=None, score=None, tap=None):
    """What the input and every bias add to a score.

    Args:
        model: a Keras model of any build, see `FullGrad` for what is found in it.
        inputs, target: as of a call of an `Explainer`.
        score, tap: see `Explainer`.

    Returns:
        dict with `input_term`, df/dx * x, of the shape of the inputs; `bias_terms`, {name: df/dz *
        b} of the shapes of the layers' outputs, with names such as "conv2d/bias",
        "batch_normalization/offset", of nonlinearities other than ReLUs "tanh/activation", and with
        "_1", "_2" ... where the name is taken; `score`, `target`, `predictions`; and
        `convergence_delta` [batch], the sum of all terms less the score.

    Reference:
        Srinivas and Fleuret (2019), proposition 1, arxiv.org/abs/1905.00780
    """
    return FullGradients(model, score=score, tap=tap)(inputs, target)


@contextlib.contextmanager
def _recorded_biases(model, tape):
    """Within the context, calls of `model` put a `_Record` of each bias into the list given."""
    records = []

    def record(name, output, **given):
        tape.watch(output)
        records.append(_Record(name, output, **given))
        return output

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            replace_activations(model, lambda call: _activation_call(call, tape, record))
        )
        for layer in {id(each): each for each in flatten_layers(model)}.values():
            for kinds, make_call in ((_WITH_BIAS, _bias_call), (_WITH_OFFSET, _offset_call)):
                if isinstance(layer, kinds):
                    stack.enter_context(replace_call(layer, make_call(layer, record)))
        yield records


def _bias_call(layer, record):
    """For `replace_call`: records the sum before the activation."""

    def make_call(call):
        def replaced(*args, **kwargs):
            # Looked up only now: the one at the end of the model is taken away for the score.
            activation = layer.activation
            with replace_activation(layer, None):
                z = call(*args, **kwargs)
            if layer.bias is not None:
                bias = keras.ops.cast(layer.bias, z.dtype)
                z = record(f"{layer.name}/bias", z, bias=bias)
            return z if activation is None else activation(z)

        return replaced

    return make_call


def _offset_call(layer, record):
    """For `replace_call`: records what an affine layer gives for zeros, its implicit bias."""

    def make_call(call):
        def replaced(x, *args, **kwargs):
            offset = call(tf.zeros_like(x[:1]), *args, **kwargs)
            return record(f"{layer.name}/offset", call(x, *args, **kwargs), bias=offset)

        return replaced

    return make_call


def _activation_call(call, tape, record):
    """`call`, an elementwise nonlinearity, that records its input and output."""
    # A layer that is the activation of another is met by itself.
    if isinstance(call, keras.Layer) or _is_homogeneous(call):
        return call
    name = getattr(getattr(call, "__self__", None), "name", None)
    name = name or getattr(call, "__name__", type(call).__name__)

    # With the name, by which the activation at the end of a model is known.
    @functools.wraps(call)
    def recorded(x, *args, **kwargs):
        # A copy for this use alone: its gradient is what comes through here.
        x = tf.identity(x)
        tape.watch(x)
        return record(f"{name}/activation", call(x, *args, **kwargs), input=x)

    return recorded


def _is_homogeneous(call):
    """Whether h(z) = h'(z) z."""
    owner = getattr(call, "__self__", None)
    if isinstance(owner, keras.layers.ReLU):
        return owner.max_value is None and not owner.threshold
    if isinstance(owner, keras.Layer):
        return isinstance(owner, keras.layers.LeakyReLU | keras.layers.PReLU)
    name = getattr(call, "__name__", "") if owner is None else type(owner).__name__
    return name.lower() in ("relu", "leaky_relu", "leakyrelu")


def _bias_term(record, gradients):
    gradients = [_wide(each) for each in gradients]
    if record.input is None:
        return gradients[0] * _wide(record.bias)
    return gradients[0] * _wide(record.output) - gradients[1] * _wide(record.input)


def _input_term(x, gradient):
    return tf.zeros_like(x) if gradient is None else x * gradient


def _check_layers(model):
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.RNN | keras.layers.TimeDistributed):
            raise ValueError(
                f"Biases within a loop over time are out of reach. Received a model with the "
                f"{type(layer).__name__} layer {layer.name!r}."
            )
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"The model must have its channels last. Received: {layer.name!r} with "
                "`data_format='channels_first'`."
            )


def _unused(name, names):
    """`name`, numbered where it is taken: a layer may be called more than once."""
    count = 1
    numbered = name
    while numbered in names:
        numbered, count = f"{name}_{count}", count + 1
    return numbered


def _wide(x):
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x
