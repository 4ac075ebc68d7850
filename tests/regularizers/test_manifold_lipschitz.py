import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from kzoo.regularizers.manifold_lipschitz import (
    LaplacianPenalty,
    heat_kernel_graph,
    squared_local_gradients,
)

pytestmark = pytest.mark.paper("Learning Globally Smooth Functions on Manifolds")


def dense_weights(points, neighbors, temperature):
    """Straight from the definition, with all pairs."""
    distances = cdist(points, points)
    near = np.argsort(distances, axis=1)[:, 1 : neighbors + 1]
    linked = np.zeros(distances.shape, bool)
    np.put_along_axis(linked, near, True, axis=1)
    linked |= linked.T
    return linked * np.exp(-(distances**2) / (4 * temperature))


@pytest.fixture
def cloud(rng):
    points = rng.normal(size=(30, 3))
    return points, *heat_kernel_graph(points, neighbors=4, temperature=0.3)


def test_graph_against_the_definition(cloud):
    points, edges, weights, lengths = cloud
    assert (edges[:, 0] < edges[:, 1]).all()
    dense = np.zeros([30, 30])
    dense[tuple(edges.T)] = weights
    np.testing.assert_allclose(dense + dense.T, dense_weights(points, 4, 0.3), rtol=1e-9)
    expected = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    np.testing.assert_allclose(lengths, expected, rtol=1e-12)


def test_default_temperature_is_that_of_the_median_edge(rng):
    _, weights, lengths = heat_kernel_graph(rng.normal(size=(21, 2)), neighbors=3)
    # exp(-l^2 / (4 t)) with 4 t the median of l^2.
    np.testing.assert_allclose(weights, np.exp(-(lengths**2) / np.median(lengths**2)), rtol=1e-9)


def test_equal_multipliers_give_the_laplacian(cloud, rng):
    points, edges, weights, _ = cloud
    f = rng.normal(size=(30, 2))
    dense = dense_weights(points, 4, 0.3)
    laplacian = np.diag(dense.sum(axis=1)) - dense
    penalty = LaplacianPenalty(edges, weights)
    trace = np.trace(f.T @ laplacian @ f)
    np.testing.assert_allclose(penalty(f, np.full(30, 0.7)), 2 * 0.7 * trace, rtol=1e-9)
    np.testing.assert_allclose(penalty(f), 2 * trace, rtol=1e-9)


def test_multipliers_weigh_the_pairs_of_their_points(cloud, rng):
    points, edges, weights, _ = cloud
    f, mu = rng.normal(size=(30, 2)), rng.uniform(size=30)
    dense = dense_weights(points, 4, 0.3)
    expected = sum(
        mu[i] * dense[i, j] * np.sum((f[i] - f[j]) ** 2) for i in range(30) for j in range(30)
    )
    np.testing.assert_allclose(LaplacianPenalty(edges, weights)(f, mu), expected, rtol=1e-9)


def test_by_hand():
    penalty = LaplacianPenalty(edges=[[0, 1], [1, 2]], weights=[1.0, 2.0])
    assert float(penalty([[1.0], [2.0], [5.0]], [1.0, 0.0, 3.0])) == 1 + 2 * 3 * 9
    assert LaplacianPenalty.from_config(penalty.get_config()).weights == [1.0, 2.0]


def test_local_gradients_by_hand():
    # On a line at 0, 1, 3 with f = 0, 2, 3: slopes 2 and 1/2, the middle 2 (4 + 3 * 1) / (1 + 12).
    edges, weights, lengths = np.array([[0, 1], [1, 2]]), [1.0, 3.0], [1.0, 2.0]
    g = squared_local_gradients([[0.0], [2.0], [3.0]], edges, weights, lengths)
    np.testing.assert_allclose(g, [4.0, 7 / 13, 0.25], rtol=1e-6)
    doubled = squared_local_gradients([[0.0], [2.0], [3.0]], edges, weights, lengths, 2)
    np.testing.assert_allclose(doubled, 2 * g, rtol=1e-6)


def test_a_linear_function_on_a_grid_has_its_gradient():
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2)
    g = squared_local_gradients(grid @ [[3.0], [4.0]], *heat_kernel_graph(grid, 4), dimension=2)
    # Points at the border look further for their neighbours.
    inner = (np.abs(grid - 4) < 2).all(axis=1)
    np.testing.assert_allclose(np.asarray(g)[inner], 25.0, rtol=1e-6)


def test_the_sine_on_a_circle(rng):
    angles = rng.uniform(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    g = squared_local_gradients(np.sin(angles)[:, np.newaxis], *heat_kernel_graph(circle))
    steepness = np.sqrt(g)
    assert abs(steepness.max() - 1) < 0.15
    assert np.corrcoef(steepness, np.abs(np.cos(angles)))[0, 1] > 0.99


def test_points_in_one_place_have_no_gradient():
    f = tf.constant([[0.0], [1.0]])
    with tf.GradientTape() as tape:
        tape.watch(f)
        g = squared_local_gradients(f, np.array([[0, 1]]), [1.0], [0.0])
    np.testing.assert_array_equal(g, [0.0, 0.0])
    assert np.isfinite(tape.gradient(g, f)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heat_kernel_graph(np.zeros(3)), r"`points` must be \[n, ...\]"),
        (lambda: heat_kernel_graph(np.eye(3), 3), "`neighbors` must be an integer from 1 to 2"),
        (lambda: heat_kernel_graph(np.eye(3), 1, 0), "`temperature` must be above 0"),
        (lambda: heat_kernel_graph(np.zeros([3, 2]), 1), "`points` must lie apart"),
        (lambda: LaplacianPenalty([[0.5, 1]], [1]), "`edges` must be integers"),
        (lambda: LaplacianPenalty([[-1, 1]], [1]), "`edges` must name points from 0"),
        (lambda: LaplacianPenalty([[0, 1]], [-1]), "`weights` must be 1 finite numbers"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
