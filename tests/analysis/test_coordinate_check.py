"""How far activations move, on networks in which it is known."""

import keras
import numpy as np
import pytest

from kzoo.analysis.coordinate_check import CoordinateCheck, coordinate_check
from kzoo.analysis.width_plots import plot_coordinate_check

pytestmark = pytest.mark.paper(
    "Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit"
)
layers = keras.layers


def linear(width, rate=0.5):
    """One layer of ones whose outputs are all the same."""
    model = keras.Sequential(
        [
            keras.Input([width]),
            layers.Dense(1, use_bias=False, kernel_initializer="ones", name="sum"),
            layers.Rescaling(2.0, name="twice"),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    return model


def test_changes_of_a_linear_model_by_hand():
    # h = w . x of ones is n, the loss (2 h)^2, its gradient 8 h x; a step of 1/64 moves h by
    # -n h / 8: from n to n (1 - n / 8), and again by that factor.
    ones = lambda width: np.ones([3, width], "float32")  # noqa: E731
    measured = {}
    for width in (2, 4):
        check = coordinate_check(
            lambda _, width=width: linear(width, 1 / 64), [1, 2], (ones(width), np.zeros([3, 1])), 2
        )
        assert check.layers == ("sum",)
        measured[width] = check.sizes[0, :, 0], check.changes[0, :, 0]
    for width, (sizes, changes) in measured.items():
        expected = width * (1 - width / 8) ** np.arange(3)
        np.testing.assert_allclose(sizes, expected, rtol=1e-6)
        np.testing.assert_allclose(changes, np.abs(expected - width), rtol=1e-6)


def power_law():
    widths = np.array([8, 32, 128])
    changes = np.zeros([3, 2, 2])
    changes[:, 1, 0] = 3 * widths**0.5
    sizes = np.stack([np.ones([3, 2]), 1.0 / widths[:, None] * np.ones([3, 2])], -1)
    return CoordinateCheck(widths, ("a", "b"), sizes, changes)


def test_slopes_of_power_laws():
    check = power_law()
    slopes = check.slopes()
    assert slopes["a"] == pytest.approx(0.5)
    assert np.isnan(slopes["b"])  # it has not moved
    assert check.slopes("sizes", 0) == pytest.approx({"a": 0.0, "b": -1.0})


def test_several_inputs_seeds_and_layers():
    def make(width):
        a, b = keras.Input([3]), keras.Input([3])
        x = layers.Add(name="added")([layers.Dense(width)(a), layers.Dense(width)(b)])
        model = keras.Model([a, b], layers.Dense(1, name="out")(x))
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    x, y = np.ones([4, 3], "float32"), np.ones([4, 1], "float32")
    check = coordinate_check(make, [2, 4], ([x, 2 * x], y), 1, ["added", "out"], seeds=(0, 1))
    first, second = (
        coordinate_check(make, [2, 4], ([x, 2 * x], y), 1, ["added", "out"], seeds=[seed])
        for seed in (0, 1)
    )
    assert check.sizes.shape == check.changes.shape == (2, 2, 2)
    np.testing.assert_allclose(check.changes, (first.changes + second.changes) / 2, rtol=1e-12)
    assert (first.sizes != second.sizes).all()


def test_the_picture_names_slopes():
    figure = plot_coordinate_check({"muP": power_law(), "SP": power_law()})
    assert [axes.get_title() for axes in figure.axes] == ["muP", "SP"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["a: +0.50", "b: +nan"]
    with pytest.raises(ValueError, match="at least one"):
        plot_coordinate_check({})


def test_refuses_bad_arguments():
    data = np.ones([2, 3], "float32"), np.zeros([2, 1])
    for widths in ([4], [4, 2], [0.5, 1.0], [0, 1]):
        with pytest.raises(ValueError, match="`widths` must be at least two increasing"):
            coordinate_check(linear, widths, data)
    with pytest.raises(ValueError, match="`steps` must be a positive integer. Received: 0"):
        coordinate_check(linear, [1, 2], data, steps=0)
    with pytest.raises(ValueError, match="`layers` must name layers.*sum, twice. Received: other"):
        coordinate_check(linear, [3, 4], data, layers=["other"])
    with pytest.raises(ValueError, match='`of` must be "changes" or "sizes"'):
        power_law().slopes("norms")
