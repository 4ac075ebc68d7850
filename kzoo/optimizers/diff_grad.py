"""diffGrad: Adam that slows down where the gradient does not change.

    xi = 1 / (1 + exp(-|g_(t-1) - g_t|)),      g_0 = 0
    w <- w - lr (xi m_hat / (sqrt(v_hat) + eps) + weight_decay w)

with Adam's m_hat and v_hat.

"diffGrad: An Optimization Method for Convolutional Neural Networks", Dubey, Chakraborty, Roy,
Mukherjee, Singh, Chaudhuri, 2019, arXiv 1909.11015.

Deviations: none. The authors' first program keeps a reference to the previous gradient instead of a
copy, so that its difference is 0 and xi 1/2 in every step but the first; their corrected one
(diffGrad_v2) does what is done here.
"""

import tensorflow as tf

from kzoo.optimizers.moments import AdamMoments
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="diffGrad: An Optimization Method for Convolutional Neural Networks",
    authors=(
        "Shiv Ram Dubey",
        "Soumendu Chakraborty",
        "Swalpa Kumar Roy",
        "Snehasis Mukherjee",
        "Satish Kumar Singh",
        "Bidyut Baran Chaudhuri",
    ),
    year=2019,
    arxiv="1909.11015",
)


@component(PAPER, example=Example(kwargs={"learning_rate": 0.01}))
class DiffGrad(AdamMoments):
    """Adam with a friction coefficient in [1/2, 1) for every weight.

    A gradient that stays the same halves Adam's step; one that changes by much more than 1 leaves
    it whole. The coefficient depends on the scale of the gradients: where they are far below 1, as
    in most networks with a mean loss, it is 1/2 nearly everywhere, and diffGrad is Adam with half
    the learning rate. It needs three slots per weight, one more than Adam.

    Args:
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable.
            Defaults to 0.001.
        beta_1: decay of the averaged gradients, in [0, 1). Defaults to 0.9.
        beta_2: decay of the averaged squared gradients, in [0, 1). Defaults to 0.999.
        epsilon: added to the root of the second moment. Defaults to 1e-8.
        kwargs: see `kzoo.optimizers.Optimizer`, among them `weight_decay` (decoupled, without
            friction).

    Example:

    >>> w = keras.Variable([1.0])
    >>> DiffGrad(learning_rate=0.1).apply([tf.constant([100.0])], [w])
    >>> float(w[0])  # a change of 100 has no friction: Adam's first step
    0.9

    Reference:
        Dubey et al. (2019), arxiv.org/abs/1909.11015
    """

    def __init__(self, learning_rate=0.001, name="diff_grad", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._previous_gradients = self.add_optimizer_variables(variables, "previous_gradient")

    def update_step(self, gradient, variable, learning_rate):
        previous = self._previous_gradients[self._get_variable_index(variable)]
        dtype = variable.dtype
        gradient = tf.cast(gradient, dtype)
        friction = tf.sigmoid(tf.abs(previous - gradient))
        self.assign(previous, gradient)
        # A learning rate for every weight: the friction is not part of Adam's averages.
        super().update_step(gradient, variable, tf.cast(learning_rate, dtype) * friction)

    def direction(self, update, gradient):
        return update
