"""Supervised contrastive loss: same class together, everything else apart, inside a batch.

    out:  l_i = -1 / |P(i)| sum_{p in P(i)} log(e_ip / sum_{a != i} e_ia)
    in:   l_i = -log(1 / |P(i)| sum_{p in P(i)} e_ip / sum_{a != i} e_ia)

with e_ij = exp(z_i . z_j / t), for unit vectors z, a temperature t and P(i) the other examples, or
views, of the class of i.

"Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of ReLU and
Batching", Kini, Vakilian, Behnia, Gill, Thrampoulidis, 2023, arXiv 2306.07960: equation 1, the sum
over all i of the form "out". Both forms are from "Supervised Contrastive Learning", Khosla et al.,
2020, arXiv 2004.11362; equations 2 and 3.

Open choices: an anchor without a positive has the loss 0, and counts in the mean. The authors' code
of the second paper multiplies by temperature / base temperature; that factor is left to the
learning rate.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.losses.pairs import (
    class_numbers,
    loss_dtype,
    masked_logsumexp,
    other_examples,
    pair_masks,
    unit_embeddings,
)
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact "
    "of ReLU and Batching",
    authors=(
        "Ganesh Ramachandra Kini",
        "Vala Vakilian",
        "Tina Behnia",
        "Jaidev Gill",
        "Christos Thrampoulidis",
    ),
    year=2023,
    arxiv="2306.07960",
)

_FORMS = ("out", "in")


def supervised_contrastive(embeddings, labels, temperature=0.1, form="out"):
    """The loss of each example of a batch as the anchor.

    Args:
        embeddings: floats [n, d]; unit vectors in the papers.
        labels: int32 [n].
        temperature: t, above 0.
        form: "out" or "in".

    Returns:
        [n], of the dtype of `embeddings`; 0 for the only member of a class.
    """
    similarity = tf.matmul(embeddings, embeddings, transpose_b=True) / temperature
    positive, _ = pair_masks(labels)
    count = tf.reduce_sum(tf.cast(positive, similarity.dtype), axis=-1)
    divisor = tf.maximum(count, 1)
    if form == "out":
        attraction = tf.reduce_sum(tf.where(positive, similarity, 0), axis=-1) / divisor
    else:
        attraction = masked_logsumexp(similarity, positive) - tf.math.log(divisor)
    repulsion = masked_logsumexp(similarity, other_examples(labels))
    return tf.where(count > 0, repulsion - attraction, 0)


def _example_inputs(rng, batch):
    embeddings = rng.normal(size=(batch, 3)).astype("float32")
    return (np.arange(batch) % 2).astype("int32"), embeddings


@component(PAPER, example=Example(inputs=_example_inputs))
class SupervisedContrastiveLoss(keras.losses.Loss):
    """SupCon: pulls embeddings of one class together and pushes those of others away.

    With a ReLU before the normalisation and `kzoo.data.bind_batches`, the class means become
    orthogonal however unequal the classes are (Kini et al., theorem 1). With labels that all differ
    and several views of each example it is the loss of SimCLR. Computes in float32 (float64 under
    that floatx), whatever the embeddings are.

    Args:
        temperature: t, above 0. Defaults to 0.1.
        form: "out" averages over the positives outside of the logarithm, "in" inside. Defaults to
            "out", the better one by Khosla et al.
        normalize: whether to bring the embeddings to length 1. False demands that they have it
            already. Defaults to True.
        reduction, name: see `keras.losses.Loss`. "sum" is the sum of Kini et al.

    Call arguments:
        y_true: class numbers, [batch] or [batch, 1], of magnitude below 2^24.
        y_pred: embeddings [batch, d], or several views of each example, [batch, views, d]; the
            loss of an example is the mean over its views.

    Raises:
        ValueError: for arguments out of range or of a wrong shape.
        tf.errors.InvalidArgumentError: for embeddings whose length is not 1 with `normalize=False`.

    Example:

    >>> SupervisedContrastiveLoss(temperature=1.0)([0, 0, 1], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    0.20884119  # 2/3 log(1 + 1/e)

    Reference:
        Kini et al. (2023), equation 1, arxiv.org/abs/2306.07960;
        Khosla et al. (2020), equations 2 and 3, arxiv.org/abs/2004.11362
    """

    def __init__(
        self,
        temperature=0.1,
        form="out",
        normalize=True,
        reduction="sum_over_batch_size",
        name="supervised_contrastive_loss",
    ):
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` must be a finite number above 0. Received: {temperature!r}"
            )
        if form not in _FORMS:
            raise ValueError(f"`form` must be one of {_FORMS}. Received: {form!r}")
        super().__init__(name=name, reduction=reduction, dtype=loss_dtype())
        self.temperature = temperature
        self.form = form
        self.normalize = normalize

    def call(self, y_true, y_pred):
        labels, views = class_numbers(y_true), _as_views(tf.convert_to_tensor(y_pred))
        shape = tf.shape(views)
        embeddings = tf.reshape(unit_embeddings(views, self.normalize), [-1, views.shape[-1]])
        labels = tf.repeat(labels, shape[1])
        losses = supervised_contrastive(embeddings, labels, self.temperature, self.form)
        return tf.reduce_mean(tf.reshape(losses, shape[:2]), axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "form": self.form,
            "normalize": self.normalize,
        }


def _as_views(y_pred):
    """[batch, views, d], one view where there is no such axis."""
    if y_pred.shape.rank == 2:
        return y_pred[:, tf.newaxis]
    if y_pred.shape.rank != 3:
        raise ValueError(
            "`y_pred` must be embeddings, [batch, d] or [batch, views, d]. "
            f"Received: shape {tuple(y_pred.shape)}"
        )
    return y_pred
