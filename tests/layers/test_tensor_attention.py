"""Tensor attention against the triple loop, the Khatri-Rao identity, and ordinary attention."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.linalg import khatri_rao

from kzoo.layers.tensor_attention import (
    TensorAttention,
    tensor_attention_exact,
    tensor_attention_polynomial,
)

pytestmark = pytest.mark.paper(
    "How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to "
    "Kronecker Computation"
)


def matrices(rng, n=6, d=4, size=1.0):
    """Q, (K1, K2), (V1, V2), whose entries are at most `size`."""
    q, k1, k2, v1, v2 = rng.uniform(-size, size, (5, n, d))
    return q, (k1, k2), (v1, v2)


def triple_loop(q, keys, values, kept=None):
    n, d = q.shape
    out, weights = np.zeros((n, values[0].shape[1])), np.zeros((n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if kept is None or (kept[j] and kept[k]):
                    weights[i, j, k] = np.exp((q[i] * keys[0][j] * keys[1][k]).sum() / d)
        weights[i] /= weights[i].sum()
        for j in range(n):
            for k in range(n):
                out[i] += weights[i, j, k] * values[0][j] * values[1][k]
    return out, weights


def test_exact_equals_the_triple_loop(rng):
    given = matrices(rng, size=3.0)
    outputs, weights = tensor_attention_exact(*tf.nest.map_structure(tf.constant, given))
    expected = triple_loop(*given)
    np.testing.assert_allclose(outputs, expected[0], atol=1e-12)
    np.testing.assert_allclose(weights, expected[1], atol=1e-12)
    np.testing.assert_allclose(tf.reduce_sum(weights, [1, 2]), np.ones(6), atol=1e-12)


def test_exact_equals_the_papers_matrices(rng):
    """Definition 1.2, with SciPy's column-wise Kronecker product, [n, d] x [n, d] -> [n^2, d]."""
    q, keys, values = matrices(rng)
    a = np.exp(q @ khatri_rao(*keys).T / 4)
    expected = (a / a.sum(1, keepdims=True)) @ khatri_rao(*values)
    outputs, _ = tensor_attention_exact(tf.constant(q), keys, values)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)


def test_polynomial_equals_the_taylor_polynomial_of_the_entries(rng):
    q, keys, values = matrices(rng, size=1.5)
    x = q @ khatri_rao(*keys).T / 4
    for degree in (1, 2, 3):
        a = sum(x**power / np.prod(np.arange(1, power + 1)) for power in range(degree + 1))
        expected = (a / a.sum(1, keepdims=True)) @ khatri_rao(*values)
        actual = tensor_attention_polynomial(tf.constant(q), keys, values, degree)
        np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_the_polynomials_error_falls_with_the_degree_and_grows_with_the_entries(rng):
    def errors(size):
        q, keys, values = matrices(rng, size=size)
        exact, _ = tensor_attention_exact(tf.constant(q), keys, values)
        return [
            np.abs(tensor_attention_polynomial(tf.constant(q), keys, values, g) - exact).max()
            for g in (1, 2, 3, 4)
        ]

    small, large = errors(0.5), errors(3.0)
    assert np.all(np.diff(small) < 0)
    assert large[-1] > 10 * small[-1]


def test_order_two_is_softmax_attention(rng):
    q, (k, _), (v, _) = matrices(rng)
    expected = tf.nn.softmax(tf.constant(q @ k.T / 4)) @ v
    np.testing.assert_allclose(
        tensor_attention_exact(tf.constant(q), [k], [v])[0], expected, atol=1e-12
    )


def test_order_four_equals_einsum(rng):
    q, k1, k2, k3, v1, v2, v3 = rng.normal(size=(7, 4, 3))
    a = np.exp(np.einsum("id,jd,kd,ld->ijkl", q, k1, k2, k3) / 3)
    a /= a.sum((1, 2, 3), keepdims=True)
    expected = np.einsum("ijkl,jd,kd,ld->id", a, v1, v2, v3)
    outputs, _ = tensor_attention_exact(tf.constant(q), [k1, k2, k3], [v1, v2, v3])
    np.testing.assert_allclose(outputs, expected, atol=1e-12)


@pytest.mark.parametrize("degree", [None, 8])
def test_masked_tokens_are_as_if_they_were_not_there(float64, rng, degree):
    layer = TensorAttention(2, 3, degree=degree)
    x = rng.normal(size=(2, 6, 5)) / 2
    whole = layer(x, attention_mask=np.array([[1, 1, 1, 1, 0, 0]] * 2, bool))
    np.testing.assert_allclose(whole[:, :4], layer(x[:, :4]), atol=1e-12)


def test_the_mask_of_an_embedding_is_taken(rng):
    tokens = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(7, 4, mask_zero=True)(tokens)
    model = keras.Model(tokens, TensorAttention(1, 4)(embedded))
    padded, other = np.array([[3, 5, 2, 0, 0]]), np.array([[3, 5, 2]])
    np.testing.assert_allclose(
        model(padded)[:, :3], model.layers[-1](model.layers[1](other)), atol=1e-6
    )


@pytest.mark.parametrize("degree", [None, 2])
def test_gradients_equal_finite_differences(float64, rng, degree):
    q, keys, values = matrices(rng, n=3, d=2)

    def outputs(q, k1, k2, v1, v2):
        if degree:
            return tensor_attention_polynomial(q, (k1, k2), (v1, v2), degree)
        return tensor_attention_exact(q, (k1, k2), (v1, v2))[0]

    arguments = [tf.constant(x) for x in (q, *keys, *values)]
    theory, numeric = tf.test.compute_gradient(outputs, arguments, delta=1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_the_layer_is_its_projections_and_the_function(float64, rng):
    layer, x = TensorAttention(1, 4), rng.normal(size=(1, 6, 5))
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    named = {weight.path.split("/", 1)[1]: weight.numpy() for weight in layer.weights}

    def project(name):
        return x[0] @ named[f"{name}/kernel"][:, 0] + named[f"{name}/bias"][0]

    keys, values = ([project(f"{what}_{i}") for i in (1, 2)] for what in ("key", "value"))
    attended, _ = triple_loop(project("query"), keys, values)
    expected = attended @ named["output/kernel"][0] + named["output/bias"]
    np.testing.assert_allclose(layer(x)[0], expected, atol=1e-10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 0, "key_dim": 2}, "`num_heads`.*Received: 0"),
        ({"num_heads": 1, "key_dim": 2.5}, "`key_dim`.*Received: 2.5"),
        ({"num_heads": 1, "key_dim": 2, "order": 1}, "`order`.*Received: 1"),
        ({"num_heads": 1, "key_dim": 2, "degree": 0}, "`degree`.*Received: 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TensorAttention(**kwargs)


def test_keys_without_values_are_refused(rng):
    q, keys, values = matrices(rng)
    with pytest.raises(ValueError, match="Received: 2 and 1"):
        tensor_attention_exact(q, keys, values[:1])
