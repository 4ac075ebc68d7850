import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.spatial_transformer import SpatialTransformer
from kzoo.ops.grids import affine_grid, grid_sample

pytestmark = pytest.mark.paper("Spatial Transformer Networks")
TRANSFORMS = ("affine", "attention", "projective", "thin_plate_spline")


def localization():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4, "tanh")])


def blob(rng, batch=2, size=(6, 7)):
    return rng.normal(size=(batch, *size, 2)).astype("float32")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("size", [(6, 7), (5, 5)])
def test_starts_as_the_identity(rng, transform, size):
    x = blob(rng, size=size)
    np.testing.assert_allclose(SpatialTransformer(localization(), transform)(x), x, atol=1e-6)


def test_regression_moves_the_grid(rng):
    x = blob(rng)
    layer = SpatialTransformer(localization(), output_size=(3, 4), align_corners=False)
    layer(x)
    theta = rng.normal(size=6).astype("float32")
    layer.regression.bias.assign(theta)
    np.testing.assert_allclose(layer.parameters(x)[1], theta.reshape(2, 3), rtol=1e-6)
    grid = affine_grid(tf.constant(np.tile(theta.reshape(1, 2, 3), (2, 1, 1))), (3, 4), False)
    np.testing.assert_allclose(layer(x), grid_sample(x, grid, align_corners=False), atol=1e-5)


def test_each_example_has_its_own_transformation(rng):
    x = blob(rng)
    layer = SpatialTransformer(localization(), "attention")
    layer(x)
    layer.regression.kernel.assign(rng.normal(size=layer.regression.kernel.shape))
    theta = layer.parameters(x).numpy()
    assert np.abs(theta[0] - theta[1]).max() > 0.01
    expected = layer.regression(layer.localization(x))
    np.testing.assert_allclose(theta, expected, rtol=1e-6)


def test_thin_plate_spline_moves_its_control_points(rng):
    x = blob(rng, size=(7, 7))
    layer = SpatialTransformer(localization(), "thin_plate_spline", control_points=3)
    layer(x)
    moves = np.zeros((9, 2), "float32")
    moves[4] = [0.2, -0.1]  # the middle, which is pixel (3, 3); the corners stay
    layer.regression.bias.assign(moves.ravel())
    grid = layer.grid(x)[0]
    np.testing.assert_allclose(grid[3, 3], [0.2, -0.1], atol=1e-5)
    np.testing.assert_allclose(grid[0, 0], [-1, -1], atol=1e-5)
    assert np.abs(grid[2, 3] - [0, -1 / 3]).max() > 0.01


def test_projective_has_a_1_in_its_corner(rng):
    x = blob(rng)
    layer = SpatialTransformer(localization(), "projective")
    layer(x)
    layer.regression.bias.assign(np.arange(8.0))
    np.testing.assert_allclose(layer.parameters(x)[0], [[0, 1, 2], [3, 4, 5], [6, 7, 1]], atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradient_reaches_the_localization_and_is_right(float64, rng, transform):
    x = tf.constant(rng.normal(size=(2, 4, 5, 1)))
    layer = SpatialTransformer(keras.layers.Dense(2), transform, control_points=3)
    layer(x)
    kernel = 0.02 * rng.normal(size=layer.regression.kernel.shape)
    layer.regression.kernel.assign(kernel)
    shift = 0.03 * rng.normal(size=layer.regression.bias.shape)
    layer.regression.bias.assign_add(shift)
    x = tf.Variable(x)
    variables = [x, *(w.value for w in layer.trainable_weights)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(x)))
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        value, direction = variable.numpy(), rng.normal(size=variable.shape)
        losses = []
        for step in (1e-6, -1e-6):
            variable.assign(value + step * direction)
            losses.append(tf.reduce_sum(tf.square(layer(x))).numpy())
        variable.assign(value)
        slope = np.sum(gradient * direction)
        np.testing.assert_allclose(slope, (losses[0] - losses[1]) / 2e-6, rtol=1e-5, atol=1e-7)
        assert abs(slope) > 1e-3


def test_learns_to_undo_a_shift(rng):
    x = np.zeros((32, 9, 9, 1), "float32")
    y = np.zeros_like(x)
    for i, (row, column) in enumerate(rng.integers(2, 7, (32, 2))):
        x[i, row - 1 : row + 2, column - 1 : column + 2] = 1
    y[:, 3:6, 3:6] = 1
    layer = SpatialTransformer(keras.layers.Flatten(), "attention")
    model = keras.Sequential([keras.Input((9, 9, 1)), layer])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    before = model.evaluate(x, y, verbose=0)
    steps = [np.tile(each, (40, 1, 1, 1)) for each in (x, y)]
    model.fit(*steps, batch_size=32, shuffle=False, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.3 * before


def test_training_flag_reaches_the_localization(rng):
    x = blob(rng)
    layer = SpatialTransformer(
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dropout(0.5)])
    )
    layer(x)
    layer.regression.kernel.assign(rng.normal(size=layer.regression.kernel.shape) * 0.1)
    np.testing.assert_array_equal(layer(x), layer(x))
    assert np.abs(layer(x, training=True) - layer(x)).max() > 1e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"localization": "net"}, "`localization` must be a Keras layer"),
        ({"transform": "shear"}, "`transform` must be one of"),
        ({"interpolation": "nearest"}, "`interpolation` must be one of"),
        ({"fill_mode": "wrap"}, "`fill_mode` must be one of"),
        ({"control_points": 1}, "`control_points` must be"),
        ({"output_size": (0, 3)}, "`output_size` must be"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(**{"localization": keras.layers.Flatten(), **kwargs})


def test_bad_inputs():
    layer = SpatialTransformer(keras.layers.Flatten())
    with pytest.raises(ValueError, match="Inputs must be"):
        layer.build((None, 4, 4))
    with pytest.raises(ValueError, match="`output_size` must be given"):
        layer.build((None, None, 4, 1))
