import numpy as np
import pytest
from scipy.stats import ortho_group

from kzoo.analysis.neural_collapse import neural_collapse_metrics, orthogonal_frame_distance
from kzoo.analysis.unconstrained_features import (
    minimize_unconstrained_features,
    orthogonal_frame_loss,
)

pytestmark = pytest.mark.paper(
    "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of "
    "ReLU and Batching"
)
COUNTS = [10, 10, 2, 2]


@pytest.fixture(scope="module", params=[True, False], ids=["ReLU", "no ReLU"])
def minimum(request):
    return request.param, minimize_unconstrained_features(COUNTS, 8, nonnegative=request.param)


def by_hand(features, labels, temperature=1.0):
    """Equation 1 of the paper, pair by pair."""
    loss = 0.0
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        for j in positives:
            gaps = [(features[i] @ (features[a] - features[j])) / temperature for a in others]
            loss += np.log(np.sum(np.exp(gaps))) / len(positives)
    return loss


def test_bound_is_the_loss_of_an_orthogonal_frame():
    assert orthogonal_frame_loss(COUNTS) == pytest.approx(61.8249, abs=1e-4)
    frame = np.eye(5)[np.repeat(np.arange(3), [4, 2, 3])]
    labels = np.repeat(np.arange(3), [4, 2, 3])
    expected = by_hand(frame, labels, 0.3)
    assert orthogonal_frame_loss([4, 2, 3], 0.3) == pytest.approx(expected, rel=1e-12)


def test_no_nonnegative_features_are_below_the_bound(rng):
    labels = np.repeat(np.arange(4), COUNTS)
    for noise in (0.01, 0.1, 1.0):
        features = np.abs(np.eye(8)[labels] + noise * rng.normal(size=(24, 8)))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        assert by_hand(features, labels) > orthogonal_frame_loss(COUNTS)


def test_minimum_is_an_orthogonal_frame_with_a_relu_only(minimum):
    nonnegative, found = minimum
    bound = orthogonal_frame_loss(COUNTS)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, rtol=1e-12)
    assert found.loss == pytest.approx(by_hand(found.features, found.labels), rel=1e-10)
    if nonnegative:
        assert found.features.min() >= 0
        assert found.loss == pytest.approx(bound, abs=1e-4)
        np.testing.assert_allclose(found.gram, np.eye(4), atol=1e-3)
    else:
        assert found.loss == pytest.approx(57.508, abs=1e-2)
        assert found.gram[0, 1] == pytest.approx(-0.77, abs=0.01)
        assert found.gram[2, 3] == pytest.approx(0.28, abs=0.01)


def test_features_collapse(minimum):
    nonnegative, found = minimum
    metrics = neural_collapse_metrics(found.features, found.labels)
    assert metrics.variability < 1e-6
    assert (metrics.orthogonal_frame < 1e-3) == nonnegative


def test_binding_closes_the_angles_that_batches_leave_open():
    labels = np.repeat(np.arange(4), COUNTS)
    pairs = [np.flatnonzero(labels < 2), np.flatnonzero(labels >= 2)]
    bound = [np.union1d(pair, [0, 10, 20, 22]) for pair in pairs]
    opened, closed = (
        minimize_unconstrained_features(COUNTS, 8, batches=batches) for batches in (pairs, bound)
    )
    assert np.abs(opened.gram - np.eye(4)).max() > 0.1
    np.testing.assert_allclose(closed.gram, np.eye(4), atol=1e-2)


def test_balanced_classes_without_a_relu_are_a_simplex():
    found = minimize_unconstrained_features([3, 3, 3], 4, nonnegative=False)
    metrics = neural_collapse_metrics(found.features, found.labels)
    assert metrics.simplex_frame < 1e-5
    np.testing.assert_allclose(found.gram, 1.5 * np.eye(3) - 0.5, atol=1e-5)


def test_orthogonal_frame_distance(rng):
    rotation = ortho_group.rvs(5, random_state=0)
    assert orthogonal_frame_distance(3.0 * rotation[:4]) == pytest.approx(0, abs=1e-12)
    # G = [[1, c], [c, 1]]: with its norm, ||G / |G| - I / sqrt 2||^2 = 2 - 2 tr G / (|G| sqrt 2).
    c = 0.6
    means = [[1.0, 0.0], [c, np.sqrt(1 - c * c)]]
    expected = np.sqrt(2 - 2 * 2 / np.sqrt(2 * (2 + 2 * c * c)))
    assert orthogonal_frame_distance(means) == pytest.approx(expected, rel=1e-12)


def test_centred_orthogonal_frame_is_a_simplex(rng):
    labels = np.repeat(np.arange(3), [5, 2, 4])
    features = 2.0 * np.eye(6)[labels]
    metrics = neural_collapse_metrics(features, labels)
    assert metrics.simplex_frame < 1e-12
    assert metrics.variability == 0
    assert metrics.largest_cosine == 0


def test_variability_in_one_dimension_by_hand():
    # Means 0 and 4, variance within 1 in both: S_W = 1, S_B = 4, so 1 / 4 / 2.
    metrics = neural_collapse_metrics([[-1.0], [1.0], [3.0], [5.0]], ["a", "a", "b", "b"])
    assert metrics.variability == pytest.approx(1 / 8)


def test_variability_does_not_see_rotation_and_scale(rng):
    labels = np.repeat(np.arange(3), 10)
    features = np.eye(5)[labels] + 0.1 * rng.normal(size=(30, 5))
    moved = 7.0 * features @ ortho_group.rvs(5, random_state=0) + 3.0
    expected = neural_collapse_metrics(features, labels).variability
    assert neural_collapse_metrics(moved, labels).variability == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthogonal_frame_distance([1.0, 2.0]), r"`means` must be \[k, d\]"),
        (lambda: orthogonal_frame_distance(np.zeros((2, 2))), "must not all be the same"),
        (lambda: neural_collapse_metrics(np.eye(2), [0, 0]), "`labels` must hold at least two"),
        (lambda: neural_collapse_metrics(np.eye(2), [0, 1, 2]), r"shapes \(2, 2\) and \(3,\)"),
        (lambda: orthogonal_frame_loss([3, 1]), r"`counts` must be .* Received: \[3, 1\]"),
        (lambda: orthogonal_frame_loss([3, 2], 0.0), "`temperature` must be .* Received: 0.0"),
        (lambda: minimize_unconstrained_features([2, 2], 0), "`dim` must be a positive integer"),
        (
            lambda: minimize_unconstrained_features([2, 2], 3, batches=[[0, 4]]),
            r"`batches` must be numbers in \[0, 4\)",
        ),
    ],
)
def test_refuses_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
