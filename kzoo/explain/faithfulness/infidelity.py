"""Infidelity and max-sensitivity: how well an attribution predicts changes, how stable it is.

    INFD(Phi, f, x)        = E_I [ (I . Phi - (f(x) - f(x - I)))^2 ]              (definition 2.1)
    SENS_max(Phi, f, x, r) = max_{|y - x| <= r} |Phi(y) - Phi(x)|

"On the (In)fidelity and Sensitivity of Explanations", Yeh, Hsieh, Suggala, Inouye, Ravikumar, 2019,
arXiv 1901.09392.

Attributions that are multiplied by the input already (integrated gradients, input x gradient,
Shapley values, maps) predict the change of the score when a feature becomes the baseline; for them
I . Phi is the sum of I_i / (x_i - x'_i) Phi_i, which is the sum over the features that I takes
away. With `multiplied=False`, Phi is as a gradient.

With optimal scaling Phi is multiplied, for each input, by the number that makes the infidelity
smallest, E[(I . Phi) (f(x) - f(x - I))] / E[(I . Phi)^2], as the authors do for methods that do not
give the scale of the score.

Deviations: all inputs of a batch see the same random numbers, which depend on the seed alone. Open
choices: a map without channels is shared out equally among them; y is drawn from the ball of the
maximum norm, the change is measured in the Euclidean norm, as in the authors' code, where it is
also divided by |Phi(x)|; y goes beyond the range of the pixels; f is the logit.
"""

import numpy as np
import tensorflow as tf

from kzoo.explain.faithfulness.queries import (
    as_input,
    check_count,
    explain_in_batches,
    make_baseline,
    over_channels,
    query,
)
from kzoo.ops.map_fn import map_fn
from kzoo.papers import Paper, component

PAPER = Paper(
    title="On the (In)fidelity and Sensitivity of Explanations",
    authors=(
        "Chih-Kuan Yeh", "Cheng-Yu Hsieh", "Arun Sai Suggala", "David I. Inouye",
        "Pradeep Ravikumar",
    ),
    year=2019,
    arxiv="1901.09392",
)  # fmt: skip


@component(PAPER, not_served="it measures explanations of a whole set")
def infidelity(
    model,
    x,
    attributions,
    target=None,
    perturbation="subset",
    samples=200,
    baseline=0.0,
    multiplied=True,
    optimal_scaling=False,
    seed=0,
    score=None,
    rows="auto",
):
    """The expected squared error of the change of the score that an attribution predicts.

    Args:
        model: a model with one input of real numbers, or a function of tensors; see `Explainer`,
            as is `score`.
        x: array [batch, ...].
        attributions: array of the shape of `x`, or of that without the last axis.
        target: classes, int [batch] or one for all; None for the top class of each input.
        perturbation: what I is. "subset" takes each value of a table, or pixel, to the baseline
            with probability 1/2; "square" a square of an image at a random place, of a side from 1
            to half the image; "noisy_baseline" takes everything to the baseline plus noise;
            "gaussian" is noise by itself, for `multiplied=False`. Or a function, for example
            `gaussian_noise(0.1)`: `perturbation(difference, seed)` of x less the baseline
            [batch, ...] and int32 [2] returns I of that shape, or one that broadcasts to it.
        samples: number of draws of I. Defaults to 200.
        baseline: see `perturbation_curve`. Defaults to 0.
        multiplied: whether attributions are multiplied by the input already.
        optimal_scaling: whether each attribution is scaled to the smallest infidelity.
        seed: integer from which the draws come.
        rows: see `perturbation_curve`.

    Returns:
        Float array [batch], at least 0; 0 for a perfect prediction.

    Reference:
        Yeh et al. (2019), definition 2.1, arxiv.org/abs/1901.09392
    """
    check_count("samples", samples)
    if not np.issubdtype(as_input(x).dtype, np.floating):
        raise ValueError(
            f"`x` must be of real numbers to be perturbed. Received: {np.asarray(x).dtype}"
        )
    draw = _perturbation(perturbation)

    def prepare(x, attributions):
        difference = x - make_baseline(baseline, x)

        def versions(step):
            change = map_fn(
                lambda number: tf.broadcast_to(
                    draw(difference, tf.stack([seed, number])), tf.shape(difference)
                ),
                step,
                fn_output_signature=difference.dtype,
            )
            factor = tf.math.divide_no_nan(change, difference) if multiplied else change
            return x - change, {"predicted": _dot(factor, attributions, x)}

        return versions

    result = query(model, x, attributions, prepare, samples, target, score, rows)
    predicted = result["predicted"].astype(np.float64)
    change = result["score"][:, np.newaxis].astype(np.float64) - result["scores"]
    if optimal_scaling:
        square = np.sum(predicted**2, axis=1)
        scale = np.divide(
            np.sum(predicted * change, axis=1), square, out=np.zeros_like(square), where=square > 0
        )
        predicted = scale[:, np.newaxis] * predicted
    return np.mean((predicted - change) ** 2, axis=1)


