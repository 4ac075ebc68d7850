"""Eigenvalues of Hessians and kernels against dense ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.sharpness import (
    HessianOperator,
    SharpnessTrajectory,
    hessian_top_eigenvalues,
    ntk_eigenvalues,
)
from kzoo.analysis.width_plots import plot_sharpness

pytestmark = pytest.mark.paper(
    "Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning"
)
layers = keras.layers


def perceptron(loss="mse", **options):
    model = keras.Sequential(
        [keras.Input([7]), layers.Dense(11, "tanh", **options), layers.Dense(9, "tanh")]
    )
    model.add(layers.Dense(3))
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    return model


def rows(rng, size=20):
    dtype = keras.config.floatx()
    return rng.normal(size=(size, 7)).astype(dtype), rng.normal(size=(size, 3)).astype(dtype)


def dense_hessian(model, x, y):
    """By the Jacobian of the gradient, in the loss as written down here."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = inner.gradient(loss, variables)
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    parts = [tf.reshape(j, [len(flat), -1]) for j in outer.jacobian(flat, variables)]
    return tf.concat(parts, 1).numpy()


def test_lanczos_equals_the_dense_eigenvalues(rng):
    model, (x, y) = perceptron(), rows(rng)
    expected = np.linalg.eigvalsh(dense_hessian(model, x, y))[::-1]
    assert HessianOperator(model, (x, y)).size == len(expected) == 226
    found = hessian_top_eigenvalues(model, (x, y), k=3)
    np.testing.assert_allclose(found, expected[:3], rtol=1e-3)


def test_products_are_exact_in_all_forms_of_the_data(float64, rng):
    model, (x, y) = perceptron(), rows(rng)
    hessian, vector = dense_hessian(model, x, y), rng.normal(size=226)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for data, batch_size in (((x, y), 256), ((x, y), 7), (dataset, 1)):
        product = HessianOperator(model, data, batch_size).product(vector)
        np.testing.assert_allclose(product, hessian @ vector, rtol=1e-9, atol=1e-12)
    weighted = HessianOperator(model, (x, y, np.full(20, 2.0))).product(vector)
    np.testing.assert_allclose(weighted, 2 * hessian @ vector, rtol=1e-9, atol=1e-12)


def test_regularization_counts(float64, rng):
    data = rows(rng)
    keras.utils.set_random_seed(1)
    plain = perceptron()
    keras.utils.set_random_seed(1)
    decayed = perceptron(kernel_regularizer=keras.regularizers.L2(0.25))
    vector = rng.normal(size=226)
    difference = HessianOperator(decayed, data).product(vector) - HessianOperator(
        plain, data
    ).product(vector)
    # d^2 (w^2 / 4) / dw^2 = 1/2 on the first kernel alone.
    np.testing.assert_allclose(difference, 0.5 * vector * (np.arange(226) < 77), atol=1e-12)


def test_few_weights_are_done_densely(float64, rng):
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 1))
    model = keras.Sequential([keras.Input([4]), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    expected = np.linalg.eigvalsh(2 * x.T @ x / 30)[::-1]
    np.testing.assert_allclose(hessian_top_eigenvalues(model, (x, y), k=4), expected, rtol=1e-10)


def test_gradient_descent_follows_the_sharpness_of_a_quadratic(rng):
    # On a quadratic it is the same all along; 2 + 7 batches, of three epochs of three.
    x, y = rng.normal(size=(30, 24)).astype("float32"), np.zeros([30, 1], "float32")
    model = keras.Sequential([keras.Input([24]), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    by_step, by_epoch = SharpnessTrajectory((x, y), every=4, k=2), SharpnessTrajectory((x, y))
    model.fit(x, y, batch_size=10, epochs=3, verbose=0, callbacks=[by_step, by_epoch])
    assert by_step.steps == [0, 4, 8]
    assert by_epoch.steps == [0, 3, 6, 9]
    expected = np.linalg.eigvalsh(2 * x.T @ x / 30)[::-1][:2]
    for values in by_step.values:
        np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_the_operator_is_traced_once_and_sees_new_weights(rng):
    model, data = perceptron(), rows(rng)
    operator = HessianOperator(model, data)
    before = operator.top_eigenvalues()
    model.set_weights([2 * w for w in model.get_weights()])
    after = operator.top_eigenvalues()
    assert operator._compiled.experimental_get_tracing_count() == 1
    assert after != pytest.approx(before, rel=0.01)
    np.testing.assert_allclose(after, hessian_top_eigenvalues(model, data), rtol=1e-3)


def test_a_model_that_has_diverged_has_no_eigenvalues(rng):
    model = perceptron()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    assert np.isnan(hessian_top_eigenvalues(model, rows(rng), k=2)).all()


def test_kernel_of_a_linear_model(float64, rng):
    # d f_c / d W_jk = x_j [c = k]: K = X X^T for each output, and 1 for the biases.
    x = rng.normal(size=(4, 6))
    model = keras.Sequential([keras.Input([6]), layers.Dense(2)])
    expected = np.repeat(np.linalg.eigvalsh(x @ x.T + 1)[::-1], 2)
    np.testing.assert_allclose(ntk_eigenvalues(model, x), expected, rtol=1e-9)


def test_gauss_newton_at_a_perfect_fit_is_the_kernel(float64, rng):
    # Without residuals the Hessian of the squared error is 2 J^T J / (rows * outputs).
    model, (x, _) = perceptron(), rows(rng, 5)
    sharpness = hessian_top_eigenvalues(model, (x, model(x)), tolerance=0)
    np.testing.assert_allclose(sharpness, 2 * ntk_eigenvalues(model, x)[:1] / 15, rtol=1e-9)


def test_the_picture_has_the_edge_of_stability():
    figure = plot_sharpness({"muP": {8: ([0, 1], [1.0, 2.0])}}, rate=0.5)
    assert [line.get_label() for line in figure.axes[0].lines] == ["8", "2 / learning rate"]


def test_refuses_bad_arguments(rng):
    model, data = perceptron(), rows(rng)
    with pytest.raises(ValueError, match="`model` must be .* built and compiled"):
        HessianOperator(keras.Sequential([layers.Dense(1)]), data)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: 0"):
        HessianOperator(model, data, batch_size=0)
    with pytest.raises(ValueError, match=r"`k` must be in \[1, 226\].*Received: 0"):
        hessian_top_eigenvalues(model, data, k=0)
    with pytest.raises(ValueError, match="`every` must be a positive integer or None"):
        SharpnessTrajectory(data, every=0)
