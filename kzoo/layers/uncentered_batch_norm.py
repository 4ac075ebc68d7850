"""Batch normalisation without centring: the one that keeps the gradients of deep networks bounded.

    y = x / sqrt(mean of x^2 over the batch)                    (each feature by itself)

In the paper's matrices, with samples in the columns of H: BN(H) = diag(H H')^(-1/2) H, here times
sqrt(n) for n samples, as in the authors' code. With square orthogonal weights
(`keras.initializers.Orthogonal`, which is uniform over them) and as many samples as units, a linear
network of any depth makes its inputs orthogonal, and its gradients do not grow with depth; with
Gaussian weights they explode.

"Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion", Meterez,
Joudaki, Orabona, Immer, Raetsch, Daneshmand, 2023, arXiv 2310.02012; equation 3, theorems 1 and 2.

Why not `keras.layers.BatchNormalization`: it always subtracts the mean. `keras.layers.
RMSNormalization` takes its mean over features.

Deviations: `epsilon` keeps features that are 0 finite. Inference, which the paper does not need,
divides by a moving average of the mean square. Under several replicas the batch is that of all.
"""

import keras
import tensorflow as tf
from keras import ops

from kzoo.ops.distribute import sum_over_replicas
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion",
    authors=(
        "Alexandru Meterez", "Amir Joudaki", "Francesco Orabona", "Alexander Immer",
        "Gunnar Rätsch", "Hadi Daneshmand",
    ),
    year=2023,
    arxiv="2310.02012",
)  # fmt: skip


@component(
    PAPER,
    example=Example(inputs=lambda rng, batch: (rng.normal(size=(batch, 5)).astype("float32"),)),
)
class UncenteredBatchNorm(keras.layers.Layer):
    """Divides each feature by its root mean square over the batch; no mean, scale or offset.

    Args:
        momentum: of the moving average for inference, in [0, 1). Defaults to 0.99.
        epsilon: added to the mean square, at least 0. Defaults to 1e-6.

    Input shape: [batch, ..., features]; all axes but the last are averaged over. A mask [batch,
    ...] leaves out what it masks from the average. Output shape: the same.

    Example:

    >>> x = keras.layers.Dense(64, use_bias=False, kernel_initializer="orthogonal")(x)
    >>> x = UncenteredBatchNorm()(x)

    Reference:
        Meterez et al. (2023), equation 3, arxiv.org/abs/2310.02012
    """

    def __init__(self, momentum=0.99, epsilon=1e-6, **kwargs):
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: {momentum!r}")
        if not epsilon >= 0:
            raise ValueError(f"`epsilon` must be at least 0. Received: {epsilon!r}")
        super().__init__(**kwargs)
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.supports_masking = True

    def build(self, input_shape):
        self.moving_mean_square = self.add_weight(
            name="moving_mean_square",
            shape=[input_shape[-1]],
            initializer="ones",
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, training=None, mask=None):
        wide = ops.cast(inputs, self.moving_mean_square.dtype)
        mean_square = self.moving_mean_square
        if training and self.trainable:
            mean_square = self._mean_square(wide, mask)
            self.moving_mean_square.assign(
                self.momentum * self.moving_mean_square + (1 - self.momentum) * mean_square
            )
        return ops.cast(wide * ops.rsqrt(mean_square + self.epsilon), self.compute_dtype)

    def _mean_square(self, inputs, mask):
        if mask is None:
            weights = ops.ones_like(inputs[..., :1])
        else:
            weights = ops.cast(mask, inputs.dtype)[..., None]
        axes = list(range(len(inputs.shape) - 1))
        total = ops.sum(weights * ops.square(inputs), axis=axes)
        total, count = sum_over_replicas([total, tf.reduce_sum(weights)])
        return total / ops.maximum(count, 1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}
