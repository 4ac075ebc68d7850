"""Coordinate-wise clipping: the largest entries of a gradient, or an update, are cut to one size.

    tau = the (1 - k) quantile of |u_1|, ..., |u_n|        over all n weights of the model
    u_i <- sign(u_i) min(|u_i|, tau)

where u is the gradient before any optimizer, or the update that the optimizer makes of it.

"Toward Understanding Why Adam Converges Faster Than SGD for Transformers", Pan, Li, 2023, arXiv
2306.00204; section 5.

As in the authors' program, the quantile is that of the whole model, tau = the (floor(k n) + 1)-th
largest |u_i|: exactly floor(k n) entries are cut where no two are equal, and k = 0 changes nothing.
Their SGD and Lion clip the gradient that enters the momentum; their Adam does so in the first
moment only, with the whole gradient in the second, which no wrapper can do: with Adam, clip the
update. They use k of about 10 % for SGD and more for optimizers that scale every coordinate.
"""

import math

import keras
import tensorflow as tf

from kzoo.optimizers.gradient_transform import GradientTransform
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Toward Understanding Why Adam Converges Faster Than SGD for Transformers",
    authors=("Yan Pan", "Yuanzhi Li"),
    year=2023,
    arxiv="2306.00204",
)


def quantile_threshold(tensors, fraction):
    """The magnitude that a fraction of all entries of some tensors exceeds.

    Found exactly, bit by bit, in one pass over the tensors for each bit of their dtype: nothing is
    sorted or concatenated.

    Args:
        tensors: list of floating tensors with static shapes, n entries together.
        fraction: k in [0, 1).

    Returns:
        The (floor(k n) + 1)-th largest absolute value; scalar, float64 if one of the tensors is,
        else float32.
    """
    rank = math.floor(fraction * sum(tensor.shape.num_elements() for tensor in tensors)) + 1
    double = any(tensor.dtype == tf.float64 for tensor in tensors)
    dtype, integer, bits = (tf.float64, tf.int64, 63) if double else (tf.float32, tf.int32, 31)
    # The bits of floats that are not negative, read as integers, have the order of the floats.
    codes = [tf.bitcast(tf.abs(tf.cast(tensor, dtype)), integer) for tensor in tensors]

    def set_bit(position, threshold):
        higher = threshold + tf.bitwise.left_shift(tf.constant(1, integer), position)
        reached = [tf.reduce_sum(tf.cast(code >= higher, tf.int64)) for code in codes]
        return position - 1, tf.where(tf.add_n(reached) >= rank, higher, threshold)

    _, threshold = tf.while_loop(
        lambda position, _: position >= 0,
        set_bit,
        (tf.constant(bits - 1, integer), tf.constant(0, integer)),
    )
    return tf.bitcast(threshold, dtype)


def clip_coordinates(tensors, fraction):
    """The tensors with the largest entries cut to the magnitude that a fraction of them exceeds.

    Args:
        tensors, fraction: see `quantile_threshold`.

    Returns:
        List of tensors like `tensors`; what is below the threshold is what it was, to the bit.
    """
    threshold = quantile_threshold(tensors, fraction)
    limits = [tf.cast(threshold, tensor.dtype) for tensor in tensors]
    return [tf.clip_by_value(t, -limit, limit) for t, limit in zip(tensors, limits, strict=True)]


def _example():
    return {"base_optimizer": keras.optimizers.SGD(0.1, momentum=0.9), "fraction": 0.1}


@component(PAPER, example=Example(kwargs=_example))
class CoordinateClip(GradientTransform):
    """Any Keras optimizer with the largest coordinates of its gradient or update cut.

    A few coordinates cause most of the curvature along SGD's steps. Without them, a larger learning
    rate is stable. It costs no memory that lasts, and about 30 passes over the gradients per step.

    Args:
        base_optimizer: a `keras.optimizers.Optimizer` that has not been used, of Keras or of kzoo,
            which this one takes over. See `kzoo.optimizers.GradientTransform`.
        fraction: k, the share of all weights whose coordinates are cut, in [0, 1). Defaults to 0.1.
        target: "gradient": what the optimizer gets is clipped, after the other clipping. "update":
            what it adds to the weights is clipped, weight decay excepted; this is for optimizers
            that scale every coordinate by itself, such as Adam. Defaults to "gradient".
        kwargs: arguments of `kzoo.optimizers.Optimizer`, which replace those of the base optimizer.

    Raises:
        TypeError: for something other than an optimizer.
        ValueError: for an argument out of range, or an optimizer that is in use.

    Example:

    >>> w = keras.Variable([0.0, 0.0, 0.0, 0.0])
    >>> optimizer = CoordinateClip(keras.optimizers.SGD(1.0), fraction=0.5)
    >>> optimizer.apply([tf.constant([-8.0, 4.0, 2.0, 1.0])], [w])
    >>> w.numpy()
    array([ 2., -2., -2., -1.], dtype=float32)

    Reference:
        Pan, Li (2023), arxiv.org/abs/2306.00204
    """

    def __init__(
        self, base_optimizer, fraction=0.1, target="gradient", name="coordinate_clip", **kwargs
    ):
        check_range("fraction", fraction, 0, 1)
        if target not in ("gradient", "update"):
            raise ValueError(f'`target` must be "gradient" or "update". Received: {target!r}')
        super().__init__(base_optimizer, name=name, **kwargs)
        self.fraction = fraction
        self.target = target

    def transform(self, gradients, variables):
        if self.target == "update":
            return gradients
        return clip_coordinates([tf.convert_to_tensor(g) for g in gradients], self.fraction)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if self.target == "gradient":
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        before = [tf.identity(variable) for variable in trainable_variables]
        super()._backend_update_step(grads, trainable_variables, learning_rate)
        after = [tf.identity(variable) for variable in trainable_variables]
        self._assign_all(trainable_variables, self._clipped_moves(before, after))

    def _clipped_moves(self, before, after):
        moves = [new - old for old, new in zip(before, after, strict=True)]
        clipped = clip_coordinates(moves, self.fraction)
        # Not old + move where nothing is cut: that would round once more.
        return [
            tf.where(cut == move, new, old + cut)
            for cut, move, new, old in zip(clipped, moves, after, before, strict=True)
        ]

    def _assign_all(self, variables, values):
        def assign(strategy, variables, values):
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(
                    getattr(variable, "value", variable),
                    lambda variable, value: variable.assign(value),
                    args=(value,),
                    group=False,
                )

        merge_call = tf.__internal__.distribute.interim.maybe_merge_call
        merge_call(assign, self._distribution_strategy, variables, values)

    def get_config(self):
        return {**super().get_config(), "fraction": self.fraction, "target": self.target}
