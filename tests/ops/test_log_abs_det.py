import numpy as np
import pytest
import tensorflow as tf

from kzoo.ops.log_abs_det import log_abs_det

pytestmark = pytest.mark.paper(
    "Density Modeling of Images using a Generalized Normalization Transformation"
)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_is_numpys_slogdet(rng, jit_compile):
    matrices = rng.normal(size=(2, 3, 4, 4))
    function = tf.function(log_abs_det, jit_compile=jit_compile)
    np.testing.assert_allclose(
        function(tf.constant(matrices)), np.linalg.slogdet(matrices)[1], rtol=1e-10
    )


def test_first_and_second_derivatives(rng):
    matrices = tf.constant(rng.normal(size=(2, 3, 3)))
    with tf.GradientTape() as outer:
        outer.watch(matrices)
        with tf.GradientTape() as inner:
            inner.watch(matrices)
            total = tf.reduce_sum(tf.constant([1.0, 2], "float64") * log_abs_det(matrices))
        gradient = inner.gradient(total, matrices)
        again = tf.reduce_sum(gradient**2)
    second = outer.gradient(again, matrices)

    def reference(matrices):
        return tf.reduce_sum(tf.constant([1.0, 2], "float64") * tf.linalg.slogdet(matrices)[1])

    with tf.GradientTape() as outer:
        outer.watch(matrices)
        with tf.GradientTape() as inner:
            inner.watch(matrices)
            total = reference(matrices)
        expected = inner.gradient(total, matrices)
        again = tf.reduce_sum(expected**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(second, outer.gradient(again, matrices), rtol=1e-9)


def test_singular_matrices():
    assert log_abs_det(tf.zeros((2, 2))) == -np.inf
