"""OPT-AMSGrad: AMSGrad that also steps along a guess of the next gradient.

    theta_t   = b1 theta_(t-1) + (1 - b1) g_t
    v_t       = b2 v_(t-1) + (1 - b2) (g_t - m_t)^2,       v_hat_t = max(v_hat_(t-1), v_t)
    y_(t+1)   = y_t - lr theta_t / (sqrt(v_hat_t) + eps)             (w_(t+1/2) in the paper)
    w_(t+1)   = y_(t+1) - lr h_(t+1) / (sqrt(v_hat_t) + eps)
    h_(t+1)   = b1 theta_(t-1) + (1 - b1) m_(t+1)                              (algorithm 2)

where m_t is the guess of g_t. It comes from the last r + 1 gradients x_0, ..., x_r, the newest
last, by regularized minimal polynomial extrapolation (algorithm 3):

    U = [x_1 - x_0, ..., x_r - x_(r-1)],   (U'U + l I) z = 1,   c = z / sum(z),   m = sum c_i x_i,

the sum over i < r. If the gradients follow a linear recurrence, m is its fixed point.

"An Optimistic Acceleration of AMSGrad for Nonconvex Optimization", Wang, Li, Karimi, Li, 2019,
arXiv 1903.01435.

Deviations: eps is added to the root, as in the authors' program and all relatives, instead of
v_0 = eps; the learning rate of a step is that of both of its halves, where the paper has that of
the next step in the second one; there is no projection (a Keras `constraint` acts on w alone).

Open choices. The extrapolation works on each variable by itself, as the authors' program does.
Until there are r + 1 gradients, m = 0. The authors' program extrapolates the last weights instead
and takes the gradient there, at the price of a second backward pass; here it is the gradients, as
in the paper. l is never below the rounding error of U'U, so that float32 cannot make the system
singular.
"""

import itertools
import math

import numpy as np
import tensorflow as tf

from kzoo.optimizers.moments import moving_average, squared
from kzoo.optimizers.optimizer import Optimizer, check_range
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
    authors=("Jun-Kun Wang", "Xiaoyun Li", "Belhal Karimi", "Ping Li"),
    year=2019,
    arxiv="1903.01435",
)


def extrapolation_weights(sequence, regularization):
    """The weights c of the extrapolation, which sum to 1.

    Args:
        sequence: list of r + 1 tensors of one shape, float32 or float64, x_0 to x_r.
        regularization: l, at least 0.

    Returns:
        Tensor [r] of their dtype. Finite for finite sequences; equal weights for a constant one.
    """
    dtype = sequence[0].dtype
    pairs = list(itertools.pairwise(sequence))
    # In the differences' own scale, for their squares may overflow or vanish; c is the same.
    largest = tf.reduce_max([tf.reduce_max(tf.abs(new - old)) for old, new in pairs])
    scale = tf.where(largest > 0, largest, tf.ones_like(largest))
    rows = tf.stack([tf.reshape((new - old) / scale, [-1]) for old, new in pairs])
    # What follows is tiny, and ill-conditioned.
    gram = tf.cast(tf.matmul(rows, rows, transpose_b=True), tf.float64)
    rounding = np.finfo(dtype.as_numpy_dtype).eps * tf.linalg.trace(gram)
    ridge = tf.maximum(regularization / tf.square(tf.cast(scale, tf.float64)), rounding)
    # A constant sequence has no scale at all.
    ridge = tf.where(largest > 0, tf.minimum(ridge, 1e9), tf.ones_like(ridge))
    factor = tf.linalg.cholesky(gram + ridge * tf.eye(len(pairs), dtype=tf.float64))
    z = tf.linalg.cholesky_solve(factor, tf.ones([len(pairs), 1], tf.float64))[:, 0]
    return tf.cast(z / tf.reduce_sum(z), dtype)


def extrapolate(sequence, regularization):
    """Minimal polynomial extrapolation: where a sequence x_0, ..., x_r is going.

    Args:
        sequence, regularization: see `extrapolation_weights`.

    Returns:
        sum over i < r of c_i x_i, a tensor of their shape: the fixed point x* if
        x_(i+1) - x* = A (x_i - x*) for a matrix A with at most r - 1 distinct eigenvalues, none of
        them 1, and `regularization` 0.
    """
    weights = extrapolation_weights(sequence, regularization)
    return tf.add_n([w * x for w, x in zip(tf.unstack(weights), sequence[:-1], strict=True)])


