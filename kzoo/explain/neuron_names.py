"""Textual explanations: the concepts of the neurons that speak for a class, and against it.

    alpha_k = 1/Z sum_ij dy / dA^k_ij                    (importance of neuron k, equation 1)
    name_k  = argmax_c mean over the images that show concept c of max_ij A^k_ij
    text    = the names of the most positive and the most negative alpha_k

A large positive importance says that finding the concept raises the score of the class, a large
negative one that it lowers it.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", Selvaraju et
al., 2016, arXiv 1610.02391; equation 1 and the section on textual explanations.

Deviations: the paper takes names from Network Dissection, which compares thresholded activations
with a segmentation of the concepts; here an image is labelled as a whole, so that any labelled set
will do. A name that several neurons have is listed once, with its strongest neuron.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.grad_cam import PAPER
from kzoo.explain.graph import find_layer, last_feature_map, on_output, replace_call
from kzoo.papers import component


@component(PAPER)
class NeuronImportance(Explainer):
    """How much each neuron (feature map) of a layer speaks for the target class.

    Args:
        model: a Keras model, channels last; see `Explainer`, as is `score`.
        layer: name of the layer (or its index, or the layer) with an output [batch, ...,
            channels]. Defaults to the last feature map of a functional or Sequential model.

    Returns (when called): `attributions` [batch, channels], alpha; `score`, `target` [batch].

    Reference:
        Selvaraju et al. (2016), equation 1, arxiv.org/abs/1610.02391
    """

    differentiates_inputs = False

    def __init__(self, model, layer=None, score=None):
        super().__init__(model, score=score)
        self.layer = last_feature_map(model) if layer is None else find_layer(model, layer)

    def attribute(self, values, target, inputs):
        _, gradients, scored = self.activation_gradients(self.layer, values, target, inputs)
        alpha = tf.reduce_mean(gradients, axis=range(1, gradients.shape.rank - 1))
        return {"attributions": alpha, **scored}

    def get_config(self):
        return {"layer": self.layer.name}


@component(PAPER, not_served="it looks at a whole set of inputs")
def name_neurons(model, images, concepts, names, layer=None, batch_size=64):
    """The name of each neuron: the concept whose images activate it most.

    Args:
        model: a Keras model with one input; see `NeuronImportance`, as is `layer`.
        images: the model's inputs, [n, ...].
        concepts: bool (or 0 and 1) [n, concepts], which image shows which concept; each concept is
            shown by at least one.
        names: [concepts] names.
        batch_size: images per forward pass. Defaults to 64.

    Returns:
        List [channels] of names; None for a neuron that all concepts activate the same, such as a
        dead one.

    Raises:
        ValueError: for concepts that do not fit, or an unknown layer.

    Reference:
        Selvaraju et al. (2016), section on textual explanations, arxiv.org/abs/1610.02391
    """
    images, concepts = np.asarray(images), np.asarray(concepts, bool)
    if concepts.shape != (len(images), len(names)) or not concepts.any(axis=0).all():
        raise ValueError(
            f"`concepts` must be of shape {[len(images), len(names)]}, each of them shown by an "
            f"image. Received: shape {list(concepts.shape)}, shown by "
            f"{concepts.sum(axis=0).tolist()} images"
        )
    layer = last_feature_map(model) if layer is None else find_layer(model, layer)
    peaks = _peaks(model, layer, images, batch_size)
    weights = concepts / concepts.sum(axis=0)
    responses = np.einsum("nc,nk->kc", weights, peaks)
    best = responses.argmax(axis=1)
    return [
        names[concept] if np.ptp(response) > 0 else None
        for concept, response in zip(best, responses, strict=True)
    ]


@dataclass(frozen=True)
class TextualExplanation:
    """The concepts for and against a prediction, the strongest first: ((name, alpha), ...)."""

    positive: tuple
    negative: tuple

    def __str__(self):
        def listed(concepts):
            return ", ".join(f"{name} ({alpha:+.3g})" for name, alpha in concepts) or "nothing"

        return f"for: {listed(self.positive)}; against: {listed(self.negative)}"


@component(PAPER, not_served="it turns answers into pictures or words")
def explain_in_words(importance, names, top=5):
    """Turns the importance of neurons into the names of the concepts that matter.

    Args:
        importance: [batch, channels], the `attributions` of `NeuronImportance`.
        names: [channels], from `name_neurons`; None for neurons to leave out.
        top: most concepts on either side. Defaults to 5, as in the paper.

    Returns:
        List [batch] of `TextualExplanation`. A concept can be on both sides, by other neurons.

    Example:

    >>> names = name_neurons(model, images, concepts, ["striped", "dotted"])
    >>> alpha = NeuronImportance(model)(images)["attributions"]
    >>> print(explain_in_words(alpha, names)[0])
    for: striped (+0.31); against: dotted (-0.12)

    Reference:
        Selvaraju et al. (2016), section on textual explanations, arxiv.org/abs/1610.02391
    """
    importance = np.asarray(importance)
    if importance.ndim != 2 or importance.shape[1] != len(names):
        raise ValueError(
            f"`importance` must be [batch, {len(names)}], a column for each name. Received: shape "
            f"{list(importance.shape)}"
        )
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"`top` must be a positive integer. Received: {top!r}")
    return [
        TextualExplanation(_strongest(row, names, top, 1), _strongest(row, names, top, -1))
        for row in importance
    ]


def _strongest(alpha, names, top, sign):
    """The first `top` names with an alpha of this sign: ((name, alpha), ...)."""
    chosen = {}
    for k in np.argsort(-sign * alpha, kind="stable"):
        if sign * alpha[k] <= 0 or len(chosen) == top:
            break
        if names[k] is not None:
            chosen.setdefault(names[k], float(alpha[k]))
    return tuple(chosen.items())


def _peaks(model, layer, images, batch_size):
    """The highest activation over the positions, [n, channels], of each image and neuron."""

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(images):
        seen = []

        def record(output):
            seen.append(output)
            return output

        with replace_call(layer, on_output(record)):
            model(images, training=False)
        maps = tf.cast(seen[-1], tf.float32)
        return tf.reduce_max(maps, axis=range(1, maps.shape.rank - 1))

    starts = range(0, len(images), batch_size)
    return np.concatenate([measure(tf.constant(images[i : i + batch_size])) for i in starts])
