import numpy as np
import tensorflow as tf

from kzoo.ops.hessian import hessian_diagonal, hessian_vector_product, rademacher_like


def quartic(values):
    """sum_i a_i^4 / 12 + a' b, whose Hessian is known."""
    a, b = values
    return tf.reduce_sum(a**4) / 12 + tf.tensordot(a, b, 1)


def test_products_by_hand():
    a, b = tf.constant([1.0, 2.0]), tf.constant([3.0, -1.0])
    v = [tf.constant([1.0, 10.0]), tf.constant([5.0, 0.0])]
    gradients, products = hessian_vector_product(quartic, [a, b], v)
    # Gradients a^3 / 3 + b and a; blocks diag(a^2) and the identity.
    np.testing.assert_allclose(gradients[0], [10 / 3, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], [1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(products[0], [1 + 5, 40 + 0], rtol=1e-6)
    np.testing.assert_allclose(products[1], [1.0, 10.0], rtol=1e-6)


def test_what_the_function_ignores_has_zero_curvature():
    x, y = tf.constant([2.0]), tf.constant([[7.0]])
    _, products = hessian_vector_product(lambda v: v[0][0] ** 2, [x, y], [x, y])
    np.testing.assert_array_equal(products[0], [4.0])
    np.testing.assert_array_equal(products[1], [[0.0]])


def test_one_probe_is_exact_for_a_diagonal_hessian_also_under_xla():
    curvature = tf.constant([1.0, 10.0, 100.0])

    @tf.function(jit_compile=True)
    def diagonal(x):
        def half_square(values):
            return tf.reduce_sum(curvature * values[0] ** 2) / 2

        return hessian_diagonal(half_square, [x], [rademacher_like([x], (3, 4))])[0]

    np.testing.assert_allclose(diagonal(tf.ones([3])), curvature, rtol=1e-6)


def test_many_probes_approach_the_diagonal():
    rng = np.random.default_rng(0)
    hessian = rng.normal(size=(6, 6)).astype("float32")
    hessian = hessian + hessian.T
    x = [tf.zeros([6])]
    probes = [rademacher_like(x, (seed, 0)) for seed in range(400)]

    def quadratic(values):
        return tf.tensordot(values[0], tf.linalg.matvec(hessian, values[0]), 1) / 2

    (estimate,) = hessian_diagonal(quadratic, x, probes)
    off = np.sqrt((hessian**2).sum(0) - np.diag(hessian) ** 2)
    assert (np.abs(estimate - np.diag(hessian)) < 4 * off / np.sqrt(400)).all()
    assert np.unique(np.stack(probes)).tolist() == [-1.0, 1.0]
    first, second = rademacher_like([tf.zeros([50]), tf.zeros([50])], (0, 0))
    assert (first != second).numpy().any()
