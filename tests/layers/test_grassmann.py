import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.grassmann import GrassmannClassifier, Orthonormal

pytestmark = [
    pytest.mark.paper(
        "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class "
        "Representation"
    ),
    pytest.mark.usefixtures("float64"),
]


def built(classes=4, size=6, **kwargs):
    layer = GrassmannClassifier(classes, **kwargs)
    layer.build((None, size))
    return layer


def test_logits_are_lengths_of_projections(rng):
    x, layer = rng.normal(size=(5, 6)), built(subspace_dim=2, gamma=3.0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = [[3 * np.linalg.norm(s.T @ row) for s in layer.kernel.numpy()] for row in unit]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)
    np.testing.assert_allclose(layer(7 * x), expected, rtol=1e-12)


def test_initial_bases_are_orthonormal_and_random():
    kernel = built(classes=300, subspace_dim=2).kernel.numpy()
    grams = np.einsum("cnk,cnl->ckl", kernel, kernel)
    np.testing.assert_allclose(grams, np.tile(np.eye(2), (300, 1, 1)), atol=1e-12)
    projections = np.einsum("cnk,cmk->nm", kernel, kernel) / 300
    np.testing.assert_allclose(projections, np.eye(6) * 2 / 6, atol=0.06)


def test_logits_belong_to_the_subspace_not_the_basis(rng):
    x, layer = rng.normal(size=(5, 6)), built(subspace_dim=3)
    expected = layer(x)
    turns = np.linalg.qr(rng.normal(size=(4, 3, 3)))[0]
    layer.kernel.assign(layer.kernel @ turns)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-10)


def test_lines_and_the_whole_space(rng):
    x = rng.normal(size=(5, 6))
    line = built(subspace_dim=1, gamma=1.0)
    cosines = x @ line.kernel.numpy()[:, :, 0].T / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(line(x), np.abs(cosines), rtol=1e-12)
    np.testing.assert_allclose(built(subspace_dim=6, gamma=2.5)(x), np.full((5, 4), 2.5))


def test_gradient_is_that_of_the_paper(rng):
    """x x^T S / |S^T x| for each class."""
    x, layer = rng.normal(size=6), built(subspace_dim=2, gamma=1.0)
    x /= np.linalg.norm(x)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x[None]))
    actual = tape.gradient(total, layer.kernel.value)
    for s, gradient in zip(layer.kernel.numpy(), actual, strict=True):
        expected = np.outer(x, x) @ s / np.linalg.norm(s.T @ x)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10)


def test_constraint_keeps_the_manifold_under_any_optimizer(rng):
    layer = built(subspace_dim=2, kernel_constraint=Orthonormal())
    model = keras.Sequential([keras.Input([6]), layer])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss)
    model.fit(rng.normal(size=(16, 6)), rng.integers(0, 4, 16), epochs=3, verbose=0)
    kernel = layer.kernel.numpy()
    grams = np.einsum("cnk,cnl->ckl", kernel, kernel)
    np.testing.assert_allclose(grams, np.tile(np.eye(2), (4, 1, 1)), atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": 0}, "`classes`"),
        ({"subspace_dim": 0}, "`subspace_dim`"),
        ({"subspace_dim": 7}, "number of features, 6"),
        ({"gamma": 0.0}, "`gamma`"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        built(**kwargs)
