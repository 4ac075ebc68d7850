import keras
import numpy as np
import pytest

from kzoo.explain import DeepLIFT, IntegratedGradients

pytestmark = pytest.mark.paper(
    "Learning Important Features Through Propagating Activation Differences"
)


def test_by_hand():
    # h = relu(x1 - x2, x1 + x2 - 3), F = 2 h1 + h2 from (0, 0) at (3, 1):
    # z goes from (0, -3) to (2, 1), h from (0, 0) to (2, 1): multipliers 1 and 1/4.
    # C = x * (2 * 1 * (1, -1) + 1 * 1/4 * (1, 1)) = (3 * 2.25, 1 * -1.75), which sum to F = 5.
    hidden, output = keras.layers.Dense(2, "relu"), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input([2]), hidden, output])
    model.set_weights(
        [np.array([[1.0, 1], [-1, 1]]), np.array([0.0, -3]), np.array([[2.0], [1]]), np.zeros(1)]
    )
    result = DeepLIFT(model)(np.array([[3.0, 1.0]]))
    np.testing.assert_allclose(result["attributions"], [[6.75, -1.75]], rtol=1e-6)
    np.testing.assert_allclose(result["convergence_delta"], [0], atol=1e-6)


def cnn(pool_strides):
    inputs = keras.Input([8, 8, 2])
    x = keras.layers.Conv2D(4, 3, activation="tanh")(inputs)
    x = keras.layers.MaxPooling2D(3, strides=pool_strides)(x)
    x = keras.layers.BatchNormalization(gamma_initializer="random_normal")(x)
    skip = keras.layers.Conv2D(4, 1)(x)
    x = keras.layers.LeakyReLU()(skip) + keras.layers.Activation("gelu")(x)
    x = keras.ops.sigmoid(keras.layers.GlobalMaxPooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))


@pytest.mark.parametrize("pool_strides", [1, 3], ids=["overlapping", "apart"])
def test_sums_to_the_difference_through_every_kind_of_layer(pool_strides, rng):
    x = rng.normal(size=(6, 8, 8, 2)).astype("float32")
    baseline = rng.normal(size=(8, 8, 2)).astype("float32")
    result = DeepLIFT(cnn(pool_strides), baseline=baseline)(x, target=1)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=2e-6)
    # Which a plain gradient times the difference does not.
    one_step = IntegratedGradients(cnn(pool_strides), steps=1, rule="right", baseline=baseline)
    assert np.abs(one_step(x, 1)["convergence_delta"]).max() > 1e-3


def test_equals_the_multipliers_of_two_forward_passes(rng):
    model = keras.Sequential(
        [keras.Input([5]), keras.layers.Dense(7, "tanh"), keras.layers.Dense(2)]
    )
    x, baseline = rng.normal(size=(2, 3, 5)).astype("float32")
    kernel, bias, out, _ = model.get_weights()
    after, before = x @ kernel + bias, baseline[0] @ kernel + bias
    slope = (np.tanh(after) - np.tanh(before)) / (after - before)
    expected = (x - baseline[0]) * ((slope * out[:, 1]) @ kernel.T)
    result = DeepLIFT(model, baseline=baseline[0])(x, target=1)
    np.testing.assert_allclose(result["attributions"], expected, atol=1e-5)


def test_equals_integrated_gradients_on_an_affine_model(rng):
    model = keras.Sequential([keras.Input([5]), keras.layers.Dense(4), keras.layers.Dense(2)])
    x = rng.normal(size=(3, 5)).astype("float32")
    ours, theirs = DeepLIFT(model, 0.3)(x), IntegratedGradients(model, baseline=0.3)(x)
    np.testing.assert_allclose(ours["attributions"], theirs["attributions"], atol=1e-5)


def test_no_difference_has_the_gradient_as_multiplier():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, "relu", use_bias=False)])
    model.set_weights([np.array([[1.0, 0], [0, 1]])])
    result = DeepLIFT(model, baseline=1.0)(np.array([[1.0, 3.0]]), target=1)
    np.testing.assert_allclose(result["attributions"], [[0, 2]], atol=1e-6)


def test_several_inputs(rng):
    a, b = keras.Input([2], name="a"), keras.Input([3], name="b")
    hidden = keras.layers.Dense(4, "relu")(keras.layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(hidden))
    x = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=(3, 3))}
    result = DeepLIFT(model, baseline={"a": 0.5, "b": -0.5})(x)
    assert result["attributions"]["b"].shape == (3, 3)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-6)
