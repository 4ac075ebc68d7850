"""The matrix of a convolution, its singular values, and whether an orthogonal one exists.

With circular padding the strided convolution of a signal of S N samples a side is, in the Fourier
basis, one block of M rows for each of the N output frequencies,

    B(w) = 1 / sqrt(S) [ K^(w), K^(w + N), ..., K^(w + (S - 1) N) ]      (1 / S in two dimensions)

of the transformed kernel K^ at the input frequencies that fold onto w. The singular values of all
blocks together are those of the convolution.

There is an orthogonal circular convolution of M filters over C channels, width k and stride S if
and only if (theorem 1)

    M <= C k^2    where M <= C S^2    (orthogonal rows)
    S <= k        where M >= C S^2    (orthogonal columns)

"Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks", Achour,
Malgouyres, Mamalet, 2021, arXiv 2108.05623.
"""

import math

import numpy as np
import tensorflow as tf

from kzoo.papers import component
from kzoo.regularizers.orthogonal_conv import PAPER

_PADDINGS = ("circular", "same", "valid")


@component(PAPER)
def conv_matrix(kernel, input_shape, strides=1, padding="circular"):
    """The matrix of a convolution, dense.

    Args:
        kernel: [*kernel_size, channels, filters] of one, two or three spatial dimensions.
        input_shape: spatial sides of the signal, an integer for all or one each.
        strides: an integer or one for each dimension. Defaults to 1.
        padding: "circular", "same" (with zeros, as in Keras) or "valid". Defaults to "circular".

    Returns:
        float64 [output positions * filters, input positions * channels], both in the order of a
        flattened tensor with the channels last.

    Raises:
        ValueError: for arguments that do not fit each other.

    Reference:
        Achour et al. (2021), section 2, arxiv.org/abs/2108.05623
    """
    kernel, sides, strides = _checked(kernel, input_shape, strides, padding)
    channels = kernel.shape[-2]
    size = math.prod(sides) * channels
    signals = tf.reshape(tf.eye(size, dtype=tf.float64), [size, *sides, channels])
    if padding == "circular":
        wrap = [[0, 0], *([0, k - 1] for k in kernel.shape[:-2]), [0, 0]]
        signals = np.pad(signals, wrap, mode="wrap")
    outputs = tf.nn.convolution(
        signals, kernel, strides=strides, padding="SAME" if padding == "same" else "VALID"
    )
    return np.reshape(outputs, [size, -1]).T


@component(PAPER)
def conv_singular_values(kernel, input_shape, strides=1, padding="circular"):
    """All singular values of a convolution.

    Args:
        kernel, input_shape, strides, padding: as for `conv_matrix`. With circular padding they are
            exact by the Fourier transform; else the dense matrix is decomposed, which takes small
            signals.

    Returns:
        float64, as many as the matrix has rows or columns, whichever are fewer; largest first.

    Example:

    >>> conv_singular_values(np.ones([1, 1, 1, 1]), 4).max()
    1.0

    Reference:
        Achour et al. (2021), arxiv.org/abs/2108.05623; Sedghi, Gupta, Long (2018), "The Singular
        Values of Convolutional Layers", for the stride 1
    """
    if padding != "circular":
        matrix = conv_matrix(kernel, input_shape, strides, padding)
        return np.linalg.svd(matrix, compute_uv=False)
    kernel, sides, strides = _checked(kernel, input_shape, strides, padding)
    values = np.linalg.svd(_frequency_blocks(kernel, sides, strides), compute_uv=False)
    return np.sort(values.ravel())[::-1]


@component(PAPER)
def isometry_error(kernel, input_shape, strides=1, padding="circular"):
    """How far a convolution A is from an isometry, or from the transpose of one.

    Args:
        kernel, input_shape, strides, padding: as for `conv_matrix`.

    Returns:
        (Frobenius, spectral) norms of A A' - Id where A has fewer rows than columns, else of
        A' A - Id; floats.

    Reference:
        Achour et al. (2021), section 2, arxiv.org/abs/2108.05623
    """
    errors = np.abs(conv_singular_values(kernel, input_shape, strides, padding) ** 2 - 1)
    return float(np.linalg.norm(errors)), float(errors.max())


@component(PAPER)
def orthogonal_conv_exists(filters, channels, kernel_size, strides=1, rank=2):
    """Whether an orthogonal convolution with circular padding exists.

    It is asked of signals of at least `kernel_size` samples a side. With other paddings there is
    less. For the stride 1 and k > 1, there are no orthogonal columns with "valid", and with zeros
    ("same") only kernels that vanish outside of their centre.

    Args:
        filters: M.
        channels: C.
        kernel_size: k, the same in all dimensions.
        strides: S, the same in all dimensions. Defaults to 1.
        rank: number of spatial dimensions. Defaults to 2.

    Returns:
        A bool.

    Raises:
        ValueError: for anything but positive integers.

    Reference:
        Achour et al. (2021), existence theorem, arxiv.org/abs/2108.05623
    """
    arguments = {
        "filters": filters,
        "channels": channels,
        "kernel_size": kernel_size,
        "strides": strides,
        "rank": rank,
    }
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    if filters <= channels * strides**rank:
        return filters <= channels * kernel_size**rank
    return strides <= kernel_size


def _frequency_blocks(kernel, sides, strides):
    """B(w) for every output frequency, complex [*outputs, filters, strides * channels]."""
    *_, channels, filters = kernel.shape
    rank = len(sides)
    axes = range(rank)
    folded = np.zeros([*sides, channels, filters])
    indices = np.meshgrid(
        *(np.arange(k) % n for k, n in zip(kernel.shape, sides, strict=False)), indexing="ij"
    )
    np.add.at(folded, tuple(indices), kernel)
    spectrum = np.fft.fftn(folded, axes=axes)
    split = [part for n, s in zip(sides, strides, strict=True) for part in (s, n // s)]
    spectrum = spectrum.reshape(*split, channels, filters)
    folds, outputs = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    spectrum = spectrum.transpose(*outputs, 2 * rank + 1, *folds, 2 * rank)
    blocks = spectrum.reshape(*spectrum.shape[: rank + 1], -1)
    return blocks / np.sqrt(math.prod(strides))


def _checked(kernel, input_shape, strides, padding):
    """Arguments as float64 kernel, sides and strides of its rank."""
    kernel = np.asarray(kernel, "float64")
    rank = kernel.ndim - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            "`kernel` must be [*kernel_size, channels, filters] of one to three spatial "
            f"dimensions. Received: {list(kernel.shape)}"
        )
    if padding not in _PADDINGS:
        raise ValueError(f"`padding` must be one of {', '.join(_PADDINGS)}. Received: {padding!r}")
    sides, strides = (
        [each] * rank if isinstance(each, int) else list(each) for each in (input_shape, strides)
    )
    if len(sides) != rank or len(strides) != rank or min(sides + strides) < 1:
        raise ValueError(
            f"`input_shape` and `strides` must be positive, one or {rank}. Received: {sides} and "
            f"{strides}"
        )
    if padding == "circular" and any(n % s for n, s in zip(sides, strides, strict=True)):
        raise ValueError(
            "`input_shape` must be a multiple of `strides` with circular padding. Received: "
            f"{sides} and {strides}"
        )
    return kernel, sides, strides
