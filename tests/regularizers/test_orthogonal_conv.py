import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize

from kzoo.analysis.conv_spectrum import conv_singular_values
from kzoo.regularizers.orthogonal_conv import OrthogonalConv, orthogonality_loss

pytestmark = pytest.mark.paper(
    "Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks"
)


def circular_matrix(kernel, side, stride):
    """By loops over positions: y[i] = sum_u K[u] x[i S + u], of a square signal."""
    k, _, channels, filters = kernel.shape
    outputs = side // stride
    matrix = np.zeros([outputs, outputs, filters, side, side, channels])
    for i in range(outputs):
        for j in range(outputs):
            for u in range(k):
                for v in range(k):
                    row, column = (i * stride + u) % side, (j * stride + v) % side
                    matrix[i, j, :, row, column] += kernel[u, v].T
    return matrix.reshape(outputs**2 * filters, side**2 * channels)


@pytest.mark.parametrize(
    ("filters", "channels", "size", "stride", "blocks"),
    [(3, 2, 3, 2, 4), (4, 4, 3, 1, 5), (9, 2, 3, 2, 3), (5, 1, 2, 1, 4)],
    ids=["rows", "square", "columns", "even"],
)
def test_it_is_the_distance_to_an_isometry(rng, filters, channels, size, stride, blocks):
    kernel = 0.4 * rng.normal(size=(size, size, channels, filters))
    matrix = circular_matrix(kernel, stride * blocks, stride)
    gram = matrix @ matrix.T if filters <= channels * stride**2 else matrix.T @ matrix
    expected = np.sum((gram - np.eye(len(gram))) ** 2) / blocks**2
    np.testing.assert_allclose(orthogonality_loss(kernel, stride), expected, rtol=1e-10)


def test_by_hand():
    # [1, 2] has length 5 and the product 2 with its shifts to both sides: (5 - 1)^2 + 2 * 2^2.
    kernel = np.array([1.0, 2.0]).reshape(2, 1, 1)
    np.testing.assert_allclose(OrthogonalConv(0.5)(kernel), 0.5 * 24)
    # With the stride 2 there are no overlapping shifts.
    np.testing.assert_allclose(OrthogonalConv(0.5, strides=2)(kernel), 0.5 * 16)


def descend(filters, channels, size, stride, rng, penalty=orthogonality_loss):
    """(kernel, loss) where descent from a random kernel ends."""
    shape = size, size, channels, filters

    @tf.function
    def value_and_gradient(flat):
        with tf.GradientTape() as tape:
            tape.watch(flat)
            loss = penalty(tf.reshape(flat, shape), stride)
        return loss, tape.gradient(loss, flat)

    start = rng.normal(size=shape).ravel() / size
    found = minimize(
        lambda flat: [each.numpy() for each in value_and_gradient(tf.constant(flat))],
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return found.x.reshape(shape), found.fun


def flattened_orthogonality(kernel, _):
    """What orthogonal rows of the flattened kernel ask for."""
    rows = tf.reshape(kernel, [-1, kernel.shape[-1]])
    return tf.reduce_sum(tf.square(tf.matmul(rows, rows, transpose_a=True) - np.eye(rows.shape[1])))


def test_descent_finds_an_isometry_of_signals_of_any_size(float64, rng):
    kernel, loss = descend(3, 2, 3, 2, rng)
    assert loss < 1e-6
    for side in (6, 8, 14):
        values = conv_singular_values(kernel, side, 2)
        np.testing.assert_allclose(values, 1.0, atol=1e-3)


def test_descent_stalls_where_there_is_none(float64, rng):
    # 20 filters of 2 x 3 x 3 values cannot be orthogonal to each other.
    assert descend(20, 2, 3, 4, rng)[1] > 1e-2


def test_orthogonal_flattened_kernels_are_no_isometry(float64, rng):
    kernel, loss = descend(3, 2, 3, 2, rng, flattened_orthogonality)
    assert loss < 1e-6
    assert np.ptp(conv_singular_values(kernel, 8, 2)) > 0.1


def test_in_a_layer():
    layer = keras.layers.Conv2D(
        4, 3, strides=(2, 1), kernel_regularizer=OrthogonalConv(0.1, strides=(2, 1))
    )
    model = keras.Sequential([keras.Input([8, 8, 3]), layer])
    expected = 0.1 * orthogonality_loss(layer.kernel, (2, 1))
    np.testing.assert_allclose(model.losses[0], expected, rtol=1e-6)
    again = keras.Sequential.from_config(model.get_config())
    assert again.layers[0].kernel_regularizer.strides == [2, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OrthogonalConv(-1), "`strength` must be a number of at least 0. Received: -1"),
        (lambda: OrthogonalConv(strides=0), "`strides` must be a positive integer or several"),
        (lambda: OrthogonalConv()(np.ones([2, 2])), "`kernel` must be"),
        (lambda: OrthogonalConv(1, [1, 1])(np.ones([2, 1, 1])), "`strides` must be one or 1"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
