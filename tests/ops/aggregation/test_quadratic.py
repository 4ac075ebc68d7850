import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import nnls

from kzoo.ops.aggregation.quadratic import nonnegative_quadratic, project_onto_dual_cone

pytestmark = pytest.mark.paper("Jacobian Descent for Multi-Objective Optimization")

MATRIX = tf.TensorSpec([None, None], tf.float64)


@pytest.fixture(scope="module")
def solve():
    return tf.function(nonnegative_quadratic, input_signature=[MATRIX, MATRIX])


def random_jacobian(rng, kind):
    rows, columns = rng.integers(1, 15, 2)
    jacobian = rng.normal(size=(rows, columns))
    if kind == "badly scaled":
        jacobian *= 10.0 ** rng.uniform(-6, 6, (rows, 1))
    if kind == "dependent":
        jacobian[rows // 2] = jacobian[0]
        jacobian[-1] = -2 * jacobian[0]
    if kind == "zero row":
        jacobian[0] = 0
    return jacobian


@pytest.mark.parametrize("kind", ["generic", "badly scaled", "dependent", "zero row"])
def test_equals_scipys_nonnegative_least_squares(solve, rng, kind):
    # min_{w >= 0} ||J^T w - x||^2 has G = J J^T and c = -J x.
    for _ in range(25):
        jacobian = random_jacobian(rng, kind)
        targets = rng.normal(size=(3, jacobian.shape[1]))
        found = solve(jacobian @ jacobian.T, -targets @ jacobian.T).numpy()
        assert found.min() >= 0
        for weights, target in zip(found, targets, strict=True):
            expected, _ = nnls(jacobian.T, target)
            # The weights of dependent rows are not unique, their combination is.
            np.testing.assert_allclose(
                jacobian.T @ weights, jacobian.T @ expected, atol=1e-9 * np.linalg.norm(target)
            )


def test_by_hand():
    # min 2 a^2 + 2 b^2 + 2 a b - 4 a - b: b would be -2/3 and is held at 0, so a = 1.
    gramian = np.array([[4.0, 2.0], [2.0, 4.0]])
    found = nonnegative_quadratic(tf.constant(gramian), tf.constant([[-4.0, -1.0]], tf.float64))
    np.testing.assert_allclose(found, [[1.0, 0.0]], atol=1e-15)


def test_compiled_by_xla_for_many_rows(rng):
    jacobian = rng.normal(size=(40, 30))
    compiled = tf.function(project_onto_dual_cone, jit_compile=True)
    found = compiled(jacobian @ jacobian.T, tf.eye(40, dtype=tf.float64)).numpy()
    for row, weights in zip(jacobian[:5], found, strict=False):
        expected = row + jacobian.T @ nnls(jacobian.T, -row)[0]
        np.testing.assert_allclose(jacobian.T @ weights, expected, atol=1e-9)


def test_nan_ends(solve):
    assert solve(np.full([3, 3], np.nan), np.ones([2, 3])).shape == (2, 3)


def test_an_unbounded_problem_ends_and_shows_it(solve):
    # Along (1, 1) the quadratic form is 0 and the linear one falls for ever.
    gramian, linear = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([[-1.0, -1.0]])
    found = solve(gramian, linear).numpy()
    assert np.isfinite(found).all()
    assert (found @ gramian + linear).min() < -0.5
