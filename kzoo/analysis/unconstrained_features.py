"""The unconstrained features model: what the supervised contrastive loss wants features to be.

    min over H of sum_B sum_{i in B} l_i(H_B),    ||h_i|| = 1       (UFM)
                                                  and h_i >= 0      (UFM+, the effect of a ReLU)

with l_i the loss of `kzoo.losses.SupervisedContrastiveLoss` inside of batch B. Over the full batch,
for classes of n_c of n examples and a temperature t, the minimum of UFM+ is

    sum_c n_c log(n_c - 1 + (n - n_c) exp(-1 / t))

and only an orthogonal frame has it: all features of a class are equal, those of two classes are
orthogonal. UFM goes lower where classes are unequal, and loses the symmetry.

"Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of ReLU and
Batching", Kini, Vakilian, Behnia, Gill, Thrampoulidis, 2023, arXiv 2306.07960; theorems 1 and 2.

Deviation: the minimum is found by L-BFGS-B (SciPy) from a random start, with the length divided out
and non-negativity as a bound, where the authors use SGD. Classes of one example have no positive
and do not count.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from scipy import optimize

from kzoo.losses.sup_con import PAPER, supervised_contrastive
from kzoo.papers import component


@dataclass(frozen=True)
class UnconstrainedFeatures:
    """A minimum of the unconstrained features model.

    Attributes:
        features: float64 [n, dim], of length 1; those of a class stand together.
        labels: int [n].
        loss: sum over batches and examples.
    """

    features: np.ndarray
    labels: np.ndarray
    loss: float

    @property
    def gram(self):
        """float64 [k, k], the products of the class means."""
        classes = np.arange(self.labels.max() + 1)
        means = np.stack([self.features[self.labels == label].mean(axis=0) for label in classes])
        return means @ means.T


@component(PAPER)
def orthogonal_frame_loss(counts, temperature=1.0):
    """The minimum of the supervised contrastive loss over non-negative unit features.

    Args:
        counts: examples of each class, [k], at least 2 of each.
        temperature: t, above 0.

    Returns:
        A float: the sum over the full batch, which an orthogonal frame attains.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> orthogonal_frame_loss([10, 10, 2, 2])
    61.8249...

    Reference:
        Kini et al. (2023), theorem 1, arxiv.org/abs/2306.07960
    """
    counts = _checked_counts(counts)
    _check_temperature(temperature)
    others = counts.sum() - counts
    return float(np.sum(counts * np.log(counts - 1 + others * np.exp(-1 / temperature))))


@component(PAPER)
def minimize_unconstrained_features(
    counts, dim, nonnegative=True, temperature=1.0, batches=None, max_steps=2000, seed=0
):
    """Minimises the supervised contrastive loss over the features themselves.

    Args:
        counts: examples of each class, [k], at least 2 of each.
        dim: size of the features; at least k for an orthogonal frame.
        nonnegative: whether features must be at least 0, as behind a ReLU (UFM+). Defaults to True.
        temperature: t, above 0.
        batches: lists of example numbers, those of class 0 first; an example may be in several,
            see `kzoo.data.bound_batches`. None for all in one.
        max_steps: the most iterations of L-BFGS-B.
        seed: of the random start.

    Returns:
        An `UnconstrainedFeatures`.

    Raises:
        ValueError: for arguments out of range, or numbers that are no examples.

    Example:

    >>> found = minimize_unconstrained_features([10, 10, 2, 2], dim=8)
    >>> found.loss - orthogonal_frame_loss([10, 10, 2, 2]) < 1e-4
    True

    Reference:
        Kini et al. (2023), theorems 1 and 2, arxiv.org/abs/2306.07960
    """
    counts = _checked_counts(counts)
    _check_temperature(temperature)
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"`dim` must be a positive integer. Received: {dim!r}")
    labels = np.repeat(np.arange(len(counts)), counts)
    batches = [np.arange(len(labels))] if batches is None else list(map(np.asarray, batches))
    for batch in batches:
        if len(batch) and not 0 <= batch.min() <= batch.max() < len(labels):
            raise ValueError(f"`batches` must be numbers in [0, {len(labels)}). Received: {batch}")
    start = np.random.default_rng(seed).normal(size=(len(labels), dim))
    start = np.abs(start) if nonnegative else start
    found = optimize.minimize(
        _objective(labels, batches, temperature, start.shape),
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=optimize.Bounds(0.0 if nonnegative else -np.inf),
        options={"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 1e-14, "gtol": 1e-8},
    )
    features = found.x.reshape(start.shape)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return UnconstrainedFeatures(features, labels, float(found.fun))


def _objective(labels, batches, temperature, shape):
    """The loss and its gradient as a function of a flat NumPy array."""
    labels = tf.constant(labels, tf.int32)
    batches = [tf.constant(batch, tf.int32) for batch in batches]

    @tf.function(autograph=False)
    def value_and_gradient(flat):
        with tf.GradientTape() as tape:
            tape.watch(flat)
            features = tf.math.l2_normalize(tf.reshape(flat, shape), axis=-1)
            losses = [
                supervised_contrastive(
                    tf.gather(features, batch), tf.gather(labels, batch), temperature
                )
                for batch in batches
            ]
            loss = tf.add_n([tf.reduce_sum(each) for each in losses])
        return loss, tape.gradient(loss, flat)

    def evaluate(flat):
        loss, gradient = value_and_gradient(tf.constant(flat))
        return float(loss), gradient.numpy()

    return evaluate


def _checked_counts(counts):
    counts = np.asarray(counts)
    if counts.ndim != 1 or len(counts) < 2 or counts.dtype.kind not in "iu" or counts.min() < 2:
        raise ValueError(
            "`counts` must be integers of at least 2, for at least two classes. "
            f"Received: {counts.tolist()}"
        )
    return counts


def _check_temperature(temperature):
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"`temperature` must be a finite number above 0. Received: {temperature!r}"
        )
