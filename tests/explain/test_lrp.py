import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import LRP, DeepTaylor, Saliency

BACH = pytest.mark.paper(
    "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance "
    "Propagation"
)
MONTAVON = pytest.mark.paper(
    "Explaining NonLinear Classification Decisions with Deep Taylor Decomposition"
)


def two_layers(kernel, bias, out, out_bias=0.0):
    layers = [keras.layers.Dense(len(bias), "relu"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input([len(kernel)]), *layers])
    model.set_weights([np.array(kernel), np.array(bias), np.array(out), np.array([out_bias])])
    return model


@BACH
def test_epsilon_rule_by_hand():
    # x = (1, 2): z = (1 + 4, 3 - 2 + 1) = (5, 2), F = 5 - 2 * 2 = 1, so R = (5, -4).
    # R_1 = 1/5 * 5 + 3/2 * -4 = -5, R_2 = 4/5 * 5 + -2/2 * -4 = 8; the bias keeps 1/2 * -4 = -2.
    model = two_layers([[1.0, 3], [2, -1]], [0.0, 1], [[1.0], [-2]])
    result = LRP(model)(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(result["attributions"], [[-5, 8]], rtol=1e-5)
    np.testing.assert_allclose(result["convergence_delta"], [2], rtol=1e-5)


@BACH
def test_z_plus_rule_by_hand():
    # x = (1, 2): z = (5, 1), F = 5 + 2 = 7. Positive parts: (1 + 4), (3 + 0), so R_1 = 5/5 + 2.
    model = two_layers([[1.0, 3], [2, -1]], [0.0, 0], [[1.0], [2]])
    result = LRP(model, rule="z_plus")(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(result["attributions"], [[1 + 2, 4 + 0]], rtol=1e-5)
    # Negative inputs speak for what they weaken: x = (-1, 2), z = (3, -5), F = 3:
    # positive parts of unit 1: -1 * 1 is none, 2 * 2.
    result = LRP(model, rule="z_plus")(np.array([[-1.0, 2.0]]))
    np.testing.assert_allclose(result["attributions"], [[0, 3]], atol=1e-5)


@MONTAVON
def test_z_box_by_hand():
    # Bounds -1 and 2, x = (1, 2), w = (1, -1) and (3, 1): z = (1 - 2, 3 + 2) -> h = (0, 5), F = 5.
    # Unit 2 has x w - l w^+ = (3 + 3, 2 + 1), of 9.
    model = two_layers([[1.0, 3], [-1, 1]], [0.0, 0], [[1.0], [1]])
    result = DeepTaylor(model, bounds=(-1, 2))(np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(result["attributions"], [[5 * 6 / 9, 5 * 3 / 9]], rtol=1e-5)


def network(use_bias):
    def conv(filters, size, **kwargs):
        return keras.layers.Conv2D(
            filters, size, use_bias=use_bias, bias_initializer="random_normal", **kwargs
        )

    inputs = keras.Input([8, 8, 2])
    x = conv(6, 3, activation="relu")(inputs)
    x = keras.layers.MaxPooling2D()(x)
    skip = conv(6, 1)(x)
    x = keras.layers.ReLU()(conv(6, 3, padding="same")(x)) + skip
    x = keras.layers.Concatenate()([x, keras.layers.AveragePooling2D(2, 1, "same")(x)])
    x = keras.layers.Flatten()(keras.ops.relu(x))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", use_bias=use_bias)(x))


@BACH
def test_without_biases_it_is_conserved_and_equals_gradient_times_input(float64, rng):
    model, x = network(use_bias=False), rng.normal(size=(4, 8, 8, 2))
    result = LRP(model, epsilon=1e-12)(x, target=2)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-8)
    gradient = Saliency(model, absolute=False)(x, target=2)["attributions"]
    np.testing.assert_allclose(result["attributions"], gradient * x, atol=1e-8)
    with_bias = LRP(network(use_bias=True))(x, target=2)
    assert np.abs(with_bias["convergence_delta"]).min() > 1e-3


@MONTAVON
def test_deep_taylor_is_positive_and_conserved_for_images_within_the_bounds(float64, rng):
    model = keras.Sequential(
        [
            keras.Input([8, 8, 2]),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomUniform(0, 1)),
        ]
    )
    x = rng.uniform(size=(4, 8, 8, 2))
    result = DeepTaylor(model, epsilon=1e-12, bounds=(0, 1))(x)
    assert np.min(result["attributions"]) > -1e-9
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-6)


@BACH
def test_a_large_epsilon_takes_relevance_away(rng):
    model, x = network(use_bias=False), rng.normal(size=(4, 8, 8, 2)).astype("float32")
    small, large = (
        np.abs(LRP(model, epsilon=epsilon)(x)["attributions"]).sum() for epsilon in (1e-6, 1.0)
    )
    assert large < 0.5 * small


@BACH
def test_what_has_no_rule_is_refused():
    tokens = keras.Input([4, 6])
    attended = keras.layers.MultiHeadAttention(2, 3)(tokens, tokens)
    model = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Flatten()(attended)))
    with pytest.raises(ValueError, match="multi_head_attention.*has no rule.*TransformerRelevance"):
        LRP(model)

    class Own(keras.Model):
        def call(self, x):
            return tf.nn.relu(x)

    with pytest.raises(ValueError, match="has no rule"):
        LRP(Own())
    with pytest.raises(ValueError, match='`rule` must be "epsilon" or "z_plus"'):
        LRP(model, rule="gamma")
    with pytest.raises(ValueError, match="`bounds` must be"):
        LRP(model, bounds=(1, 2))
    with pytest.raises(ValueError, match="`epsilon` must be positive"):
        LRP(model, epsilon=0)
