"""Isometry gap: how far samples are from being orthogonal and of the same length.

    phi(X) = log(tr(G) / n) - log(det(G)) / n,    G = X X', the Gram matrix of n samples

The arithmetic mean of the eigenvalues of G over their geometric mean, as a logarithm: 0 if and only
if G is a multiple of the identity, and infinite if the samples are linearly dependent.

"Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion", Meterez,
Joudaki, Orabona, Immer, Raetsch, Daneshmand, 2023, arXiv 2310.02012; equation 5.

Deviations: none; samples are rows here, the paper has them in columns.
"""

import numpy as np

from kzoo.layers.uncentered_batch_norm import PAPER
from kzoo.papers import component


@component(PAPER)
def isometry_gap(representations):
    """The isometry gap of samples, as they come out of a layer.

    Args:
        representations: real array [..., samples, features], finite.

    Returns:
        float64 [...], at least 0; infinite with more samples than features, or where samples are
        linearly dependent to rounding.

    Raises:
        ValueError: for fewer than two axes, none or no finite values.

    Example:

    >>> isometry_gap(hidden(x))

    Reference:
        Meterez et al. (2023), section 3, arxiv.org/abs/2310.02012
    """
    representations = np.asarray(representations)
    precision = np.finfo(np.result_type(representations.dtype, "float32")).eps
    x = representations.astype("float64")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(
            "`representations` must be [..., samples, features], neither of them 0. Received: "
            f"shape {list(x.shape)}"
        )
    if not np.isfinite(x).all():
        raise ValueError("`representations` must be finite.")
    samples, features = x.shape[-2:]
    if samples > features:
        return np.full(x.shape[:-2], np.inf)[()]
    values = np.linalg.svd(x, compute_uv=False)
    largest = values[..., :1]
    # Of ratios, so that no square overflows.
    ratios = values / np.where(largest > 0, largest, 1)
    dependent = (ratios <= precision * features).any(axis=-1)
    ratios = np.where(dependent[..., None], 1, ratios)
    gap = np.log(np.mean(ratios**2, axis=-1)) - 2 * np.mean(np.log(ratios), axis=-1)
    return np.where(dependent, np.inf, np.maximum(gap, 0))[()]
