import keras
import numpy as np
import pytest

from kzoo.explain import Occlusion

pytestmark = pytest.mark.paper("Visualizing and Understanding Convolutional Networks")


def by_loop(model, image, target, window, strides, baseline):
    """Hides one window after the other and averages what each value's windows took away."""
    height, width = image.shape[:2]
    score = lambda x: model(x[np.newaxis]).numpy()[0, target]  # noqa: E731
    falls, counts = np.zeros((height, width)), np.zeros((height, width))
    top = 0
    while True:
        left = 0
        while True:
            hidden = image.copy()
            hidden[top : top + window, left : left + window] = baseline
            falls[top : top + window, left : left + window] += score(image) - score(hidden)
            counts[top : top + window, left : left + window] += 1
            if left + window >= width:
                break
            left += strides
        if top + window >= height:
            break
        top += strides
    return falls / counts


@pytest.fixture
def logits(cnn):
    cnn.layers[-1].activation = None
    return cnn


@pytest.mark.parametrize(("window", "strides"), [(3, 2), (4, 4), (5, 3), (8, 1), (11, 2)])
def test_equals_hiding_one_window_after_the_other(logits, images, window, strides):
    result = Occlusion(logits, window, strides, baseline=0.3, rows=7)(images, target=2)
    for row in range(2):
        expected = by_loop(logits, images[row], 2, window, strides, 0.3)
        np.testing.assert_allclose(result["attributions"][row], expected, atol=1e-5)


def test_a_linear_model_of_a_table_by_hand():
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
    model.set_weights([np.array([[1.0], [-2.0], [3.0]]), np.array([5.0])])
    result = Occlusion(model, window=1, baseline=1.0)(np.array([[2.0, 3.0, 1.0]]))
    np.testing.assert_allclose(result["attributions"], [[1 * (2 - 1), -2 * (3 - 1), 0]])
    # Windows of two: (1, 2) and (2, 3); the middle value belongs to both.
    result = Occlusion(model, window=2, strides=1, baseline=1.0)(np.array([[2.0, 3.0, 1.0]]))
    np.testing.assert_allclose(result["attributions"], [[-3, (-3 - 4) / 2, -4]])


def test_tokens_are_hidden_as_they_are(rng):
    tokens = keras.Input([6], dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2)(x))
    ids = rng.integers(1, 10, [2, 6])
    result = Occlusion(model, window=1)(ids, target=1)
    for position in range(6):
        hidden = ids.copy()
        hidden[:, position] = 0
        fall = (model(ids) - model(hidden))[:, 1]
        np.testing.assert_allclose(result["attributions"][:, position], fall, atol=1e-6)


def test_the_chunks_leave_the_numbers(cnn, images):
    expected = Occlusion(cnn, window=3)(images)["attributions"]
    for rows in (1, 13, 10_000):
        result = Occlusion(cnn, window=3, rows=rows)(images)
        np.testing.assert_allclose(result["attributions"], expected, atol=1e-6)


def test_errors_name_the_argument(cnn):
    with pytest.raises(ValueError, match="`window` must be positive integers. Received: 0"):
        Occlusion(cnn, window=0)
    with pytest.raises(ValueError, match="`strides` must be positive integers"):
        Occlusion(cnn, strides=(1, 0.5))
    a, b = keras.Input([2]), keras.Input([2])
    pair = keras.Model([a, b], keras.layers.Dense(1)(a + b))
    with pytest.raises(ValueError, match="Occlusion is for a model of one input"):
        Occlusion(pair)([np.zeros([1, 2]), np.zeros([1, 2])])
