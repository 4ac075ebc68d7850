"""The learning rate lr / sqrt(t), with which online methods have a regret of order sqrt(T).

"On the Convergence of Adam and Beyond", Reddi, Kale, Kumar, 2018, arXiv 1904.09237; theorems 4, 5.
"""

import math

import keras
import tensorflow as tf

from kzoo.optimizers.amsgrad import PAPER
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, component


@component(PAPER, example=Example(kwargs={"initial_learning_rate": 0.1}))
class InverseSqrtDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate lr / sqrt(t), t = 1, 2, ... the number of the step.

    Args:
        initial_learning_rate: lr, the learning rate of the first step; above 0.

    Example:

    >>> float(InverseSqrtDecay(0.1)(3))  # the fourth step
    0.05

    Reference:
        Reddi et al. (2018), arxiv.org/abs/1904.09237
    """

    def __init__(self, initial_learning_rate):
        check_range("initial_learning_rate", initial_learning_rate, 0, math.inf, low_open=True)
        super().__init__()
        self.initial_learning_rate = initial_learning_rate

    def __call__(self, step):
        # Not keras.ops.cast, which would take a step beyond 2^24 through float32.
        rate = self.initial_learning_rate / tf.sqrt(tf.cast(step, tf.float64) + 1.0)
        return tf.cast(rate, keras.config.floatx())

    def get_config(self):
        return {"initial_learning_rate": self.initial_learning_rate}
