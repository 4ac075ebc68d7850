import keras
import numpy as np
import pytest

from kzoo.explain import Saliency
from kzoo.explain.input_x_gradient import InputXGradient

pytestmark = pytest.mark.paper(
    "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences"
)


def relu_network(use_bias):
    dense = [keras.layers.Dense(n, "relu", use_bias=use_bias) for n in (8, 6)]
    return keras.Sequential([keras.Input([4]), *dense, keras.layers.Dense(3, use_bias=use_bias)])


def test_by_hand():
    # S = w2 relu(w1 x) with w1 = [[2, -1], [1, 3]], w2 = (1, -2): at x = (1, 2) the hidden values
    # are (4, 5), both on; dS/dx = (2 + 2, 1 - 6) = (4, -5); times x: (4, -10).
    model = keras.Sequential(
        [
            keras.Input([2]),
            keras.layers.Dense(2, "relu", use_bias=False),
            keras.layers.Dense(1, use_bias=False),
        ]
    )
    model.set_weights([np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([[1.0], [-2.0]])])
    result = InputXGradient(model)(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(result["attributions"], [[4.0, -10.0]], rtol=1e-6)
    np.testing.assert_allclose(result["score"], [-6.0], rtol=1e-6)


def test_complete_without_biases_and_only_there(rng):
    x = rng.normal(size=(5, 4)).astype("float32")
    result = InputXGradient(relu_network(use_bias=False))(x)
    np.testing.assert_allclose(
        np.sum(result["attributions"], 1), result["score"], rtol=1e-4, atol=1e-6
    )
    model = relu_network(use_bias=True)
    model.set_weights([w + 0.5 for w in model.get_weights()])
    result = InputXGradient(model)(x)
    assert np.abs(np.sum(result["attributions"], 1) - result["score"]).max() > 0.1


def test_is_the_input_times_the_signed_gradient_at_inputs_and_taps(rng):
    a, b = keras.Input([2]), keras.Input([3])
    hidden = keras.layers.Dense(4, "relu", name="hidden")(keras.layers.Concatenate()([a, b]))
    model = keras.Model([a, b], keras.layers.Dense(2)(hidden))
    x = [rng.normal(size=(3, n)).astype("float32") for n in (2, 3)]
    result = InputXGradient(model)(x, target=1)
    gradients = Saliency(model, absolute=False)(x, target=1)
    for each in range(2):
        np.testing.assert_allclose(
            result["attributions"][each], x[each] * gradients["attributions"][each], rtol=1e-6
        )
    tapped = InputXGradient(model, tap="hidden")(x, target=1)["attributions"]
    values = keras.Model([a, b], hidden)(x)
    np.testing.assert_allclose(tapped, values * model.layers[-1].kernel[:, 1], rtol=1e-5)
