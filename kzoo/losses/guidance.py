"""Model guidance: losses that say where the positive attributions of a class should be.

With A the attributions of one image, summed over the channels, A+ their positive part, M in {0, 1}
the mask of the object (its boxes), and ^ a division by the largest absolute value of the image:

    energy   - sum M A+ / sum A+                       (the energy-based pointing game, negated)
    L1         mean |M - ^A+|
    PPCE     - sum M log ^A+ / sum M                   (per-pixel cross-entropy)
    RRR*       sum (1 - M) ^A^2                        ("right for the right reasons")

"Using Explanations to Guide Models", Rao, Boehle, Parchami-Araghi, Schiele, 2023, arXiv 2303.11932;
section on the localization losses.

Open choices, where the paper is silent: attributions of an inner layer are resized to the mask
after the division, as in the authors' code; the energy loss of attributions without a positive
part, and the cross-entropy of an empty mask, are 0; the logarithm takes nothing below
`keras.config.epsilon()`. The authors' code adds the constant 1 to the energy loss.
"""

import keras
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Using Explanations to Guide Models",
    authors=("Sukrut Rao", "Moritz Böhle", "Amin Parchami-Araghi", "Bernt Schiele"),
    year=2023,
    arxiv="2303.11932",
)

_EXAMPLE = Example(
    inputs=lambda rng, batch: (
        rng.integers(0, 2, size=(batch, 4, 5)).astype("float32"),
        rng.normal(size=(batch, 4, 5)).astype("float32"),
    )
)


class _GuidanceLoss(keras.losses.Loss):
    """Brings mask and attributions to one form; a subclass compares them."""

    def call(self, y_true, y_pred):
        mask, attributions = _maps(tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred))
        attributions = _resized(self.normalized(attributions), mask)
        positions = range(1, mask.shape.rank)
        return self.compare(mask, attributions, positions)

    def normalized(self, attributions):
        """The attributions as they are resized."""
        raise NotImplementedError

    def compare(self, mask, attributions, positions):
        """The loss of each row, [batch], from maps [batch, ...] with the axes `positions`."""
        raise NotImplementedError


@component(PAPER, example=_EXAMPLE)
class EnergyLoss(_GuidanceLoss):
    """The share of the positive attribution that falls into the mask, negated.

    From -1, all inside, to 0. It does not depend on the scale of the attributions, nor does it ask
    for attribution everywhere inside: boxes may be coarse.

    Args:
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: masks in [0, 1], [batch, height, width], with or without a last axis of 1, or
            [batch, features].
        y_pred: attributions, [batch, height, width] or, to be summed over the channels, [batch,
            height, width, channels]; where the size is not the masks', bilinearly resized.

    Example:

    >>> EnergyLoss()([[1.0, 0.0, 0.0]], [[3.0, 1.0, -7.0]])
    -0.75

    Reference:
        Rao et al. (2023), arxiv.org/abs/2303.11932
    """

    def __init__(self, reduction="sum_over_batch_size", name="energy_loss", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def normalized(self, attributions):
        return attributions

    def compare(self, mask, attributions, positions):
        positive = tf.nn.relu(attributions)
        inside = tf.reduce_sum(mask * positive, positions)
        return -tf.math.divide_no_nan(inside, tf.reduce_sum(positive, positions))


@component(PAPER, example=_EXAMPLE)
class L1Loss(_GuidanceLoss):
    """The mean distance of the scaled positive attributions from the mask.

    It asks for attribution everywhere inside the mask, as much as at the strongest place.

    Args:
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true, y_pred: as of `EnergyLoss`.

    Example:

    >>> L1Loss()([[1.0, 1.0, 0.0, 0.0]], [[4.0, 2.0, 1.0, -7.0]])
    0.1875

    Reference:
        Rao et al. (2023), arxiv.org/abs/2303.11932
    """

    def __init__(self, reduction="sum_over_batch_size", name="l1_loss", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def normalized(self, attributions):
        return _over_largest(tf.nn.relu(attributions))

    def compare(self, mask, attributions, positions):
        return tf.reduce_mean(tf.abs(mask - attributions), positions)


@component(PAPER, example=_EXAMPLE)
class PPCELoss(_GuidanceLoss):
    """The cross-entropy of the scaled positive attributions within the mask.

    It asks for attribution inside and says nothing about the outside.

    Args:
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true, y_pred: as of `EnergyLoss`.

    Example:

    >>> PPCELoss()([[1.0, 1.0, 0.0]], [[2.0, 1.0, -7.0]])
    0.34657359

    Reference:
        Rao et al. (2023), arxiv.org/abs/2303.11932
    """

    def __init__(self, reduction="sum_over_batch_size", name="ppce_loss", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def normalized(self, attributions):
        return _over_largest(tf.nn.relu(attributions))

    def compare(self, mask, attributions, positions):
        logs = tf.math.log(tf.maximum(attributions, keras.config.epsilon()))
        inside = tf.reduce_sum(mask * logs, positions)
        return -tf.math.divide_no_nan(inside, tf.reduce_sum(mask, positions))


@component(PAPER, example=_EXAMPLE)
class RRRLoss(_GuidanceLoss):
    """The sum of the squared scaled attributions, of either sign, outside of the mask.

    The paper's RRR*: unlike the original, which squares gradients of log-probabilities, it takes
    any attributions. It asks for nothing inside.

    Args:
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true, y_pred: as of `EnergyLoss`.

    Example:

    >>> RRRLoss()([[1.0, 0.0, 0.0]], [[4.0, 2.0, -1.0]])
    0.3125

    Reference:
        Rao et al. (2023), arxiv.org/abs/2303.11932
    """

    def __init__(self, reduction="sum_over_batch_size", name="rrr_loss", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def normalized(self, attributions):
        return _over_largest(attributions)

    def compare(self, mask, attributions, positions):
        return tf.reduce_sum((1 - mask) * tf.square(attributions), positions)


def _maps(mask, attributions):
    """Mask and attributions without an axis of channels, in one dtype of at least 32 bits."""
    rank, wide = attributions.shape.rank, mask.shape.rank
    if wide == rank and rank > 2 and mask.shape[-1] == 1:
        mask = mask[..., 0]
        attributions = tf.reduce_sum(attributions, -1)
    elif wide == rank - 1:
        attributions = tf.reduce_sum(attributions, -1)
    elif wide != rank:
        raise ValueError(
            "`y_true` must be masks [batch, ...positions] of attributions [batch, ...positions] or "
            f"[batch, ...positions, channels]. Received: {mask.shape} and {attributions.shape}"
        )
    if attributions.dtype.size < 4:
        attributions = tf.cast(attributions, tf.float32)
    return tf.cast(mask, attributions.dtype), attributions


def _resized(attributions, mask):
    """The maps at the size of the mask, bilinearly."""
    if attributions.shape[1:] == mask.shape[1:]:
        return attributions
    if mask.shape.rank != 3:
        raise ValueError(
            "Only maps of height and width are resized to the masks. Received masks of the shape "
            f"{mask.shape} and attributions of {attributions.shape}"
        )
    resized = tf.image.resize(attributions[..., tf.newaxis], tf.shape(mask)[1:])[..., 0]
    return tf.cast(resized, attributions.dtype)


def _over_largest(attributions):
    axes = range(1, attributions.shape.rank)
    largest = tf.reduce_max(tf.abs(attributions), axes, keepdims=True)
    return tf.math.divide_no_nan(attributions, largest)
