"""Penalties on basis functions: orthogonal to each other, and each zero in most places.

    orthogonality    mean over the pairs i < j of |<b_i, b_j>| / (||b_i|| ||b_j||)
    sparsity         mean over i of integral |b_i(t)| dt / ||b_i||

with <f, g> = sum_j w_j f(t_j) g(t_j), w_j quadrature weights, and ||f||^2 = <f, f>.

"Deep Learning for Functional Data Analysis with Adaptive Basis Layers", Yao, Mueller, Wang, 2021,
arXiv 2106.10414; R_2 and R_1 of the authors' code.

Deviations: all pairs and all functions, where the authors' code draws some in each step; the
gradient is that of the formula, where that code holds the norms constant. So a step along the
penalty does not change the scale of a basis function, only its shape.
"""

import keras
import tensorflow as tf

from kzoo.layers.basis_layer import PAPER
from kzoo.papers import Example, component


def _bases(rng, batch):
    return (rng.normal(size=(batch, 3)).astype("float32"),)


class _FunctionalRegularizer(keras.regularizers.Regularizer):
    def __init__(self, strength=0.1):
        if not isinstance(strength, int | float) or not 0 <= strength < float("inf"):
            raise ValueError(
                f"`strength` must be a finite number of at least 0. Received: {strength!r}"
            )
        self.strength = strength

    def __call__(self, bases, weights=None):
        bases = tf.convert_to_tensor(bases)
        bases = tf.cast(bases, tf.float32) if bases.dtype.size < 4 else bases
        if bases.shape.rank != 2:
            raise ValueError(f"`bases` must be [points, num_bases]. Received: {bases.shape}")
        if weights is None:
            count = tf.cast(tf.shape(bases)[0], bases.dtype)
            weights = tf.fill(tf.shape(bases)[:1], 1 / count)
        return self.strength * self._penalty(bases, tf.cast(weights, bases.dtype)[:, None])

    def get_config(self):
        return {"strength": self.strength}


@component(PAPER, example=Example(kwargs={"strength": 0.5}, inputs=_bases))
class FunctionalOrthogonality(_FunctionalRegularizer):
    """The mean cosine, without its sign, between all pairs of basis functions.

    0 for orthogonal functions, `strength` for functions that are multiples of each other. A
    function that is 0 everywhere counts as orthogonal to all.

    Args:
        strength: factor of the penalty, at least 0. Defaults to 0.1.

    Call arguments:
        bases: [points, num_bases], the functions' values.
        weights: [points], quadrature weights, at least 0. Defaults to 1 / points.

    Returns:
        Scalar, at least float32; 0 for a single function.

    Reference:
        Yao et al. (2021), arxiv.org/abs/2106.10414
    """

    def _penalty(self, bases, weights):
        unit = bases * _inverse_norms(bases, weights)
        gram = tf.abs(tf.matmul(unit, unit * weights, transpose_a=True))
        count = bases.shape[1]
        return tf.reduce_sum(gram - tf.linalg.diag(tf.linalg.diag_part(gram))) / max(
            count * (count - 1), 1
        )


@component(PAPER, example=Example(kwargs={"strength": 0.5}, inputs=_bases))
class FunctionalSparsity(_FunctionalRegularizer):
    """The mean L1 norm of basis functions whose L2 norm is 1: small where most values are 0.

    At most `strength` times the root of the domain's length, for functions of constant magnitude.

    Args:
        strength: factor of the penalty, at least 0. Defaults to 0.1.

    Call arguments:
        bases: [points, num_bases], the functions' values.
        weights: [points], quadrature weights, at least 0. Defaults to 1 / points.

    Returns:
        Scalar, at least float32.

    Reference:
        Yao et al. (2021), arxiv.org/abs/2106.10414
    """

    def _penalty(self, bases, weights):
        unit = bases * _inverse_norms(bases, weights)
        return tf.reduce_mean(tf.reduce_sum(weights * tf.abs(unit), axis=0))


def _inverse_norms(bases, weights):
    """1 / ||b_i||, [num_bases]; 0 with a gradient of 0 for b_i = 0."""
    squared = tf.reduce_sum(weights * tf.square(bases), axis=0)
    positive = squared > 0
    inverse = tf.math.rsqrt(tf.where(positive, squared, tf.ones_like(squared)))
    return tf.where(positive, inverse, tf.zeros_like(inverse))
