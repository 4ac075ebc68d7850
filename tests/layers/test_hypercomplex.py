import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.hypercomplex import PHMConv1D, PHMConv2D, PHMDense

pytestmark = pytest.mark.paper(
    "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions"
)

IDENTITY = [[[1.0]]]


def built(layer, shape):
    layer.build(shape)
    return layer


def hamilton(w, x):
    """The product of quaternions given as arrays of components [4, ...], from i j = k etc."""
    a, b, c, d = w
    p, q, r, s = x
    return np.stack(
        [
            a * p - b * q - c * r - d * s,
            a * q + b * p + c * s - d * r,
            a * r - b * s + c * p + d * q,
            a * s + b * r - c * q + d * p,
        ]
    )


@pytest.mark.parametrize(
    ("ours", "plain", "shape"),
    [
        (PHMDense(3, 1, IDENTITY), keras.layers.Dense(3), (5, 4)),
        (PHMConv1D(3, 2, 1, IDENTITY), keras.layers.Conv1D(3, 2), (2, 6, 4)),
        (
            PHMConv2D(3, (2, 3), 1, IDENTITY, strides=2, padding="same", activation="tanh"),
            keras.layers.Conv2D(3, (2, 3), strides=2, padding="same", activation="tanh"),
            (2, 6, 7, 4),
        ),
    ],
)
def test_one_component_is_the_plain_layer(rng, ours, plain, shape):
    inputs = rng.normal(size=shape).astype("float32")
    plain.build(shape)
    ours.build(shape)
    ours.component_kernels.assign(plain.kernel[None])
    ours.bias.assign(rng.normal(size=3))
    plain.bias.assign(ours.bias)
    np.testing.assert_array_equal(ours(inputs), plain(inputs))


def test_kernel_is_the_sum_of_kronecker_products(rng):
    """Written for the matrix H of y = H x, the transpose of Keras's kernel."""
    layer = built(PHMConv2D(6, (2, 1), n=3, use_bias=False), (1, 5, 5, 9))
    algebra, filters = layer.get_weights()
    assert algebra.shape == (3, 3, 3)
    assert filters.shape == (3, 2, 1, 3, 2)
    for place in range(2):
        expected = sum(np.kron(algebra[i], filters[i, place, 0].T) for i in range(3))
        np.testing.assert_allclose(layer.kernel[place, 0], expected.T, atol=1e-6)


def test_complex_dense_is_the_complex_product(float64, rng):
    layer = built(PHMDense(6, n=2, algebra="complex", use_bias=False), (1, 4))
    real, imaginary = np.array(layer.component_kernels)
    z = rng.normal(size=(5, 2)) + 1j * rng.normal(size=(5, 2))
    expected = z @ (real + 1j * imaginary)
    outputs = layer(np.concatenate([z.real, z.imag], axis=1))
    np.testing.assert_allclose(
        outputs, np.concatenate([expected.real, expected.imag], 1), atol=1e-12
    )


def test_quaternion_convolution_is_the_hamilton_product(float64, rng):
    """Each output sums, over places and quaternions seen, the product of weight and input."""
    layer = built(PHMConv2D(12, 2, n=4, algebra="quaternion"), (1, 3, 4, 8))
    weights = np.array(layer.component_kernels)  # [4, row, column, in, out]
    image = rng.normal(size=(1, 3, 4, 8))
    quaternions = image[0].reshape(3, 4, 4, 2).transpose(2, 0, 1, 3)  # [4, row, column, in]
    expected = np.zeros((4, 2, 3, 3))
    for row, column, i, j, source, target in np.ndindex(2, 3, 2, 2, 2, 3):
        expected[:, row, column, target] += hamilton(
            weights[:, i, j, source, target], quaternions[:, row + i, column + j, source]
        )
    expected = expected.transpose(1, 2, 0, 3).reshape(1, 2, 3, 12) + np.array(layer.bias)
    np.testing.assert_allclose(layer(image), expected, atol=1e-12)


