"""What the prototypes of ProtoPNet and ST-ProtoPNet are trained with, besides cross-entropy.

With the proximity s_ij of image i and prototype j (the cosine, or minus the squared distance, at
the nearest patch), P_c the unit prototypes of class c, one per row, and C classes:

    cluster        = -1/n sum_i max_{j of class y_i} s_ij
    separation     =  1/n sum_i max_{j of another class} s_ij
    orthonormality =  sum_c |P_c P_c^T - I|_1
    closeness      = -1/(C (C - 1)) sum_{c != c'} min <p, p'>     over p of P_c and p' of P_c'
    discrimination =  1/(C (C - 1)) sum_{c != c'} max <p, p'>     over p of P_c and p' of P_c'

Cluster and separation of minus the squared distance are those of ProtoPNet, signs included.
Closeness draws the prototypes of different classes together, to the boundary between the classes
(support); discrimination drives them apart (trivial).

"Learning Support and Trivial Prototypes for Interpretable Image Classification", Wang et al.,
2023, arXiv 2301.04011; "This Looks Like That: Deep Learning for Interpretable Image Recognition",
Chen et al., 2018, arXiv 1806.10574, section 2.2.

Open choices: the last three are as in the authors' code, which takes the entrywise L1 norm for
orthonormality; `norm="frobenius"` is the squared Frobenius norm of the literature before it. The
code masks prototypes by a product with 0, so that it needs proximities of one sign; here masked
ones take no part.
"""

import keras
import tensorflow as tf

from kzoo.layers.prototype_patches import PAPER, PROTOPNET_PAPER
from kzoo.papers import Example, component


class _PrototypeLoss(keras.losses.Loss):
    """Base: picks the nearest prototype among those of some classes.

    Args:
        prototypes_per_class: prototype j belongs to class `j // prototypes_per_class`.
        reduction, name: see `keras.losses.Loss`.
    """

    def __init__(self, prototypes_per_class, reduction="sum_over_batch_size", name=None):
        if not isinstance(prototypes_per_class, int) or prototypes_per_class < 1:
            raise ValueError(
                "`prototypes_per_class` must be an integer of at least 1. "
                f"Received: {prototypes_per_class!r}"
            )
        # Keras brings the class numbers to this dtype too: 16 bits would change them.
        dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.prototypes_per_class = prototypes_per_class

    def nearest(self, y_true, y_pred, own):
        """Proximity [batch] of the nearest prototype of the own class, or of the other classes."""
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        count = y_pred.shape[-1]
        if len(y_pred.shape) != 2 or count % self.prototypes_per_class:
            raise ValueError(
                "`y_pred` must be proximities [batch, prototypes] of "
                f"{self.prototypes_per_class} prototypes for each class. "
                f"Received: shape {tuple(y_pred.shape)}"
            )
        if not own and count == self.prototypes_per_class:
            raise ValueError("`y_pred` must have prototypes of two classes. Received: one class")
        labels = tf.cast(tf.reshape(y_true, [-1, 1]), tf.int32)
        is_own = tf.equal(labels, tf.range(count) // self.prototypes_per_class)
        allowed = is_own if own else tf.logical_not(is_own)
        return tf.reduce_max(tf.where(allowed, y_pred, y_pred.dtype.min), axis=-1)

    def get_config(self):
        return {**super().get_config(), "prototypes_per_class": self.prototypes_per_class}


def _example_inputs(rng, batch):
    return (
        rng.integers(0, 3, size=batch).astype("int32"),
        rng.normal(size=(batch, 6)).astype("float32"),
    )


_EXAMPLE = Example(kwargs={"prototypes_per_class": 2}, inputs=_example_inputs)


@component(PROTOPNET_PAPER, PAPER, example=_EXAMPLE)
class PrototypeClusterLoss(_PrototypeLoss):
    """Draws a patch of each image to the nearest prototype of its class.

    Args:
        prototypes_per_class: prototype j belongs to class `j // prototypes_per_class`.
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: class numbers, [batch] or [batch, 1].
        y_pred: proximities [batch, prototypes]: minus squared distances, or cosines.

    Reference:
        Chen et al. (2018), section 2.2, arxiv.org/abs/1806.10574
    """

    def call(self, y_true, y_pred):
        return -self.nearest(y_true, y_pred, own=True)


@component(PROTOPNET_PAPER, PAPER, example=_EXAMPLE)
class PrototypeSeparationLoss(_PrototypeLoss):
    """Drives all patches of each image away from the nearest prototype of any other class.

    Args:
        prototypes_per_class: prototype j belongs to class `j // prototypes_per_class`.
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: class numbers, [batch] or [batch, 1].
        y_pred: proximities [batch, prototypes]: minus squared distances, or cosines.

    Reference:
        Chen et al. (2018), section 2.2, arxiv.org/abs/1806.10574
    """

    def call(self, y_true, y_pred):
        return self.nearest(y_true, y_pred, own=False)


@component(PAPER)
def orthonormality_loss(prototypes, norm="l1"):
    """How far the prototypes of each class are from being orthonormal, summed over the classes.

    Args:
        prototypes: floats [classes, prototypes_per_class, d].
        norm: of P P^T - I: "l1", the sum of absolute values, or "frobenius", that of squares.

    Returns:
        Scalar, at least 0.

    Reference:
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """
    if norm not in ("l1", "frobenius"):
        raise ValueError(f'`norm` must be "l1" or "frobenius". Received: {norm!r}')
    prototypes = _checked(prototypes, least_classes=1)
    gram = tf.matmul(prototypes, prototypes, transpose_b=True)
    excess = gram - tf.eye(gram.shape[-1], dtype=gram.dtype)
    return tf.reduce_sum(tf.abs(excess) if norm == "l1" else tf.square(excess))


@component(PAPER)
def support_closeness_loss(prototypes):
    """Minus the least product of prototypes of two classes, averaged over pairs of classes.

    Args:
        prototypes: floats [classes, prototypes_per_class, d] of unit length, at least 2 classes.

    Returns:
        Scalar in [-1, 1].

    Reference:
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """
    products = _products_of_classes(prototypes)
    return -_mean_of_other_classes(tf.reduce_min(products, axis=[1, 3]))


@component(PAPER)
def trivial_discrimination_loss(prototypes):
    """The greatest product of prototypes of two classes, averaged over pairs of classes.

    Args:
        prototypes: floats [classes, prototypes_per_class, d] of unit length, at least 2 classes.

    Returns:
        Scalar in [-1, 1].

    Reference:
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """
    products = _products_of_classes(prototypes)
    return _mean_of_other_classes(tf.reduce_max(products, axis=[1, 3]))


def _products_of_classes(prototypes):
    """<p_ck, p_dl> as [c, k, d, l]."""
    prototypes = _checked(prototypes, least_classes=2)
    return tf.einsum("ckx,dlx->ckdl", prototypes, prototypes)


def _mean_of_other_classes(values):
    """Mean of a [classes, classes] matrix without its diagonal."""
    classes = values.shape[0]
    others = tf.linalg.set_diag(values, tf.zeros([classes], values.dtype))
    return tf.reduce_sum(others) / (classes * (classes - 1))


def _checked(prototypes, least_classes):
    prototypes = tf.convert_to_tensor(prototypes)
    if len(prototypes.shape) != 3 or prototypes.shape[0] < least_classes:
        raise ValueError(
            "`prototypes` must be [classes, prototypes_per_class, d] of at least "
            f"{least_classes} class(es). Received: shape {tuple(prototypes.shape)}"
        )
    return prototypes
