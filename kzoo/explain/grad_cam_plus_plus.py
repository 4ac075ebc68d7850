"""Grad-CAM++: Grad-CAM with weights that count each occurrence of an object.

    alpha_ij = g_ij^2 / (2 g_ij^2 + sum_ab A_ab g_ij^3)     (equation 19)
    w = sum_ij alpha_ij relu(g_ij)                          (equation 21)
    L = relu(sum_k w_k A_k)

with A_k the k-th map of the layer and g = dS / dA_k.

"Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", Chattopadhay, Sarkar,
Howlader, Balasubramanian, 2017, arXiv 1710.11063.

Deviations: the paper explains Y = exp(S); exp(S) cancels in alpha and is a factor of the whole map
that would overflow, so it is left out. Where the gradient is zero, so is alpha.
"""

import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    authors=(
        "Aditya Chattopadhay", "Anirban Sarkar", "Prantik Howlader", "Vineeth N Balasubramanian",
    ),
    year=2017,
    arxiv="1710.11063",
)  # fmt: skip


@component(PAPER, example=Example())
class GradCAMPlusPlus(ActivationMap):
    """A coarse map of the regions that speak for the target class, each of several objects whole.

    Args:
        model: see `ActivationMap`, as are `layer`, `counterfactual`, `relu`, `upsample`, `score`.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences);
    `score`, `target`, `predictions`.

    Reference:
        Chattopadhay et al. (2017), equations 19 and 21, arxiv.org/abs/1710.11063
    """

    def combine(self, activations, gradients):
        places = range(1, gradients.shape.rank - 1)
        square = tf.square(gradients)
        total = tf.reduce_sum(activations, axis=places, keepdims=True)
        # The gradient's square is divided out, so that small ones do not underflow.
        alpha = tf.math.divide_no_nan(tf.ones_like(square), 2 + total * gradients)
        alpha = tf.where(square > 0, alpha, 0)
        weight = tf.reduce_sum(alpha * tf.nn.relu(gradients), axis=places, keepdims=True)
        return tf.reduce_sum(weight * activations, axis=-1)
