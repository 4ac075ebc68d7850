"""Losses over learning rates, on problems in which they are known."""

import keras
import numpy as np
import pytest

from kzoo.analysis.learning_rate_sweep import LearningRateSweep, learning_rate_sweep
from kzoo.analysis.width_plots import plot_learning_rate_sweep

pytestmark = pytest.mark.paper(
    "Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning"
)


def product(width, optimizer=keras.optimizers.SGD):
    """The sum of `width` weights of 1 times x: curvature 2 n at x = 1."""
    inputs = keras.Input([1])
    x = keras.layers.Dense(width, use_bias=False, kernel_initializer="ones")(inputs)
    x = keras.layers.Lambda(lambda h: keras.ops.sum(h, axis=-1, keepdims=True))(x)
    model = keras.Model(inputs, x)
    model.compile(optimizer(1.0), "mse", jit_compile=False)
    return model


def test_gradient_descent_on_a_quadratic():
    # The sum starts at n and is multiplied by 1 - 2 n rate in each step, towards 0.
    data = np.ones([6, 1], "float32"), np.zeros([6, 1], "float32")
    rates = np.array([0.01, 0.04, 0.2, 0.6])
    sweep = learning_rate_sweep(product, [2, 8], rates, data, epochs=2, batch_size=2)
    expected = [[(n * (1 - 2 * n * rate) ** 6) ** 2 for rate in rates] for n in (2, 8)]
    np.testing.assert_allclose(sweep.loss, expected, rtol=1e-2, atol=1e-6)
    np.testing.assert_array_equal(sweep.best, [0.2, 0.04])
    assert sweep.drift == -1


def test_every_run_starts_anew():
    # Adam's slots and the order of the data too: the same rate twice is the same run.
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 1)).astype("float32"), rng.normal(size=(20, 1)).astype("float32")

    def make(width):
        return product(width, keras.optimizers.Adam)

    both = learning_rate_sweep(make, [2, 3], [0.1, 0.2], data, batch_size=4).loss
    alone = learning_rate_sweep(make, [2, 3], [0.2], data, batch_size=4).loss
    np.testing.assert_array_equal(both[:, 1:], alone)


def test_diverged_runs_are_infinite_and_drawn():
    data = np.ones([64, 1], "float32"), np.zeros([64, 1], "float32")
    sweep = learning_rate_sweep(product, [2, 8], [0.1, 1e9], data, batch_size=1)
    assert np.isinf(sweep.loss[:, 1]).all()
    figure = plot_learning_rate_sweep({"SP": sweep})
    assert figure.axes[0].get_title() == "SP"


def test_drift_counts_places_of_the_grid():
    loss = np.array([[3.0, 1.0, 2.0, np.inf], [4.0, 3.0, 2.0, 1.0]])
    sweep = LearningRateSweep(np.array([1, 2]), np.array([1.0, 2.0, 4.0, 8.0]), loss)
    assert sweep.drift == 2
    np.testing.assert_array_equal(sweep.best, [2.0, 8.0])


def test_refuses_bad_rates():
    for rates in ([], [0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValueError, match="`rates` must be increasing positive"):
            learning_rate_sweep(product, [1, 2], rates, None)
