import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.quadratic import QuadraticConv2D, QuadraticDense, relinear_multipliers
from kzoo.optimizers import LearningRateMultipliers

pytestmark = pytest.mark.paper("On Expressivity and Trainability of Quadratic Networks")

RANDOM = {
    "bias_initializer": "normal",
    "kernel_g_initializer": "glorot_uniform",
    "bias_g_initializer": "normal",
    "kernel_b_initializer": "glorot_uniform",
}


def fill(layer, rng):
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return layer


def test_dense_is_the_papers_formula(float64, rng):
    layer = QuadraticDense(3, activation="tanh")
    x = rng.normal(size=(5, 4))
    layer.build(x.shape)
    w_r, b_r, w_g, b_g, w_b, c = fill(layer, rng).get_weights()
    expected = np.empty((5, 3))
    for row, unit in np.ndindex(5, 3):
        product = (x[row] @ w_r[:, unit] + b_r[unit]) * (x[row] @ w_g[:, unit] + b_g[unit])
        expected[row, unit] = np.tanh(product + (x[row] ** 2) @ w_b[:, unit] + c[unit])
    np.testing.assert_allclose(layer(x), expected, atol=1e-13)


def test_one_neuron_by_hand():
    """(1*2 + 3*(-1) + 1) (2*2 + 0*(-1) + 3) + (1*4 + 5*1) + 7 = 0*7 + 9 + 7"""
    layer = QuadraticDense(1)
    layer.build((1, 2))
    layer.set_weights(
        [np.array(w, float) for w in ([[1], [3]], [1], [[2], [0]], [3], [[1], [5]], [7])]
    )
    np.testing.assert_array_equal(layer(np.array([[2.0, -1.0]])), [[16]])


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_is_dense_on_patches(float64, rng, padding):
    conv = QuadraticConv2D(3, 2, strides=2, padding=padding, activation="relu")
    image = rng.normal(size=(2, 4, 6, 2))
    conv.build(image.shape)
    weights = fill(conv, rng).get_weights()
    patches = image.reshape(2, 2, 2, 3, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 3, 8)
    dense = QuadraticDense(3, activation="relu")
    dense.build(patches.shape)
    dense.set_weights([w.reshape(8, 3) if w.ndim > 1 else w for w in weights])
    np.testing.assert_allclose(conv(image), dense(patches), atol=1e-13)


PAIRS = [
    (QuadraticDense, keras.layers.Dense, {"units": 4}, (6, 5)),
    (QuadraticConv2D, keras.layers.Conv2D, {"filters": 4, "kernel_size": 3}, (2, 5, 6, 3)),
]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("ours", "plain", "kwargs", "shape"), PAIRS)
def test_starts_as_the_plain_layer(rng, ours, plain, kwargs, shape, use_bias):
    inputs = 100 * rng.normal(size=shape).astype("float32")
    kwargs = {**kwargs, "use_bias": use_bias, "activation": "relu"}
    ours, plain = ours(**kwargs), plain(**kwargs)
    ours.build(shape)
    plain.build(shape)
    plain.set_weights(ours.get_weights()[: len(plain.weights)])
    np.testing.assert_array_equal(ours(inputs), plain(inputs))
    biases = 4 * (3 if use_bias else 1)
    assert ours.count_params() == 3 * np.prod(plain.kernel.shape) + biases


def test_gradients_by_finite_differences(float64, rng):
    layer = QuadraticConv2D(2, 2, activation="tanh")
    image = tf.constant(rng.normal(size=(1, 3, 3, 2)))
    layer.build(image.shape)
    fill(layer, rng)

    def loss(image, *weights):
        outputs, _ = layer.stateless_call(weights, [], image)
        return tf.reduce_sum(outputs)

    values = [tf.constant(weight) for weight in layer.get_weights()]
    theoretical, numerical = tf.test.compute_gradient(loss, [image, *values], 1e-4)
    for ours, reference in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-7)


