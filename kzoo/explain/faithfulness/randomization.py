"""Sanity checks: does an attribution change when the weights of the model are random?

Layers get new initial weights, and the maps before and after are compared by Spearman's correlation
of their values, that of their magnitudes, and the structural similarity (SSIM) of the magnitudes.
A map that stays the same says nothing of what the model has learned.

    cascading     from the output down, each layer in addition to the ones before
    independent   one layer at a time, the others as they were trained
    whole         all layers at once: the end of the cascade

"Sanity Checks for Saliency Maps", Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, 2018, arXiv
1810.03292; section 3 (model parameter randomization). The other test of the paper, a model trained
on random labels, is a training run: compare its maps by `map_similarity`.

Open choices: a weight gets new values by the initializer of its layer, a weight of which none is
known its own values in random order; the statistics of batch normalization start anew, too.
Magnitudes are divided by their largest for SSIM, whose
window is 11 pixels, or what fits into a smaller map.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.faithfulness.queries import as_input, explain_in_batches
from kzoo.explain.faithfulness.sensitivity_n import correlation
from kzoo.explain.graph import flatten_layers
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Sanity Checks for Saliency Maps",
    authors=(
        "Julius Adebayo", "Justin Gilmer", "Michael Muelly", "Ian Goodfellow", "Moritz Hardt",
        "Been Kim",
    ),
    year=2018,
    arxiv="1810.03292",
)  # fmt: skip

_MODES = ("cascading", "independent", "whole")


@dataclass(frozen=True)
class RandomizationReport:
    """Maps of a model with more and more random layers, beside those of the trained one.

    Args:
        layers: the layer that was made random last, for each step.
        original: maps [batch, ...] of the model as it is.
        maps: [steps, batch, ...].
        similarity: {"spearman", "spearman_absolute", "ssim"}: float [steps, batch], see
            `map_similarity`.
    """

    layers: tuple[str, ...]
    original: np.ndarray
    maps: np.ndarray
    similarity: dict[str, np.ndarray]


@component(PAPER, not_served="it measures explanations of a whole set")
def model_randomization(explainer, x, target=None, mode="cascading", seed=0, report=None):
    """Compares the maps of a trained model with those of it with random layers.

    The model is left as it was.

    Args:
        explainer: an `Explainer` of a Keras model, with one array of attributions.
        x: array [batch, ...].
        target: classes, int [batch] or one for all; None for the trained model's top class, which
            stays the target.
        mode: "cascading", "independent" or "whole".
        seed: integer from which the weights come.
        report: `report(name of the layer)` is called before each step. None for no calls.

    Returns:
        `RandomizationReport`

    Reference:
        Adebayo et al. (2018), section 3, arxiv.org/abs/1810.03292
    """
    if mode not in _MODES:
        raise ValueError(f"`mode` must be one of {', '.join(_MODES)}. Received: {mode!r}")
    layers = weighted_layers(explainer.model)
    original, target = explain_in_batches(explainer, as_input(x), target)
    trained = {id(layer): [w.numpy() for w in _floating(layer)] for layer in layers}
    names, maps = [], []
    try:
        for position, layer in enumerate(layers):
            if mode == "independent":
                _restore(layers, trained)
            _randomize(layer, np.random.default_rng([seed, position]))
            if mode != "whole" or layer is layers[-1]:
                if report is not None:
                    report(layer.name)
                names.append(layer.name)
                maps.append(explain_in_batches(explainer, x, target)[0])
    finally:
        _restore(layers, trained)
    rows = [map_similarity(original, each) for each in maps]
    similarity = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return RandomizationReport(tuple(names), original, np.stack(maps), similarity)


def map_similarity(a, b):
    """How alike two sets of maps are, image by image.

    Args:
        a, b: arrays [batch, ...] of one shape.

    Returns:
        dict of float arrays [batch]: `spearman`, the rank correlation; `spearman_absolute`, that of
        the magnitudes; NaN where a map is constant. `ssim` of the magnitudes, for maps
        [batch, height, width] or [..., channels].
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"`a` and `b` must have one shape. Received: {a.shape} and {b.shape}")
    similarity = {"spearman": _spearman(a, b), "spearman_absolute": _spearman(abs(a), abs(b))}
    if a.ndim in (3, 4) and min(a.shape[1:3]) > 1:
        similarity["ssim"] = _ssim(abs(a), abs(b))
    return similarity


def weighted_layers(model):
    """The layers of a model that hold weights of their own, from its output to its input."""
    if not isinstance(model, keras.Layer):
        raise TypeError(f"`explainer` must explain a Keras model. Received: {type(model).__name__}")
    candidates = (model, *flatten_layers(model))
    found = {id(layer): layer for layer in candidates if _floating(layer)}
    if not found:
        raise ValueError(f"{model.name!r} has no layer with weights to randomize.")
    return list(found.values())[::-1]


def _floating(layer):
    """The weights of a layer by itself, without its inner layers' and states of generators."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables)
    return [w for w in own if keras.backend.is_float_dtype(w.dtype)]


def _randomize(layer, rng):
    for weight in _floating(layer):
        initializer = _initializer(layer, weight)
        if initializer is None:
            weight.assign(rng.permutation(weight.numpy().ravel()).reshape(weight.shape))
            continue
        config = initializer.get_config()
        if "seed" in config:
            config["seed"] = int(rng.integers(2**31))
        weight.assign(type(initializer).from_config(config)(weight.shape, dtype=weight.dtype))


def _initializer(layer, weight):
    """The layer's initializer of this weight, by the names that Keras gives to both."""
    stems = [weight.name, weight.name.removesuffix("_kernel")]
    stems += ["depthwise"] if weight.name == "kernel" else []
    for stem in stems:
        initializer = getattr(layer, f"{stem}_initializer", None)
        if isinstance(initializer, keras.initializers.Initializer):
            return initializer
    return None


def _restore(layers, values):
    for layer in layers:
        for weight, value in zip(_floating(layer), values[id(layer)], strict=True):
            weight.assign(value)


def _spearman(a, b):
    from scipy.stats import rankdata

    a, b = (rankdata(x.reshape(len(x), -1), axis=1) for x in (a, b))
    return correlation(a, b)


def _ssim(a, b):
    a, b = (_to_unit(x if x.ndim == 4 else x[..., np.newaxis]) for x in (a, b))
    size = min(11, *a.shape[1:3])
    return tf.image.ssim(a, b, max_val=1.0, filter_size=size).numpy()


def _to_unit(maps):
    largest = maps.max(axis=(1, 2, 3), keepdims=True)
    return np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
