"""Sensitivity-n: does the sum of attributions predict what it does to take their features away?

    corr_S ( sum_{i in S} R_i,  f(x) - f(x with S set to the baseline) ),   |S| = n

Pearson's correlation over random sets S of n features. It is 1 where the attribution satisfies
sensitivity-n: the two sides are equal for all sets of n features. With all features, the two sides
are those of completeness.

"Towards better understanding of gradient-based attribution methods for Deep Neural Networks",
Ancona, Ceolini, Öztireli, Gross, 2017, arXiv 1711.06104; section 4.

Deviations: all inputs see the same sets, which depend on the seed alone. Open choices: of an
attribution without channels the features are pixels, else each value by itself; f is the logit.
"""

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
from kzoo.ops.map_fn import map_fn
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Towards better understanding of gradient-based attribution methods for Deep Neural "
    "Networks",
    authors=("Marco Ancona", "Enea Ceolini", "Cengiz Öztireli", "Markus Gross"),
    year=2017,
    arxiv="1711.06104",
)


@component(PAPER, not_served="it measures explanations of a whole set")
def sensitivity_n(
    model,
    x,
    attributions,
    target=None,
    fractions=(0.1, 0.3, 0.5, 0.8),
    samples=100,
    baseline=0.0,
    seed=0,
    score=None,
    rows="auto",
):
    """The correlation of the sum of attributions with the change of the score, over random sets.

    Args:
        model: a model with one input, or a function of tensors; see `Explainer`, as is `score`.
        x: array [batch, ...], images, tables or tokens.
        attributions: array of the shape of `x`, or of that without the last axis.
        target: classes, int [batch] or one for all; None for the top class of each input.
        fractions: n, as shares of the number of features, in [0, 1]; at least one feature is taken.
            The paper goes to 0.8.
        samples: number of sets for each n, at least 2. Defaults to 100, as in the paper.
        baseline: see `perturbation_curve`. Defaults to 0.
        seed: integer from which the sets come.
        rows: see `perturbation_curve`.

    Returns:
        Float array [batch, fractions] in [-1, 1]; NaN where one side does not vary.

    Reference:
        Ancona et al. (2017), section 4, arxiv.org/abs/1711.06104
    """
    check_count("samples", samples)
    shape = matched(x, attributions).shape[1:]
    sizes = np.maximum(as_counts("fractions", fractions, np.prod(shape)), 1)

    def prepare(x, attributions):
        start = make_baseline(baseline, x)

        def versions(step):
            removed = random_subsets(shape, tf.gather(np.repeat(sizes, samples), step), seed, step)
            removed = removed[:, tf.newaxis]
            axes = range(2, removed.shape.rank)
            total = tf.reduce_sum(tf.where(removed, attributions, 0), axes)
            return tf.where(over_channels(removed, x), start, x), {"sums": total}

        return versions

    steps = len(sizes) * samples
    result = query(model, x, attributions, prepare, steps, target, score, rows)
    by_size = [len(result["score"]), len(sizes), samples]
    change = result["score"][:, np.newaxis] - result["scores"]
    return correlation(result["sums"].reshape(by_size), change.reshape(by_size))


def random_subsets(shape, count, seed, step):
    """Bool [k, *shape], with `count` [k] true values in places that depend on seed and step [k]."""

    def draw(number):
        # One draw for each step, so that it does not depend on the chunks.
        return tf.random.stateless_uniform([int(np.prod(shape))], [seed, number], alg="philox")

    places = map_fn(draw, step, fn_output_signature=tf.float32)
    rank = tf.argsort(tf.argsort(places))
    return tf.reshape(rank < count[:, tf.newaxis], [-1, *shape])


def correlation(a, b):
    """Pearson's correlation over the last axis; NaN where one side does not vary."""
    a, b = (_centred(np.asarray(x, np.float64)) for x in (a, b))
    norm = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    product = np.sum(a * b, axis=-1)
    return np.divide(product, norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def _centred(x):
    """Less the mean; exactly 0 where constant, which the rounding of a mean is not."""
    x = x - x[..., :1]
    return x - x.mean(axis=-1, keepdims=True)
