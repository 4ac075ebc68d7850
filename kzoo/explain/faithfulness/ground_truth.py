"""Attributions against the truth, on data where it is known which features matter.

    FPrec = |top_k(|a|) and relevant| / k,   k = the number of relevant features
    US    = mean_i ( 1 - |a_i - t_i| / (|a_i| + |t_i|) ),   a and t divided by their l1 norms
    IoU   = that of the smallest box around the highest pixels and the box of the foreground

"ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR Environments",
Shi, Kan, Smucny, Davidson, 2024, arXiv 2406.12150: functional precision, uniform score, and the
intersection over union of its vision part. Its audio part takes the share of the attribution in
the voiced channel: `1 - attribution_leakage(attributions, ~relevant)`.

Definitions are those of the authors' code. Deviations: boxes count their last row and column, which
the code leaves out; the box is around exactly as many pixels as the foreground has.
"""

import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments",
    authors=("Ge Shi", "Ziwen Kan", "Jason Smucny", "Ian Davidson"),
    year=2024,
    arxiv="2406.12150",
)

_TINY = 1e-7  # of the authors; a feature of which both attributions are 0 scores 1


@component(PAPER, not_served="it measures explanations of a whole set")
def top_k_precision(attributions, relevant, k):
    """Share of the k features with the largest attribution that matter.

    Args:
        attributions: [batch, ...], ranked by magnitude; equal ones by position.
        relevant: bool, of the same shape or one that broadcasts to it.
        k: number of features, one for all or int [batch]; at least 1.

    Returns:
        Float array [batch] in [0, 1].

    Reference:
        Shi et al. (2024), section 4, arxiv.org/abs/2406.12150
    """
    attributions, relevant = _flat(attributions, relevant)
    k = np.broadcast_to(k, len(attributions))
    if not np.all((k >= 1) & (k <= attributions.shape[1])):
        raise ValueError(f"`k` must be in 1..{attributions.shape[1]}. Received: {k}")
    order = np.argsort(-np.abs(attributions), axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1).cumsum(axis=1)
    return hits[np.arange(len(k)), k - 1] / k


@component(PAPER, not_served="it measures explanations of a whole set")
def functional_precision(attributions, relevant):
    """`top_k_precision` where k is the number of features that matter, over the batch.

    Args:
        attributions, relevant: as in `top_k_precision`.

    Returns:
        Float in [0, 1]; for a random attribution the share of the features that matter.

    Reference:
        Shi et al. (2024), section 4, arxiv.org/abs/2406.12150
    """
    flat, marked = _flat(attributions, relevant)
    return float(top_k_precision(flat, marked, marked.sum(axis=1)).mean())


@component(PAPER, not_served="it measures explanations of a whole set")
def uniform_score(attributions, truth, relevant):
    """How close attributions are to the true ones, on the features that matter.

    Args:
        attributions: [batch, features], signed.
        truth: [batch, features], the attributions that the method would give for the true function,
            0 where a feature plays no part; see `kzoo.data.Formula`.
        relevant: bool, of the same shape or one that broadcasts to it.

    Returns:
        Float in [0, 1]: 1 where they are proportional, 0 where all have the opposite sign.

    Reference:
        Shi et al. (2024), section 4, arxiv.org/abs/2406.12150
    """
    ours, marked = _flat(attributions, relevant)
    theirs, _ = _flat(truth, relevant)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"`truth` must have the shape {list(ours.shape)}. Received: {list(theirs.shape)}"
        )
    ours, theirs = _normalized(ours), _normalized(theirs)
    difference = np.abs(ours - theirs) / (np.abs(ours) + np.abs(theirs) + _TINY)
    return float(np.mean(1 - difference[marked]))


@component(PAPER, not_served="it measures explanations of a whole set")
def box_iou(attributions, relevant, sigma=0.0):
    """Intersection over union of the box around the highest pixels and that of the foreground.

    Args:
        attributions: [batch, height, width] or [..., channels], of which the mean magnitude is
            taken.
        relevant: bool [batch, height, width], the foreground: a full rectangle in each image.
        sigma: standard deviation, in pixels, of a Gaussian blur of the attributions before their
            magnitude is taken; the authors' code has 6. Needs SciPy where it is not 0.

    Returns:
        Float array [batch] in [0, 1].

    Reference:
        Shi et al. (2024), section 4, arxiv.org/abs/2406.12150
    """
    maps = np.asarray(attributions, np.float64)
    maps = maps[..., np.newaxis] if maps.ndim == 3 else maps
    relevant = np.asarray(relevant, bool)
    if relevant.shape != maps.shape[:-1] or maps.ndim != 4:
        raise ValueError(
            "`relevant` must have the shape [batch, height, width] of `attributions`. Received: "
            f"{list(relevant.shape)} and {list(np.shape(attributions))}"
        )
    if sigma:
        from scipy.ndimage import gaussian_filter

        maps = gaussian_filter(maps, sigma, axes=(1, 2))
    maps = np.abs(maps).mean(axis=-1).reshape(len(maps), -1)
    ranks = np.argsort(np.argsort(-maps, axis=1, kind="stable"), axis=1)
    highest = ranks < relevant.sum(axis=(1, 2))[:, np.newaxis]
    box = _box(highest.reshape(relevant.shape))
    return (box & relevant).sum(axis=(1, 2)) / (box | relevant).sum(axis=(1, 2))


def _flat(attributions, relevant):
    """Both as [batch, features], and the mask as bool; every example must have a true feature."""
    attributions = np.asarray(attributions, np.float64)
    relevant = np.asarray(relevant, bool)
    try:
        relevant = np.broadcast_to(relevant, attributions.shape)
    except ValueError:
        raise ValueError(
            f"`relevant` must broadcast to the shape {list(attributions.shape)} of the "
            f"attributions. Received: {list(relevant.shape)}"
        ) from None
    batch = len(attributions)
    attributions, relevant = attributions.reshape(batch, -1), relevant.reshape(batch, -1)
    if not relevant.any(axis=1).all():
        raise ValueError("`relevant` must mark at least one feature of every example.")
    return attributions, relevant


def _normalized(attributions):
    norms = np.abs(attributions).sum(axis=1, keepdims=True)
    return attributions / np.where(norms > 0, norms, 1)


def _box(marked):
    """The smallest box around what is marked in each image, bool [batch, height, width]."""
    rows, columns = marked.any(axis=2), marked.any(axis=1)
    return _span(rows)[:, :, np.newaxis] & _span(columns)[:, np.newaxis]


def _span(marked):
    """True from the first to the last true value of each row."""
    before = np.logical_or.accumulate(marked, axis=1)
    after = np.logical_or.accumulate(marked[:, ::-1], axis=1)[:, ::-1]
    return before & after