def gaussian_noise(sigma=0.2):
    """I is normal noise of standard deviation `sigma`."""

    def perturbation(difference, seed):
        return sigma * _normal(difference, seed)

    return perturbation


def noisy_baseline(sigma=0.2):
    """I takes the input to the baseline plus normal noise of standard deviation `sigma`."""

    def perturbation(difference, seed):
        return difference - sigma * _normal(difference, seed)

    return perturbation


def subset_removal(probability=0.5):
    """I takes each position (each value of a table) to the baseline with this probability."""

    def perturbation(difference, seed):
        shape = tf.shape(difference)[1:]
        if difference.shape.rank > 2:
            shape = tf.concat([shape[:-1], [1]], 0)
        removed = tf.random.stateless_uniform(shape, seed, alg="philox") < probability
        return tf.where(removed, difference, tf.zeros_like(difference))

    return perturbation


def square_removal(side=None):
    """I takes a square at a random place of an image to the baseline.

    Args:
        side: of the square, in pixels; None for a random one from 1 to half the shorter side.
    """

    def perturbation(difference, seed):
        if difference.shape.rank != 4:
            raise ValueError(
                "Squares are removed from images [batch, height, width, channels]. Received: "
                f"{difference.shape}"
            )
        height, width = tf.unstack(tf.shape(difference)[1:3])
        uniform = tf.random.stateless_uniform([3], seed, alg="philox")
        longest = tf.maximum(tf.minimum(height, width) // 2, 1)
        length = 1 + _integer(uniform[0], longest) if side is None else side
        rows = _interval(uniform[1], length, height)
        columns = _interval(uniform[2], length, width)
        inside = rows[:, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis]
        return tf.where(inside, difference, tf.zeros_like(difference))

    return perturbation


_PERTURBATIONS = {
    "subset": subset_removal,
    "square": square_removal,
    "noisy_baseline": noisy_baseline,
    "gaussian": gaussian_noise,
}


def _perturbation(perturbation):
    if callable(perturbation):
        return perturbation
    if perturbation not in _PERTURBATIONS:
        raise ValueError(
            f"`perturbation` must be a function or one of {', '.join(_PERTURBATIONS)}. "
            f"Received: {perturbation!r}"
        )
    return _PERTURBATIONS[perturbation]()


def _normal(x, seed):
    return tf.random.stateless_normal(tf.shape(x)[1:], seed, dtype=x.dtype, alg="philox")


def _integer(uniform, count):
    """A uniform number in [0, 1) as an integer below `count`."""
    return tf.cast(uniform * tf.cast(count, uniform.dtype), tf.int32)


def _interval(uniform, length, size):
    """Bool [size], true in an interval of this length at a random place."""
    begin = _integer(uniform, size - length + 1)
    place = tf.range(size)
    return (place >= begin) & (place < begin + length)


def _dot(factor, attributions, x):
    """sum_i factor_i attributions_i, [k, batch]."""
    attributions = attributions[tf.newaxis]
    if attributions.shape.rank != x.shape.rank + 1:
        attributions = over_channels(attributions, x) / tf.cast(tf.shape(x)[-1], x.dtype)
    return tf.reduce_sum(factor * attributions, range(2, x.shape.rank + 1))


@component(PAPER, not_served="it measures explanations of a whole set")
def max_sensitivity(explainer, x, target=None, radius=0.02, samples=10, relative=False, seed=0):
    """The largest change of an attribution when its input changes a little.

    Args:
        explainer: an `Explainer` with one array of attributions.
        x: array [batch, ...] of real numbers.
        target: classes, int [batch] or one for all; None for the top class of `x`, which stays the
            target.
        radius: of the ball around the input, in the maximum norm. Defaults to 0.02.
        samples: number of points that are drawn from it. Defaults to 10.
        relative: whether changes are divided by the norm of the attribution.
        seed: integer from which the points come.

    Returns:
        Float array [batch], at least 0; NaN where `relative` and the attribution is 0.

    Reference:
        Yeh et al. (2019), max-sensitivity, arxiv.org/abs/1901.09392
    """
    check_count("samples", samples)
    if not radius > 0:
        raise ValueError(f"`radius` must be positive. Received: {radius!r}")
    x = as_input(x)
    before, target = explain_in_batches(explainer, x, target)
    rng = np.random.default_rng(seed)
    largest = np.zeros(len(x))
    for _ in range(samples):
        noise = rng.uniform(-radius, radius, size=x.shape[1:]).astype(x.dtype)
        after, _ = explain_in_batches(explainer, x + noise, target)
        largest = np.maximum(largest, _norm(after - before))
    if not relative:
        return largest
    norm = _norm(before)
    return np.divide(largest, norm, out=np.full(len(x), np.nan), where=norm > 0)


def _norm(maps):
    return np.linalg.norm(maps.reshape(len(maps), -1).astype(np.float64), axis=1)
