import math

import numpy as np
import pytest
import tensorflow as tf

from kzoo.ops import poincare as ball

pytestmark = pytest.mark.paper("Poincaré ResNet")

CURVATURES = pytest.mark.parametrize("c", [0.1, 1.0, 2.5])


def points(rng, shape, c, radius=0.9):
    """Random points with |x| up to `radius` of the ball's."""
    x = rng.normal(size=shape)
    x *= radius * rng.uniform(size=(*shape[:-1], 1)) / np.linalg.norm(x, axis=-1, keepdims=True)
    return tf.constant(x / math.sqrt(c))


def arcosh_distance(x, y, c):
    x, y = np.asarray(x), np.asarray(y)
    inside = (1 - c * (x**2).sum(-1)) * (1 - c * (y**2).sum(-1))
    return np.arccosh(1 + 2 * c * ((x - y) ** 2).sum(-1) / inside) / math.sqrt(c)


def gradients(function, *x):
    x = [tf.convert_to_tensor(each) for each in x]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.sin(function(*x)))
    return tape.gradient(total, x)


@CURVATURES
def test_three_forms_of_the_distance_agree(rng, c):
    x, y = points(rng, (20, 3), c), points(rng, (20, 3), c)
    actual = ball.distance(x, y, c)
    np.testing.assert_allclose(actual, arcosh_distance(x, y, c), rtol=1e-10)
    norms = np.linalg.norm(ball.mobius_add(-x, y, c), axis=-1)
    np.testing.assert_allclose(
        actual, 2 / math.sqrt(c) * np.arctanh(math.sqrt(c) * norms), rtol=1e-10
    )


def test_small_distances_are_exact_in_float32():
    """arcosh(1 + e) loses them: for |x - y| = 1e-5 the sum rounds to 1 or its neighbour."""
    x = tf.constant([[0.5, 0.0]])
    y = x + tf.constant([[0.0, 1e-5]])
    np.testing.assert_allclose(ball.distance(x, y)[0], 2e-5 / 0.75, rtol=1e-5)


@CURVATURES
def test_exp_and_log_are_inverse(rng, c):
    x, y = points(rng, (20, 4), c), points(rng, (20, 4), c)
    np.testing.assert_allclose(ball.expmap(x, ball.logmap(x, y, c), c), y, atol=1e-10)
    np.testing.assert_allclose(ball.expmap0(ball.logmap0(y, c), c), y, atol=1e-10)
    v = tf.constant(rng.normal(size=(20, 4))) / (2 * math.sqrt(c))
    np.testing.assert_allclose(ball.logmap0(ball.expmap0(v, c), c), v, rtol=1e-8)


def test_exp_and_log_reach_from_one_end_to_the_other_in_float32():
    x = tf.constant([[0.99, 0.0]])
    np.testing.assert_allclose(ball.expmap(x, ball.logmap(x, -x)), -x, rtol=1e-2)


@CURVATURES
def test_a_tangent_vector_is_as_long_as_its_geodesic(rng, c):
    x, v = points(rng, (20, 3), c, 0.6), tf.constant(0.4 * rng.normal(size=(20, 3)))
    length = np.linalg.norm(ball.conformal_factor(x, c) * v, axis=-1)
    np.testing.assert_allclose(ball.distance(x, ball.expmap(x, v, c), c), length, rtol=1e-8)


@CURVATURES
def test_mobius_addition(rng, c):
    x, y, z = (points(rng, (20, 3), c, 0.6) for _ in range(3))
    np.testing.assert_allclose(ball.mobius_add(-x, ball.mobius_add(x, y, c), c), y, atol=1e-10)
    left = ball.mobius_add(x, ball.mobius_add(y, z, c), c)
    turned = ball.gyration(x, y, z, c)
    np.testing.assert_allclose(
        left, ball.mobius_add(ball.mobius_add(x, y, c), turned, c), atol=1e-10
    )
    moved = ball.distance(ball.mobius_add(z, x, c), ball.mobius_add(z, y, c), c)
    np.testing.assert_allclose(moved, ball.distance(x, y, c), rtol=1e-9)


