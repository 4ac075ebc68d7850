"""Explainers side by side: every measure of each, on one model and one set of inputs.

A random map is always among them: what does no better than it says nothing.

The measures of maps (deletion, insertion, pixel perturbation, infidelity, sensitivity-n) take one
number for each position: attributions with channels are summed over them. Pixel perturbation takes
the magnitude. Infidelity scales each map to its best (`optimal_scaling`), since many methods do not
give the scale of the score; sensitivity-n is a correlation and knows no scale.
"""

import time

import numpy as np

from kzoo.explain.faithfulness.comparison import RANDOM, Comparison, Measure
from kzoo.explain.faithfulness.curves import deletion, insertion, pixel_perturbation
from kzoo.explain.faithfulness.infidelity import infidelity, max_sensitivity
from kzoo.explain.faithfulness.localisation import attribution_localisation, pointing_game
from kzoo.explain.faithfulness.queries import as_input, explain_in_batches
from kzoo.explain.faithfulness.randomization import model_randomization
from kzoo.explain.faithfulness.sensitivity_n import sensitivity_n


def compare(explainers, x, y=None, masks=None, measures=None, seed=0, report=None):
    """Scores explainers of one model on one set of inputs.

    Args:
        explainers: {"name": `Explainer`}, all of the same model.
        x: array [batch, ...] of images, tables or tokens; a few dozen are enough.
        y: classes to explain, int [batch] or one for all; None for the top class of each input.
        masks: bool [batch, height, width] of the objects, for the measures of localisation.
        measures: list of `Measure`. None for `default_measures`.
        seed: integer from which everything random comes.
        report: `report(text)` is called before each piece of work. None for no calls.

    Returns:
        `Comparison`, with one more explainer, "random".

    Example:

    >>> comparison = compare({"IG": IntegratedGradients(model), "RISE": RISE(model)}, images)
    >>> print(comparison.to_markdown())
    >>> comparison.figure().savefig("comparison.png")
    """
    x, report = as_input(x), report or (lambda text: None)
    model = _one_model(explainers)
    measures = default_measures(x, masks) if measures is None else list(measures)
    if masks is None and any(measure.kind == "mask" for measure in measures):
        raise ValueError("`masks` are needed by the measures of localisation.")
    maps, seconds, targets = {}, {}, None
    for name, explainer in explainers.items():
        report(f"explaining by {name}")
        explain_in_batches(explainer, x[:1], y if np.ndim(y) == 0 else y[:1])  # traces
        begin = time.perf_counter()
        attributions, targets = explain_in_batches(explainer, x, y)
        seconds[name] = (time.perf_counter() - begin) / len(x)
        maps[name] = _positions(name, x, attributions)
    shape = next(iter(maps.values())).shape
    maps[RANDOM] = np.random.default_rng(seed).normal(size=shape).astype("float32")
    values = {}
    for measure in measures:
        report(f"measuring {measure.name}")
        values[measure.name] = _MEASURING[measure.kind](
            measure, model, explainers, x, targets, maps, masks, seed
        )
    return Comparison(tuple(measures), values, seconds, x, targets, maps)


def default_measures(x, masks=None):
    """The measures of `compare` that suit inputs `x`, and masks if there are any."""
    x = as_input(x)
    images, real = x.ndim == 4, np.issubdtype(x.dtype, np.floating)
    start = "blur" if images and real else 0.0
    shape = "square" if images else "subset"
    found = [
        Measure("deletion", "lower", "maps", lambda m, x, t, a, s: deletion(m, x, a, t).auc),
        Measure(
            "insertion",
            "higher",
            "maps",
            lambda m, x, t, a, s: insertion(m, x, a, t, baseline=start).auc,
        ),
        Measure(
            "pixel perturbation",
            "lower",
            "maps",
            lambda m, x, t, a, s: pixel_perturbation(m, x, np.abs(a), t).mean(axis=1),
        ),
        Measure(
            "sensitivity-n",
            "higher",
            "maps",
            lambda m, x, t, a, s: _mean_of_defined(sensitivity_n(m, x, a, t, seed=s)),
        ),
    ]
    if real:
        found += [
            Measure(
                "infidelity",
                "lower",
                "maps",
                lambda m, x, t, a, s: infidelity(m, x, a, t, shape, optimal_scaling=True, seed=s),
            ),
            Measure(
                "max-sensitivity",
                "lower",
                "explainer",
                lambda e, x, t, s: max_sensitivity(e, x, t, samples=5, relative=True, seed=s),
            ),
        ]
    found.append(Measure("random weights", "lower", "explainer", _randomized))
    if masks is not None:
        found += [
            Measure("pointing game", "higher", "mask", lambda a, m: 1.0 * pointing_game(a, m)),
            Measure("localisation", "higher", "mask", attribution_localisation),
        ]
    return found


def _randomized(explainer, x, target, seed):
    """|Spearman's correlation| of magnitudes with those of the model with random weights."""
    report = model_randomization(explainer, x, target, mode="whole", seed=seed)
    return np.abs(report.similarity["spearman_absolute"][-1])


def _measure_maps(measure, model, explainers, x, target, maps, masks, seed):
    """All explainers in one call, which traces the model once."""
    count = len(maps)
    values = measure.function(
        model,
        np.concatenate([x] * count),
        np.tile(target, count),
        np.concatenate(list(maps.values())),
        seed,
    )
    return dict(zip(maps, np.split(np.asarray(values), count), strict=True))


def _measure_mask(measure, model, explainers, x, target, maps, masks, seed):
    return {name: np.asarray(measure.function(each, masks)) for name, each in maps.items()}


def _measure_explainers(measure, model, explainers, x, target, maps, masks, seed):
    return {
        name: np.asarray(measure.function(explainer, x, target, seed))
        for name, explainer in explainers.items()
    }


_MEASURING = {"maps": _measure_maps, "mask": _measure_mask, "explainer": _measure_explainers}


def _one_model(explainers):
    if not explainers or RANDOM in explainers:
        raise ValueError(
            f"`explainers` must have one name or more, none of them {RANDOM!r}, which is the floor "
            f"that is always added. Received: {', '.join(explainers)}"
        )
    models = {id(explainer.model): explainer.model for explainer in explainers.values()}
    if len(models) != 1:
        raise ValueError(f"`explainers` must explain one model. Received: {len(models)} models.")
    return next(iter(models.values()))


def _positions(name, x, attributions):
    """One number for each position: [batch, *positions]."""
    if x.ndim > 2 and attributions.shape == x.shape:
        return attributions.sum(axis=-1)
    positions = x.shape[:-1] if x.ndim > 2 else x.shape
    if attributions.shape[:-1] == positions:
        return attributions.sum(axis=-1)
    if attributions.shape != positions:
        raise ValueError(
            f"`explainers[{name!r}]` must give a value for each position of {list(x.shape)}. "
            f"Received: {list(attributions.shape)}"
        )
    return attributions


def _mean_of_defined(values):
    """The mean over the last axis without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0).sum(axis=-1)
    count = defined.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