def test_the_product_of_pure_quaternions_i_and_j_is_k():
    layer = built(PHMDense(4, n=4, algebra="quaternion", use_bias=False), (1, 4))
    layer.component_kernels.assign(np.reshape([0, 1, 0, 0], (4, 1, 1)))
    np.testing.assert_array_equal(layer(np.array([[0.0, 0, 1, 0]])), [[0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("layer", "shape", "taps"),
    [
        (PHMDense(12, 4), (1, 8), 1),
        (PHMConv1D(12, 5, 4), (1, 9, 8), 5),
        (PHMConv2D(12, 3, 2), (1, 5, 5, 8), 9),
        (PHMConv2D(12, 3, 4, data_format="channels_first"), (1, 8, 5, 5), 9),
    ],
)
def test_number_of_weights(layer, shape, taps):
    layer.build(shape)
    assert layer.count_params() == layer.n**3 + 8 * 12 * taps // layer.n + 12
    assert len(layer.trainable_weights) == 3


def test_initial_values_are_those_of_the_authors():
    """xavier_uniform_ of PyTorch on [n, n, n] and [n, out/n, in/n, k, k], worked out by hand."""
    layer = built(PHMConv2D(64, 3, n=4), (1, 5, 5, 32))
    algebra, filters, bias = (np.abs(weight) for weight in layer.get_weights())
    # fan in = fan out = 16; fan in = 16 * 8 * 9, fan out = 4 * 8 * 9; features in: 32
    limits = np.sqrt(6 / 32), np.sqrt(6 / (1152 + 288)), 1 / np.sqrt(32)
    for weight, limit in zip((algebra, filters, bias), limits, strict=True):
        assert 0.9 * limit < weight.max() <= limit
        assert abs(weight.mean() / limit - 0.5) < 0.1


def test_fixed_algebra_is_not_trained(rng):
    layer = built(PHMDense(4, 2, "complex"), (1, 4))
    assert layer.algebra.path not in [weight.path for weight in layer.trainable_weights]
    np.testing.assert_array_equal(layer.algebra, [[[1, 0], [0, 1]], [[0, -1], [1, 0]]])


def test_gradients_by_finite_differences(float64, rng):
    layer = built(PHMConv2D(4, 2, n=2), (1, 3, 3, 2))
    image = tf.constant(rng.normal(size=(1, 3, 3, 2)))

    def loss(image, *weights):
        outputs, _ = layer.stateless_call(weights, [], image)
        return tf.reduce_sum(tf.sin(outputs))

    values = [tf.constant(weight) for weight in layer.get_weights()]
    theoretical, numerical = tf.test.compute_gradient(loss, [image, *values], 1e-4)
    for ours, reference in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-8)


def test_saves_its_weights_and_configuration(rng, tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 6)), PHMConv2D(6, 2, 3), PHMDense(4, 2, IDENTITY_2.tolist())]
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for saved, loaded in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(saved, loaded)
    assert again.layers[1].get_config()["algebra"] == IDENTITY_2.tolist()


IDENTITY_2 = np.stack([np.eye(2), np.diag([1.0, -1.0])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PHMDense(6, 4), "`n` must divide the 6 outputs. Received: 4"),
        (lambda: PHMDense(6, 0), "`n` must be a positive integer. Received: 0"),
        (lambda: PHMDense(6, 3, "quaternion"), "with n = 3. Received: \\[4, 4, 4\\]"),
        (lambda: PHMDense(6, 2, "octonion"), "'complex', 'quaternion' or nested lists"),
        (lambda: PHMConv2D(6, 3, 2, groups=2), "`groups` must be 1"),
        (lambda: PHMDense(6, 2, lora_rank=2), "`lora_rank` must be None"),
        (lambda: built(PHMConv2D(6, 3, 2), (1, 4, 4, 3)), "divide the input's channels, 3"),
        (lambda: built(PHMConv2D(6, 5, 2), (1, 4, 4, 2)), "negative|positive"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
