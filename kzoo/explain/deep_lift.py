"""DeepLIFT with the rescale rule: differences from a baseline, passed back through the network.

    C_i = m_i (x_i - x'_i),   m = (f(z) - f(z')) / (z - z') at each nonlinearity    (section 3.5.1)
    sum_i C_i = F(x) - F(x')                        (summation to delta, section 3.1)

Linear layers pass multipliers on as gradients. A maximum gives what it gained to its winner in the
input and what it lost to its winner in the baseline.

"Learning Important Features Through Propagating Activation Differences", Shrikumar, Greenside,
Kundaje, 2017, arXiv 1704.02685.

Deviations: where |z - z'| is below 1e-6 the multiplier is the gradient. Products of two activations
(attention, gates) and layer normalization have no rule and pass gradients: `convergence_delta` says
what that costs.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline, sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import flatten_operations, replace_call, require_layers
from kzoo.explain.rules import replace_activations, scale_gradient, with_gradient_of
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Learning Important Features Through Propagating Activation Differences",
    authors=("Avanti Shrikumar", "Peyton Greenside", "Anshul Kundaje"),
    year=2017,
    arxiv="1704.02685",
)

_NEAR = 1e-6
_MAXIMA = (
    keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D,
    keras.layers.GlobalMaxPooling1D, keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)  # fmt: skip


@component(PAPER, example=Example())
class DeepLIFT(Explainer):
    """Attributions that add up to the difference of the scores, at the price of one gradient.

    Activations that a layer or a subclassed model calls in its own code (`tf.nn.relu`) cannot be
    reached and pass gradients, as in `GuidedBackprop`.

    Args:
        model: see `Explainer`, as is `score`.
        baseline: the reference x': a number, or an array of the shape of one input without the
            batch (a structure of either, for several inputs). Defaults to 0.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`;
    `convergence_delta` [batch], the sum of the attributions less F(x) - F(x').

    Reference:
        Shrikumar et al. (2017), section 3.5.1, arxiv.org/abs/1704.02685
    """

    def __init__(self, model, baseline=0.0, score=None):
        require_layers(model)
        super().__init__(model, score=score)
        self.baseline = baseline

    def attribute(self, values, target, inputs):
        baselines = broadcast_baseline(self.baseline, values)
        scored = self.scores(values, target, inputs)
        both = keras.tree.map_structure(lambda *x: tf.concat(x, 0), values, baselines)
        targets = tf.tile(scored["target"], [2])
        with contextlib.ExitStack() as stack:
            stack.enter_context(replace_activations(self.model, _rescaled))
            for layer in flatten_operations(self.model):
                if isinstance(layer, _MAXIMA):
                    stack.enter_context(replace_call(layer, _shared_maximum))
            # Rows do not meet in a network at inference but in the rules: the gradients of the
            # first half are the multipliers.
            multipliers, halves = self.gradients(both, targets, both)
        attributions = keras.tree.map_structure(
            lambda x, start, m: (x - start) * m[: tf.shape(x)[0]], values, baselines, multipliers
        )
        score, start = tf.split(halves["score"], 2)
        return {
            "attributions": attributions,
            **scored,
            "convergence_delta": sum_per_row(attributions) - (score - start),
        }

    def get_config(self):
        return {"baseline": baseline_config(self.baseline)}


def _rescaled(call):
    """An activation whose gradient is the slope of its chord from baseline to input."""

    def replaced(z, *args, **kwargs):
        y = call(z, *args, **kwargs)
        change_in, change_out = _change(z), _change(y)
        near = tf.abs(change_in) < _NEAR
        slope = change_out / tf.where(near, tf.ones_like(change_in), change_in)
        near, slope = (tf.concat([x, x], 0) for x in (near, slope))
        return tf.where(near, y, with_gradient_of(y, scale_gradient(z, slope)))

    return replaced


def _shared_maximum(call):
    """A maximum over places whose change is given to the places that had it, before and after."""

    def given(z, upstream):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = call(z)
        return tape.gradient(y, z, output_gradients=upstream)

    @tf.custom_gradient
    def replaced(z):
        y = call(z)

        def gradient(upstream):
            after, before = tf.split(y, 2)
            higher, of_input = tf.maximum(after, before), tf.split(upstream, 2)[0]
            # The input's winner has what is above the baseline's maximum, the baseline's the rest.
            share = tf.concat([(higher - before) * of_input, (after - higher) * of_input], 0)
            change = _change(z)
            near = tf.abs(change) < _NEAR
            slope = sum(tf.split(given(z, share), 2)) / tf.where(near, tf.ones_like(change), change)
            slope = tf.where(near, tf.split(given(z, upstream), 2)[0], slope)
            return tf.concat([slope, slope], 0)

        return y, gradient

    return replaced


def _change(x):
    """The input's half of a batch less the baseline's."""
    after, before = tf.split(x, 2)
    return after - before
