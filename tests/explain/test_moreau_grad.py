import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import MoreauGrad, Saliency

pytestmark = pytest.mark.paper(
    "MoreauGrad: Sparse and Robust Interpretation of Neural Networks via Moreau Envelope"
)


def model_of(function, *shape):
    x = keras.Input(shape)
    return keras.Model(x, keras.layers.Lambda(lambda x: function(x)[:, tf.newaxis])(x))


def test_closed_form_of_a_quadratic(float64, rng):
    root = rng.normal(size=(4, 4))
    a, b, x = root @ root.T, rng.normal(size=4), rng.normal(size=(3, 4))
    model = model_of(lambda x: 0.5 * tf.einsum("bi,ij,bj->b", x, a, x) + tf.reduce_sum(x * b, 1), 4)
    rho = 0.3
    expected = np.linalg.solve(np.eye(4) + rho * a, (x @ a + b).T).T
    result = MoreauGrad(model, rho=rho, steps=400, step_size=0.05)(x)
    np.testing.assert_allclose(result["attributions"], expected, atol=1e-8)


def linear(w):
    return model_of(
        lambda x: tf.reduce_sum(x * w.astype("float32"), range(1, w.ndim + 1)), *w.shape
    )


def test_sparsity_of_a_linear_score_is_a_soft_threshold(rng):
    w, x = rng.normal(size=6), rng.normal(size=(2, 6))
    result = MoreauGrad(linear(w), rho=0.5, sparsity=0.6, steps=60)(x)
    expected = np.sign(w) * np.maximum(np.abs(w) - 0.6, 0)
    np.testing.assert_allclose(result["attributions"], [expected] * 2, atol=1e-5)
    assert 0 < np.count_nonzero(expected) < 6


def test_groups_of_a_linear_score_shrink_together(rng):
    w = rng.normal(size=(4, 4, 2))
    w[:2, 2:] *= 0.1
    result = MoreauGrad(linear(w), sparsity=1.0, groups=2, steps=60)(np.zeros([1, 4, 4, 2]))
    expected = w.copy()
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 2), slice(2, 4)):
            norm = np.linalg.norm(w[rows, columns])
            expected[rows, columns] *= max(0, 1 - 1 / norm)
    np.testing.assert_allclose(result["attributions"][0], expected, atol=1e-5)
    assert not expected[:2, 2:].any()


def test_a_small_rho_gives_the_gradient(cnn, images):
    gradient = Saliency(cnn, absolute=False)(images)["attributions"]
    near = MoreauGrad(cnn, rho=1e-4)(images)["attributions"]
    np.testing.assert_allclose(near, gradient, atol=1e-3 * np.abs(gradient).max())


def test_smoothing_of_a_cosine_by_its_closed_form():
    # E cos(w (x + z)) = cos(w x) exp(-w^2 s^2 / 2); a small rho leaves its gradient.
    model = model_of(lambda x: tf.cos(2 * x[:, 0]), 1)
    x = np.array([[0.4], [1.1]])
    result = MoreauGrad(model, rho=1e-3, noise=0.5, samples=4000, steps=20, rows=10_000)(x)
    expected = -2 * np.sin(2 * x) * np.exp(-(2**2) * 0.5**2 / 2)
    np.testing.assert_allclose(result["attributions"], expected, atol=0.03)


def test_it_changes_less_than_the_gradient_when_the_input_does(digit_pairs, rng):
    images = digit_pairs.images[:20]
    noise = rng.normal(size=images.shape).astype("float32")
    noise *= 0.3 / np.linalg.norm(noise.reshape(20, -1), axis=1)[:, None, None, None]

    def change(explainer):
        maps = [np.asarray(explainer(x, digit_pairs.labels[:20, 0])["attributions"]) for x in
                (images, images + noise)]  # fmt: skip
        before, after = (each.reshape(20, -1) for each in maps)
        return np.linalg.norm(before - after, axis=1) / np.linalg.norm(before, axis=1)

    model = digit_pairs.model
    plain = change(Saliency(model, absolute=False))
    smooth = change(MoreauGrad(model, rho=0.1, steps=10, noise=0.2, samples=8))
    assert np.mean(smooth < plain) >= 0.8


def test_the_chunks_leave_the_numbers(cnn, images):
    options = {"steps": 3, "noise": 0.1, "samples": 5}
    expected = MoreauGrad(cnn, **options)(images)["attributions"]
    result = MoreauGrad(cnn, rows=1, **options)(images)["attributions"]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_errors_name_the_argument(cnn):
    for name, bad in (
        ("rho", 0), ("steps", 0), ("step_size", 1.0), ("noise", -1), ("samples", 0),
        ("sparsity", -0.1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            MoreauGrad(cnn, **{name: bad})
