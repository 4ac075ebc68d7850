import numpy as np
import pytest

from kzoo.explain.faithfulness.localisation import (
    attribution_localisation,
    box_mask,
    energy_pointing_game,
    pointing_game,
    top_k_overlap,
)

POINTING = pytest.mark.paper("Top-down Neural Attention by Excitation Backprop")
ENERGY = pytest.mark.paper(
    "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks"
)
LOCALISATION = pytest.mark.paper(
    "Towards Best Practice in Explaining Neural Network Decisions with LRP"
)

MASK = box_mask([[(1, 1, 3, 3)]], 4, 6)


def peak(row, column):
    maps = np.zeros([1, 4, 6])
    maps[0, row, column] = 1
    return maps


@POINTING
def test_pointing_with_a_tolerance():
    assert pointing_game(peak(1, 2), MASK)
    assert not pointing_game(peak(1, 3), MASK)
    assert pointing_game(peak(1, 3), MASK, tolerance=1)
    assert not pointing_game(peak(3, 3), MASK, tolerance=1.4)  # a diagonal step
    assert pointing_game(peak(3, 3), MASK, tolerance=1.5)
    np.testing.assert_array_equal(
        pointing_game(np.concatenate([peak(2, 2), peak(0, 5)]), np.repeat(MASK, 2, 0)),
        [True, False],
    )


@POINTING
def test_an_oracle_beats_random_beats_the_inverted(rng):
    corners = rng.integers(0, 12, size=(300, 2))
    mask = box_mask([[(r, c, r + 8, c + 8)] for r, c in corners], 20, 20)
    maps = rng.random(mask.shape)
    assert pointing_game(maps + mask, mask).all()
    assert pointing_game(maps, mask).mean() == pytest.approx(64 / 400, abs=0.07)
    assert not pointing_game(maps - mask, mask).any()
    assert energy_pointing_game(maps, mask).mean() == pytest.approx(64 / 400, abs=0.01)
    assert attribution_localisation(maps, mask, weighted=True).mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(top_k_overlap(maps + mask, mask), 1)
    # A third of a share p of the object: p / (2 - p).
    assert top_k_overlap(maps, mask).mean() == pytest.approx(0.16 / 1.84, abs=0.02)


@ENERGY
def test_energy_by_hand():
    maps = np.ones([1, 4, 6])
    maps[0, 1, 1] = 5
    np.testing.assert_allclose(energy_pointing_game(maps, MASK), [8 / 28])
    np.testing.assert_allclose(energy_pointing_game(0 * maps, MASK), [0])
    np.testing.assert_allclose(energy_pointing_game(maps[..., None], MASK), [8 / 28])
    with pytest.raises(ValueError, match="must be at least 0"):
        energy_pointing_game(-maps, MASK)


@LOCALISATION
def test_localisation_counts_what_is_positive():
    maps = -np.ones([1, 4, 6])
    maps[0, 1, 1:4] = [2, 1, 5]  # the last one is beside the object
    np.testing.assert_allclose(attribution_localisation(maps, MASK), [3 / 8])
    weighted = attribution_localisation(maps, MASK, weighted=True)
    np.testing.assert_allclose(weighted, [3 / 8 * 24 / 4])
    np.testing.assert_allclose(attribution_localisation(-np.abs(maps), MASK), [0])


@LOCALISATION
def test_overlap_of_the_highest():
    maps = np.arange(24.0).reshape(1, 4, 6)  # the highest are 23, 22, ...; the object has 7 8 13 14
    np.testing.assert_allclose(top_k_overlap(maps, MASK), [0])
    np.testing.assert_allclose(top_k_overlap(maps, MASK, k=10), [1 / 13])  # 14 alone
    np.testing.assert_allclose(top_k_overlap(maps, MASK, k=24), [4 / 24])
    np.testing.assert_allclose(top_k_overlap(-maps, MASK, k=8), [1 / 11])  # 7 alone


@POINTING
def test_boxes():
    mask = box_mask([[(0, 0, 1, 2), (0, 1, 2, 3)], [(1, 0, 2, 3)]], 2, 3)
    np.testing.assert_array_equal(mask, [[[1, 1, 1], [0, 1, 1]], [[0, 0, 0], [1, 1, 1]]])
    for box in [(0, 0, 3, 1), (1, 0, 1, 2), (-1, 0, 1, 1)]:
        with pytest.raises(ValueError, match="`boxes` must be"):
            box_mask([[box]], 2, 3)


@POINTING
def test_errors():
    maps = peak(0, 0)
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        pointing_game(maps, MASK[:, :2])
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        pointing_game(maps, 0 * MASK)
    with pytest.raises(ValueError, match="`attributions` must be finite"):
        pointing_game(maps * np.nan, MASK)
    with pytest.raises(ValueError, match="`tolerance` must be at least 0"):
        pointing_game(maps, MASK, tolerance=-1)
    with pytest.raises(ValueError, match="`k` must be in 1..24"):
        top_k_overlap(maps, MASK, k=25)
