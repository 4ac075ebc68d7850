"""The smallest model there is, for what training methods and instruments do to weights."""

import keras
import tensorflow as tf


class Weights(keras.Model):
    """Outputs w for every row, so that a loss can be any function of w."""

    def __init__(self, start):
        super().__init__()
        self.w = self.add_weight(shape=[len(start)], initializer="zeros", name="w")
        self.w.assign(start)

    def build(self, input_shape):
        self.built = True

    def call(self, x):
        return tf.zeros_like(x[:, :1]) + self.w
