"""AMSGrad and AdamNC: Adam with a long-term memory of past gradients.

    m <- b1(t) m + (1 - b1(t)) g
    AMSGrad:  v <- b2 v + (1 - b2) g^2,                v_hat <- max(v_hat, v)       (algorithm 2)
    AdamNC:   v <- (1 - 1/t) v + (1/t) g^2 = mean of all g^2,     v_hat = v         (algorithm 3)
    w <- P(w - lr(t) m / (sqrt(v_hat) + eps))

with b1(t) constant, b1 L^(t - 1), or b1 / t, and lr(t) = lr / sqrt(t) in the theorems: that is
`kzoo.optimizers.schedules.InverseSqrtDecay`. Neither corrects the bias of the averages.

"On the Convergence of Adam and Beyond", Reddi, Kale, Kumar, 2018, arXiv 1904.09237.

`keras.optimizers.Adam(amsgrad=True)` has constant b1, and multiplies the step by Adam's bias
correction sqrt(1 - b2^t) / (1 - b1^t), v_hat being the maximum of the uncorrected v. It is this
AMSGrad with that factor in its learning rate; the factor goes to 1.

Deviations: eps, which the paper leaves out of the pseudo-code. The projection P onto the feasible
set, in the norm of sqrt(v_hat), is the variable's Keras `constraint`, applied after the step; for a
box, the set of the paper's examples, the two are the same. For other sets Keras's constraints
project in the Euclidean norm.
"""

import math

import tensorflow as tf

from kzoo.optimizers.moments import moving_average, squared
from kzoo.optimizers.optimizer import Optimizer, check_range
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="On the Convergence of Adam and Beyond",
    authors=("Sashank J. Reddi", "Satyen Kale", "Sanjiv Kumar"),
    year=2018,
    arxiv="1904.09237",
)


class _LongMemory(Optimizer):
    """What AMSGrad and AdamNC share: the average of the gradients, over the root of a maximum."""

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_1_decay=1.0, epsilon=1e-8, **kwargs):
        check_range("beta_1", beta_1, 0, 1)
        check_range("epsilon", epsilon, 0, math.inf)
        number = isinstance(beta_1_decay, int | float) and not isinstance(beta_1_decay, bool)
        if beta_1_decay != "1/t" and not (number and 0 < beta_1_decay <= 1):
            raise ValueError(
                f'`beta_1_decay` must be in (0, 1], or "1/t". Received: {beta_1_decay!r}'
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_1_decay = beta_1_decay
        self.epsilon = epsilon

    def second_moment(self, index, square):
        """Updates the slots of variable `index` with g^2; returns what the step is scaled by."""
        raise NotImplementedError

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        gradient = tf.cast(gradient, dtype)
        beta_1 = self._beta_1()
        if tf.is_tensor(beta_1):
            beta_1 = tf.cast(beta_1, dtype)
        momentum = moving_average(self._momentums[index], gradient, beta_1)
        self.assign(self._momentums[index], momentum)
        root = tf.sqrt(self.second_moment(index, squared(gradient)))
        self.assign_sub(variable, tf.cast(learning_rate, dtype) * momentum / (root + self.epsilon))

    def _beta_1(self):
        """b1(t)."""
        if self.beta_1_decay == "1/t":
            return self.beta_1 / self._step()
        if self.beta_1_decay == 1:
            return self.beta_1
        return self.beta_1 * self.beta_1_decay ** (self._step() - 1.0)

    def _step(self):
        """t, the number of this step from 1; exact where bfloat16 is not."""
        return tf.cast(self.iterations + 1, tf.float64)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_1_decay": self.beta_1_decay,
            "epsilon": self.epsilon,
        }


