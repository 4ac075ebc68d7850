"""Finite differences that are exact on parabolas, with the factors' zeros."""

import numpy as np
import pytest

from kzoo.layers.grid_derivatives import GridDerivatives

pytestmark = pytest.mark.paper("Scaling physics-informed hard constraints with mixture-of-experts")


def test_derivatives_of_parabolas_are_exact_everywhere(float64):
    t, x = np.meshgrid(np.linspace(0, 2, 5), np.linspace(0, 3, 7), indexing="ij")
    u = 1 + t - 2 * t**2 + 3 * x * t + x**2
    layer = GridDerivatives(((0, 0), (1, 0), (2, 0), (1, 1), (0, 2)), length=(2.0, 3.0))
    fields = np.moveaxis(layer(u[None, ..., None])[0, ..., 0], -1, 0)
    expected = [u, 1 - 4 * t + 3 * x, -4 + 0 * t, 3 + 0 * t, 2 + 0 * t]
    np.testing.assert_allclose(fields, expected, atol=1e-11)


def test_factors_are_zero_where_they_should_be_before_the_derivative(float64):
    layer = GridDerivatives(((0, 0), (1, 0), (0, 2)), zero_at=("start", "ends"))
    fields = layer(np.ones((1, 4, 5, 1)))[0, ..., 0].numpy()
    t, x = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 5), indexing="ij")
    np.testing.assert_allclose(fields[..., 0], 4 * t * x * (1 - x), atol=1e-12)
    np.testing.assert_allclose(fields[..., 1], 4 * x * (1 - x), atol=1e-12)
    np.testing.assert_allclose(fields[..., 2], -8 * t, atol=1e-10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"orders": ((3,),)}, "`orders`.*Received"),
        ({"orders": ((0,), (0, 1))}, "`orders`.*Received"),
        ({"orders": ((1,),), "zero_at": ("middle",)}, "`zero_at`.*'middle'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GridDerivatives(**kwargs)


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 4 points"):
        GridDerivatives(((1,),))(np.ones((1, 3, 1), "float32"))
