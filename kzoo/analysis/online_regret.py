"""Online learning of linear losses on an interval, and the regret of an optimizer there.

    R_T = sum_t f_t(x_t) - min over x of sum_t f_t(x),      f_t(x) = c_t x,    x in [low, high]

Theorem 1's example: c_t = C where t mod 3 = 1, else -1, on [-1, 1]. The sum of three is C - 2 > 0,
so -1 is best; Adam with b1 = 0 and b2 = 1 / (1 + C^2) goes to 1.

"On the Convergence of Adam and Beyond", Reddi, Kale, Kumar, 2018, arXiv 1904.09237; section 3, and
the synthetic experiment of section 5 (C = 1010, else -10, period 101).

Deviations: none.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.optimizers.amsgrad import PAPER
from kzoo.papers import component


@dataclass(frozen=True)
class OnlineRun:
    """A sequence of points that an optimizer played.

    Attributes:
        points: float64 [T], x_t, where the loss c_t was met.
        regret: float64 [T], R_1 to R_T, each against the best point of its own time.
    """

    points: np.ndarray
    regret: np.ndarray

    @property
    def average_regret(self):
        """float64 [T], R_t / t; an optimizer learns if it goes to 0."""
        return self.regret / np.arange(1, len(self.regret) + 1)


@component(PAPER)
def adam_counterexample(steps, large=3.0, small=1.0, period=3):
    """The slopes of convex losses on which Adam converges to the worst point.

    Args:
        steps: T, number of losses.
        large: C, the slope of every first loss of a period.
        small: the others have the slope -`small`; small (period - 1) < large, so that the sum over
            a period is positive and the lower end is best.
        period: losses in a period, at least 2.

    Returns:
        float64 [T], c_1 to c_T.

    Raises:
        ValueError: if the lower end is not best.

    Reference:
        Reddi et al. (2018), theorem 1, arxiv.org/abs/1904.09237
    """
    if not small * (period - 1) < large:
        raise ValueError(
            "`large` must be above `small` (`period` - 1), or the lower end is not best. "
            f"Received: {large}, {small}, {period}"
        )
    return np.where(np.arange(steps) % period == 0, float(large), -float(small))


@component(PAPER)
def online_regret(optimizer, slopes, start=1.0, low=-1.0, high=1.0):
    """Lets an optimizer play linear losses on an interval, one step for each.

    Args:
        optimizer: a `keras.optimizers.Optimizer` that has not been used; it is used up.
        slopes: [T], the slopes c_t of the losses, in their order.
        start: x_1. Defaults to 1.
        low, high: the interval, onto which every step is projected. Default to -1 and 1.

    Returns:
        An `OnlineRun`.

    Raises:
        ValueError: for arguments that do not fit.

    Example:

    >>> adam = keras.optimizers.Adam(InverseSqrtDecay(0.5), beta_1=0.0, beta_2=0.1)
    >>> run = online_regret(adam, adam_counterexample(2000))
    >>> run.points[-1] > 0.9  # -1 is best
    True

    Reference:
        Reddi et al. (2018), section 2, arxiv.org/abs/1904.09237
    """
    slopes = np.asarray(slopes, "float64")
    if slopes.ndim != 1 or not len(slopes):
        raise ValueError(f"`slopes` must be a sequence of numbers. Received shape: {slopes.shape}")
    if not low <= start <= high:
        raise ValueError(f"`start` must be in [{low}, {high}]. Received: {start!r}")
    points = _play(optimizer, slopes, start, low, high)
    totals = np.cumsum(slopes)
    best = np.minimum(low * totals, high * totals)
    return OnlineRun(points, np.cumsum(slopes * points) - best)


def _play(optimizer, slopes, start, low, high):
    """The points x_1 to x_T, float64 [T]."""
    point = keras.Variable(start, dtype="float64")
    point.constraint = lambda x: keras.ops.clip(x, low, high)
    optimizer.build([point])

    @tf.function(autograph=False)
    def play(slopes):
        def step(t, points):
            points = points.write(t, point.value)
            optimizer.apply([slopes[t]], [point])
            return t + 1, points

        size = slopes.shape[0]
        _, points = tf.while_loop(
            lambda t, _: t < size, step, (0, tf.TensorArray(tf.float64, size))
        )
        return points.stack()

    return play(tf.constant(slopes)).numpy()
