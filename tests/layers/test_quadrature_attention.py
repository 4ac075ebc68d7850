"""Attention with quadrature weights against a loop, Keras's attention, and integrals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.quadrature_attention import QuadratureAttention

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


@pytest.fixture
def layer(float64, rng):
    layer = QuadratureAttention(2, 3)
    layer.build((None, None, 4))
    layer.set_weights([rng.normal(size=w.shape) / 2 for w in layer.weights])
    return layer


def function(x):
    """[1, n, 4], a function on points x."""
    return np.stack([x, np.sin(3 * x), np.cos(5 * x), np.exp(x)], -1)[None]


def test_equals_the_weighted_sums(layer, rng):
    u, w = rng.normal(size=(1, 5, 4)), rng.uniform(size=5)
    q, qb, k, kb, v, vb, o, ob = layer.get_weights()
    expected = np.zeros((5, 4)) + ob
    for head in range(2):
        queries, keys, values = (
            u[0] @ kernel[:, head] + bias[head] for kernel, bias in ((q, qb), (k, kb), (v, vb))
        )
        for i in range(5):
            a = np.array([w[j] * np.exp(queries[i] @ keys[j] / np.sqrt(3)) for j in range(5)])
            expected[i] += (a @ values / a.sum()) @ o[head]
    np.testing.assert_allclose(layer(u, w)[0], expected, atol=1e-12)


def test_equal_weights_are_standard_attention(layer, rng):
    standard = keras.layers.MultiHeadAttention(2, 3)
    u = rng.normal(size=(3, 5, 4))
    standard.build(u.shape, u.shape)
    standard.set_weights(layer.get_weights())
    expected = standard(u, u)
    # Keras's own scale 1 / sqrt(3) is rounded to float32.
    np.testing.assert_allclose(layer(u), expected, atol=1e-7)
    np.testing.assert_allclose(layer(u, np.full((3, 5), 0.3)), layer(u), atol=1e-12)


def test_points_that_are_there_twice_change_nothing(layer):
    x = np.array([0.0, 0.1, 0.4, 0.5, 0.9])
    w = np.array([0.1, 0.2, 0.2, 0.25, 0.25])
    twice = np.array([0, 1, 1, 2, 3, 4, 4, 4])
    counts = np.bincount(twice)[twice]
    once = layer(function(x), w)
    np.testing.assert_allclose(
        layer(function(x[twice]), w[twice] / counts), tf.gather(once, twice, axis=1), atol=1e-12
    )


def test_a_grid_of_uneven_density_gives_the_integral(layer):
    """Midpoint cells x = s^3 of very uneven size against an even fine grid, at x = 0.5."""

    def at_half(x, w):
        values = function(np.concatenate([[0.5], x]))
        return layer(values, np.concatenate([[0.0], w])).numpy()[0, 0]

    edges = np.linspace(0, 1, 801) ** 3
    uneven = (edges[1:] + edges[:-1]) / 2
    even = (np.arange(2000) + 0.5) / 2000
    integral = at_half(even, np.full(2000, 1 / 2000))
    np.testing.assert_allclose(at_half(uneven, np.diff(edges)), integral, atol=1e-4)
    assert np.abs(at_half(uneven, np.ones(800)) - integral).max() > 0.05


def test_masked_points_are_not_seen(layer, rng):
    u, mask = rng.normal(size=(1, 5, 4)), np.array([[True, True, True, False, False]])
    expected = layer(u[:, :3])
    np.testing.assert_allclose(layer(u, mask=mask)[:, :3], expected, atol=1e-12)
    weights = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(layer(u, weights)[:, :3], expected, atol=1e-12)


def test_gradients_equal_finite_differences(layer, rng):
    arguments = [tf.constant(rng.normal(size=(1, 3, 4))), tf.constant([0.5, 0.2, 1.0], "float64")]
    theory, numeric = tf.test.compute_gradient(layer, arguments, delta=1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_gradients_are_finite_where_weights_are_zero(layer, rng):
    u, w = tf.constant(rng.normal(size=(1, 3, 4))), tf.constant([0.5, 0.0, 1.0], "float64")
    with tf.GradientTape() as tape:
        tape.watch([u, w])
        outputs = layer(u, w)
    for gradient in tape.gradient(outputs, [u, w]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 0, "key_dim": 2}, "`num_heads`.*Received: 0"),
        ({"num_heads": 1, "key_dim": 2.5}, "`key_dim`.*Received: 2.5"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QuadratureAttention(**kwargs)


def test_a_grid_that_is_not_flat_is_refused():
    with pytest.raises(ValueError, match="points, features"):
        QuadratureAttention(1, 2).build((None, 3, 3, 2))
