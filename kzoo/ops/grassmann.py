"""The Grassmannian of k-dimensional subspaces of R^n, as orthonormal bases S [..., n, k].

Tangent vectors at S are matrices D with S^T D = 0. The geodesic in the direction D = U Sigma V^T is

    S(t) = S V cos(t Sigma) V^T + U sin(t Sigma) V^T

and moves the subspace by principal angles t Sigma, a distance of t ||D||.
"""

import tensorflow as tf


def to_tangent(s, d):
    """(I - S S^T) D: the part of `d` [..., n, k] that is tangent at the subspace of `s`."""
    return d - tf.matmul(s, tf.matmul(s, d, transpose_a=True))


def geodesic(s, d):
    """The basis [..., n, k] at the end of the geodesic from `s` in the tangent direction `d`.

    With D^T D = V Sigma^2 V^T, V cos(Sigma) V^T and V sin(Sigma) / Sigma V^T are functions of a
    [k, k] matrix: its eigenvectors take the place of the singular vectors of D, of which there are
    n / k times more numbers. They are smooth where singular values meet or vanish.
    """
    squares, v = tf.linalg.eigh(tf.matmul(d, d, transpose_a=True))
    angles = tf.sqrt(tf.maximum(squares, 1e-30))[..., None, :]
    stay = tf.matmul(v * tf.cos(angles), v, transpose_b=True)
    go = tf.matmul(v * (tf.sin(angles) / angles), v, transpose_b=True)
    return tf.matmul(s, stay) + tf.matmul(d, go)


def polished(s):
    """One step of Newton and Schulz, S (3 I - S^T S) / 2, towards the nearest orthonormal basis.

    It squares the distance of a basis that is nearly orthonormal, keeps the span and, unlike a QR
    decomposition, does not turn the basis.
    """
    gram = tf.matmul(s, s, transpose_a=True)
    return 1.5 * s - 0.5 * tf.matmul(s, gram)


def orthonormalized(s):
    """The orthonormal basis nearest to `s` [..., n, k] of its span; columns are independent."""
    squares, v = tf.linalg.eigh(tf.matmul(s, s, transpose_a=True))
    inverse_root = tf.math.rsqrt(tf.maximum(squares, 1e-30))[..., None, :]
    near = tf.matmul(s, tf.matmul(v * inverse_root, v, transpose_b=True))
    return polished(near)


def principal_angles(s, t):
    """The principal angles between the subspaces of two bases, [..., k], in rising order.

    Of small angles the sines are taken, of which the cosines are too coarse.
    """
    cosines = tf.linalg.svd(tf.matmul(s, t, transpose_a=True), compute_uv=False)
    sines = tf.linalg.svd(to_tangent(s, t), compute_uv=False)
    return tf.atan2(tf.reverse(sines, [-1]), cosines)
