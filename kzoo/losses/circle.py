"""Circle loss with class-level labels, and the loss that it unifies with triplets and softmax.

    circle:   L = log(1 + sum_j exp(g a_n^j (s_n^j - m)) sum_i exp(-g a_p^i (s_p^i - (1 - m))))
              a_p = max(1 + m - s_p, 0),   a_n = max(s_n + m, 0),   without gradient
    unified:  L = log(1 + sum_i sum_j exp(g (s_n^j - s_p^i + m)))

for similarities s_p to the own class and s_n to others. With class-level labels they are the
cosines to the proxies of the classes, one of them positive; with pair-wise labels those to the
other examples of the batch. The unified loss is AM-softmax in the first case; in the second it goes
to the hardest triplet, g max(max s_n - min s_p + m, 0), for large g.

"Circle Loss: A Unified Perspective of Pair Similarity Optimization", Sun, Cheng, Zhang, Zhang,
Zheng, Wang, Wei, 2020, arXiv 2002.10857; equations 1, 4, 5 and 6.

The pair-wise circle loss is in Keras, `keras.losses.Circle`. `UnifiedPairLoss(reweight=True)` has
its value, but not its gradient: Keras 3.15 differentiates the weights a as well, while the paper's
section 3.2 and this module hold them constant.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.losses.pairs import (
    class_numbers,
    loss_dtype,
    masked_logsumexp,
    pair_masks,
    unit_embeddings,
)
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Circle Loss: A Unified Perspective of Pair Similarity Optimization",
    authors=(
        "Yifan Sun",
        "Changmao Cheng",
        "Yuhan Zhang",
        "Chi Zhang",
        "Liang Zheng",
        "Zhongdao Wang",
        "Yichen Wei",
    ),
    year=2020,
    arxiv="2002.10857",
)


def positive_logits(similarity, margin, reweight=True):
    """a_p (s_p - (1 - m)), or s_p - (1 - m) without the weights."""
    excess = similarity - (1 - margin)
    return tf.stop_gradient(tf.nn.relu(1 + margin - similarity)) * excess if reweight else excess


def negative_logits(similarity, margin, reweight=True):
    """a_n (s_n - m), or s_n - m without the weights."""
    excess = similarity - margin
    return tf.stop_gradient(tf.nn.relu(similarity + margin)) * excess if reweight else excess


def _class_inputs(rng, batch):
    cosines = np.tanh(rng.normal(size=(batch, 3))).astype("float32")
    return rng.integers(0, 3, size=batch).astype("int32"), 256.0 * cosines


@component(PAPER, example=Example(inputs=_class_inputs))
class CircleLoss(keras.losses.Loss):
    """Circle loss with class-level labels, for the logits of a cosine head.

    Use it with `kzoo.layers.ArcFaceHead(classes, scale=gamma)`, whose centers are the proxies of
    the classes. Similarities far from their optimum weigh more, so that both s_p and s_n are pulled
    towards a definite target, 1 and 0; on the circle s_n^2 + (1 - s_p)^2 = 2 m^2 a pair has the
    loss log 2. For pairs of a batch take `keras.losses.Circle`, or `UnifiedPairLoss`. Computes in
    float32 (float64 under that floatx).

    Args:
        gamma: the scale g, above 0, also that of the head: its logits divided by it must be
            cosines. Defaults to 256, the paper's for faces; 128 for persons.
        margin: m in [0, 1]. Defaults to 0.25, the paper's for both.
        reweight: False leaves the weights a out: AM-softmax (CosFace) with the margin 1 - 2 m.
            Defaults to True.
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: class numbers in [0, classes), [batch] or [batch, 1], or one-hot rows,
            [batch, classes].
        y_pred: logits gamma * cos(theta), [batch, classes] with at least 2 classes.

    Raises:
        ValueError: for arguments out of range or of a wrong shape.
        tf.errors.InvalidArgumentError: for class numbers out of range, on a CPU.

    Example:

    >>> CircleLoss(gamma=1.0, margin=0.25)([0], [[0.75, 0.25]])
    0.6931472

    Reference:
        Sun et al. (2020), equations 4 to 6, arxiv.org/abs/2002.10857
    """

    def __init__(
        self,
        gamma=256.0,
        margin=0.25,
        reweight=True,
        reduction="sum_over_batch_size",
        name="circle_loss",
    ):
        _check_gamma(gamma)
        _check_margin(margin, 0, 1)
        super().__init__(name=name, reduction=reduction, dtype=loss_dtype())
        self.gamma = gamma
        self.margin = margin
        self.reweight = reweight

    def call(self, y_true, y_pred):
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        classes = y_pred.shape[-1]
        if y_pred.shape.rank != 2 or classes < 2:
            raise ValueError(
                "`y_pred` must be logits [batch, classes] of at least 2 classes. "
                f"Received: shape {tuple(y_pred.shape)}"
            )
        if y_true.shape.rank == 2 and y_true.shape[-1] == classes:
            logits = self._logits(y_pred / self.gamma, y_true > 0.5)
            return keras.losses.categorical_crossentropy(y_true, logits, from_logits=True)
        labels = class_numbers(y_true)
        logits = self._logits(y_pred / self.gamma, tf.one_hot(labels, classes) > 0.5)
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    def _logits(self, cosines, positive):
        """The logits whose cross-entropy is the loss."""
        return self.gamma * tf.where(
            positive,
            positive_logits(cosines, self.margin, self.reweight),
            negative_logits(cosines, self.margin, self.reweight),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "margin": self.margin,
            "reweight": self.reweight,
        }


def _pair_inputs(rng, batch):
    embeddings = rng.normal(size=(batch, 3)).astype("float32")
    return (np.arange(batch) % 2).astype("int32"), embeddings


@component(PAPER, example=Example(inputs=_pair_inputs))
class UnifiedPairLoss(keras.losses.Loss):
    """Every pair of similarities s_n, s_p of an anchor in a batch, to be apart by a margin.

    Each example is an anchor; its positives are the others of its class. One without a positive or
    without a negative has the loss 0. Computes in float32 (float64 under that floatx).

    Args:
        gamma: the scale g, above 0; divided by it, the loss goes to that of the hardest triplet as
            it grows. Defaults to 80.
        margin: m in [0, 2], the margin between s_n and s_p; in [0, 1], that of the circle loss,
            with `reweight`. Defaults to 0.4.
        reweight: whether to weight the similarities as the circle loss does, with constant
            weights; `keras.losses.Circle` of the same `gamma` and `margin` has the same value, and
            differentiates its weights. Defaults to False.
        normalize: whether to bring the embeddings to length 1. False demands that they have it
            already. Defaults to True.
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: class numbers, [batch] or [batch, 1], of magnitude below 2^24.
        y_pred: embeddings [batch, d].

    Raises:
        ValueError: for arguments out of range or of a wrong shape.
        tf.errors.InvalidArgumentError: for embeddings whose length is not 1 with `normalize=False`.

    Example:

    >>> loss = UnifiedPairLoss(gamma=1.0, margin=1.0, reduction=None)
    >>> loss([0, 0, 1], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    [0.6931472, 0.6931472, 0.0]

    Reference:
        Sun et al. (2020), equations 1 and 4, arxiv.org/abs/2002.10857
    """

    def __init__(
        self,
        gamma=80.0,
        margin=0.4,
        reweight=False,
        normalize=True,
        reduction="sum_over_batch_size",
        name="unified_pair_loss",
    ):
        _check_gamma(gamma)
        _check_margin(margin, 0, 1 if reweight else 2)
        super().__init__(name=name, reduction=reduction, dtype=loss_dtype())
        self.gamma = gamma
        self.margin = margin
        self.reweight = reweight
        self.normalize = normalize

    def call(self, y_true, y_pred):
        labels, y_pred = class_numbers(y_true), tf.convert_to_tensor(y_pred)
        if y_pred.shape.rank != 2:
            raise ValueError(
                f"`y_pred` must be embeddings [batch, d]. Received: shape {tuple(y_pred.shape)}"
            )
        embeddings = unit_embeddings(y_pred, self.normalize)
        cosines = tf.matmul(embeddings, embeddings, transpose_b=True)
        positive, negative = pair_masks(labels)
        if self.reweight:
            own = -positive_logits(cosines, self.margin)
            others = negative_logits(cosines, self.margin)
        else:
            own, others = -cosines, cosines + self.margin
        hardness = masked_logsumexp(self.gamma * own, positive) + masked_logsumexp(
            self.gamma * others, negative
        )
        return tf.math.softplus(hardness)

    def get_config(self):
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "margin": self.margin,
            "reweight": self.reweight,
            "normalize": self.normalize,
        }


def _check_gamma(gamma):
    if not 0 < gamma < math.inf:
        raise ValueError(f"`gamma` must be a finite number above 0. Received: {gamma!r}")


def _check_margin(margin, low, high):
    if not low <= margin <= high:
        raise ValueError(f"`margin` must be in [{low}, {high}]. Received: {margin!r}")
