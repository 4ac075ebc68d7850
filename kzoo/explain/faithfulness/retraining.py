"""Faithfulness by retraining: mask the inputs by their attribution, train again, compare.

    ROAR(A, t)     = accuracy of a model trained and tested without the top t of each input
    DiffROAR(A, k) = PredPower(A, top k) - PredPower(A, bottom k)

where PredPower is the test accuracy of a model that is trained and tested on inputs of which only
the k highest (or lowest) ranked values are left. DiffROAR is positive where the attribution ranks
discriminative values higher, near 0 for a random ranking, negative where it ranks them lower, and
exactly 0 at k = 1.

"Do Input Gradients Highlight Discriminative Features?", Shah, Jain, Netrapalli, 2021, arXiv
2102.12781; section 3. "A Benchmark for Interpretability Methods in Deep Neural Networks", Hooker,
Erhan, Kindermans, Kim, 2018, arXiv 1806.10758; section 3.

Open choices: values are ranked by the magnitude of their attribution; where the attribution has no
channel axis, a pixel is masked in all channels at once; equal attributions are ranked by position,
in both directions, so that a constant attribution has a DiffROAR of exactly 0; masked values are
set to the mean of their channel over the training set, as in ROAR (the DiffROAR authors' code
takes one number).

Where the mask itself tells the class, as it can where the logit of the label is attributed, both
ends are predictive and DiffROAR is blind: look at `top` and `bottom`, not at the difference alone.
"""

import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Do Input Gradients Highlight Discriminative Features?",
    authors=("Harshay Shah", "Prateek Jain", "Praneeth Netrapalli"),
    year=2021,
    arxiv="2102.12781",
)
ROAR_PAPER = Paper(
    title="A Benchmark for Interpretability Methods in Deep Neural Networks",
    authors=("Sara Hooker", "Dumitru Erhan", "Pieter-Jan Kindermans", "Been Kim"),
    year=2018,
    arxiv="1806.10758",
)

_ENDS = ("top", "bottom")


@component(ROAR_PAPER, not_served="it measures explanations of a whole set")
def roar(train, attribute, train_data, test_data, fractions, seeds=(0,), fill=None, score=None):
    """Remove and retrain: test accuracy after the removal of what an attribution ranks highest.

    Args:
        train: `train(x, y, seed) -> model`, from new initial weights.
        attribute: `attribute(model, x, y)`, an array of the shape of `x`, or of that without the
            last axis; or a pair of such arrays for the training and the test inputs. For an
            explainer: `lambda model, x, y: Saliency(model)(x, y)["attributions"]`.
        train_data: (x, y); x is an array [num_examples, ..., channels], y are the classes.
        test_data: (x, y).
        fractions: shares of the values of each input that are removed, in [0, 1].
        seeds: seeds of `train`; the model that is explained and the retrained one have the same.
        fill: what stands where a value is removed: a number, or an array that broadcasts to one
            input. None for the mean over the training set, by channel (or column of a table).
        score: `score(model, x, y) -> float`. None for `accuracy`.

    Returns:
        Float array [fractions, seeds]. A faithful attribution makes it fall fast.

    Reference:
        Hooker et al. (2018), section 3, arxiv.org/abs/1806.10758
    """

    def removed(attributions, fraction):
        return ranked_mask(attributions, fraction, "top")

    study = _Study(train, train_data, test_data, fill, score)
    return study.scores(attribute, removed, fractions, seeds)


@component(PAPER, not_served="it measures explanations of a whole set")
def diff_roar(
    train, attribute, train_data, test_data, fractions, seeds=(0,), fill=None, score=None
):
    """DiffROAR: by how much an attribution ranks discriminative values above the others.

    Args:
        fractions: levels k, the shares of the values of each input that are left, in [0, 1]; the
            paper's are 0.05 to 1.
        train, attribute, train_data, test_data, seeds, fill, score: as in `roar`.

    Returns:
        dict of float arrays [fractions, seeds]: `top` and `bottom`, the predictive power of what is
        ranked highest and lowest, and `difference`, top less bottom, in [-1, 1].

    Example:

    >>> result = diff_roar(
    ...     train,
    ...     lambda model, x, y: Saliency(model)(x, y)["attributions"],
    ...     (x_train, y_train),
    ...     (x_test, y_test),
    ...     fractions=[0.05, 0.1, 0.2],
    ... )
    >>> result["difference"].mean(axis=1)

    Reference:
        Shah et al. (2021), section 3, arxiv.org/abs/2102.12781
    """
    study = _Study(train, train_data, test_data, fill, score)
    power = {}
    for end in _ENDS:

        def removed(attributions, fraction, end=end):
            return ~ranked_mask(attributions, fraction, end)

        power[end] = study.scores(attribute, removed, fractions, seeds)
    return {**power, "difference": power["top"] - power["bottom"]}


