import numpy as np
import pytest

from kzoo.explain.faithfulness.ground_truth import (
    box_iou,
    functional_precision,
    top_k_precision,
    uniform_score,
)

pytestmark = pytest.mark.paper(
    "ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments"
)


def test_precision_by_hand():
    attributions = np.array([[0.1, -5.0, 2.0, 1.0], [3.0, 1.0, -4.0, 0.0]])
    relevant = np.array([True, True, False, False])
    # Orders by magnitude: 1 2 3 0 and 2 0 1 3.
    np.testing.assert_allclose(top_k_precision(attributions, relevant, 1), [1, 0])
    np.testing.assert_allclose(top_k_precision(attributions, relevant, 3), [1 / 3, 2 / 3])
    np.testing.assert_allclose(top_k_precision(attributions, relevant, [4, 2]), [1 / 2, 1 / 2])
    assert functional_precision(attributions, relevant) == 0.5


def test_precision_of_rows_with_masks_of_their_own(rng):
    attributions = rng.normal(size=(20, 4, 5))
    relevant = rng.random((20, 4, 5)) < 0.3
    relevant[:, 0, 0] = True
    expected = []
    for row, mask in zip(np.abs(attributions), relevant, strict=True):
        top = np.argsort(row.ravel())[::-1][: mask.sum()]
        expected.append(mask.ravel()[top].mean())
    assert functional_precision(attributions, relevant) == pytest.approx(np.mean(expected))
    assert functional_precision(relevant * 2.0, relevant) == 1
    assert functional_precision(~relevant, relevant) < 0.1


def test_a_random_attribution_has_the_share_of_the_relevant(rng):
    relevant = np.arange(100) < 3
    assert abs(functional_precision(rng.normal(size=(4000, 100)), relevant) - 0.03) < 0.005


def test_uniform_score_by_hand():
    relevant = np.array([True, True, False])
    # a / |a| = (3, 1, 1) / 5 and t / |t| = (1, 1, 0) / 2: differences 0.1 and 0.3, sums 1.1, 0.7.
    score = uniform_score([[3.0, 1.0, 1.0]], [[5.0, 5.0, 0.0]], relevant)
    assert score == pytest.approx(1 - (0.1 / 1.1 + 0.3 / 0.7) / 2, abs=1e-6)


def test_uniform_score_limits(rng):
    truth = rng.normal(size=(6, 4))
    relevant = np.ones(4, bool)
    assert uniform_score(7 * truth, truth, relevant) == pytest.approx(1, abs=1e-6)
    assert uniform_score(-truth, truth, relevant) == pytest.approx(0, abs=1e-5)
    assert uniform_score(np.zeros([6, 4]), truth, relevant) == pytest.approx(0, abs=1e-5)


def test_box_iou_by_hand():
    relevant = np.zeros([3, 6, 6], bool)
    relevant[:, 1:3, 1:4] = True
    maps = relevant * 2.0
    maps[1] = 0
    maps[1, 2:4, 2:5] = -1.0  # a box shifted by one both ways: 2 shared of 6 + 6 - 2
    maps[2, 1, 1], maps[2, 5, 5] = 0, 1  # the box grows to rows 1..5, columns 1..5
    np.testing.assert_allclose(box_iou(maps, relevant), [1, 0.2, 6 / 25])
    channels = np.stack([maps, -maps], axis=-1)
    np.testing.assert_allclose(box_iou(channels, relevant), [1, 0.2, 6 / 25])


def test_blur_finds_the_box_among_specks(rng):
    relevant = np.zeros([8, 24, 24], bool)
    relevant[:, 4:14, 6:16] = True
    maps = relevant + 1.5 * (rng.random((8, 24, 24)) < 0.03)
    assert box_iou(maps, relevant).mean() < 0.4
    assert box_iou(maps, relevant, sigma=2).mean() > 0.6


def test_errors_name_the_argument():
    ones = np.ones([2, 4])
    with pytest.raises(ValueError, match="`k` must be in 1..4. Received: .*5"):
        top_k_precision(ones, ones > 0, 5)
    with pytest.raises(ValueError, match="`relevant` must broadcast to the shape"):
        functional_precision(ones, np.ones(3, bool))
    with pytest.raises(ValueError, match="`relevant` must mark at least one feature"):
        functional_precision(ones, ones < 0)
    with pytest.raises(ValueError, match="`truth` must have the shape"):
        uniform_score(ones, np.ones([3, 4]), np.ones(4, bool))
    with pytest.raises(ValueError, match="`relevant` must have the shape"):
        box_iou(np.ones([2, 3, 3]), np.ones([2, 4, 3], bool))