@component(PAPER, example=Example(kwargs={"learning_rate": 0.01, "beta_1_decay": 0.99}))
class AMSGrad(_LongMemory):
    """Adam whose second moment never decreases, exactly as in the paper.

    A large gradient is remembered for ever, so the effective learning rate never grows; Adam
    forgets rare large gradients, and can converge to the worst point of a convex problem. Without
    bias correction its first steps are (1 - b1) / sqrt(1 - b2) times those of Adam: 3.2 times with
    the defaults. It needs three slots per weight, one more than Adam.

    Args:
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable.
            Defaults to 0.001.
        beta_1: decay of the averaged gradients at the first step, in [0, 1). Defaults to 0.9.
        beta_2: decay of the averaged squared gradients, in [0, 1). Defaults to 0.999.
        beta_1_decay: L in (0, 1], which multiplies `beta_1` after each step, or "1/t" for
            `beta_1` / t. The paper's bound on the regret wants a decrease (corollary 1). Defaults
            to 1: constant.
        epsilon: added to the root of the second moment. Defaults to 1e-8.
        kwargs: see `kzoo.optimizers.Optimizer`, among them `weight_decay` (decoupled).

    Raises:
        ValueError: for an argument out of range.

    Example:

    >>> w = keras.Variable([1.0])
    >>> AMSGrad(learning_rate=0.1, beta_1=0.0, beta_2=0.75).apply([tf.constant([3.0])], [w])
    >>> float(w[0])  # 1 - 0.1 * 3 / sqrt(0.25 * 9)
    0.8

    Reference:
        Reddi et al. (2018), algorithm 2, arxiv.org/abs/1904.09237
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        beta_1_decay=1.0,
        epsilon=1e-8,
        name="amsgrad",
        **kwargs,
    ):
        check_range("beta_2", beta_2, 0, 1)
        super().__init__(learning_rate, beta_1, beta_1_decay, epsilon, name=name, **kwargs)
        self.beta_2 = beta_2

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities, self._velocity_hats = self.add_optimizer_variables(
            variables, ["momentum", "velocity", "velocity_hat"]
        )

    def second_moment(self, index, square):
        velocity = moving_average(self._velocities[index], square, self.beta_2)
        velocity_hat = tf.maximum(self._velocity_hats[index], velocity)
        self.assign(self._velocities[index], velocity)
        self.assign(self._velocity_hats[index], velocity_hat)
        return velocity_hat

    def get_config(self):
        return {**super().get_config(), "beta_2": self.beta_2}


@component(PAPER, example=Example(kwargs={"learning_rate": 0.01, "beta_1_decay": "1/t"}))
class AdamNC(_LongMemory):
    """Adam with a second moment that weighs all past gradients alike ("non-constant" b2).

    b2(t) = 1 - 1/t makes it the mean of all squared gradients. With the learning rate
    lr / sqrt(t) it is Adagrad with momentum, and has Adagrad's bound on the regret (corollary 2).
    It needs Adam's two slots per weight; in bfloat16 the mean stops following after some hundred
    steps, when 1/t is below the rounding.

    Args:
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable.
            The paper's is `InverseSqrtDecay`. Defaults to 0.001.
        beta_1: decay of the averaged gradients at the first step, in [0, 1). Defaults to 0.9.
        beta_1_decay: L in (0, 1], which multiplies `beta_1` after each step, or "1/t" for
            `beta_1` / t. Defaults to 1: constant.
        epsilon: added to the root of the second moment. Defaults to 1e-8.
        kwargs: see `kzoo.optimizers.Optimizer`, among them `weight_decay` (decoupled).

    Raises:
        ValueError: for an argument out of range.

    Example:

    >>> w = keras.Variable([1.0])
    >>> AdamNC(learning_rate=0.1, beta_1=0.0).apply([tf.constant([3.0])], [w])
    >>> float(w[0])  # 1 - 0.1 * 3 / sqrt(9)
    0.9

    Reference:
        Reddi et al. (2018), algorithm 3, arxiv.org/abs/1904.09237
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_1_decay=1.0,
        epsilon=1e-8,
        name="adam_nc",
        **kwargs,
    ):
        super().__init__(learning_rate, beta_1, beta_1_decay, epsilon, name=name, **kwargs)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def second_moment(self, index, square):
        share = tf.cast(1.0 / self._step(), square.dtype)
        velocity = self._velocities[index] + share * (square - self._velocities[index])
        self.assign(self._velocities[index], velocity)
        return velocity
