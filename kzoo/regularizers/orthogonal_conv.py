"""Orthogonal convolutions: a penalty on the kernel that makes the whole convolution an isometry.

For a kernel K of M filters over C channels, width k and stride S,

    L_orth(K) = || conv(K, K, padding=P, stride=S) - I ||_F^2,    P = floor((k - 1) / S) S

less the constant M - C S^2 where M > C S^2, with I the identity at the centre and 0 elsewhere: the
filters have length 1 and are orthogonal to each other and to all their shifts by strides. For
circular padding and a signal of N strides a side,

    || A A' - Id ||_F^2 = N^2 L_orth(K)     rows,    where M <= C S^2
    || A' A - Id ||_F^2 = N^2 L_orth(K)     columns, where M >= C S^2

with A the matrix of the convolution, exactly, where S N >= 2 k - 1.

"Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks", Achour,
Malgouyres, Mamalet, 2021, arXiv 2108.05623. The penalty is that of "Orthogonal Convolutional Neural
Networks", Wang et al., 2019, arXiv 1911.12207.

Deviation: kernels of one, two or three spatial dimensions, and of other sides, are taken as well;
S^2 is then the product of the strides.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks",
    authors=("El Mehdi Achour", "François Malgouyres", "Franck Mamalet"),
    year=2021,
    arxiv="2108.05623",
)


@component(
    PAPER,
    example=Example(
        kwargs={"strength": 0.1, "strides": 2},
        inputs=lambda rng, batch: (rng.normal(size=(3, 3, 2, batch)).astype("float32"),),
    ),
)
class OrthogonalConv(keras.regularizers.Regularizer):
    """Pulls a convolution towards an isometry, for use as its `kernel_regularizer`.

    Args:
        strength: factor of the penalty, at least 0. Defaults to 0.01.
        strides: those of the layer, an integer or one for each spatial dimension. Defaults to 1.

    Call argument:
        kernel: [*kernel_size, channels, filters], as Conv1D, Conv2D and Conv3D have it, without
            dilation or groups.

    Returns:
        strength * L_orth, scalar, at least float32 and at least 0 but for rounding.

    Example:

    >>> keras.layers.Conv2D(16, 3, strides=2, kernel_regularizer=OrthogonalConv(0.1, strides=2))

    Reference:
        Achour et al. (2021), arxiv.org/abs/2108.05623
    """

    def __init__(self, strength=0.01, strides=1):
        if not isinstance(strength, int | float) or not strength >= 0:
            raise ValueError(f"`strength` must be a number of at least 0. Received: {strength!r}")
        each = strides if isinstance(strides, list | tuple) else [strides]
        if not each or not all(isinstance(s, int) and s >= 1 for s in each):
            raise ValueError(
                f"`strides` must be a positive integer or several. Received: {strides!r}"
            )
        self.strength = strength
        self.strides = list(strides) if isinstance(strides, tuple) else strides

    def __call__(self, kernel):
        return self.strength * orthogonality_loss(kernel, self.strides)

    def get_config(self):
        return {"strength": self.strength, "strides": self.strides}


def orthogonality_loss(kernel, strides=1):
    """L_orth of a kernel, see `OrthogonalConv`."""
    kernel = tf.convert_to_tensor(kernel)
    kernel = tf.cast(kernel, tf.float32) if kernel.dtype.size < 4 else kernel
    rank = kernel.shape.rank - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            "`kernel` must be [*kernel_size, channels, filters] of one to three spatial "
            f"dimensions. Received: {kernel.shape}"
        )
    strides = list(strides) if isinstance(strides, list | tuple) else [strides] * rank
    if len(strides) != rank:
        raise ValueError(f"`strides` must be one or {rank}. Received: {strides}")
    *sides, channels, filters = kernel.shape
    shifts = [(k - 1) // s for k, s in zip(sides, strides, strict=True)]
    gram = _shifted_products(kernel, strides, shifts)
    identity = np.zeros(gram.shape)
    identity[(slice(None), *shifts)] = np.eye(filters)
    loss = tf.reduce_sum(tf.square(gram - tf.constant(identity, gram.dtype)))
    return loss - max(filters - channels * int(np.prod(strides)), 0)


def _shifted_products(kernel, strides, shifts):
    """Products of all filters with all filters shifted by strides, [M, *(2 shifts + 1), M]."""
    rank = len(strides)
    images = tf.transpose(kernel, [rank + 1, *range(rank), rank])
    padding = [[0, 0], *([n * s] * 2 for n, s in zip(shifts, strides, strict=True)), [0, 0]]
    return tf.nn.convolution(tf.pad(images, padding), kernel, strides=strides, padding="VALID")
