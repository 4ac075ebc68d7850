"""Explanations of a Tversky projection: which features an input shares with a prototype.

    S(a, b) = sum_k theta Psi_k [k in A & B] - alpha (..)_k [k in A - B] - beta (..)_k [k in B - A]

The similarity to the prototype of a class is a sum over features; each adds as one that both have,
one that only the input has, or one that only the prototype has. The pictures show prototypes and
features as inputs, where the projection has learned them as such
(`kzoo.layers.TverskyInputDomainProjection`).

"Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky
Similarity", Doumbouya, Jurafsky, Manning, 2025, arXiv 2506.11035; its explanations by common and
distinctive features, and its visualization of parameters in the data domain.

Open choice: the paper reads explanations off sets of features; here they come with their shares of
the similarity, which add up to it.
"""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import find_layer, flatten_layers, replace_call
from kzoo.layers.tversky import PAPER, TverskyProjection
from kzoo.layers.tversky_input_domain import TverskyInputDomainProjection
from kzoo.papers import component
from kzoo.plots import heat_map, picture

_HEADS = (TverskyProjection, TverskyInputDomainProjection)
_KINDS = ("common", "only_input", "only_prototype")
_COLORS = {"common": "#009e73", "only_input": "#d55e00", "only_prototype": "#0072b2"}


@component(PAPER)
class TverskyFeatures(Explainer):
    """What each feature adds to the similarity of an input to the prototype of the target class.

    Args:
        model: a Keras model that ends with a Tversky projection of vectors, with or without a
            softmax after it; prototype j is that of class j.
        layer: name of the projection (or the layer). Defaults to the only one of the model.

    Returns (when called): `attributions` [batch, features], the sum of three tensors of this shape:
    `common`, `only_input` and `only_prototype`; `score`, the similarity; `target`, `predictions`;
    and `convergence_delta` [batch], the sum of the attributions less the score: 0 but for rounding.

    Raises:
        ValueError: for a model without a projection, with several and no `layer`, or one whose
            outputs are not the projection's.

    Example:

    >>> result = TverskyFeatures(model)(images)
    >>> figure = tversky_sheet(images, result)

    Reference:
        Doumbouya et al. (2025), arxiv.org/abs/2506.11035
    """

    differentiates_inputs = False

    def __init__(self, model, layer=None):
        super().__init__(model)
        self.layer = _only_head(model) if layer is None else find_layer(model, layer)
        if not isinstance(self.layer, _HEADS):
            raise ValueError(
                f"`layer` must be a Tversky projection. Received: {type(self.layer).__name__}"
            )

    def attribute(self, values, target, inputs):
        seen = []

        def recording(call):
            def record(inputs, **kwargs):
                seen.append(inputs)
                return call(inputs, **kwargs)

            return record

        with replace_call(self.layer, recording):
            scored = self.scores(values, target, inputs)
        classes = scored["predictions"].shape[-1]
        if classes != self.layer.units:
            raise ValueError(
                f"The model must end with {self.layer.name!r}, which has {self.layer.units} "
                f"prototypes. Received: a model of {classes} outputs"
            )
        prototypes = tf.gather(self.layer.prototype_measures(), scored["target"])
        terms = self.layer.terms(self.layer.measures(seen[-1]), prototypes)
        attributions = tf.add_n(terms)
        return {
            "attributions": attributions,
            **dict(zip(_KINDS, terms, strict=True)),
            **scored,
            "convergence_delta": tf.reduce_sum(attributions, -1) - scored["score"],
        }

    def get_config(self):
        return {"layer": self.layer.name}