@component(PAPER, not_served="it measures explanations of a whole set")
def attribution_leakage(attributions, null):
    """The share of an attribution that lies where nothing discriminates.

    Args:
        attributions: array [batch, ...].
        null: bool array of that shape, or of that without the last axis: the null block.

    Returns:
        Float array [batch] in [0, 1]: the sum of the magnitudes inside the null block over that of
        all; 0 where the attribution is 0 everywhere. The ratio of null to signal mass is
        `leakage / (1 - leakage)`.

    Reference:
        Shah et al. (2021), section 4, arxiv.org/abs/2102.12781
    """
    magnitude = np.abs(np.asarray(attributions, np.float64))
    null = _matched("null", np.asarray(null, bool), magnitude)
    axes = tuple(range(1, magnitude.ndim))
    total = magnitude.sum(axes)
    inside = np.where(null, magnitude, 0).sum(axes)
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0)


def ranked_mask(attributions, fraction, end="top"):
    """Marks the share of each example's values that an attribution ranks highest or lowest.

    Args:
        attributions: array [batch, ...], ranked by magnitude within each example.
        fraction: the share in [0, 1], rounded to a number of values.
        end: "top" or "bottom". Equal values are taken by position, from the first.

    Returns:
        bool array [batch, ...].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fractions` must be in [0, 1]. Received: {fraction!r}")
    if end not in _ENDS:
        raise ValueError(f"`end` must be one of {', '.join(_ENDS)}. Received: {end!r}")
    attributions = np.asarray(attributions)
    magnitude = np.abs(attributions.reshape(len(attributions), -1))
    if np.isnan(magnitude).any():
        raise ValueError("`attributions` must not be NaN.")
    order = np.argsort(-magnitude if end == "top" else magnitude, axis=1, kind="stable")
    chosen = order[:, : round(fraction * magnitude.shape[1])]
    mask = np.zeros(magnitude.shape, bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask.reshape(attributions.shape)


def masked(x, mask, fill):
    """`x` with `fill` where `mask`, which may lack the last axis of x, is true."""
    return np.where(_matched("mask", mask, x), np.asarray(fill, x.dtype), x)


def accuracy(model, x, y):
    """Share of the examples whose largest output is at their class."""
    outputs = np.asarray(model.predict(x, verbose=0))
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "`score` must be given for a model whose outputs are not [batch, classes]. "
            f"Received outputs of shape {list(outputs.shape)}"
        )
    return float(np.mean(outputs.argmax(1) == y))


class _Study:
    """A data set, a way to train on it, and a score."""

    def __init__(self, train, train_data, test_data, fill, score):
        self.train = train
        self.data = [(np.asarray(x), np.asarray(y)) for x, y in (train_data, test_data)]
        x = self.data[0][0]
        self.fill = x.mean(axis=tuple(range(x.ndim - 1))) if fill is None else fill
        self.score = score or accuracy

    def scores(self, attribute, removed, fractions, seeds):
        """Scores [fractions, seeds] after `removed(attributions, fraction)` of each input."""
        return np.stack([self._of_seed(attribute, removed, fractions, s) for s in seeds], axis=1)

    def _of_seed(self, attribute, removed, fractions, seed):
        attributions = self._attributions(attribute, seed)
        scores = []
        for fraction in fractions:
            masks = [removed(attribution, fraction) for attribution in attributions]
            (x, y), (x_test, y_test) = (
                (masked(x, mask, self.fill), y)
                for (x, y), mask in zip(self.data, masks, strict=True)
            )
            scores.append(self.score(self.train(x, y, seed), x_test, y_test))
        return np.array(scores, np.float64)

    def _attributions(self, attribute, seed):
        if not callable(attribute):
            return [np.asarray(attributions) for attributions in attribute]
        model = self.train(*self.data[0], seed)
        return [attribute_in_batches(attribute, model, x, y) for x, y in self.data]


def attribute_in_batches(attribute, model, x, y, size=256):
    """`attribute(model, x, y)` as one array, `size` examples at a time."""
    parts = [
        np.asarray(attribute(model, x[begin : begin + size], y[begin : begin + size]))
        for begin in range(0, len(x), size)
    ]
    return np.concatenate(parts)


def _matched(name, mask, x):
    """`mask` with the axes of `x`, of which it may lack the last."""
    if mask.shape == x.shape:
        return mask
    if mask.shape == x.shape[:-1]:
        return mask[..., np.newaxis]
    raise ValueError(
        f"`{name}` must have the shape {list(x.shape)} or {list(x.shape[:-1])}. "
        f"Received: {list(mask.shape)}"
    )
