"""What no complete and linear attribution can tell, and a few model queries can.

A question about a model near x is a test of two hypotheses; a method answers it by a threshold on
its attribution of the feature. For a complete and linear method and a rich enough model class,

    specificity + sensitivity <= 1     (random guessing; theorem 3.3)

because models with the same attribution exist on both sides. Here they are built: additive,
piecewise-linear models f(x) = sum_j phi_j(x_j), that is, networks with one ReLU layer. Integrated
gradients and Shapley values of all of them are

    a_j = phi_j(x_j) - phi_j(baseline_j),

free of what phi_j does around x_j, since a kink between the baseline and there makes up for it.

"Impossibility Theorems for Feature Attribution", Bilodeau, Jaques, Koh, Kim, 2022, arXiv
2212.11870; section 3 (theorem), section 4 (end tasks), section 5 (repeated evaluation).

Open choices: the paper's bound is for the worst models of the two classes; here pairs of models are
drawn, and the threshold and direction are the best that the drawn models allow, which can only
favour the attribution. x is (1, ..., 1), the baseline 0, and kinks lie on a grid on which 20
midpoints (`IntegratedGradients(model, steps=20, rule="middle")`) integrate exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Impossibility Theorems for Feature Attribution",
    authors=("Blair Bilodeau", "Natasha Jaques", "Pang Wei Koh", "Been Kim"),
    year=2022,
    arxiv="2212.11870",
)

RADIUS = 0.25
OFFSETS = np.linspace(-1, 1, 11)  # of the kinks around x, in radii
KNOTS = np.concatenate([[0.0], 1 + RADIUS * OFFSETS])
_MIDDLE = len(OFFSETS) // 2


@dataclass(frozen=True)
class EndTask:
    """A question about feature j of a model near x, as a test of two hypotheses.

    Args:
        name: what it is called in reports.
        shapes: `shapes(rng) -> (null, alternative)`, phi_j at x_j + RADIUS * OFFSETS, of a model on
            each side.
        queries: `queries(rng, pairs)`, offsets float [pairs, 2] in [-1, 1], in radii, of the pairs
            of points along feature j that direct evaluation compares.
        signed: whether the direction of the effect matters, or only its size.
        rich: whether the attribution is free of `shapes`; otherwise phi_j goes on in a straight
            line to the baseline.
    """

    name: str
    shapes: Callable
    queries: Callable
    signed: bool = True
    rich: bool = True


def _slopes(rng):
    """f falls, or rises, around x."""
    return [sign * rng.uniform(0.5, 2) * RADIUS * OFFSETS for sign in (-1, 1)]


def _displaced(rng):
    """f is lower, or higher, some way above x; the slope at x has any sign."""
    effects = []
    for sign in (-1, 1):
        levels = np.zeros(len(OFFSETS))
        levels[[_MIDDLE - 1, _MIDDLE + 1]] = rng.choice([-0.05, 0.05]) * np.array([-1, 1])
        levels[_MIDDLE + 3 :] = sign * rng.uniform(0.5, 2) * RADIUS
        effects.append(levels)
    return effects


def _steps(rng):
    """f is constant in the feature, or has a step somewhere around x."""
    step = rng.integers(1, len(OFFSETS))
    height = rng.choice([-1, 1]) * rng.uniform(0.5, 2) * RADIUS
    return np.zeros(len(OFFSETS)), np.where(np.arange(len(OFFSETS)) >= step, height, 0)


def _across(rng, pairs):
    return np.stack([rng.uniform(-1, 0, pairs), rng.uniform(0, 1, pairs)], axis=1)


def _far_above(rng, pairs):
    return np.stack([np.zeros(pairs), rng.uniform(0.7, 1, pairs)], axis=1)


def _anywhere(rng, pairs):
    return rng.uniform(-1, 1, (pairs, 2))


END_TASKS = (
    EndTask("local behaviour", _slopes, _across),
    EndTask("recourse", _displaced, _far_above),
    EndTask("spurious features", _steps, _anywhere, signed=False),
)
LINEAR_TASK = EndTask("local behaviour, linear models", _slopes, _across, rich=False)


@component(PAPER, not_served="it measures explanations of a whole set")
def equal_attribution_pairs(task, num_pairs=500, num_features=4, seed=0):
    """Pairs of models that a complete and linear attribution cannot tell apart.

    Args:
        task: an `EndTask`, about feature 0.
        num_pairs: number of pairs.
        num_features: number of features. The others have arbitrary shapes, equal in a pair.
        seed: seed of the models.

    Returns:
        (model, alternative): a `keras.Model` of inputs [batch, num_features] and outputs
        [batch, 2 num_pairs], one for each piecewise-linear model; outputs 2i and 2i + 1 are a pair.
        And bool [2 num_pairs], whether an output is on the side of the alternative.

    Reference:
        Bilodeau et al. (2022), theorem 3.3, arxiv.org/abs/2212.11870
    """
    for name, value in (("num_pairs", num_pairs), ("num_features", num_features)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    rng = np.random.default_rng(seed)
    values = np.empty([2 * num_pairs, num_features, len(KNOTS)])
    values[::2] = values[1::2] = rng.normal(size=(num_pairs, num_features, len(KNOTS)))
    for pair in range(num_pairs):
        attribution = rng.normal()
        for side, shape in enumerate(task.shapes(rng)):
            shape = shape - shape[_MIDDLE]
            start = -attribution if task.rich else shape[0] + (shape[0] - shape[1]) * _GAP
            values[2 * pair + side, 0] = [start, *shape]
    return piecewise_linear_model(KNOTS, values), np.arange(2 * num_pairs) % 2 == 1


_GAP = (KNOTS[1] - KNOTS[0]) / (KNOTS[2] - KNOTS[1])


def piecewise_linear_model(knots, values):
    """A one-hidden-layer ReLU network whose outputs are sums of piecewise-linear functions.

    Args:
        knots: [num_knots], ascending, at least two.
        values: [outputs, features, num_knots]: output o is the sum over features j of the function
            of x_j with these values at the knots, straight between and beyond them.

    Returns:
        `keras.Model` of inputs [batch, features] and outputs [batch, outputs].
    """
    knots, values = np.asarray(knots, np.float64), np.asarray(values, np.float64)
    if knots.ndim != 1 or len(knots) < 2 or not np.all(np.diff(knots) > 0):
        raise ValueError(f"`knots` must be at least two ascending numbers. Received: {knots}")
    if values.ndim != 3 or values.shape[2] != len(knots):
        raise ValueError(
            f"`values` must have the shape [outputs, features, {len(knots)}]. "
            f"Received: {list(values.shape)}"
        )
    outputs, features, _ = values.shape
    slopes = np.diff(values) / np.diff(knots)
    # Units relu(x - knot) of all knots but the last, and relu(first knot - x) to its left.
    bends = np.concatenate([slopes[..., :1], np.diff(slopes), -slopes[..., :1]], axis=-1)
    signs = np.array([*np.ones(len(knots) - 1), -1])
    places = np.array([*knots[:-1], knots[0]])
    inputs = keras.Input([features])
    hidden = keras.layers.Dense(features * len(signs), "relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(outputs)(hidden))
    model.set_weights(
        [
            np.kron(np.eye(features), signs),
            np.tile(-signs * places, features),
            bends.reshape(outputs, -1).T,
            values[..., 0].sum(axis=1),
        ]
    )
    return model


@component(PAPER, not_served="it measures explanations of a whole set")
def model_query_test(model, x, targets, offsets, feature=0, signed=True):
    """How much a model changes along a feature, by evaluating it around x directly.

    Args:
        model: a `keras.Model` of inputs [batch, features].
        x: [features].
        targets: int [models], the outputs that are asked about.
        offsets: float [models, pairs, 2], of the two points of each pair, added to the feature.
        feature: which feature is changed.
        signed: whether changes are averaged with their sign; otherwise the largest magnitude is
            taken.

    Returns:
        Float array [models], a statistic whose threshold is a test. It takes 2 pairs queries of
        each model.

    Reference:
        Bilodeau et al. (2022), section 5, arxiv.org/abs/2212.11870
    """
    offsets = np.asarray(offsets)
    if offsets.ndim != 3 or offsets.shape[2] != 2 or len(offsets) != len(targets):
        raise ValueError(
            f"`offsets` must have the shape [{len(targets)}, pairs, 2]. "
            f"Received: {list(offsets.shape)}"
        )
    points = np.tile(np.asarray(x, np.float32), (offsets.size, 1))
    points[:, feature] += offsets.reshape(-1)
    answers = np.repeat(targets, offsets[0].size)
    values = np.concatenate(
        [
            np.take_along_axis(
                np.asarray(model(points[begin : begin + 4096])),
                answers[begin : begin + 4096, np.newaxis],
                axis=1,
            )
            for begin in range(0, len(points), 4096)
        ]
    ).reshape(offsets.shape)
    changes = values[..., 1] - values[..., 0]
    return changes.mean(axis=1) if signed else np.abs(changes).max(axis=1)


@component(PAPER, not_served="it measures explanations of a whole set")
def sensitivity_specificity(statistic, alternative):
    """Sensitivity and specificity of the tests `statistic >= threshold`, for all thresholds.

    Args:
        statistic: float [models].
        alternative: bool [models], where the alternative holds; both sides must be there.

    Returns:
        (sensitivity, specificity), float [thresholds]: the share of the alternatives that are
        accepted and of the nulls that are not. Their sum is 1 for random guesses.

    Reference:
        Bilodeau et al. (2022), definition 3.2, arxiv.org/abs/2212.11870
    """
    from sklearn.metrics import roc_curve

    alternative = np.asarray(alternative, bool)
    if alternative.all() or not alternative.any():
        raise ValueError("`alternative` must have both true and false values.")
    false_positives, sensitivity, _ = roc_curve(alternative, statistic, drop_intermediate=False)
    return sensitivity, 1 - false_positives


def best_test(statistic, alternative):
    """The largest sensitivity + specificity of a threshold, in the better direction; 1 to 2."""
    sensitivity, specificity = sensitivity_specificity(statistic, alternative)
    return 1 + float(np.abs(sensitivity + specificity - 1).max())


@component(PAPER, not_served="it measures explanations of a whole set")
def impossibility_benchmark(
    methods, tasks=(*END_TASKS, LINEAR_TASK), num_pairs=500, num_features=4, queries=(1, 2, 4, 8),
    seed=0,
):  # fmt: skip
    """How well attributions, and direct evaluation of the model, answer questions about models.

    Args:
        methods: {"name": `attribute(model, x, y)`}, for example `lambda model, x, y:
            IntegratedGradients(model, steps=20, rule="middle")(x, y)["attributions"]`; each is
            asked once for a task, for all models.
        tasks: the `EndTask`s. Defaults to those of the paper, and linear models, where a complete
            attribution is enough.
        num_pairs, num_features: see `equal_attribution_pairs`.
        queries: numbers of pairs of points that direct evaluation compares.
        seed: seed of models and points.

    Returns:
        {task: {method: sensitivity + specificity of the best test, and for direct evaluation
        "4 queries" ...}}; 1 is random guessing, 2 is perfect.

    Reference:
        Bilodeau et al. (2022), arxiv.org/abs/2212.11870
    """
    report = {}
    for task in tasks:
        model, alternative = equal_attribution_pairs(task, num_pairs, num_features, seed)
        targets = np.arange(len(alternative), dtype=np.int32)
        x = np.ones([len(targets), num_features], np.float32)
        row = {}
        for name, attribute in methods.items():
            attribution = np.asarray(attribute(model, x, targets))[:, 0]
            statistic = attribution if task.signed else np.abs(attribution)
            row[name] = best_test(statistic, alternative)
        rng = np.random.default_rng(seed)
        for pairs in queries:
            offsets = RADIUS * np.stack([task.queries(rng, pairs) for _ in targets])
            statistic = model_query_test(model, x[0], targets, offsets, signed=task.signed)
            row[f"{2 * pairs} queries"] = best_test(statistic, alternative)
        report[task.name] = row
    return report
