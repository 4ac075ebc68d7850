import itertools

import numpy as np
import pytest

from kzoo.explain.saliency_cut import largest_piece, minimum_cut, saliency_cut

pytestmark = pytest.mark.paper(
    "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps"
)


def energy(mask, image, foreground, background, smoothness):
    """The energy of the module's docstring, pair by pair."""
    height, width = mask.shape
    pixels = list(itertools.product(range(height), range(width)))
    pairs = [
        (p, q) for p, q in itertools.combinations(pixels, 2) if max(abs(np.subtract(p, q))) == 1
    ]
    squared = [np.sum((image[p] - image[q]) ** 2) for p, q in pairs]
    total = np.where(mask, foreground, background).sum()
    for (p, q), difference in zip(pairs, squared, strict=True):
        if mask[p] != mask[q]:
            weight = np.exp(-difference / (2 * np.mean(squared)))
            total += smoothness * weight / np.linalg.norm(np.subtract(p, q))
    return total


@pytest.mark.parametrize("smoothness", [0.0, 0.5, 2.0])
def test_the_cut_is_the_best_of_all_labellings(rng, smoothness):
    image = rng.uniform(size=(3, 4, 2))
    costs = rng.normal(size=(2, 3, 4)) * 2
    found = minimum_cut(image, *costs, smoothness)
    energies = (
        [
            energy(np.reshape(labels, [3, 4]), image, *costs, smoothness)
            for labels in itertools.product([False, True], repeat=12)
        ]
        if smoothness
        else [np.minimum(*costs).sum()]
    )
    assert energy(found, image, *costs, smoothness) <= min(energies) + 0.05
    if not smoothness:
        np.testing.assert_array_equal(found, costs[0] < costs[1])


def scene(rng, size=32):
    """A disc of two colours on another colour, noise over all, and a far speck of its colour."""
    rows, columns = np.mgrid[:size, :size]
    disc = (rows - 14) ** 2 + (columns - 18) ** 2 < 49
    image = np.where(disc[..., None], [0.8, 0.3, 0.2], [0.3, 0.5, 0.6])
    image[disc & (columns < 18)] = [0.7, 0.7, 0.2]
    image[28:30, 2:4] = [0.8, 0.3, 0.2]
    saliency = np.exp(-((rows - 14) ** 2 + (columns - 18) ** 2) / 40)
    return image + rng.normal(scale=0.05, size=image.shape), saliency, disc


def test_a_blob_of_saliency_becomes_the_whole_object(rng):
    scenes = [scene(rng), scene(rng)]
    images, saliency, discs = (np.stack(part) for part in zip(*scenes, strict=True))
    masks = saliency_cut(images, saliency)
    for mask, disc in zip(masks, discs, strict=True):
        assert (mask & disc).sum() / (mask | disc).sum() > 0.95
        assert not mask[28:30, 2:4].any(), "only the largest piece"
    # The 95 % quantile alone finds a third of the disc.
    alone = saliency[0] >= np.quantile(saliency[0], 0.95)
    assert (alone & discs[0]).sum() / discs[0].sum() < 0.4


def test_the_same_for_signed_saliency_with_channels(rng):
    image, saliency, _ = scene(rng)
    channels = np.stack([-saliency, saliency / 2], -1)[None]
    with pytest.raises(ValueError, match="`saliency`"):
        saliency_cut(image[None], channels)
    channels = np.concatenate([channels, channels[..., :1] * 0], -1)
    np.testing.assert_array_equal(
        saliency_cut(image[None], channels), saliency_cut(image[None], saliency[None])
    )


def test_smoothness_removes_specks(rng):
    image, saliency, disc = scene(rng)
    noisy = (image + rng.normal(scale=0.25, size=image.shape))[None]
    wrong = [
        (saliency_cut(noisy, saliency[None], smoothness=value)[0] != disc).sum()
        for value in (0.0, 5.0)
    ]
    assert wrong[1] < 0.5 * wrong[0]


def test_the_largest_piece_holds_together_over_corners():
    mask = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    expected = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(largest_piece(mask), expected)
    assert not largest_piece(np.zeros([2, 2], bool)).any()


def test_flat_images_and_flat_saliency_are_survived():
    masks = saliency_cut(np.full([2, 6, 6, 1], 0.5), np.zeros([2, 6, 6]))
    assert masks.shape == (2, 6, 6)
    assert masks.dtype == bool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"foreground": 1.0}, "quantiles"),
        ({"background": 0.97}, "quantiles"),
        ({"components": 0}, "`components`"),
        ({"smoothness": -1.0}, "`smoothness`"),
    ],
)
def test_bad_arguments_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        saliency_cut(np.zeros([1, 4, 4, 1]), np.zeros([1, 4, 4]), **options)
