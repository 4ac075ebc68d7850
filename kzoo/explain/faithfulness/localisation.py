"""Where is the attribution: pointing games and overlap with the mask of an object.

    pointing game        is the highest pixel inside the object, or within a tolerance of it?
    energy pointing game sum inside / sum of all, of a map that is at least 0
    attribution localisation
                         mu = R_in / R_tot of the positive relevance;
                         weighted mu_w = mu S_tot / S_in, with the sizes S of image and object
    top-k overlap        intersection over union of the k highest pixels and the object

"Top-down Neural Attention by Excitation Backprop", Zhang, Lin, Brandt, Shen, Sclaroff, 2016, arXiv
1608.00507. "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
Networks", Wang et al., 2019, arXiv 1910.01279. "Towards Best Practice in Explaining
Neural Network Decisions with LRP", Kohlbrenner, Bauer, Nakajima, Binder, Samek, Lapuschkin, 2019,
arXiv 1910.09840.

They say whether a map is where a person would look, which is not what a model must do: on a model
that uses the background, a faithful attribution scores low.

Open choices: attributions with channels are summed over them; of several highest pixels the first
counts; tolerance is a Euclidean distance to the nearest pixel of the object. For the k highest
pixels that are in the mask by magnitude, see `top_k_precision`.
"""

import numpy as np

from kzoo.explain.score_cam import PAPER as SCORE_CAM_PAPER
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Top-down Neural Attention by Excitation Backprop",
    authors=(
        "Jianming Zhang", "Zhe Lin", "Jonathan Brandt", "Xiaohui Shen", "Stan Sclaroff",
    ),
    year=2016,
    arxiv="1608.00507",
)  # fmt: skip
LRP_PRACTICE_PAPER = Paper(
    title="Towards Best Practice in Explaining Neural Network Decisions with LRP",
    authors=(
        "Maximilian Kohlbrenner", "Alexander Bauer", "Shinichi Nakajima", "Alexander Binder",
        "Wojciech Samek", "Sebastian Lapuschkin",
    ),
    year=2019,
    arxiv="1910.09840",
)  # fmt: skip


@component(PAPER, not_served="it measures explanations of a whole set")
def pointing_game(attributions, mask, tolerance=0.0):
    """Whether the highest pixel of each map is on the object.

    Args:
        attributions: [batch, height, width] or [..., channels].
        mask: bool [batch, height, width], the object; at least one pixel of each. See `box_mask`.
        tolerance: distance in pixels from the object that still is a hit. The paper has 15.

    Returns:
        Bool array [batch]; its mean is the accuracy.

    Reference:
        Zhang et al. (2016), the pointing game, arxiv.org/abs/1608.00507
    """
    maps, mask = _maps_and_mask(attributions, mask)
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0. Received: {tolerance!r}")
    row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
    rows, columns = np.ogrid[: maps.shape[1], : maps.shape[2]]
    apart = (rows - row[:, None, None]) ** 2 + (columns - column[:, None, None]) ** 2
    return np.where(mask, apart, np.inf).min(axis=(1, 2)) <= tolerance**2


@component(SCORE_CAM_PAPER, not_served="it measures explanations of a whole set")
def energy_pointing_game(attributions, mask):
    """The share of a map's energy that is on the object.

    Args:
        attributions, mask: as in `pointing_game`; at least 0, as class activation maps are. For
            signed ones see `attribution_localisation`.

    Returns:
        Float array [batch] in [0, 1]; 0 where the map is 0 everywhere.

    Reference:
        Wang et al. (2019), energy-based pointing game, arxiv.org/abs/1910.01279
    """
    maps, mask = _maps_and_mask(attributions, mask)
    if (maps < 0).any():
        raise ValueError(
            "`attributions` must be at least 0. For signed ones there is "
            f"`attribution_localisation`. Received values from {maps.min():g}"
        )
    return _share(maps, mask)


@component(LRP_PRACTICE_PAPER, not_served="it measures explanations of a whole set")
def attribution_localisation(attributions, mask, weighted=False):
    """The share of the positive attribution that is on the object.

    Args:
        attributions, mask: as in `pointing_game`.
        weighted: whether to divide by the share of the image that the object covers, so that an
            even map scores 1 whatever the size of the object.

    Returns:
        Float array [batch] in [0, 1], or above if weighted; 0 where nothing is positive.

    Reference:
        Kohlbrenner et al. (2019), attribution localization, arxiv.org/abs/1910.09840
    """
    maps, mask = _maps_and_mask(attributions, mask)
    inside = _share(np.maximum(maps, 0), mask)
    return inside / mask.mean(axis=(1, 2)) if weighted else inside


def top_k_overlap(attributions, mask, k=None):
    """Intersection over union of the k highest pixels and the object.

    Args:
        attributions, mask: as in `pointing_game`; equal values are taken by position.
        k: number of pixels, at least 1; None for as many as the object has.

    Returns:
        Float array [batch] in [0, 1].
    """
    maps, mask = _maps_and_mask(attributions, mask)
    maps, mask = maps.reshape(len(maps), -1), mask.reshape(len(mask), -1)
    if k is not None and not 1 <= k <= maps.shape[1]:
        raise ValueError(f"`k` must be in 1..{maps.shape[1]}. Received: {k!r}")
    ranks = np.argsort(np.argsort(-maps, axis=1, kind="stable"), axis=1)
    top = ranks < (mask.sum(axis=1, keepdims=True) if k is None else k)
    return (top & mask).sum(axis=1) / (top | mask).sum(axis=1)


def box_mask(boxes, height, width):
    """The union of each image's boxes as a mask.

    Args:
        boxes: for each image a list of (top, left, bottom, right) in pixels; bottom and right are
            not inside.

    Returns:
        Bool array [batch, height, width].
    """
    mask = np.zeros([len(boxes), height, width], bool)
    for image, own in zip(mask, boxes, strict=True):
        for top, left, bottom, right in own:
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise ValueError(
                    f"`boxes` must be (top, left, bottom, right) inside of {height} x {width} "
                    f"pixels. Received: {(top, left, bottom, right)}"
                )
            image[top:bottom, left:right] = True
    return mask


def _share(maps, mask):
    total = maps.sum(axis=(1, 2))
    inside = np.where(mask, maps, 0).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0)


def _maps_and_mask(attributions, mask):
    maps = np.asarray(attributions, np.float64)
    maps = maps.sum(axis=-1) if maps.ndim == 4 else maps
    if maps.ndim != 3 or not np.isfinite(maps).all():
        raise ValueError(
            "`attributions` must be finite and of shape [batch, height, width] or [batch, height, "
            f"width, channels]. Received: {list(np.shape(attributions))}"
        )
    mask = np.asarray(mask, bool)
    if mask.shape != maps.shape or not mask.any(axis=(1, 2)).all():
        raise ValueError(
            f"`mask` must have the shape {list(maps.shape)}, and a pixel of each object. Received: "
            f"{list(mask.shape)}"
        )
    return maps, mask
