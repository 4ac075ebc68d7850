import numpy as np
import pytest

from kzoo.losses.prototype_patches import (
    PrototypeClusterLoss,
    PrototypeSeparationLoss,
    orthonormality_loss,
    support_closeness_loss,
    trivial_discrimination_loss,
)

pytestmark = [
    pytest.mark.paper(
        "Learning Support and Trivial Prototypes for Interpretable Image Classification"
    ),
    pytest.mark.paper("This Looks Like That: Deep Learning for Interpretable Image Recognition"),
]


def by_loops(labels, distances, per_class):
    """ProtoPNet's cluster and separation costs."""
    cluster = separation = 0.0
    for label, row in zip(labels, distances, strict=True):
        own = [d for j, d in enumerate(row) if j // per_class == label]
        other = [d for j, d in enumerate(row) if j // per_class != label]
        cluster += min(own) / len(labels)
        separation -= min(other) / len(labels)
    return cluster, separation


def test_cluster_and_separation_of_distances(rng):
    # Distances beyond any fixed bound: a mask that multiplies would take the masked ones.
    distances = rng.uniform(5.0, 2000.0, size=(9, 12)).astype("float32")
    labels = rng.integers(0, 4, 9)
    cluster, separation = by_loops(labels, distances, 3)
    np.testing.assert_allclose(PrototypeClusterLoss(3)(labels, -distances), cluster, rtol=1e-6)
    actual = PrototypeSeparationLoss(3)(labels, -distances)
    np.testing.assert_allclose(actual, separation, rtol=1e-6)


def test_cluster_and_separation_of_similarities_by_hand():
    # Class 1 owns the last two of four prototypes.
    similarities = [[0.9, -0.2, -0.5, -0.1]]
    np.testing.assert_allclose(PrototypeClusterLoss(2)([[1]], similarities), 0.1, rtol=1e-6)
    np.testing.assert_allclose(PrototypeSeparationLoss(2)([1], similarities), 0.9, rtol=1e-6)


def unit_prototypes(rng, shape=(4, 3, 5)):
    prototypes = rng.normal(size=shape)
    return prototypes / np.linalg.norm(prototypes, axis=-1, keepdims=True)


def test_closeness_and_discrimination(rng):
    prototypes = unit_prototypes(rng)
    least, greatest = [], []
    for c in range(4):
        for d in range(4):
            if c != d:
                products = [p @ q for p in prototypes[c] for q in prototypes[d]]
                least.append(min(products))
                greatest.append(max(products))
    np.testing.assert_allclose(support_closeness_loss(prototypes), -np.mean(least))
    np.testing.assert_allclose(trivial_discrimination_loss(prototypes), np.mean(greatest))


def test_closeness_is_least_where_all_prototypes_are_one(rng):
    same = np.broadcast_to(unit_prototypes(rng, [1, 1, 5]), [3, 2, 5])
    np.testing.assert_allclose(support_closeness_loss(same), -1.0)
    np.testing.assert_allclose(trivial_discrimination_loss(same), 1.0)


def test_orthonormality_by_hand():
    # P P^T - I = [[0, 1], [1, 0]] for the first class (twice the same vector), 0 for the second.
    prototypes = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    assert orthonormality_loss(prototypes) == 2.0
    # [[3, 2], [2, 0]]: a first vector of length 2.
    prototypes[0, 0] = 2.0, 0.0
    assert orthonormality_loss(prototypes) == 7.0
    assert orthonormality_loss(prototypes, norm="frobenius") == 17.0


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="`prototypes_per_class` must be an integer"):
        PrototypeClusterLoss(0)
    with pytest.raises(ValueError, match=r"proximities \[batch, prototypes\] of 2 prototypes"):
        PrototypeClusterLoss(2)([0], [[0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="must have prototypes of two classes"):
        PrototypeSeparationLoss(2)([0], [[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"at least 2 class\(es\). Received: shape \(1, 2, 3\)"):
        support_closeness_loss(np.zeros([1, 2, 3]))
    with pytest.raises(ValueError, match='`norm` must be "l1" or "frobenius"'):
        orthonormality_loss(np.zeros([2, 2, 3]), norm="l2")