def test_mobius_addition_by_hand():
    """On a line it adds velocities as relativity does: (0.5 + 0.2) / (1 + 0.5 * 0.2)."""
    x, y = tf.constant([[0.5, 0.0]]), tf.constant([[0.2, 0.0]])
    np.testing.assert_allclose(ball.mobius_add(x, y), [[0.7 / 1.1, 0.0]], rtol=1e-6)


def test_backward_rule_of_the_addition_is_the_derivative(rng):
    c = 0.7
    x, y = points(rng, (5, 3), c), points(rng, (3,), c)

    def plain(x, y):
        xx, yy, xy = ball.squared_norm(x), ball.squared_norm(y), tf.reduce_sum(x * y, -1)[:, None]
        sums = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return sums / (1 + 2 * c * xy + c**2 * xx * yy)

    actual = gradients(lambda *z: ball.mobius_add(*z, c), x, y)
    for ours, expected in zip(actual, gradients(plain, x, y), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-3, 0.0099, 0.0101, 0.11, 0.5, 3.0])
@pytest.mark.parametrize("name", ["expmap0", "logmap0"])
def test_gradients_of_the_maps_at_all_sizes(rng, name, size):
    """Along the radius the slope is that of tanh or artanh, across it the quotient."""
    if name == "logmap0":
        size = math.tanh(size)
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-4)):
        v = tf.constant([[size, 0.0]], dtype)
        with tf.GradientTape() as tape:
            tape.watch(v)
            y = getattr(ball, name)(v)
        jacobian = tape.batch_jacobian(y, v)[0]
        if name == "expmap0":
            expected = [1 - math.tanh(size) ** 2, math.tanh(size) / size]
        else:
            expected = [1 / (1 - size**2), math.atanh(size) / size]
        np.testing.assert_allclose(np.diag(jacobian), expected, rtol=tolerance)


def test_second_derivatives(rng):
    v = tf.constant(rng.normal(size=(1, 3)))
    x = points(rng, (1, 3), 1.0)

    def slope(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            total = tf.reduce_sum(ball.mobius_add(x, ball.expmap0(v)) ** 2)
        return tape.gradient(total, v)

    theory, numeric = tf.test.compute_gradient(slope, [v], delta=1e-5)
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-7)


def test_parallel_transport_keeps_inner_products_and_the_geodesic(rng):
    c = 0.7
    x, y = points(rng, (20, 3), c), points(rng, (20, 3), c)
    u, v = tf.constant(rng.normal(size=(2, 20, 3)))

    def inner(at, u, v):
        return ball.conformal_factor(at, c)[:, 0] ** 2 * tf.reduce_sum(u * v, -1)

    moved = [ball.parallel_transport(x, y, each, c) for each in (u, v)]
    np.testing.assert_allclose(inner(y, *moved), inner(x, u, v), rtol=1e-9)
    along = ball.parallel_transport(x, y, ball.logmap(x, y, c), c)
    np.testing.assert_allclose(along, -ball.logmap(y, x, c), rtol=1e-8)


@CURVATURES
def test_midpoint_of_two_is_half_way_and_follows_the_points(rng, c):
    x, y, z = (points(rng, (3,), c, 0.8) for _ in range(3))
    middle = ball.gyromidpoint(tf.stack([x, y]), c=c)
    half = ball.distance(x, y, c) / 2
    np.testing.assert_allclose(ball.distance(x, middle, c), half, rtol=1e-9)
    np.testing.assert_allclose(ball.distance(y, middle, c), half, rtol=1e-9)
    cloud = points(rng, (7, 3), c)
    moved = ball.gyromidpoint(ball.mobius_add(z, cloud, c), c=c)
    np.testing.assert_allclose(moved, ball.mobius_add(z, ball.gyromidpoint(cloud, c=c), c))


def test_midpoint_weights_are_repetitions(rng):
    x = points(rng, (3, 4), 1.0)
    weights = tf.constant([[1.0], [2.0], [0.0]], tf.float64)
    np.testing.assert_allclose(
        ball.gyromidpoint(x, weights), ball.gyromidpoint(tf.gather(x, [0, 1, 1]))
    )


