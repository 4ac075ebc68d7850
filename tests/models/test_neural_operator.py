"""Converted networks: the same outputs on their own grid, convergent ones on others."""

import keras
import numpy as np
import pytest

from kzoo.models.neural_operator import to_neural_operator

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


def network(n=16, axes=1):
    conv = getattr(keras.layers, f"Conv{axes}D")
    inputs = keras.Input((*[n] * axes, 1))
    x = conv(4, 3, padding="same", activation="tanh", name="first")(inputs)
    skip = conv(4, 1, name="pointwise")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("gelu")(conv(4, 5, padding="same", name="second")(x))
    x = keras.layers.Add()([x, skip])
    model = keras.Model(inputs, conv(1, 3, padding="same", use_bias=False)(x))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.1, 1.0, w.shape) - 0.3 * (w.ndim > 1) for w in model.weights])
    return model


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_outputs_are_the_same_on_the_networks_own_grid(float64, rng, axes):
    model = network(10, axes)
    u = rng.normal(size=(2, *[10] * axes, 1))
    np.testing.assert_allclose(to_neural_operator(model, length=3.0)(u), model(u), atol=1e-9)


def test_the_outputs_converge_on_finer_grids(float64):
    """Below the fall of 0.6 per doubling that the catalogue of checks asks for."""
    operator = to_neural_operator(network(), padding="periodic")

    def at_coarse_points(n):
        x = 2 * np.pi * np.arange(n) / n
        outputs = operator((np.exp(np.sin(x)) + np.cos(3 * x))[None, :, None])
        return np.asarray(outputs)[0, :: n // 16, 0]

    outputs = np.stack([at_coarse_points(n) for n in (16, 32, 64, 128, 256)])
    errors = np.abs(outputs[:-1] - outputs[-1]).max(1)
    assert np.all(errors[1:] <= 0.6 * errors[:-1])


def test_it_has_the_networks_weights_and_layers(tmp_path):
    model = network()
    operator = to_neural_operator(model)
    assert [layer.name for layer in operator.layers][1:] == [x.name for x in model.layers][1:]
    for mine, its in zip(operator.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    operator.layers[1].kernel.assign(0 * operator.layers[1].kernel)
    assert np.any(model.get_weights()[0])
    operator.save(tmp_path / "operator.keras")
    again = keras.saving.load_model(tmp_path / "operator.keras")
    u = np.ones((1, 20, 1), "float32")
    np.testing.assert_array_equal(again(u), operator(u))


def test_a_sequential_network(float64, rng):
    model = keras.Sequential(
        [keras.Input((8, 2)), keras.layers.Conv1D(3, 3, padding="same"), keras.layers.ReLU()]
    )
    u = rng.normal(size=(2, 8, 2))
    operator = to_neural_operator(model)
    np.testing.assert_allclose(operator(u), model(u), atol=1e-12)
    assert operator.input_shape == (None, None, 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.Conv1D(2, 3, strides=2, padding="same", name="c"), "stride 1.*'c'"),
        (keras.layers.Conv1D(2, 2, padding="same"), "odd kernels.*Received"),
        (keras.layers.Conv1D(2, 3), "padding 'same'.*'valid'"),
        (keras.layers.MaxPooling1D(name="pool"), "'pool' .*depends on the grid"),
        (keras.layers.Flatten(name="flat"), "'flat' .*depends on the grid"),
    ],
)
def test_layers_of_the_grid_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        to_neural_operator(keras.Sequential([keras.Input((8, 2)), layer]))


def test_an_open_grid_is_refused():
    with pytest.raises(ValueError, match="known grid.*Received"):
        to_neural_operator(keras.Sequential([keras.Input((None, 2)), keras.layers.ReLU()]))
