"""Logistic regression by gradient descent with any step, and its limit, the batch perceptron.

    f(theta) = 1/n sum_i log(1 + exp(-y_i a_i^T theta))                      (equation 2)
    LR+GD              theta <- theta - gamma grad f(theta)
    Normalized LR+GD   theta <- theta - gamma beta grad f(theta),
                       beta = 1 / mean_i (1 + exp(y_i a_i^T theta))^-1
    Batch Perceptron   theta <- theta + 1/n sum_{i in S} y_i a_i,  S = {i: y_i a_i^T theta <= 0},
                       after a first step of 1/(2n) sum_i y_i a_i
    Normalized Batch Perceptron   theta <- theta + 1/|S| sum_{i in S} y_i a_i

As gamma grows, theta_t / gamma of the first goes to the third from theta_0 = 0 (theorem 3.2). All
four end with a theta that separates the data, within

    n R^2 / mu^2                                     Batch Perceptron (theorem 3.3)
    R^2 / mu^2                                       Normalized Batch Perceptron (theorem 5.3)
    R^2 / mu^2 + 2 log(2 n - 1) / (gamma mu^2)       Normalized LR+GD (theorem 6.1)

steps, R the largest ||a_i|| and mu the margin.

"From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step
Sizes", Tyurin, 2024, arXiv 2412.08424.

Deviations: none. There is no intercept, as in the paper; a column of ones makes one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.special import expit, log_expit, softmax

from kzoo.papers import Paper, component

PAPER = Paper(
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with "
    "Large Step Sizes",
    authors=("Alexander Tyurin",),
    year=2024,
    arxiv="2412.08424",
)


@dataclass(frozen=True)
class SeparationRun:
    """How a linear classifier came to separate its data.

    Attributes:
        theta: [d], the last iterate.
        losses: [steps + 1], the logistic loss f at every iterate.
        gradient_norms: [steps + 1], ||grad f|| at every iterate.
        accuracies: [steps + 1], the share of the examples with y_i a_i^T theta > 0.
        separated_at: the first iterate that classifies all examples; None if there is none.
        iterates: [steps + 1, d], if they were asked for; else None.
    """

    theta: np.ndarray
    losses: np.ndarray
    gradient_norms: np.ndarray
    accuracies: np.ndarray
    separated_at: int | None
    iterates: np.ndarray | None


@component(PAPER)
def logistic_gradient_descent(
    features,
    labels,
    step,
    normalized=False,
    max_steps=10000,
    start=None,
    stop_when_separated=True,
    keep_iterates=False,
):
    """Full-batch gradient descent on logistic regression, stable for a step of any size.

    Args:
        features: a, [n, d].
        labels: y, [n], each -1 or 1.
        step: gamma, above 0.
        normalized: whether each gradient is divided by the mean probability of the wrong class,
            Normalized LR+GD. Defaults to False.
        max_steps: Defaults to 10000.
        start: theta_0, [d]. Defaults to 0.
        stop_when_separated: whether to stop at the first theta without an error. Defaults to True.
        keep_iterates: whether the result holds every theta. Defaults to False.

    Returns:
        `SeparationRun`

    Example:

    >>> run = logistic_gradient_descent([[1.0, -1.0], [-1.0, -4.0]], [1, -1], step=1000.0)
    >>> run.theta / 1000, run.separated_at
    (array([1.  , 0.25]), 2)

    Reference:
        Tyurin (2024), arxiv.org/abs/2412.08424
    """
    if not 0 < step < np.inf:
        raise ValueError(f"`step` must be above 0. Received: {step!r}")

    def direction(signed, margins, _):
        if normalized:
            # p / sum p, also where every p underflows.
            return softmax(log_expit(-margins)) @ signed
        return expit(-margins) @ signed / len(signed)

    signed, start = _signed(features, labels, start)
    options = {"max_steps": max_steps, "stop": stop_when_separated, "keep": keep_iterates}
    return _run(signed, start, lambda *state: step * direction(*state), **options)


@component(PAPER)
def batch_perceptron(
    features, labels, normalized=False, max_steps=10000, start=None, keep_iterates=False
):
    """The perceptron that corrects all errors at once: the limit of gradient descent.

    Args:
        features, labels, max_steps, start, keep_iterates: see `logistic_gradient_descent`.
        normalized: whether the errors are averaged over their number, not over all examples. Then
            the first step is like all others. Defaults to False.

    Returns:
        `SeparationRun`; it ends when all examples are separated.

    Reference:
        Tyurin (2024), sections 3 and 5, arxiv.org/abs/2412.08424
    """

    def direction(signed, margins, number):
        wrong = margins <= 0
        if normalized:
            return signed[wrong].sum(0) / max(wrong.sum(), 1)
        if number == 0:
            return 0.5 * signed.mean(0)
        return signed[wrong].sum(0) / len(signed)

    signed, start = _signed(features, labels, start)
    return _run(signed, start, direction, max_steps=max_steps, stop=True, keep=keep_iterates)


@component(PAPER)
def separation_margin(features, labels):
    """mu = max_{||theta|| = 1} min_i y_i a_i^T theta, and the theta of the maximum.

    Args:
        features, labels: see `logistic_gradient_descent`.

    Returns:
        (mu, theta [d])

    Raises:
        ValueError: if the data cannot be separated by a plane through the origin.
    """
    signed, _ = _signed(features, labels, None)
    # min ||w|| with signed @ w >= 1 by nonnegative least squares (Lawson and Hanson, LDP).
    scale = np.linalg.norm(signed, axis=1).max() or 1.0
    system = np.vstack([signed.T / scale, np.ones(len(signed))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    weights, distance = nnls(system, target)
    residual = system @ weights - target
    if distance < 1e-8:
        raise ValueError("`features` must be separable by a plane through the origin.")
    theta = -residual[:-1] / residual[-1]
    theta /= np.linalg.norm(theta)
    return float(np.min(signed @ theta)), theta


@component(PAPER)
def separation_bounds(features, labels, step):
    """How many steps each method needs at most, from theta_0 = 0.

    Args:
        features, labels: see `logistic_gradient_descent`.
        step: gamma.

    Returns:
        {"batch_perceptron": n R^2 / mu^2, "normalized_batch_perceptron": R^2 / mu^2,
        "normalized_lr_gd": R^2 / mu^2 + 2 log(2 n - 1) / (gamma mu^2)}
    """
    signed, _ = _signed(features, labels, None)
    margin, _ = separation_margin(features, labels)
    size = len(signed)
    ratio = float((signed**2).sum(1).max()) / margin**2
    return {
        "batch_perceptron": size * ratio,
        "normalized_batch_perceptron": ratio,
        "normalized_lr_gd": ratio + 2 * np.log(2 * size - 1) / (step * margin**2),
    }


def _signed(features, labels, start):
    """The rows y_i a_i, and where to start."""
    features, labels = np.asarray(features, float), np.asarray(labels, float)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            "`features` must be [n, d] and `labels` [n], of at least one example. "
            f"Received: {list(features.shape)} and {list(labels.shape)}"
        )
    if not np.isin(labels, (-1, 1)).all():
        raise ValueError(f"`labels` must be -1 or 1. Received: {np.unique(labels)[:5]}")
    start = np.zeros(features.shape[1]) if start is None else np.asarray(start, float)
    if start.shape != features.shape[1:]:
        raise ValueError(f"`start` must be [{features.shape[1]}]. Received: {list(start.shape)}")
    return labels[:, None] * features, start


def _run(signed, theta, direction, max_steps, stop, keep):
    losses, norms, accuracies, iterates, separated_at = [], [], [], [], None
    for number in range(max_steps + 1):
        margins = signed @ theta
        losses.append(np.mean(np.logaddexp(0, -margins)))
        norms.append(np.linalg.norm(expit(-margins) @ signed) / len(signed))
        accuracies.append(np.mean(margins > 0))
        if keep:
            iterates.append(theta)
        if separated_at is None and accuracies[-1] == 1:
            separated_at = number
        if number == max_steps or (stop and separated_at is not None):
            break
        theta = theta + direction(signed, margins, number)
    return SeparationRun(
        theta,
        np.array(losses),
        np.array(norms),
        np.array(accuracies),
        separated_at,
        np.array(iterates) if keep else None,
    )
