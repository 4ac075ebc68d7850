"""FullGrad: completeness on networks of many builds, and the map against its equation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.full_grad import FullGrad
from kzoo.explain.full_gradients import full_gradient_decomposition

pytestmark = pytest.mark.paper("Full-Gradient Representation for Neural Network Visualization")
L = keras.layers


def randomize(model, rng):
    """Weights, biases and moving averages of no special values."""
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name or "gamma" in weight.name else -0.5
        weight.assign(rng.uniform(low, low + 1.0, weight.shape))
    return model


def assert_complete(result, tolerance=1e-5):
    terms = [result["input_term"], *result["bias_terms"].values()]
    total = sum(np.sum(x, axis=tuple(range(1, x.ndim))) for x in map(np.asarray, terms))
    np.testing.assert_allclose(total, result["score"], rtol=tolerance)
    error = np.abs(result["convergence_delta"])
    assert (error < tolerance * np.abs(result["score"])).all()


def vgg_like():
    layers = [keras.Input([8, 8, 2])]
    for filters in (4, 6):
        layers += [L.Conv2D(filters, 3, padding="same", activation="relu"), L.Conv2D(filters, 3)]
        layers += [L.ReLU(), L.MaxPooling2D(2, padding="same")]
    layers += [L.Flatten(), L.Dense(5, "relu"), L.Dense(3, "softmax")]
    return keras.Sequential(layers)


def resnet_like():
    x = inputs = keras.Input([8, 8, 2])
    x = L.BatchNormalization(name="first")(L.Conv2D(4, 3, padding="same", use_bias=False)(x))
    y = keras.ops.relu(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(L.ReLU()(x))))
    y = L.BatchNormalization(center=False)(L.DepthwiseConv2D(3, padding="same")(y))
    x = L.LeakyReLU()(L.Add()([x, y]))
    x = L.GlobalAveragePooling2D()(L.Conv2DTranspose(3, 2, strides=2)(x))
    return keras.Model(inputs, L.Dense(3)(x))


@pytest.mark.parametrize("build", [vgg_like, resnet_like])
def test_complete(build, rng, float64):
    model = randomize(build(), rng)
    result = full_gradient_decomposition(model, rng.normal(size=(4, 8, 8, 2)), target=1)
    assert_complete(result, 1e-9)


def test_complete_in_float32(rng):
    model = randomize(resnet_like(), rng)
    result = full_gradient_decomposition(model, rng.normal(size=(4, 8, 8, 2)), target=[0, 1, 2, -1])
    assert_complete(result, 1e-4)


def test_the_offset_of_batch_normalization_is_needed(rng, float64):
    model = randomize(resnet_like(), rng)
    result = full_gradient_decomposition(model, rng.normal(size=(4, 8, 8, 2)), target=1)
    offsets = {name: x for name, x in result["bias_terms"].items() if "first/offset" in name}
    assert list(offsets) == ["first/offset"]
    left_out = np.sum(offsets["first/offset"], axis=(1, 2, 3))
    assert (np.abs(left_out) > 0.01 * np.abs(result["score"])).all()


def test_one_layer_by_hand():
    # f = 3 relu(z1) - 2 relu(z2) + 0.5.
    x = keras.Input([2])
    model = keras.Model(x, L.Dense(1)(L.Dense(2, "relu")(x)))
    weights = [[[1.0, -1.0], [2.0, 0.5]], [0.25, -4.0], [[3.0], [-2.0]], [0.5]]
    model.set_weights([np.array(weight) for weight in weights])
    # z1 = 1 + 2 * 3 + 0.25 = 7.25, z2 = -1 + 1.5 - 4 < 0: f = 3 * 7.25 + 0.5.
    result = full_gradient_decomposition(model, np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(result["score"], [22.25])
    np.testing.assert_allclose(result["input_term"], [[3.0, 18.0]])
    first, last = (result["bias_terms"][f"{layer.name}/bias"] for layer in model.layers[1:])
    np.testing.assert_allclose(first, [[0.75, 0.0]])
    np.testing.assert_allclose(last, [[0.5]])


def test_weak_dependence(rng, float64):
    # Within a linear region the input's gradient is constant, and so are the bias terms.
    model = randomize(vgg_like(), rng)
    x = rng.normal(size=(3, 8, 8, 2))
    near = x + 1e-9 * rng.normal(size=x.shape)
    one, other = (full_gradient_decomposition(model, each, 1) for each in (x, near))
    np.testing.assert_allclose(one["input_term"] / x, other["input_term"] / near, rtol=1e-6)
    for name, term in one["bias_terms"].items():
        np.testing.assert_allclose(term, other["bias_terms"][name], rtol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu6", "sigmoid", "silu"])
def test_nonlinearities_have_implicit_biases(activation, rng, float64):
    x = keras.Input([3])
    y = L.Activation(activation)(L.Dense(4, activation)(x))
    model = randomize(keras.Model(x, L.Dense(2)(y)), rng)
    result = full_gradient_decomposition(model, 3 * rng.normal(size=(5, 3)), 0)
    assert_complete(result, 1e-9)
    assert {f"{activation}/activation", f"{activation}/activation_1"} < set(result["bias_terms"])


def test_implicit_bias_by_hand():
    # f = tanh(x): tanh'(1) + (tanh(1) - tanh'(1)).
    x = keras.Input([1])
    model = keras.Model(x, keras.ops.tanh(x))
    result = full_gradient_decomposition(model, np.array([[1.0]]))
    slope = 1 - np.tanh(1) ** 2
    np.testing.assert_allclose(result["input_term"], [[slope]], rtol=1e-5)
    np.testing.assert_allclose(
        next(iter(result["bias_terms"].values())), [[np.tanh(1) - slope]], rtol=1e-5
    )


class Subclassed(keras.Model):
    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def call(self, x):
        return self.head(tf.nn.relu(self.body(x)))


def test_every_build_gives_the_same(rng):
    body, head = L.Dense(4), L.Dense(3, "softmax")
    built = keras.Sequential([keras.Input([2]), body, L.ReLU(), head])
    randomize(built, rng)
    x = keras.Input([2])
    nested = keras.Model(x, keras.Sequential(built.layers)(x))
    inputs = rng.normal(size=(3, 2)).astype("float32")
    expected = full_gradient_decomposition(built, inputs)
    assert len(expected["bias_terms"]) == 2
    for model in (nested, Subclassed(body, head), keras.Model(built.inputs, built.outputs)):
        result = full_gradient_decomposition(model, inputs)
        assert_complete(result)
        for name, term in expected["bias_terms"].items():
            np.testing.assert_allclose(result["bias_terms"][name], term, rtol=1e-5, atol=1e-6)


def test_subclassed_model_that_was_never_called(rng):
    model = Subclassed(L.Dense(4, bias_initializer="ones"), L.Dense(3, bias_initializer="ones"))
    assert_complete(full_gradient_decomposition(model, rng.normal(size=(3, 2)).astype("float32")))


def test_shared_layers_and_several_inputs(rng, float64):
    a, b = keras.Input([3], name="a"), keras.Input([3], name="b")
    shared = L.Dense(4, "relu", name="shared")
    joined = L.Concatenate()([shared(a), shared(b), L.Rescaling(2.0, 1.0, name="scale")(b)])
    model = randomize(keras.Model({"a": a, "b": b}, L.Dense(2)(joined)), rng)
    x = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(4, 3))}
    result = full_gradient_decomposition(model, x, 0)
    assert {"shared/bias", "shared/bias_1", "scale/offset"} < set(result["bias_terms"])
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-12)
    with pytest.raises(ValueError, match="FullGrad explains one input"):
        FullGrad(model)(x)


def test_from_an_embedding(rng, float64):
    tokens = keras.Input([5], dtype="int32")
    y = L.Conv1D(4, 3, activation="relu")(L.Embedding(7, 3, name="embedding")(tokens))
    model = randomize(keras.Model(tokens, L.Dense(2)(L.GlobalMaxPooling1D()(y))), rng)
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]])
    result = FullGrad(model, tap="embedding")(x, 1)
    assert result["attributions"].shape == (2, 5)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-12)


def rescaled(x, axes):
    x = np.abs(x)
    x = x - x.min(axes, keepdims=True)
    top = x.max(axes, keepdims=True)
    return x / np.where(top > 0, top, 1)


@pytest.mark.parametrize(("rescale", "axes"), [("channel", (1, 2)), ("layer", (1, 2, 3))])
def test_map_is_the_sum_of_rescaled_and_resized_terms(rescale, axes, rng):
    model = randomize(vgg_like(), rng)
    x = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    terms = full_gradient_decomposition(model, x, 1)
    expected = rescaled(np.asarray(terms["input_term"]), (1, 2, 3)).sum(-1)
    for term in map(np.asarray, terms["bias_terms"].values()):
        if term.ndim == 4:
            for channel in np.moveaxis(rescaled(term, axes), -1, 0):
                expected = expected + tf.image.resize(channel[..., None], [8, 8])[..., 0]
    result = FullGrad(model, rescale=rescale)(x, 1)
    np.testing.assert_allclose(result["attributions"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-3)


def test_attention_is_left_out_and_the_delta_says_so(rng):
    x = keras.Input([4, 3])
    y = L.MultiHeadAttention(2, 3)(x, x)
    model = randomize(keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(y))), rng)
    result = FullGrad(model)(rng.normal(size=(2, 4, 3)), 0)
    assert (np.abs(result["convergence_delta"]) > 1e-3).all()


def test_errors():
    lstm = keras.Sequential([keras.Input([4, 2]), L.LSTM(3), L.Dense(2)])
    with pytest.raises(ValueError, match="within a loop over time are out of reach.*LSTM"):
        FullGrad(lstm)
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        FullGrad(tf.nn.relu)
    with pytest.raises(
        ValueError, match='`rescale` must be "channel" or "layer". Received: "?.?all'
    ):
        FullGrad(vgg_like(), rescale="all")