def network(dense):
    layers = [dense(8, activation="relu", name="first"), dense(3, name="second")]
    return keras.Sequential([keras.Input([4]), *layers])


def train(model, optimizer, steps=10):
    data = np.random.default_rng(1)
    x = data.normal(size=(16, 4)).astype("float32")
    y = data.integers(0, 3, 16)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        model.train_on_batch(x, y)


def test_without_growth_training_is_that_of_the_linear_network():
    quadratic, linear = network(QuadraticDense), network(keras.layers.Dense)
    for ours, plain in zip(quadratic.layers, linear.layers, strict=True):
        plain.set_weights(ours.get_weights()[:2])
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    train(quadratic, LearningRateMultipliers(sgd, relinear_multipliers(quadratic, 0.0, 0.0)))
    train(linear, keras.optimizers.SGD(0.1, momentum=0.9))
    for ours, plain in zip(quadratic.layers, linear.layers, strict=True):
        for weight, reference in zip(ours.get_weights()[:2], plain.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, reference)


def test_multipliers_reach_each_quadratic_term_alone():
    def changes(gamma_g, gamma_b):
        keras.utils.set_random_seed(0)
        model = network(QuadraticDense)
        before = model.get_weights()
        sgd = keras.optimizers.SGD(0.1)
        multipliers = relinear_multipliers(model, gamma_g, gamma_b)
        train(model, LearningRateMultipliers(sgd, multipliers), steps=1)
        return [after - start for after, start in zip(model.get_weights(), before, strict=True)]

    full, scaled = changes(1.0, 1.0), changes(0.5, 0.25)
    assert all(np.abs(change).max() > 1e-4 for change in full)
    for change, part, factor in zip(full, scaled, 2 * [1, 1, 0.5, 0.5, 0.25, 0.25], strict=True):
        # b_g stands near 1, which costs digits.
        np.testing.assert_allclose(part, factor * change, rtol=1e-4, atol=1e-7)


def test_shrinkage_and_clipping_after_a_step():
    """Steps of a zero gradient leave the constraints alone to act."""
    layer = QuadraticDense(1, shrink_g=0.5, clip_g=0.4, shrink_b=0.9, clip_b=2.0)
    layer.build((1, 1))
    layer.set_weights([np.array(w, float) for w in ([[3]], [4], [[0.6]], [3], [[-5]], [1])])
    optimizer = keras.optimizers.SGD(0.1)
    variables = layer.trainable_variables
    optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    # W_g: 0.5 * 0.6; b_g - 1: 0.5 * 2 clipped to 0.4; W_b: 0.9 * -5 clipped to -2; c: 0.9
    expected = [3, 4, 0.3, 1.4, -2, 0.9]
    np.testing.assert_allclose([w.item() for w in layer.get_weights()], expected, rtol=1e-6)


def test_saves_its_weights_and_configuration(tmp_path):
    layers = [
        QuadraticConv2D(2, 2, shrink_g=0.5, clip_b=1.0, **RANDOM),
        QuadraticDense(2, use_bias=False, **RANDOM),
    ]
    model = keras.Sequential([keras.Input((3, 3, 2)), *layers])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for saved, loaded in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(saved, loaded)
    assert again.layers[0].get_config() == layers[0].get_config()
    assert len(again.layers[1].weights) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: QuadraticDense(2, shrink_g=1.5),
            "`shrink_g` must be in \\[0, 1\\]. Received: 1.5",
        ),
        (lambda: QuadraticDense(2, clip_b=-1), "`clip_b` must be None or finite and at least 0"),
        (lambda: QuadraticDense(2, lora_rank=2), "`lora_rank` must be None"),
        (lambda: relinear_multipliers(network(QuadraticDense), -1, 0), "`gamma_g` must be finite"),
        (lambda: relinear_multipliers(network(keras.layers.Dense), 1, 1), "with 0 of them"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
