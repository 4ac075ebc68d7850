import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from kzoo.ops.grassmann import (
    geodesic,
    orthonormalized,
    polished,
    principal_angles,
    to_tangent,
)

pytestmark = pytest.mark.paper(
    "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class "
    "Representation"
)


def basis(rng, *shape):
    return tf.linalg.qr(tf.constant(rng.normal(size=shape)))[0]


def test_principal_angles_are_scipys(rng):
    s, t = basis(rng, 7, 3), basis(rng, 7, 3)
    expected = np.sort(scipy.linalg.subspace_angles(s.numpy(), t.numpy()))
    np.testing.assert_allclose(principal_angles(s, t), expected, rtol=1e-9)


@pytest.mark.parametrize("length", [1e-6, 0.01, 0.7])
def test_a_geodesic_moves_by_its_length(rng, length):
    s = basis(rng, 4, 7, 3)
    d = to_tangent(s, tf.constant(rng.normal(size=(4, 7, 3))))
    d *= length / tf.norm(d, axis=[1, 2], keepdims=True)
    angles = principal_angles(s, geodesic(s, d))
    np.testing.assert_allclose(tf.norm(angles, axis=1), length, rtol=1e-8)


def test_a_geodesic_is_that_of_the_singular_values(rng):
    """Also where they vanish: the direction has rank 1."""
    s = basis(rng, 7, 3)
    for d in (rng.normal(size=(7, 3)), np.outer(rng.normal(size=7), rng.normal(size=3))):
        d = to_tangent(s, tf.constant(d))
        u, sigma, vt = np.linalg.svd(d, full_matrices=False)
        expected = s @ vt.T @ np.diag(np.cos(sigma)) @ vt + u @ np.diag(np.sin(sigma)) @ vt
        np.testing.assert_allclose(geodesic(s, d), expected, atol=1e-10)
        np.testing.assert_allclose(tf.transpose(s) @ to_tangent(s, d), np.zeros((3, 3)), atol=1e-12)


def test_a_geodesic_closes_after_a_half_turn(rng):
    s, t = basis(rng, 5, 1), basis(rng, 5, 1)
    d = to_tangent(s, t)
    np.testing.assert_allclose(geodesic(s, np.pi * d / tf.norm(d)), -s, atol=1e-12)


def test_polishing_squares_the_error_and_keeps_the_span(rng):
    s = basis(rng, 6, 3) + 1e-4 * rng.normal(size=(6, 3))
    better = polished(s)
    gram = tf.transpose(better) @ better
    assert np.abs(gram - np.eye(3)).max() < 1e-6
    np.testing.assert_allclose(principal_angles(basis_of(s), basis_of(better)), 0, atol=1e-12)


def basis_of(s):
    return tf.linalg.qr(s)[0]


def test_orthonormalized_is_the_polar_factor(rng):
    s = rng.normal(size=(2, 6, 3))
    expected = [scipy.linalg.polar(each)[0] for each in s]
    np.testing.assert_allclose(orthonormalized(tf.constant(s)), expected, atol=1e-10)
