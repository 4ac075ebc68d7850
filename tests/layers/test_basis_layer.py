"""Basis Layer: its quadrature, its networks, its penalties, and AdaFNN on top of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import trapezoid

from kzoo.layers.basis_layer import BasisLayer, trapezoid_weights
from kzoo.models.adafnn import AdaFNN
from kzoo.regularizers.functional import FunctionalOrthogonality, FunctionalSparsity

pytestmark = pytest.mark.paper(
    "Deep Learning for Functional Data Analysis with Adaptive Basis Layers"
)


class Sine(BasisLayer):
    """The quadrature alone: beta(t) = sin(4 pi t)."""

    def bases(self, times, training=False):
        return tf.sin(4 * np.pi * times)[..., None]


def curve(t):
    return 2 * np.sin(4 * np.pi * t) + np.cos(6 * np.pi * t) + t


# Integral of sin(4 pi t) times the curve: 1 from the sine, 0 from the cosine, -1 / (4 pi) from t.
COEFFICIENT = 1 - 1 / (4 * np.pi)


def test_score_is_the_fourier_coefficient():
    t = np.linspace(0, 1, 200)
    np.testing.assert_allclose(Sine(1)(curve(t)[None]), [[COEFFICIENT]], atol=1e-4)


def test_grids_and_times_need_not_be_equidistant(rng):
    t = np.sort(rng.uniform(size=150))
    t[0], t[-1] = 0, 1
    on_grid = Sine(1, grid=t)(curve(t)[None])
    np.testing.assert_allclose(on_grid, [[COEFFICIENT]], atol=1e-2)
    order = rng.permutation(150)
    np.testing.assert_allclose(Sine(1)(curve(t)[order][None], t[order][None]), on_grid, atol=1e-5)


def test_masked_points_are_as_if_they_were_not_there(float64, rng):
    values, times = rng.normal(size=(3, 8)), rng.uniform(size=(3, 8))
    mask = rng.uniform(size=(3, 8)) < 0.6
    layer = BasisLayer(2, (4,))
    scores = layer(np.where(mask, values, np.nan), times, mask=tf.constant(mask))
    for row in range(3):
        t = times[row, mask[row]]
        order = np.argsort(t)
        product = layer.bases(t).numpy() * values[row, mask[row]][:, None]
        expected = trapezoid(product[order], t[order], axis=0)
        np.testing.assert_allclose(scores[row], expected, atol=1e-12)


def test_mask_on_the_grid_equals_the_same_times(float64, rng):
    values, mask = rng.normal(size=(3, 6)), tf.constant(rng.uniform(size=(3, 6)) < 0.7)
    layer = BasisLayer(2, (4,))
    times = np.broadcast_to(np.linspace(0, 1, 6), (3, 6))
    np.testing.assert_allclose(
        layer(values, mask=mask), layer(values, times, mask=mask), atol=1e-13
    )


def test_weights_where_little_was_observed():
    times, mask = [[3.0, 1.0, 2.0]] * 3, [[False] * 3, [True, False, False], [True, True, False]]
    weights = trapezoid_weights(tf.constant(times), tf.constant(mask))
    np.testing.assert_allclose(weights, [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_each_basis_function_is_a_network_of_its_own(float64, rng):
    layer = BasisLayer(3, (4,))
    layer.build((None, 5))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    kernel, bias, last, last_bias, gamma, beta = layer.get_weights()
    times = np.linspace(0, 1, 5)
    for k in range(3):
        z = times[:, None] * kernel[k] + bias[k]
        normal = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-6)
        hidden = keras.activations.selu(z + normal * gamma[k] + beta[k]).numpy()
        expected = hidden @ last[k] + last_bias[k]
        np.testing.assert_allclose(layer.bases(times)[:, k], expected[:, 0], atol=1e-12)


def test_starts_as_the_authors_code():
    keras.utils.set_random_seed(0)
    model = AdaFNN([0.0, 1.0], num_bases=8, basis_units=(256,), units=(256,))
    *basis, dense, bias, gamma, beta, last, last_bias = model.get_weights()
    kernel, kernel_bias, basis_last, basis_last_bias, basis_gamma, basis_beta = basis
    for normal in (basis_gamma, basis_beta, gamma, beta):
        assert abs(normal.mean()) < 0.2
        assert abs(normal.std() - 1) < 0.1
    # Affine maps of 1, 256 and 8 inputs.
    for inputs, uniforms in {
        1: (kernel, kernel_bias),
        256: (basis_last, basis_last_bias, last, last_bias),
        8: (dense, bias),
    }.items():
        for uniform in uniforms:
            assert np.abs(uniform).max() <= inputs**-0.5
            assert len(uniform) < 8 or uniform.std() > 0.3 * inputs**-0.5


def test_orthogonality_and_sparsity_of_known_functions(float64):
    t = np.linspace(0, 1, 201)
    weights = trapezoid_weights(tf.constant(t))
    sine, cosine = np.sin(2 * np.pi * t), np.cos(2 * np.pi * t)
    orthogonality = FunctionalOrthogonality(1.0)
    pair = np.stack([sine, 5 * cosine], 1)
    np.testing.assert_allclose(orthogonality(pair, weights), 0, atol=1e-12)
    np.testing.assert_allclose(orthogonality(np.stack([sine, -3 * sine], 1), weights), 1)
    # One pair of three is the same function.
    np.testing.assert_allclose(orthogonality(np.stack([sine, cosine, sine], 1), weights), 1 / 3)
    # Mean |sin| is 2 / pi, its L2 norm sqrt(1 / 2).
    sparsity = FunctionalSparsity(1.0)(7 * sine[:, None], weights)
    np.testing.assert_allclose(sparsity, 2 / np.pi * np.sqrt(2), rtol=1e-3)
    assert orthogonality(sine[:, None], weights) == 0


def test_layer_adds_its_penalties_and_survives_a_file(rng, tmp_path):
    grid = [0.0, 0.2, 0.7, 1.0]
    regularizers = [FunctionalOrthogonality(0.5), FunctionalSparsity(0.25)]
    model = AdaFNN(grid, 2, 3, (4,), (5,), basis_regularizers=regularizers)
    values = rng.normal(size=(8, 4)).astype("float32")
    model(values)
    bases, weights = model.basis_layer.bases(grid), [0.1, 0.35, 0.4, 0.15]
    expected = sum(regularizer(bases, weights) for regularizer in regularizers)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(values, rng.normal(size=(8, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(values), model(values))
    assert len(again.losses) == 2


def test_refuses_what_does_not_fit():
    values = np.zeros((2, 5), "float32")
    with pytest.raises(ValueError, match="`grid` must be at least two increasing numbers"):
        BasisLayer(2, grid=[0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="sampled on the grid, at 3 points. Received.* 5"):
        BasisLayer(2, grid=[0.0, 0.5, 1.0])(values)
    with pytest.raises(ValueError, match="`times` must have the shape of `inputs`"):
        BasisLayer(2)(values, values[:, :4])
    with pytest.raises(ValueError, match="`num_bases` must be positive integers. Received: 0"):
        BasisLayer(0)
    with pytest.raises(ValueError, match="`units` must be positive integers. Received: -1"):
        AdaFNN([0.0, 1.0], units=[-1])
    with pytest.raises(ValueError, match="`strength` must be a finite number.*Received: -1"):
        FunctionalSparsity(-1)
