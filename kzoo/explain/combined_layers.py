"""A method's maps at several layers, combined: sharp as the early ones, of the class as the late.

    M = prod_l M_l^(w_l),    each M_l brought to the input's size and to [0, 1]

"There and Back Again: Revisiting Backpropagation Saliency Methods", Rebuffi, Fong, Ji, Vedaldi,
2020, arXiv 2004.02866; section on combining layers.

Open choices: the weights are the caller's, by default equal ones that sum to 1. The paper also
takes them from the layers' feature spread or from the accuracy of classifiers there.
"""

import inspect

import keras
import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap
from kzoo.explain.composition import base_config, make_base
from kzoo.explain.explainer import Explainer
from kzoo.explain.norm_grad import PAPER, NormGrad
from kzoo.papers import Example, component


@component(PAPER, example=Example(kwargs={"layers": (0, 1)}))
class CombinedLayers(Explainer):
    """A method's maps at several layers in one, their weighted geometric mean.

    It is high where all of them are: sharp as the early ones, of the class as the late ones.

    Args:
        model: a Keras model, channels last; see `ActivationMap`, as is `score`.
        layers: names, indices or layers, at least one.
        base: the method: an `ActivationMap` class such as `GradCAM`, or {"class_name", "config"} as
            in `get_config`. None for `NormGrad`.
        weights: exponents, at least 0, one for each layer. All ones give the product. None for
            equal ones that sum to 1, the geometric mean.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences), in
    [0, 1]; `score`, `target`, `predictions`.

    Example:

    >>> combined = CombinedLayers(model, layers=["conv2d", "conv2d_1"], weights=[1, 2])(images)
    >>> combined["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Rebuffi et al. (2020), section on combining layers, arxiv.org/abs/2004.02866
    """

    differentiates_inputs = False

    def __init__(self, model, layers, base=None, weights=None, score=None):
        super().__init__(model, score=score)
        if isinstance(layers, str) or not len(layers):
            raise ValueError(f"`layers` must be a list of at least one. Received: {layers!r}")
        weights = [1 / len(layers)] * len(layers) if weights is None else list(weights)
        if len(weights) != len(layers) or not all(weight >= 0 for weight in weights):
            raise ValueError(
                f"`weights` must be {len(layers)} numbers of at least 0. Received: {weights}"
            )
        self.bases = [_at_layer(model, base, layer, score) for layer in layers]
        self.weights = weights

    def attribute(self, values, target, inputs):
        results = [base.attribute(values, target, inputs) for base in self.bases]
        maps = [_between_0_and_1(result["attributions"]) for result in results]
        powers = [tf.pow(each, weight) for each, weight in zip(maps, self.weights, strict=True)]
        return {**results[0], "attributions": tf.reduce_prod(tf.stack(powers), axis=0)}

    def get_config(self):
        return {
            "layers": [base.layer.name for base in self.bases],
            "base": base_config(self.bases[0]),
            "weights": self.weights,
        }


def _at_layer(model, base, layer, score):
    """The method of `CombinedLayers` at a layer, its map at the size of the input."""
    base = NormGrad if base is None else base
    if inspect.isclass(base):
        base = {"class_name": keras.saving.get_registered_name(base), "config": {}}
    if not isinstance(base, dict):
        raise TypeError(
            f"`base` must be None, an explainer's class or its configuration. Received: {base!r}"
        )
    config = {**base["config"], "layer": layer, "upsample": True}
    made = make_base(model, {**base, "config": config}, score)
    if not isinstance(made, ActivationMap):
        raise TypeError(
            "`base` must make an `ActivationMap`, a map of a layer. Received: "
            f"{type(made).__name__}"
        )
    return made


def _between_0_and_1(saliency):
    axes = range(1, saliency.shape.rank)
    above = saliency - tf.reduce_min(saliency, axes, keepdims=True)
    return tf.math.divide_no_nan(above, tf.reduce_max(above, axes, keepdims=True))
