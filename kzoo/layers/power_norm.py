"""Power normalisation: a running quadratic mean in place of batch norm's mean and variance.

    psi_B^2 = mean_B x^2                                          (of the batch, per channel)
    z = x / sqrt(psi^2 + eps),   y = gamma * z + beta
    psi^2 <- alpha_f psi^2 + (1 - alpha_f) psi_B^2

In the first `warmup_steps` z is x / sqrt(psi_B^2 + eps), and psi^2 also becomes the mean of all
psi_B^2 so far. As psi is the work of many steps, the gradient through it cannot be had; in its
place stands, for g = gamma * dy and a second running statistic Gamma (nu / (1 - alpha_b) in the
paper's notation),

    g~ = g - (1 - alpha_b) Gamma * z
    dx = g~ / sqrt(psi_B^2 + eps)
    Gamma <- Gamma + mean_B(g~ * z)

"PowerNorm: Rethinking Batch Normalization in Transformers", Shen, Yao, Gholami, Mahoney, Keutzer,
2020, arXiv 2003.07845; algorithm 2 and section 4.

Where the text leaves room, this is the authors' code: the order of the two updates in the warm-up,
the approximate gradient also in the warm-up, psi_B in place of psi in dx (`divide_gradient_by`). A
layer of theirs is `GroupScaling1D` followed by `PowerNormalization`.

Deviations: padded positions count neither in psi_B nor in Gamma, and their gradient has no term of
Gamma, as they are no part of the statistics (the authors leave them out of psi_B alone). Steps with
gradients that are not finite, as loss scaling has them, leave Gamma as it is.
"""

import math

import keras
import tensorflow as tf
from keras import ops

from kzoo.ops.distribute import sum_over_replicas
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="PowerNorm: Rethinking Batch Normalization in Transformers",
    authors=("Sheng Shen", "Zhewei Yao", "Amir Gholami", "Michael W. Mahoney", "Kurt Keutzer"),
    year=2020,
    arxiv="2003.07845",
)


def _tokens(rng, batch):
    return (rng.normal(size=(batch, 5, 8)).astype("float32"),)


@component(PAPER, example=Example(kwargs={"warmup_steps": 2}, inputs=_tokens))
class PowerNormalization(keras.layers.Layer):
    """Batch norm without centring, by a running quadratic mean, for transformers.

    Statistics are per channel, over all other axes and over all replicas of a strategy. They are
    updated in a training step: psi in the forward pass, Gamma when the gradient is taken, which has
    to happen eagerly or in the same `tf.function`. At inference, or with `trainable=False`, the
    layer multiplies by a constant.

    Args:
        warmup_steps: number of steps that are normalised by the batch's own statistics. Defaults
            to 10000, the authors'.
        alpha_forward: of psi's moving average, in [0, 1]. Defaults to 0.9.
        alpha_backward: of the gradient's, in [0, 1]. Defaults to 0.9.
        epsilon: added to squares below the root. Defaults to 1e-5.
        divide_gradient_by: "batch" for dx = g~ / psi_B, as in the authors' code, or "running" for
            that psi which divided x, as in the paper's algorithm 2; in the warm-up it is psi_B in
            both.
        center: whether to add beta, [channels].
        scale: whether to multiply by gamma, [channels].
        kwargs: see `keras.layers.Layer`.

    Inputs:
        floating [batch, ..., channels]; `mask`, which Keras passes on from earlier layers, boolean
        [batch, ...], says which positions are not padding.

    Returns:
        The same shape and dtype.

    Reference:
        Shen et al. (2020), algorithm 2, arxiv.org/abs/2003.07845
    """

    def __init__(
        self,
        warmup_steps=10000,
        alpha_forward=0.9,
        alpha_backward=0.9,
        epsilon=1e-5,
        divide_gradient_by="batch",
        center=True,
        scale=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(warmup_steps, int) or warmup_steps < 0:
            raise ValueError(
                f"`warmup_steps` must be an integer of at least 0. Received: {warmup_steps!r}"
            )
        for name, alpha in (("alpha_forward", alpha_forward), ("alpha_backward", alpha_backward)):
            if not 0 <= alpha <= 1:
                raise ValueError(f"`{name}` must be in [0, 1]. Received: {alpha!r}")
        if divide_gradient_by not in ("batch", "running"):
            raise ValueError(
                f'`divide_gradient_by` must be "batch" or "running". Received: '
                f"{divide_gradient_by!r}"
            )
        self.warmup_steps = warmup_steps
        self.alpha_forward, self.alpha_backward = float(alpha_forward), float(alpha_backward)
        self.epsilon = _checked_epsilon(epsilon)
        self.divide_gradient_by = divide_gradient_by
        self.center, self.scale = bool(center), bool(scale)
        self.supports_masking = True

    def build(self, input_shape):
        channels = _checked_channels(input_shape)
        self.gamma = self.beta = None
        shape = (channels,)
        if self.scale:
            self.gamma = self.add_weight(shape, "ones", name="gamma", autocast=False)
        if self.center:
            self.beta = self.add_weight(shape, "zeros", name="beta", autocast=False)
        self.running_square = self._add_statistic("running_square", shape, "ones")
        self.gradient_statistic = self._add_statistic("gradient_statistic", shape, "zeros")
        self.iterations = self._add_statistic("iterations", (), "zeros", dtype="int64")

    def _add_statistic(self, name, shape, initializer, dtype=None):
        # All replicas compute the same value: no need to reduce it again.
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype or keras.backend.result_type(self.variable_dtype, "float32"),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs, training=None, mask=None):
        x = ops.cast(inputs, self.running_square.dtype)
        if training and self.trainable:
            z = self._training_step(x, mask)
        else:
            z = x * ops.rsqrt(ops.convert_to_tensor(self.running_square) + self.epsilon)
        if self.gamma is not None:
            z = z * ops.cast(self.gamma, z.dtype)
        if self.beta is not None:
            z = z + ops.cast(self.beta, z.dtype)
        return ops.cast(z, self.compute_dtype)

    def _training_step(self, x, mask):
        """Normalises, and updates the running statistics."""
        running = tf.convert_to_tensor(self.running_square)
        step = tf.convert_to_tensor(self.iterations) + 1
        weights = tf.ones_like(x[..., :1]) if mask is None else tf.cast(mask, x.dtype)[..., None]
        batch = _mean_over_replicas(tf.stop_gradient(tf.square(x)), weights, otherwise=running)
        warm = step <= self.warmup_steps
        divisor = tf.where(warm, batch, running)
        self.iterations.assign(step)
        self.running_square.assign(self._next_running(running, batch, step))
        by_batch = self.divide_gradient_by == "batch"
        return self._normalize(x, divisor, batch if by_batch else divisor, weights)

    def _next_running(self, running, batch, step):
        count = tf.cast(step, running.dtype)
        mean = running + (batch - running) / count
        running = tf.where(step < self.warmup_steps, mean, running)
        return self.alpha_forward * running + (1 - self.alpha_forward) * batch

    def _normalize(self, x, divisor, gradient_divisor, weights):
        """x / sqrt(divisor + eps), with the paper's gradient."""

        @tf.custom_gradient
        def normalize(x):
            z = x * tf.math.rsqrt(divisor + self.epsilon)

            def backward(upstream):
                statistic = tf.convert_to_tensor(self.gradient_statistic)
                corrected = upstream - weights * ((1 - self.alpha_backward) * statistic * z)
                change = _mean_over_replicas(corrected * z, weights)
                change = tf.where(tf.math.is_finite(change), change, 0.0)
                self.gradient_statistic.assign(statistic + change)
                return corrected * tf.math.rsqrt(gradient_divisor + self.epsilon)

            return z, backward

        return normalize(x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "warmup_steps": self.warmup_steps,
            "alpha_forward": self.alpha_forward,
            "alpha_backward": self.alpha_backward,
            "epsilon": self.epsilon,
            "divide_gradient_by": self.divide_gradient_by,
            "center": self.center,
            "scale": self.scale,
        }


