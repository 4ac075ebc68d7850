import keras
import numpy as np
import pytest

from kzoo.analysis.conv_spectrum import (
    conv_matrix,
    conv_singular_values,
    isometry_error,
    orthogonal_conv_exists,
)
from kzoo.regularizers.orthogonal_conv import orthogonality_loss

pytestmark = pytest.mark.paper(
    "Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks"
)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_matrix_is_what_the_layer_does(float64, rng, padding):
    kernel, x = rng.normal(size=(3, 2, 2, 5)), rng.normal(size=(1, 6, 5, 2))
    layer = keras.layers.Conv2D(5, (3, 2), strides=(2, 1), padding=padding, use_bias=False)
    layer.build(x.shape)
    layer.set_weights([kernel])
    matrix = conv_matrix(kernel, [6, 5], [2, 1], padding)
    np.testing.assert_allclose(matrix @ x.ravel(), np.ravel(layer(x)), rtol=1e-10)


def test_a_circular_matrix_by_hand():
    # y_i = 1 x_(2i) + 2 x_(2i + 1) + 3 x_(2i + 2), which wraps around.
    matrix = conv_matrix(np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1), 4, 2)
    np.testing.assert_array_equal(matrix, [[1, 2, 3, 0], [3, 0, 1, 2]])


@pytest.mark.parametrize(
    ("shape", "sides", "strides"),
    [
        ((3, 3, 2, 3), 8, 2),
        ((3, 3, 1, 6), [6, 4], [3, 1]),
        ((2, 3, 2, 9), 4, 2),
        ((5, 5, 1, 2), 4, 1),
        ((4, 3, 2), 9, 3),
        ((2, 2, 2, 1, 3), 4, 2),
    ],
    ids=["rows", "uneven", "columns", "wider than the signal", "1D", "3D"],
)
def test_fourier_blocks_against_the_dense_matrix(rng, shape, sides, strides):
    kernel = rng.normal(size=shape)
    dense = np.linalg.svd(conv_matrix(kernel, sides, strides), compute_uv=False)
    np.testing.assert_allclose(
        conv_singular_values(kernel, sides, strides), dense, rtol=1e-9, atol=1e-12
    )


def test_with_zeros_around_the_values_are_smaller(rng):
    kernel = rng.normal(size=(3, 3, 2, 2))
    circular, zeros = (conv_singular_values(kernel, 6, 1, p)[0] for p in ("circular", "same"))
    assert zeros < circular


def test_errors_of_an_isometry_follow_from_the_loss_of_the_kernel(rng):
    for filters in (3, 9):
        kernel = rng.normal(size=(3, 3, 2, filters)) / 4
        frobenius, spectral = isometry_error(kernel, 8, 2)
        np.testing.assert_allclose(frobenius**2, 16 * orthogonality_loss(kernel, 2), rtol=1e-9)
        assert frobenius / 12 < spectral <= frobenius
    np.testing.assert_allclose(isometry_error(np.eye(3).reshape(1, 1, 3, 3), 4), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "exists"),
    [
        ((64, 64, 3, 1), True),
        ((18, 2, 3, 4), True),  # as many as the values of a filter
        ((19, 2, 3, 4), False),
        ((8, 2, 3, 2), True),
        ((9, 2, 1, 2), False),  # columns, with a stride that leaves values out
        ((9, 2, 2, 2), True),
        ((100, 1, 1, 1), True),
    ],
)
def test_existence(arguments, exists):
    assert orthogonal_conv_exists(*arguments) is exists


def test_existence_in_one_dimension():
    assert orthogonal_conv_exists(6, 2, 3, 4, rank=1)
    assert not orthogonal_conv_exists(7, 2, 3, 4, rank=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: conv_matrix(k[0, 0], 4), "`kernel` must be"),
        (lambda k: conv_matrix(k, 4, padding="full"), "`padding` must be one of circular, same"),
        (lambda k: conv_matrix(k, [4, 4, 4]), "must be positive, one or 2"),
        (lambda k: conv_singular_values(k, 5, 2), "`input_shape` must be a multiple of `strides`"),
        (lambda k: orthogonal_conv_exists(0, 1, 1), "`filters` must be a positive integer"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones([3, 3, 1, 1]))
