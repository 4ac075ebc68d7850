import keras
import numpy as np
import pytest

from kzoo.layers.shaped_activation import ShapedActivation, shaping_gains

pytestmark = pytest.mark.paper(
    "Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion"
)


def test_is_the_activation_of_the_scaled_input(rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(ShapedActivation("tanh", 0.3)(x), np.tanh(0.3 * x), rtol=1e-6)
    rescaled = ShapedActivation(keras.ops.sin, 0.3, rescale=True)
    np.testing.assert_allclose(rescaled(x), np.sin(0.3 * x) / 0.3, rtol=1e-6)
    np.testing.assert_array_equal(ShapedActivation("tanh")(x), keras.activations.tanh(x))


def test_small_gains_are_linear_up_to_their_square(float64, rng):
    x = rng.normal(size=(3, 4))
    errors = [
        np.abs(ShapedActivation("tanh", gain, rescale=True)(x) - x).max() for gain in (0.02, 0.01)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.01)


def test_gains_are_the_authors():
    np.testing.assert_allclose(shaping_gains(3), [1, 2**-0.4, 3**-0.4])
    assert shaping_gains(4, exponent=0) == [1, 1, 1, 1]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`gain` must be"):
        ShapedActivation("tanh", 0.0)
    with pytest.raises(ValueError, match="`exponent` must be"):
        shaping_gains(3, -1.0)
