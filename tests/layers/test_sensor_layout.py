"""The learned rectangular sensor: exact integrals, and what its parameters cannot break."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.sensor_layout import RectangularSensorLayout

pytestmark = pytest.mark.paper(
    "Differentiable Sensor Layouts for End-to-End Learning of Task-Specific Camera Parameters"
)


def layout(rng, height=3, width=4, scale=1.0):
    layer = RectangularSensorLayout(height, width)
    layer.build((None, None, None, 2))
    layer.set_weights([scale * rng.normal(size=n) for n in (height, width)])
    return layer


def test_uniform_layout_is_average_pooling(rng):
    images = rng.normal(size=(2, 12, 8, 3)).astype("float32")
    pooled = keras.layers.AveragePooling2D((4, 2))(images)
    np.testing.assert_allclose(RectangularSensorLayout(3, 4)(images), pooled, atol=1e-6)


def test_uniform_cells_cut_through_pixels(float64):
    # Five pixels on two cells: the middle one is shared.
    images = np.arange(5.0)[None, None, :, None]
    expected = [(0 + 1 + 0.5 * 2) / 2.5, (0.5 * 2 + 3 + 4) / 2.5]
    np.testing.assert_allclose(RectangularSensorLayout(1, 2)(images)[0, 0, :, 0], expected)


def test_equals_brute_force_supersampling(float64, rng):
    images = rng.normal(size=(1, 6, 5, 2))
    layer = layout(rng)
    fine = 2000
    centres = (np.arange(fine) + 0.5) / fine
    rows, columns = (np.asarray(b) for b in layer.boundaries())
    row_of, column_of = (np.searchsorted(b, centres) - 1 for b in (rows, columns))
    sampled = images[0][(centres * 6).astype(int)][:, (centres * 5).astype(int)]
    for i in range(3):
        for j in range(4):
            mean = sampled[row_of == i][:, column_of == j].mean((0, 1))
            np.testing.assert_allclose(layer(images)[0, i, j], mean, atol=5e-3)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_any_parameters_keep_boundaries_area_and_constants(rng, scale):
    layer = layout(rng, 9, 7, scale)
    for boundaries in layer.boundaries():
        assert boundaries[0] == 0
        assert boundaries[-1] == 1
        assert np.all(np.diff(boundaries) > 0)
    np.testing.assert_allclose(tf.reduce_sum(layer.cell_areas()), 1, atol=1e-6)
    constant = np.full((1, 32, 20, 2), 3.7, "float32")
    np.testing.assert_allclose(layer(constant), np.full((1, 9, 7, 2), 3.7), rtol=1e-5)


def test_gradients_equal_finite_differences(float64, rng):
    images, upstream = rng.normal(size=(2, 6, 5, 2)), rng.normal(size=(2, 3, 4, 2))
    layer = layout(rng)

    def loss(rows, columns, images):
        layer.row_logits.assign(rows)
        layer.column_logits.assign(columns)
        return float(tf.reduce_sum(layer(images) * upstream))

    point = [*(np.asarray(w) for w in layer.weights), images]
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        value = tf.reduce_sum(layer(x) * upstream)
    gradients = tape.gradient(value, [*(w.value for w in layer.weights), x])
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=point[index].shape)
        moved = [
            [p + sign * 1e-6 * direction if k == index else p for k, p in enumerate(point)]
            for sign in (1, -1)
        ]
        numeric = (loss(*moved[0]) - loss(*moved[1])) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-5)
        assert np.all(gradient != 0)


def test_refuses_what_is_no_sensor():
    with pytest.raises(ValueError, match="`height` must be a positive integer. Received: 0"):
        RectangularSensorLayout(0, 3)
    with pytest.raises(ValueError, match=r"`min_width` must be in \(0, 1\]. Received: 0"):
        RectangularSensorLayout(2, 3, min_width=0)
    with pytest.raises(ValueError, match="`inputs` must be .batch, height, width, channels"):
        RectangularSensorLayout(2, 3)(np.zeros((2, 3, 4)))
