import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses.prototype_interpretability import prototype_interpretability_terms

pytestmark = pytest.mark.paper(
    "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its "
    "Predictions"
)


def by_loops(points, prototypes):
    def distance(a, b):
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    r1 = sum(min(distance(p, x) for x in points) for p in prototypes) / len(prototypes)
    r2 = sum(min(distance(x, p) for p in prototypes) for x in points) / len(points)
    return r1, r2


def test_terms_are_the_double_loops(rng):
    # More points than prototypes: with the axes swapped both would be others.
    points, prototypes = rng.normal(size=(7, 3)), rng.normal(size=(2, 3))
    distances = ((points[:, None] - prototypes) ** 2).sum(-1)
    r1, r2 = prototype_interpretability_terms(distances)
    expected = by_loops(points, prototypes)
    np.testing.assert_allclose([r1, r2], expected, rtol=1e-12)
    assert abs(expected[0] - expected[1]) > 0.1


def test_numbers_of_the_docstring_and_weights():
    distances = [[1.0, 2.0, 6.0], [4.0, 3.0, 6.0]]
    r1, r2 = prototype_interpretability_terms(distances)
    assert (float(r1), float(r2)) == (3.0, 2.0)
    r1, r2 = prototype_interpretability_terms(distances, sample_weight=[0.0, 2.0])
    assert (float(r1), float(r2)) == (3.0, 3.0)


def test_gradients_reach_the_nearest_only():
    distances = tf.constant([[1.0, 2.0, 6.0], [4.0, 3.0, 7.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(distances)
        r1, r2 = prototype_interpretability_terms(distances)
    np.testing.assert_allclose(tape.gradient(r1, distances), np.array([[1, 1, 1], [0, 0, 0]]) / 3)
    np.testing.assert_allclose(tape.gradient(r2, distances), np.array([[1, 0, 0], [0, 1, 0]]) / 2)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`distances` must be \[batch, prototypes\]"):
        prototype_interpretability_terms([1.0, 2.0])
