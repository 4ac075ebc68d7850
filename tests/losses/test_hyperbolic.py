import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses.hyperbolic import HyperbolicPairwiseConfusion
from kzoo.ops import poincare as ball

pytestmark = [
    pytest.mark.paper("Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing"),
    pytest.mark.usefixtures("float64"),
]


def arcosh_distance(x, y, c):
    inside = (1 - c * x @ x) * (1 - c * y @ y)
    return math.acosh(1 + 2 * c * (x - y) @ (x - y) / inside) / math.sqrt(c)


def points(rng, count, c):
    return rng.uniform(-0.5, 0.5, size=(count, 3)) / math.sqrt(c)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_all_pairs(rng, c):
    x = points(rng, 5, c)
    expected = np.mean([arcosh_distance(a, b, c) for a, b in itertools.combinations(x, 2)])
    actual = HyperbolicPairwiseConfusion(c)(np.zeros(5), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_halves(rng):
    x = points(rng, 6, 1.0)
    expected = np.mean([arcosh_distance(x[i], x[i + 3], 1.0) for i in range(3)])
    actual = HyperbolicPairwiseConfusion(pairs="halves")(np.zeros(6), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_zero_for_equal_points_only(rng):
    loss = HyperbolicPairwiseConfusion()
    same = np.tile(points(rng, 1, 1.0), (4, 1))
    assert abs(float(loss(np.zeros(4), same))) < 1e-13
    same[2, 0] += 1e-3
    assert float(loss(np.zeros(4), same)) > 1e-4
    assert abs(float(loss(np.zeros(1), same[:1]))) < 1e-13


@pytest.mark.parametrize("pairs", ["all", "halves"])
def test_moving_all_points_changes_nothing(rng, pairs):
    x, shift = tf.constant(points(rng, 6, 1.0)), tf.constant([0.3, -0.4, 0.2], tf.float64)
    loss = HyperbolicPairwiseConfusion(pairs=pairs)
    moved = loss(np.zeros(6), ball.mobius_add(shift, x))
    np.testing.assert_allclose(moved, loss(np.zeros(6), x), rtol=1e-9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`pairs` must be one of all, halves"):
        HyperbolicPairwiseConfusion(pairs="some")
    with pytest.raises(ValueError, match="`curvature`"):
        HyperbolicPairwiseConfusion(curvature=0.0)
    with pytest.raises(ValueError, match="`y_pred` must be"):
        HyperbolicPairwiseConfusion()(np.zeros(2), np.zeros((2, 3, 1)))