@component(PAPER, example=Example(kwargs={"groups": 2}, inputs=_tokens))
class GroupScaling1D(keras.layers.Layer):
    """Divides each group of channels of each position by the root of its mean square.

    With one group it is `keras.layers.RMSNormalization` without a scale.

    Args:
        groups: number of groups of consecutive channels, which it divides. Defaults to 4.
        epsilon: added to the mean square. Defaults to 1e-5.
        kwargs: see `keras.layers.Layer`.

    Inputs:
        floating [batch, ..., channels]

    Returns:
        The same shape and dtype.

    Reference:
        Shen et al. (2020), arxiv.org/abs/2003.07845, and the authors' code
    """

    def __init__(self, groups=4, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"`groups` must be a positive integer. Received: {groups!r}")
        self.groups = groups
        self.epsilon = _checked_epsilon(epsilon)
        self.supports_masking = True

    def build(self, input_shape):
        channels = _checked_channels(input_shape)
        if channels % self.groups:
            raise ValueError(
                f"`groups` must divide the input's channels, {channels}. It is: {self.groups}"
            )

    def call(self, inputs):
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        shape = ops.shape(x)
        x = ops.reshape(x, [*shape[:-1], self.groups, shape[-1] // self.groups])
        square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        scaled = ops.reshape(x * ops.rsqrt(square + self.epsilon), shape)
        return ops.cast(scaled, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}


def _mean_over_replicas(values, weights, otherwise=0.0):
    """Weighted mean over all axes but the last and over replicas; `otherwise` without weights."""
    axes = list(range(values.shape.rank - 1))
    total, count = sum_over_replicas(
        [tf.reduce_sum(values * weights, axes), tf.reduce_sum(weights)]
    )
    return tf.where(count > 0, total / tf.maximum(count, 1.0), otherwise)


def _checked_epsilon(epsilon):
    if not 0 < epsilon < math.inf:
        raise ValueError(f"`epsilon` must be finite and above 0. Received: {epsilon!r}")
    return float(epsilon)


def _checked_channels(input_shape):
    if len(input_shape) < 2 or input_shape[-1] is None:
        raise ValueError(
            "Inputs must be [batch, ..., channels] with known channels. "
            f"Received: {tuple(input_shape)}"
        )
    return input_shape[-1]
