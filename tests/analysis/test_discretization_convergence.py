"""The instrument on maps whose convergence is known."""

import numpy as np
import pytest

from kzoo.analysis.discretization_convergence import discretization_convergence, plot_convergence

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


def sine(n):
    return np.sin(2 * np.pi * np.arange(n) / n)[None, :, None]


def central_difference(u):
    return (np.roll(u, -1, 1) - np.roll(u, 1, 1)) * u.shape[1] / 2


def test_differences_of_a_central_difference_by_hand():
    """On sin it is cos times sin(2 pi / n) n, so that the relative difference is known."""
    errors = discretization_convergence(central_difference, sine, (8, 16, 32))
    assert list(errors) == [8, 16]
    finest = 32 * np.sin(2 * np.pi / 32)
    for n, error in errors.items():
        assert error == pytest.approx(abs(n * np.sin(2 * np.pi / n) / finest - 1), rel=1e-9)


def test_a_pointwise_map_has_no_error_and_a_stencil_without_a_spacing_does_not_converge():
    assert discretization_convergence(np.tanh, sine, (4, 8)) == {4: 0.0}
    errors = discretization_convergence(lambda u: np.roll(u, -1, 1) - u, sine, (8, 16, 32))
    assert min(errors.values()) > 0.9


def test_two_axes():
    def functions(n):
        return sine(n)[..., None] * sine(n)[:, None, :, :]

    errors = discretization_convergence(lambda u: u + 1 / u.shape[1], functions, (4, 8))
    finest = functions(8)[:, ::2, ::2] + 1 / 8
    assert errors[4] == pytest.approx(1 / 8 * 4 / np.linalg.norm(finest))


def test_the_plot_shows_each_model():
    figure = plot_convergence({"a": {8: 0.1, 16: 0.05}, "b": {8: 1.0, 16: 0.9}})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[8, 0.1], [16, 0.05]])


@pytest.mark.parametrize("sizes", [(8,), (8, 12), (16, 8), (8, 8)])
def test_sizes_that_share_no_points_are_refused(sizes):
    with pytest.raises(ValueError, match="`sizes`.*Received"):
        discretization_convergence(np.tanh, sine, sizes)


def test_outputs_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="grid of the inputs"):
        discretization_convergence(lambda u: u[:, ::2], sine, (4, 8))
