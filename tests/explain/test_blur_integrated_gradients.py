import keras
import numpy as np
import pytest

from kzoo.explain import BlurIntegratedGradients

pytestmark = pytest.mark.paper("Attribution in Scale and Space")


def blurred(image, sigma):
    """Row-normalized Gaussian matrices along both axes, in NumPy."""
    matrices = []
    for size in image.shape[:2]:
        place = np.arange(size)
        kernel = np.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
        matrices.append(kernel / kernel.sum(1, keepdims=True))
    return np.einsum("yi,xj,ijc->yxc", *matrices, image)


def test_linear_score_by_hand(float64, rng):
    # The gradient w is the same on the whole path: BlurIG = w (x - blurred).
    w, x = rng.normal(size=(2, 5, 7, 1))
    inputs = keras.Input([5, 7, 1])
    score = keras.ops.sum(inputs * w, axis=(1, 2))
    result = BlurIntegratedGradients(keras.Model(inputs, score), sigma=1.5, steps=60)(x[None])
    np.testing.assert_allclose(result["attributions"][0], w * (x - blurred(x, 1.5)), atol=1e-5)
    np.testing.assert_allclose(result["score"], [(w * x).sum()])


def test_complete_on_a_network_and_better_with_more_steps(float64, rng):
    model = keras.Sequential(
        [
            keras.Input([8, 8, 2]),
            keras.layers.Conv2D(6, 3, activation="tanh"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    x = rng.normal(size=(3, 8, 8, 2))
    result = BlurIntegratedGradients(model, sigma=2.0)(x, target=1)
    start = np.stack([blurred(image, 2.0) for image in x])
    difference = (model(x) - model(start))[:, 1]
    total = np.sum(result["attributions"], axis=(1, 2, 3))
    np.testing.assert_allclose(result["convergence_delta"], total - difference, atol=1e-9)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-5)
    rough = BlurIntegratedGradients(model, sigma=2.0, steps=4)(x, target=1)
    assert np.abs(rough["convergence_delta"]).max() > 1e-4


def test_the_widest_blur_follows_the_image(cnn, images):
    default, eighth = BlurIntegratedGradients(cnn), BlurIntegratedGradients(cnn, sigma=1.0)
    np.testing.assert_allclose(
        default(images)["attributions"], eighth(images)["attributions"], atol=1e-6
    )


def test_errors_name_the_argument(cnn):
    with pytest.raises(ValueError, match="`sigma` must be positive. Received: 0"):
        BlurIntegratedGradients(cnn, sigma=0)
    table = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="Only images can be blurred"):
        BlurIntegratedGradients(table)(np.zeros([1, 4]))
