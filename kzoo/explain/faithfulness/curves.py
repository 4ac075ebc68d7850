"""Curves of the score while pixels are taken away or put back in the order of an attribution.

    deletion           area under P(target) while the most salient pixels become the baseline: low
    insertion          area under P(target) while they are put into the baseline: high
    pixel perturbation |f(x without the least salient pixels) - f(x)| / |f(x)|: low
    positive (negative) perturbation
                       area under the accuracy without the most (least) salient ones: low (high)

"RISE: Randomized Input Sampling for Explanation of Black-box Models", Petsiuk, Das, Saenko, 2018,
arXiv 1806.07421; causal metrics. "Full-Gradient Representation for Neural
Network Visualization", Srinivas, Fleuret, 2019, arXiv 1905.00780; pixel perturbation. "Transformer
Interpretability Beyond Attention Visualization", Chefer, Gur, Wolf, 2020, arXiv 2012.09838;
perturbation tests.

Open choices: values are ranked by the attribution with its sign, equal ones by position; an
attribution without channels ranks pixels, which go in all channels at once, one with channels
ranks each value by itself (sum over the channels for pixels); areas are by the trapezoid rule over
the fractions, divided by their range; f of pixel perturbation is the logit. The blur is a Gaussian
of an eighth of the image's side, where the authors of RISE have 5 pixels, cut off at 11, for 224.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kzoo.explain.faithfulness.queries import (
    as_counts,
    check_count,
    make_baseline,
    matched,
    over_channels,
    query,
)
from kzoo.explain.full_gradients import PAPER as FULL_GRAD_PAPER
from kzoo.explain.rise import PAPER as RISE_PAPER
from kzoo.explain.scores import class_score, probability_score
from kzoo.explain.transformer_relevance import PAPER as RELEVANCE_PAPER
from kzoo.papers import component

_ORDERS = {"most": "DESCENDING", "least": "ASCENDING"}


@dataclass(frozen=True)
class PerturbationCurve:
    """Scores of inputs of which a growing share is changed.

    Args:
        fractions: float [steps] in [0, 1], the share of the values that are changed.
        scores: float [batch, steps].
        score: float [batch], of the inputs as they are.
    """

    fractions: np.ndarray
    scores: np.ndarray
    score: np.ndarray

    @property
    def auc(self):
        """Area under each curve over the range of the fractions, float [batch]."""
        widths = np.diff(self.fractions)
        return (self.scores[:, 1:] + self.scores[:, :-1]) / 2 @ widths / widths.sum()


def perturbation_curve(
    model,
    x,
    attributions,
    fractions,
    target=None,
    order="most",
    insert=False,
    baseline=0.0,
    score=None,
    rows="auto",
):
    """The score while a growing share of each input is taken away, or put into a baseline.

    Args:
        model: a model with one input, or a function of tensors; see `Explainer`, as is `score`.
        x: array [batch, ...]: images, tables, or tokens int [batch, length].
        attributions: array of the shape of `x`, or of that without the last axis; finite.
        fractions: shares of the values of an attribution, in [0, 1], rounded to numbers of values.
        target: classes, int [batch] or one for all; None for the top class of each input, which
            stays the target when that is changed.
        order: which values come first, the "most" or the "least" salient.
        insert: whether values are put into the baseline instead of taken away.
        baseline: what stands where a value is taken away: a number (the id of a token), an array
            that broadcasts to one input, "mean" (of each input, by channel), "blur", or a function
            of tensors.
        rows: how many inputs are sent through the model at once, which bounds the memory. "auto"
            for 80, and fewer where they are large.

    Returns:
        `PerturbationCurve`, with the fractions as they were after rounding.

    Raises:
        ValueError: for another shape, attributions that are not finite, fractions out of range.
    """
    if order not in _ORDERS:
        raise ValueError(f"`order` must be one of {', '.join(_ORDERS)}. Received: {order!r}")
    size = matched(x, attributions)[0].size
    counts = as_counts("fractions", fractions, size)

    def prepare(x, attributions):
        rank, start = _rank(attributions, _ORDERS[order]), make_baseline(baseline, x)
        before, after = (start, x) if insert else (x, start)

        def versions(step):
            count = tf.reshape(tf.gather(counts, step), [-1] + [1] * rank.shape.rank)
            return tf.where(over_channels(rank < count, x), after, before), {}

        return versions

    result = query(model, x, attributions, prepare, len(counts), target, score, rows)
    return PerturbationCurve(counts / size, result["scores"], result["score"])


def _rank(attributions, direction):
    """The place of each value among those of its row, from 0; int32, of the same shape."""
    flat = tf.reshape(attributions, [tf.shape(attributions)[0], -1])
    order = tf.argsort(flat, direction=direction, stable=True)
    return tf.reshape(tf.argsort(order, stable=True), tf.shape(attributions))


@component(RISE_PAPER, not_served="it measures explanations of a whole set")
def deletion(model, x, attributions, target=None, steps=50, baseline=0.0, score=None, rows="auto"):
    """Deletion: the probability of the target while the most salient pixels are taken away.

    Args:
        steps: number of equal steps from nothing to everything, at most one for each value.
            Defaults to 50.
        score: defaults to the probability of the target.
        model, x, attributions, target, baseline, rows: see `perturbation_curve`.

    Returns:
        `PerturbationCurve`; the lower its `auc` the better.

    Example:

    >>> maps = Saliency(model, max_channels=True)(images)["attributions"]
    >>> deletion(model, images, maps).auc.mean()

    Reference:
        Petsiuk et al. (2018), causal metrics, arxiv.org/abs/1806.07421
    """
    fractions = _equal_steps(x, attributions, steps)
    score = score or probability_score(model)
    return perturbation_curve(
        model, x, attributions, fractions, target, baseline=baseline, score=score, rows=rows
    )


@component(RISE_PAPER, not_served="it measures explanations of a whole set")
def insertion(
    model, x, attributions, target=None, steps=50, baseline="blur", score=None, rows="auto"
):
    """Insertion: the probability of the target while the most salient pixels are put in.

    Args:
        baseline: where the most salient pixels are put into. Defaults to "blur", for images.
        model, x, attributions, target, steps, score, rows: see `deletion`.

    Returns:
        `PerturbationCurve`; the higher its `auc` the better.

    Reference:
        Petsiuk et al. (2018), causal metrics, arxiv.org/abs/1806.07421
    """
    fractions = _equal_steps(x, attributions, steps)
    score = score or probability_score(model)
    return perturbation_curve(
        model,
        x,
        attributions,
        fractions,
        target,
        insert=True,
        baseline=baseline,
        score=score,
        rows=rows,
    )


@component(FULL_GRAD_PAPER, not_served="it measures explanations of a whole set")
def pixel_perturbation(
    model,
    x,
    attributions,
    target=None,
    fractions=(0.1, 0.3, 0.5),
    order="least",
    baseline=0.0,
    score=None,
    rows="auto",
):
    """The relative change of the output when the least salient pixels are taken away.

    Args:
        attributions: saliency; take the magnitude of signed attributions.
        fractions: shares of the pixels that go. Defaults to 0.1, 0.3 and 0.5.
        score: f. Defaults to the logit of the target class.
        model, x, target, order, baseline, rows: see `perturbation_curve`.

    Returns:
        Float array [batch, fractions], at least 0: |f(x') - f(x)| / |f(x)|. The lower the better;
        for `order="most"` the higher.

    Reference:
        Srinivas and Fleuret (2019), pixel perturbation, arxiv.org/abs/1905.00780
    """
    curve = perturbation_curve(
        model, x, attributions, fractions, target, order, baseline=baseline, score=score, rows=rows
    )
    before = curve.score[:, np.newaxis]
    return np.abs(curve.scores - before) / np.abs(before)


@component(RELEVANCE_PAPER, not_served="it measures explanations of a whole set")
def perturbation_accuracy(
    model, x, attributions, target=None, order="most", steps=9, baseline=0.0, rows="auto"
):
    """Positive and negative perturbation: the accuracy while pixels or tokens are taken away.

    Args:
        target: the classes that count as right; None for the top classes of `x`.
        order: "most" salient first is the positive test, "least" salient first the negative one.
        steps: number of equal steps from nothing to nine tenths. Defaults to 9.
        model, x, attributions, baseline, rows: see `perturbation_curve`.

    Returns:
        `PerturbationCurve` of 1 where the target is still on top and 0 where not. A good `auc` is
        low in the positive test and high in the negative one.

    Reference:
        Chefer et al. (2020), perturbation tests, arxiv.org/abs/2012.09838
    """
    check_count("steps", steps)
    fractions = np.linspace(0, 0.9, steps + 1)
    return perturbation_curve(
        model, x, attributions, fractions, target, order, False, baseline, _is_top, rows
    )


def _is_top(outputs, target):
    score, target = class_score(outputs, target)
    return tf.cast(tf.equal(tf.argmax(outputs, -1, tf.int32), target), score.dtype), target


def _equal_steps(x, attributions, steps):
    check_count("steps", steps)
    size = matched(x, attributions)[0].size
    return np.unique(np.rint(np.linspace(0, size, steps + 1))) / size
