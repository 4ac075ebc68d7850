"""Annealed Gaussian noise on the gradients of any optimizer.

    g <- g + N(0, s(t)^2),      s(t)^2 = eta / (1 + t)^gamma,      t = 0, 1, ...      (section 3)

"Adding Gradient Noise Improves Learning for Very Deep Networks", Neelakantan, Vilnis, Le,
Sutskever, Kaiser, Kurach, Martens, 2015, arXiv 1511.06807.

The noise comes after clipping, as in the paper: clipped noise would be weaker where gradients are
large. Deviations: none. Open choices: t counts from 0; with accumulation it counts updates.
"""

import math

import keras
import tensorflow as tf

from kzoo.ops.portable_random import fold_in, portable_normal
from kzoo.optimizers.gradient_transform import GradientTransform
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Adding Gradient Noise Improves Learning for Very Deep Networks",
    authors=(
        "Arvind Neelakantan",
        "Luke Vilnis",
        "Quoc V. Le",
        "Ilya Sutskever",
        "Lukasz Kaiser",
        "Karol Kurach",
        "James Martens",
    ),
    year=2015,
    arxiv="1511.06807",
)


def _example():
    return {"base_optimizer": keras.optimizers.SGD(0.1, momentum=0.9), "eta": 0.01}


@component(PAPER, example=Example(kwargs=_example))
class GradientNoise(GradientTransform):
    """Any Keras optimizer with Gaussian noise on its gradients that fades with the steps.

    For very deep or otherwise hard networks: the noise carries them off saddles and plateaus, at
    the start above all. The noise of a step is a function of the seed, the number of the step and
    the place of the variable alone: the same on every replica, after a restart, and whatever the
    device. For the order of clipping, weight decay and noise, and for nesting, see
    `kzoo.optimizers.GradientTransform`.

    Args:
        base_optimizer: a `keras.optimizers.Optimizer` that has not been used, of Keras or of kzoo,
            which this one takes over.
        eta: variance of the noise at the first step, at least 0; the paper uses 0.01, 0.3 or 1.0.
            Defaults to 0.01.
        gamma: power of the decay, at least 0; 0 keeps the variance. Defaults to 0.55.
        seed: non-negative integer below 2^31, of the noise. Defaults to 0.
        kwargs: arguments of `kzoo.optimizers.Optimizer`, which replace those of the base optimizer.

    Raises:
        TypeError: for something other than an optimizer.
        ValueError: for an argument out of range, or an optimizer that is in use.

    Example:

    >>> model.compile(GradientNoise(keras.optimizers.SGD(0.1, clipnorm=1.0), eta=0.3), "mse")

    Reference:
        Neelakantan et al. (2015), arxiv.org/abs/1511.06807
    """

    def __init__(
        self, base_optimizer, eta=0.01, gamma=0.55, seed=0, name="gradient_noise", **kwargs
    ):
        check_range("eta", eta, 0, math.inf)
        check_range("gamma", gamma, 0, math.inf)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            raise ValueError(f"`seed` must be an integer in [0, 2^31). Received: {seed!r}")
        super().__init__(base_optimizer, name=name, **kwargs)
        self.eta = eta
        self.gamma = gamma
        self.seed = seed

    def transform(self, gradients, variables):
        if self.eta == 0:
            return gradients
        step = tf.cast(self.iterations, tf.float64)
        deviation = tf.sqrt(self.eta / (1.0 + step) ** self.gamma)
        return [
            gradient + tf.cast(deviation, gradient.dtype) * self._noise(gradient, variable)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def _noise(self, gradient, variable):
        # By the variable's place: one without a gradient does not shift the noise of the others.
        seed = fold_in([self.seed, 0], self.iterations, self._get_variable_index(variable))
        return portable_normal(tf.shape(gradient), seed, gradient.dtype)

    def get_config(self):
        return {**super().get_config(), "eta": self.eta, "gamma": self.gamma, "seed": self.seed}
