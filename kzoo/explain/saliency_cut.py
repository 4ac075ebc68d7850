"""Weakly supervised segmentation: colours learned where the saliency is high and low, then a cut.

    E(l) = sum_i -log p(x_i | l_i) + lambda sum_ij [l_i != l_j] exp(-|x_i - x_j|^2 / 2 s^2) / d_ij

p: Gaussian mixtures, the object's fitted to the pixels above the 95 % quantile of the saliency map,
the background's to those below the 30 % quantile. The minimum is a minimum cut (Boykov and Jolly,
2001); the segmentation is the largest connected piece of the object's pixels.

"Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
Simonyan, Vedaldi, Zisserman, 2013, arXiv 1312.6034; section 3.2.

Open choices: the paper takes a ready implementation and gives no parameters of the mixtures or the
cut. Here mixtures have up to 5 full components, neighbours are the 8 around a pixel, s^2 is the
mean squared difference of neighbours, and lambda is 10. The pixels of the mixtures are not bound
to their side. Cut by SciPy, whose capacities are integers: energies are rounded to about 1e-3.
"""

import numpy as np

from kzoo.explain.saliency import PAPER
from kzoo.papers import component

_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))
_LARGEST_FLOW = 2**30
_GRAIN = 1000


@component(PAPER, not_served="its minimum cut is SciPy's")
def saliency_cut(
    images, saliency, foreground=0.95, background=0.3, components=5, smoothness=10.0, seed=0
):
    """Segments the object that a saliency map points at.

    It is no signature: mixtures and cuts are computed on the host, image by image.

    Args:
        images: float [n, height, width, channels].
        saliency: [n, height, width] or [n, height, width, channels], whose maximum of absolute
            values over the channels is taken; for example the attributions of `Saliency`.
        foreground: quantile of the saliency above which a pixel shows the object. Defaults to 0.95.
        background: quantile below which a pixel shows the background, at most `foreground`.
            Defaults to 0.3.
        components: most Gaussians of a mixture. Defaults to 5.
        smoothness: lambda, at least 0; 0 labels each pixel by itself. Defaults to 10.
        seed: int, of the mixtures.

    Returns:
        bool [n, height, width], true on the object; nowhere, if the cut finds none.

    Raises:
        ValueError: for shapes that do not fit, or arguments out of their ranges.

    Example:

    >>> saliency = Saliency(model, max_channels=True)(images)["attributions"]
    >>> masks = saliency_cut(images, saliency)

    Reference:
        Simonyan et al. (2013), section 3.2, arxiv.org/abs/1312.6034
    """
    images, saliency = np.asarray(images, "float64"), np.abs(np.asarray(saliency, "float64"))
    if images.ndim != 4 or saliency.shape not in (images.shape, images.shape[:3]):
        raise ValueError(
            "`images` must be [n, height, width, channels] and `saliency` of the same height and "
            f"width. Received: {list(images.shape)} and {list(saliency.shape)}"
        )
    if not 0 < background <= foreground < 1:
        raise ValueError(
            "`background` and `foreground` must be quantiles, 0 < background <= foreground < 1. "
            f"Received: {background!r} and {foreground!r}"
        )
    if not isinstance(components, int) or components < 1:
        raise ValueError(f"`components` must be a positive integer. Received: {components!r}")
    if not smoothness >= 0:
        raise ValueError(f"`smoothness` must be at least 0. Received: {smoothness!r}")
    saliency = saliency.max(-1) if saliency.ndim == 4 else saliency
    masks = np.zeros(saliency.shape, bool)
    for mask, image, values in zip(masks, images, saliency, strict=True):
        high, low = np.quantile(values, [foreground, background])
        costs = [
            -_log_density(image, seeds, components, seed)
            for seeds in (values >= high, values <= low)
        ]
        mask[:] = largest_piece(minimum_cut(image, *costs, smoothness))
    return masks


def minimum_cut(image, foreground_cost, background_cost, smoothness):
    """The labelling of least energy.

    Args:
        image: float [height, width, channels].
        foreground_cost, background_cost: [height, width], the price of either label.
        smoothness: lambda.

    Returns:
        bool [height, width], true for the foreground.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    pixels = image.shape[0] * image.shape[1]
    source, sink = pixels, pixels + 1
    one, other, weight = _neighbor_edges(image, smoothness)
    # Only the difference of the two prices matters, so that a pixel has one terminal.
    gain = (background_cost - foreground_cost).ravel()
    node = np.arange(pixels)
    begin = np.concatenate([one, other, np.where(gain > 0, source, node)])
    end = np.concatenate([other, one, np.where(gain > 0, node, sink)])
    capacity = np.concatenate([weight, weight, np.abs(gain)])
    scale = min(_GRAIN, _LARGEST_FLOW / max(capacity.sum(), 1))
    capacity = np.round(scale * capacity).astype("int32")
    graph = csr_array((capacity, (begin, end)), shape=(pixels + 2, pixels + 2))
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    mask = np.zeros(pixels + 2, bool)
    mask[breadth_first_order(residual, source, return_predecessors=False)] = True
    return mask[:pixels].reshape(image.shape[:2])


def largest_piece(mask):
    """The largest connected piece, over edges and corners, of a bool [height, width] mask."""
    from scipy.ndimage import label

    pieces, count = label(mask, np.ones([3, 3]))
    if not count:
        return mask
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def _log_density(image, seeds, components, seed):
    """log p of each pixel's colour under a mixture fitted to the seeds, [height, width]."""
    from sklearn.mixture import GaussianMixture

    colors = image.reshape(-1, image.shape[-1])
    chosen = colors[seeds.ravel()]
    distinct = len(np.unique(chosen, axis=0))
    floor = 1e-4 * max(colors.var(), 1e-8)
    mixture = GaussianMixture(min(components, distinct), reg_covar=floor, random_state=seed)
    if len(chosen) == 1:
        chosen = np.repeat(chosen, 2, axis=0)
    return mixture.fit(chosen).score_samples(colors).reshape(image.shape[:2])


def _neighbor_edges(image, smoothness):
    """Pairs of neighbours and what it costs to part them: begin, end, weight."""
    height, width = image.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    begin, end, squared, distance = [], [], [], []
    for down, right in _NEIGHBORS:
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width + min(0, right)))
        begin.append(index[here].ravel())
        end.append(index[there].ravel())
        squared.append(((image[here] - image[there]) ** 2).sum(-1).ravel())
        distance.append(np.full(begin[-1].shape, np.hypot(down, right)))
    squared, distance = np.concatenate(squared), np.concatenate(distance)
    contrast = np.exp(-squared / (2 * max(squared.mean(), np.finfo(float).tiny)))
    return np.concatenate(begin), np.concatenate(end), smoothness * contrast / distance