@component(PAPER, not_served="it draws a picture")
def tversky_sheet(images, result, layer=None, titles=None, top=6):
    """A sheet with one row per image: the image, the target's prototype, and what they share.

    Args:
        images: [batch, height, width, 1 or 3], see `kzoo.plots.picture`.
        result: what `TverskyFeatures` returns for them.
        layer: the model's `TverskyInputDomainProjection`, whose prototypes and features are drawn.
            None where they are no pictures: features go by their number.
        titles: [batch] captions of the images. None for none.
        top: number of features, the strongest first. Defaults to 6.

    Returns:
        `matplotlib.figure.Figure`: bars of common features (green) and of those that only the input
        (orange) or only the prototype has (blue).

    Reference:
        Doumbouya et al. (2025), arxiv.org/abs/2506.11035
    """
    images = np.asarray(images)
    terms = {kind: np.asarray(result[kind]) for kind in _KINDS}
    if any(term.shape[0] != len(images) for term in terms.values()):
        raise ValueError(
            f"`result` must be of the {len(images)} images. Received: one of {len(terms['common'])}"
        )
    top = min(top, terms["common"].shape[1])
    # Columns: the image, the prototype, the bars, the strongest features; without `layer` no
    # prototype and no features.
    widths = [1, 2] if layer is None else [1, 1, 2, *[1] * top]
    bars = widths.index(2)
    figure = Figure(figsize=(1.1 * sum(widths), 1.35 * len(images) + 0.3), layout="constrained")
    axes = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
    strongest = []
    for row, axis in enumerate(axes):
        _show(axis[0], picture(images[row]))
        axis[0].set_xlabel("" if titles is None else str(titles[row]), fontsize=8)
        strongest.append(_draw_bars(axis[bars], {k: v[row] for k, v in terms.items()}, top))
    if layer is not None:
        _draw_parameters(axes, layer, np.asarray(result["target"]), strongest)
    axes[0, 0].set_title("image", fontsize=9)
    axes[0, bars].set_title("strongest features", fontsize=9)
    legend = [Patch(color=color, label=kind.replace("_", " ")) for kind, color in _COLORS.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


@component(PAPER, not_served="it draws a picture")
def tversky_parameter_sheet(layer, names=None, columns=10):
    """All prototypes and all features of a projection that has learned them as pictures.

    Args:
        layer: a built `TverskyInputDomainProjection` of images [height, width, 1 or 3].
        names: [units] names of the classes. None for their numbers.
        columns: pictures in a row. Defaults to 10.

    Returns:
        `matplotlib.figure.Figure`, red where a value is positive and blue where it is negative, or
        black to yellow where none is negative.

    Reference:
        Doumbouya et al. (2025), arxiv.org/abs/2506.11035
    """
    if not isinstance(layer, TverskyInputDomainProjection):
        raise TypeError(
            f"`layer` must be a TverskyInputDomainProjection. Received: {type(layer).__name__}"
        )
    names = range(layer.units) if names is None else names
    titles = {
        "prototypes": [f"prototype {name}" for name in names],
        "features": [f"feature {k}" for k in range(layer.num_features)],
    }
    rows = {group: -(-len(each) // columns) for group, each in titles.items()}
    figure = Figure(figsize=(0.95 * columns, 1.1 * sum(rows.values())), layout="constrained")
    axes = figure.subplots(sum(rows.values()), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    blocks = np.split(axes, [rows["prototypes"]])
    for block, (group, each) in zip(blocks, titles.items(), strict=True):
        parameters = keras.ops.convert_to_numpy(getattr(layer, group))
        for axis, parameter, title in zip(block.ravel(), parameters, each, strict=False):
            axis.set_axis_on()
            _show_parameter(axis, parameter)
            axis.set_title(title, fontsize=7)
    return figure


def _only_head(model):
    heads = {id(each): each for each in flatten_layers(model) if isinstance(each, _HEADS)}
    if len(heads) != 1:
        raise ValueError(
            "Pass `layer`: the model must have one Tversky projection to be found without it. "
            f"Received: a model with {len(heads)}"
        )
    return next(iter(heads.values()))


def _draw_bars(axis, terms, top):
    """Bars of the strongest features, the first on top; returns their numbers."""
    strength = sum(np.abs(term) for term in terms.values())
    strongest = np.argsort(-strength, kind="stable")[:top]
    places = np.arange(len(strongest))[::-1]
    for kind, term in terms.items():
        axis.barh(places, term[strongest], color=_COLORS[kind])
    axis.set_yticks(places, [str(k) for k in strongest], fontsize=7)
    axis.tick_params(axis="x", labelsize=7)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    return strongest


def _draw_parameters(axes, layer, targets, strongest):
    """The prototype of each row's target, and the row's strongest features."""
    prototypes = keras.ops.convert_to_numpy(layer.prototypes)
    features = keras.ops.convert_to_numpy(layer.features)
    axes[0, 1].set_title("prototype", fontsize=9)
    for axis, target, numbers in zip(axes, targets, strongest, strict=True):
        _show_parameter(axis[1], prototypes[target])
        for place, feature in zip(axis[3:], numbers, strict=True):
            _show_parameter(place, features[feature])
            place.set_xlabel(f"feature {feature}", fontsize=7)


def _show_parameter(axis, parameter):
    _show(axis, heat_map(parameter, percentile=100))


def _show(axis, image):
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
