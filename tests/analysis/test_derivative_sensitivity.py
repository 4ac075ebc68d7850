import keras
import numpy as np
import pytest
from scipy import stats

from kzoo.analysis.derivative_sensitivity import (
    input_derivative_sensitivity,
    plot_report,
    spearman_report,
)

pytestmark = pytest.mark.paper("Sensitivity Analysis On Loss Landscape")


def model_of(function, size):
    x = keras.Input([size])
    return keras.Model(x, keras.layers.Lambda(function)(x))


def output(y_true, y_pred):
    """The model's output as the loss."""
    return y_pred[:, 0]


def test_derivatives_of_a_polynomial(float64, rng):
    # f = sum a_i x_i^3 + x_0 x_1 x_2: the mixed term has no second derivative along an axis, but
    # would be seen by the gradient of a summed gradient.
    a, x = np.array([1.0, -2, 0.5]), rng.normal(size=(7, 3))

    def polynomial(x):
        mixed = keras.ops.prod(x, axis=1, keepdims=True)
        return keras.ops.sum(a * x**3, axis=1, keepdims=True) + mixed

    result = input_derivative_sensitivity(
        model_of(polynomial, 3), x, np.zeros(7), loss=output, batch_size=3
    )
    others = np.prod(x, axis=1, keepdims=True) / x
    expected = np.stack([3 * a * x**2 + others, 6 * a * x, 6 * a + 0 * x])
    np.testing.assert_allclose(result.mean, expected.mean(axis=1), atol=1e-10)
    np.testing.assert_allclose(result.absolute[0], np.abs(expected).mean(axis=1), atol=1e-10)


def test_squared_error_of_a_linear_model(float64, rng):
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input([4]), dense])
    x, y = rng.normal(size=(9, 4)), rng.normal(size=9)
    w, b = (each.ravel() for each in dense.get_weights())
    result = input_derivative_sensitivity(model, x, y)
    residual = x @ w + b - y
    np.testing.assert_allclose(result.mean[0], 2 * residual.mean() * w, atol=1e-12)
    np.testing.assert_allclose(result.absolute[0, 0], 2 * np.abs(residual).mean() * np.abs(w))
    np.testing.assert_allclose(result.mean[1], 2 * w**2, atol=1e-12)
    np.testing.assert_allclose(result.mean[2], 0, atol=1e-12)


def test_tanh_network_against_finite_differences(float64, rng):
    model = keras.Sequential(
        [keras.Input([3]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    )
    x, y, h = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), 1e-2
    result = input_derivative_sensitivity(model, x, y)

    def mean_loss(step, feature):
        moved = x + step * h * np.eye(3)[feature]
        return np.mean((model(moved).numpy() - y) ** 2)

    # Central differences of sixth, sixth and fourth order of accuracy.
    first = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
    second = np.array([2, -27, 270, -490, 270, -27, 2]) / 180
    third = np.array([1, -8, 13, 0, -13, 8, -1]) / 8
    for feature in range(3):
        values = [mean_loss(step, feature) for step in range(-3, 4)]
        expected = [first @ values / h, second @ values / h**2, third @ values / h**3]
        np.testing.assert_allclose(result.mean[:, feature], expected, rtol=1e-4, atol=1e-6)


def test_retrainings_are_averaged_and_ranked(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=6)
    models = [model_of(lambda x, k=k: x @ [[k], [2.0], [0.5]], 3) for k in (1.0, -3.0)]
    result = input_derivative_sensitivity(models, x, y)
    assert result.signed.shape == result.absolute.shape == (2, 3, 3)
    np.testing.assert_allclose(result.mean[1], [2 * (1 + 9) / 2, 8, 0.5], rtol=1e-5)
    np.testing.assert_allclose(result.spread[1], [8, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(result.ranking(order=2), [0, 1, 2])


def test_report_beside_spearman(rng, tmp_path):
    x = rng.normal(size=(40, 3)).astype("float32")
    x[:, 2] = 1
    y = np.exp(x[:, 0]) + 0.1 * x[:, 1]
    model = model_of(lambda x: x @ [[1.0], [0.1], [0.0]], 3)
    sensitivity = input_derivative_sensitivity(model, x, y)
    report = spearman_report(sensitivity, x, y, ["a", "b", "c"])
    assert [row["feature"] for row in report] == ["a", "b", "c"]
    expected = stats.spearmanr(x[:, 1], y)
    assert report[1]["spearman"] == pytest.approx(expected.statistic)
    assert report[1]["p_value"] == pytest.approx(expected.pvalue)
    assert report[0]["spearman"] > 0.9
    assert np.isnan(report[2]["spearman"])
    assert report[1]["second"] == pytest.approx(2 * 0.1**2, rel=1e-4)
    figure = plot_report(report[:2])
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    np.testing.assert_allclose(widths, [2, 0.02], rtol=1e-4)


def test_errors_name_the_argument(rng):
    model = model_of(lambda x: x[:, :1], 3)
    x, y = np.zeros([4, 3]), np.zeros(4)
    with pytest.raises(ValueError, match="`models` must be one or more Keras models"):
        input_derivative_sensitivity([], x, y)
    with pytest.raises(ValueError, match=r"`x` must be \[n, features\] .* \[4, 3\] and \[5\]"):
        input_derivative_sensitivity(model, x, np.zeros(5))
    with pytest.raises(ValueError, match=r"`y` must have the model's outputs, \[n, 1\]"):
        input_derivative_sensitivity(model, x, np.zeros([4, 2]))
    result = input_derivative_sensitivity(model, x, y)
    with pytest.raises(ValueError, match="`order` must be 1, 2 or 3. Received: 4"):
        result.ranking(4)
    with pytest.raises(ValueError, match="`names` must name 3 features. Received: 1"):
        spearman_report(result, x, y, ["a"])