def test_flat_limits(rng):
    c = 1e-10
    x, y = tf.constant(rng.normal(size=(2, 5, 3)))
    kernel, offset = tf.constant(rng.normal(size=(3, 4))), tf.constant(rng.normal(size=4))
    pairs = [
        (ball.mobius_add(x, y, c), x + y),
        (ball.expmap(x, y, c), x + y),
        (ball.logmap(x, y, c), y - x),
        (ball.distance(x, y, c), 2 * np.linalg.norm(x - y, axis=-1)),
        (ball.gyromidpoint(x, c=c), np.mean(x, 0)),
        (ball.gyration(x, y, x, c), x),
        (
            ball.gyroplane_scores(x, kernel, offset, c),
            4 * (x @ kernel - np.linalg.norm(kernel, axis=0) * offset),
        ),
        (ball.from_scores(x, c), x / 2),
    ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, atol=1e-7)


def test_scores_are_scaled_distances_to_hyperplanes(rng):
    """|v_k| = 2 |z| d(x, H): d is found by moving the point against the hyperplane's foot."""
    c = 0.7
    x = points(rng, (6, 3), c)
    z, r = tf.constant(rng.normal(size=(3, 1))), tf.constant([0.3], tf.float64)
    unit = z[:, 0] / tf.norm(z)
    foot = ball.expmap0(r * unit, c)
    moved = ball.mobius_add(-foot, x, c)
    side = tf.linalg.matvec(moved, unit)
    sine = 2 * math.sqrt(c) * side / (1 - c * tf.reduce_sum(moved**2, -1))
    expected = 2 * tf.norm(z) / math.sqrt(c) * tf.asinh(sine)
    np.testing.assert_allclose(ball.gyroplane_scores(x, z, r, c)[:, 0], expected, rtol=1e-9)


def test_scores_of_tangent_vectors(rng):
    c = 0.7
    v = tf.constant(rng.normal(size=(6, 3)))
    kernel, offset = tf.constant(rng.normal(size=(3, 4))), tf.constant(rng.normal(size=4))
    expected = ball.gyroplane_scores(ball.expmap0(v, c), kernel, offset, c)
    actual = ball.tangent_gyroplane_scores(v @ kernel, ball.squared_norm(v), kernel, offset, c)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    theory, numeric = tf.test.compute_gradient(
        lambda v: ball.tangent_gyroplane_scores(
            v @ kernel, ball.squared_norm(v), kernel, offset, c
        ),
        [v[:1]],
    )
    np.testing.assert_allclose(theory[0], numeric[0], rtol=1e-5, atol=1e-6)


def test_point_of_scores_lies_at_those_distances_from_the_axes(rng):
    c, scores = 0.7, tf.constant(rng.normal(size=(5, 3)))
    y = ball.from_scores(scores, c)
    half_units = tf.eye(3, dtype=tf.float64) / 2
    zeros = tf.zeros(3, tf.float64)
    np.testing.assert_allclose(ball.gyroplane_scores(y, half_units, zeros, c), scores, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-8, 1.0, 10.0, 1e4])
def test_everything_stays_inside_and_finite(rng, scale):
    v = tf.constant(scale * rng.normal(size=(4, 3)), tf.float32)
    kernel, offset = tf.ones([3, 3]), tf.ones(3)
    functions = {
        "expmap0": ball.expmap0,
        "project": ball.project,
        "moved": lambda v: ball.move(ball.expmap0(v), 2 * v),
        "expmap": lambda v: ball.expmap(ball.expmap0(v), v),
        "midpoint": lambda v: ball.gyromidpoint(ball.expmap0(v)),
        "layer": lambda v: ball.from_scores(ball.gyroplane_scores(ball.expmap0(v), kernel, offset)),
        "distance": lambda v: ball.distance(ball.expmap0(v), ball.expmap0(v[::-1])),
        "logmap0": lambda v: ball.logmap0(ball.project(v)),
    }
    for name, function in functions.items():
        values = function(v)
        if name not in ("distance", "logmap0"):
            assert np.linalg.norm(values, axis=-1).max() <= 1 - 3.9e-3, name
        (found,) = gradients(function, v)
        assert np.isfinite(values).all(), name
        assert np.isfinite(found).all(), name


@pytest.mark.parametrize("c", [0, -1.0, math.inf, math.nan, "1", True])
def test_bad_curvature(c):
    with pytest.raises(ValueError, match="`c` must be a finite number above 0"):
        ball.expmap0(tf.ones([1, 2]), c)