@component(PAPER, example=Example(kwargs={"learning_rate": 0.01, "history": 2}))
class OptAMSGrad(Optimizer):
    """AMSGrad with an optimistic half step along a predicted gradient.

    It pays where gradients of consecutive steps predict the next: full batches, large batches,
    smooth problems. If all predictions are right, v stays small and steps are large. The model is
    trained, and evaluated, at the weights after the half step.

    Memory: 5 + r slots per weight, 10 with the default history, where Adam has 2 and AMSGrad 3;
    and r temporaries of the size of the largest variable. Every step reads and shifts the r stored
    gradients, about four times the memory traffic of AMSGrad with the default.

    Args:
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable.
            Defaults to 0.001.
        beta_1: decay of the averaged gradients, in [0, 1). Defaults to 0.9.
        beta_2: decay of the averaged squared errors of the guess, in [0, 1). Defaults to 0.999; the
            authors' experiments have 0.99.
        history: r, the number of past gradients that are stored; 0 for no guess (m = 0). Defaults
            to 5.
        regularization: l, at least 0, in the units of a squared gradient. Defaults to 0.001.
        epsilon: added to the root of the second moment. Defaults to 1e-8.
        kwargs: see `kzoo.optimizers.Optimizer`, among them `weight_decay` (decoupled).

    Raises:
        ValueError: for an argument out of range.

    Example:

    >>> w = keras.Variable([1.0])
    >>> optimizer = OptAMSGrad(learning_rate=0.1, beta_1=0.0, beta_2=0.75)
    >>> optimizer.apply([tf.constant([3.0])], [w])
    >>> float(w[0])  # without a guess: 1 - 0.1 * 3 / sqrt(0.25 * 9)
    0.8

    Reference:
        Wang et al. (2019), algorithms 2 and 3, arxiv.org/abs/1903.01435
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        history=5,
        regularization=1e-3,
        epsilon=1e-8,
        name="opt_amsgrad",
        **kwargs,
    ):
        check_range("beta_1", beta_1, 0, 1)
        check_range("beta_2", beta_2, 0, 1)
        check_range("regularization", regularization, 0, math.inf)
        check_range("epsilon", epsilon, 0, math.inf)
        if not isinstance(history, int) or isinstance(history, bool) or history < 0:
            raise ValueError(f"`history` must be a non-negative integer. Received: {history!r}")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.history = history
        self.regularization = regularization
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities, self._velocity_hats, self._leads = (
            self.add_optimizer_variables(
                variables, ["momentum", "velocity", "velocity_hat", "optimistic_step"]
            )
        )
        names = [f"gradient_{age}" for age in range(self.history, 0, -1)]
        if names:
            # The guess of the next gradient, and the gradients so far, the oldest first.
            self._guesses, *self._gradients = self.add_optimizer_variables(
                variables, ["guess", *names]
            )

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        gradient = tf.cast(gradient, dtype)
        rate = tf.cast(learning_rate, dtype)

        old_guess, guess = self._predict(index, gradient)
        old_momentum = tf.convert_to_tensor(self._momentums[index])
        momentum = moving_average(old_momentum, gradient, self.beta_1)
        root = self._root(index, squared(gradient - old_guess))
        lead = rate * moving_average(old_momentum, guess, self.beta_1) / root

        # The optimistic step is made anew at every step, from where the last one was not made.
        self.assign_sub(variable, lead - self._leads[index] + rate * momentum / root)
        self.assign(self._momentums[index], momentum)
        self.assign(self._leads[index], lead)

    def _root(self, index, square):
        velocity = moving_average(self._velocities[index], square, self.beta_2)
        velocity_hat = tf.maximum(self._velocity_hats[index], velocity)
        self.assign(self._velocities[index], velocity)
        self.assign(self._velocity_hats[index], velocity_hat)
        return tf.sqrt(velocity_hat) + self.epsilon

    def _predict(self, index, gradient):
        """(m_t, m_(t+1)); the history then ends with this gradient."""
        if not self.history:
            return tf.zeros_like(gradient), tf.zeros_like(gradient)
        slots = [gradients[index] for gradients in self._gradients]
        sequence = [*map(tf.convert_to_tensor, slots), gradient]
        old_guess = tf.convert_to_tensor(self._guesses[index])
        guess = self._extrapolate(sequence)
        for slot, value in zip(slots, sequence[1:], strict=True):
            self.assign(slot, value)
        self.assign(self._guesses[index], guess)
        return old_guess, guess

    def _extrapolate(self, sequence):
        dtype = sequence[0].dtype
        working = tf.float64 if dtype == tf.float64 else tf.float32
        guess = extrapolate([tf.cast(x, working) for x in sequence], self.regularization)
        complete = self.iterations >= self.history
        return tf.where(complete, tf.cast(guess, dtype), tf.zeros_like(sequence[0]))

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "history": self.history,
            "regularization": self.regularization,
            "epsilon": self.epsilon,
        }
