"""Batch normalization in the Poincaré ball, about the gyromidpoint in place of the Fréchet mean.

    mu       the gyromidpoint of the points x_i of the batch
    var      mean of d(x_i, mu)^2
    y_i      exp_b( sqrt(gamma / (var + epsilon)) P_{mu -> b}(log_mu(x_i)) )

with P the parallel transport from mu to the learned mean b = exp_0(beta), and gamma the learned
variance. The gyromidpoint is a closed formula; the Fréchet mean is a search.

"Poincaré ResNet", van Spengler, Berkhout, Mettes, 2023, arXiv 2303.14027; section 3.4.

The conformal factors of the two maps and of the transport cancel, and y_i is
b + exp_0(sqrt(..) gyr[b, -mu] log_0(-mu + x_i)).

Open choices: for inference there are moving statistics, as in Euclidean batch normalization: the
moving mean goes a share 1 - momentum of the geodesic to each new one. (The authors' code takes the
batch's own statistics there too.) Under replicas mean and variance are those of the global batch.
gamma is held at 1e-6 or above.
"""

import keras
import tensorflow as tf

from kzoo.layers.poincare import PAPER, PoincareLayer, points
from kzoo.ops import poincare as ball
from kzoo.ops.distribute import sum_over_replicas
from kzoo.papers import Example, component

_LEAST_VARIANCE = 1e-6


@component(PAPER, example=Example(inputs=points))
class PoincareBatchNormalization(PoincareLayer):
    """Moves points to a learned mean, and scales their distances to it to a learned variance.

    Args:
        curvature: c, above 0. Defaults to 1.
        momentum: of the moving statistics, in [0, 1). Defaults to 0.9.
        epsilon: added to the variance, above 0. Defaults to 1e-6.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, ..., d], points of the ball along the last axis; all other axes are
    averaged over. Output shape: the same.

    Call arguments:
        training: whether to take the batch's statistics, and to update the moving ones.

    Reference:
        van Spengler et al. (2023), section 3.4, arxiv.org/abs/2303.14027
    """

    def __init__(self, curvature=1.0, momentum=0.9, epsilon=1e-6, **kwargs):
        super().__init__(curvature, **kwargs)
        if not isinstance(momentum, int | float) or not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: {momentum!r}")
        self.momentum = momentum
        self.epsilon = ball.check_curvature(epsilon, "epsilon")

    def build(self, input_shape):
        size = input_shape[-1]
        self.beta = self.add_weight(name="beta", shape=(size,), initializer="zeros")
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="ones")
        # The replicas compute the same values.
        options = {"trainable": False, "aggregation": "only_first_replica"}
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=(size,), initializer="zeros", **options
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=(), initializer="ones", **options
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: size})

    def call(self, inputs, training=None):
        c = self.curvature
        training = training and self.trainable
        mean = self._batch_mean(inputs) if training else tf.convert_to_tensor(self.moving_mean)
        tangent = ball.logmap0(ball.mobius_add(-mean, inputs, c), c)
        if training:
            # The distance to the mean is twice the length of the tangent vector at the origin.
            variance = 4.0 * self._average(tf.reduce_sum(tf.square(tangent)), inputs)
            self._update(tf.stop_gradient(mean), tf.stop_gradient(variance))
        else:
            variance = tf.convert_to_tensor(self.moving_variance)
        center = ball.expmap0(tf.convert_to_tensor(self.beta), c)
        gamma = tf.maximum(tf.convert_to_tensor(self.gamma), _LEAST_VARIANCE)
        scaled_turn = tf.sqrt(gamma / (variance + self.epsilon)) * ball.gyration_matrix(
            center, -mean, c
        )
        return ball.move(center, tf.tensordot(tangent, scaled_turn, 1), c)

    def _batch_mean(self, inputs):
        axes = list(range(len(inputs.shape) - 1))
        sums = ball.midpoint_sums(inputs, None, axes, self.curvature)
        return ball.midpoint_of_sums(*sum_over_replicas(sums), self.curvature)

    def _average(self, total, inputs):
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], inputs.dtype)
        total, count = sum_over_replicas([total, count])
        return total / tf.maximum(count, 1.0)

    def _update(self, mean, variance):
        share, c = 1.0 - self.momentum, self.curvature
        before = tf.convert_to_tensor(self.moving_mean)
        step = share * ball.logmap0(ball.mobius_add(-before, mean, c), c)
        self.moving_mean.assign(ball.move(before, step, c))
        self.moving_variance.assign_add(share * (variance - self.moving_variance))

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}
