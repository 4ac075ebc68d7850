"""Learned sensors: their integrals, their maps, and what their parameters cannot break."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.sensor_layout import CurvilinearSensorLayout, RectangularSensorLayout

pytestmark = pytest.mark.paper(
    "Differentiable Sensor Layouts for End-to-End Learning of Task-Specific Camera Parameters"
)


def layout(rng, height=3, width=4, scale=1.0):
    layer = RectangularSensorLayout(height, width)
    layer.build((None, None, None, 2))
    layer.set_weights([scale * rng.normal(size=n) for n in (height, width)])
    return layer


def foveated(layer, horizontal, vertical):
    """The layer with these strengths."""
    layer.build((None, 6, 5, 2))
    bound = (1 - layer.min_width) / (1 + layer.min_width)
    layer.foveation.assign(np.arctanh(np.array([horizontal, vertical]) / bound))
    return layer


def crowded(u, strength, radius=None):
    """The paper's map of a coordinate."""
    radius = np.abs(u) if radius is None else radius
    return u * (1 - strength) / (1 + strength - 2 * strength * radius)


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


LAYOUTS = {
    "free": lambda rng: layout(rng),
    "symmetric": lambda rng: foveated(RectangularSensorLayout(3, 4, symmetric=True), 0.4, -0.3),
    "curvilinear": lambda rng: foveated(CurvilinearSensorLayout(3, 4, samples=3), 0.4, -0.3),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_gradients_equal_finite_differences(float64, rng, kind):
    images, upstream = rng.normal(size=(2, 6, 5, 2)), rng.normal(size=(2, 3, 4, 2))
    layer = LAYOUTS[kind](rng)

    def loss(images, *weights):
        layer.set_weights(weights)
        return float(tf.reduce_sum(layer(images) * upstream))

    point = [images, *layer.get_weights()]
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        value = tf.reduce_sum(layer(x) * upstream)
    gradients = tape.gradient(value, [x, *(w.value for w in layer.weights)])
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=point[index].shape)
        moved = [
            [p + sign * 1e-6 * direction if k == index else p for k, p in enumerate(point)]
            for sign in (1, -1)
        ]
        numeric = (loss(*moved[0]) - loss(*moved[1])) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-5)
        assert np.all(gradient != 0)


def test_symmetric_boundaries_by_hand(float64):
    # s = 1/2 takes u = 1/2 to (1/2 * 1/2) / (3/2 - 1/2) = 1/4, s = -1/2 to (1/2 * 3/2) / 1 = 3/4.
    layer = foveated(RectangularSensorLayout(4, 4, symmetric=True), 0.5, -0.5)
    rows, columns = layer.boundaries()
    np.testing.assert_allclose(columns, [0, 3 / 8, 1 / 2, 5 / 8, 1], atol=1e-12)
    np.testing.assert_allclose(rows, [0, 1 / 8, 1 / 2, 7 / 8, 1], atol=1e-12)


def test_curvilinear_layout_by_hand(float64):
    layer = foveated(CurvilinearSensorLayout(1, 2, samples=1), 0.5, 0.2)
    # On the horizontal axis t only stretches: the points -1/2 and 1/2 move to -1/4 and 1/4, the
    # centres of the middle pixels.
    image = np.array([3.0, 5.0, 8.0, 13.0])[None, None, :, None]
    np.testing.assert_allclose(layer(image)[0, 0, :, 0], [5, 8], atol=1e-12)
    # There x' = x 0.5 / (1.5 - r) has the derivative 0.5 * 1.5 / 1 along x, and
    # y' = y 0.8 / (1.2 - 0.4 r) the derivative 0.8 / 1 along y.
    np.testing.assert_allclose(layer.cell_areas(), [[0.3, 0.3]], atol=1e-12)
    # In a diagonal direction both have r = 5/13; beyond the disk nothing moves.
    places, areas = layer.deform(np.array([[3, -4], [12, 13]]) / 13)
    expected = [3 / 13 * 0.5 / (1.5 - 5 / 13), -4 / 13 * 0.8 / (1.2 - 0.4 * 5 / 13)]
    np.testing.assert_allclose(places, [expected, [12 / 13, 1]], atol=1e-12)
    assert areas[1] == 1


def test_curvilinear_layout_starts_as_average_pooling(rng):
    images = rng.normal(size=(2, 12, 24, 3)).astype("float32")
    pooled = keras.layers.AveragePooling2D((4, 8))(images)
    np.testing.assert_allclose(CurvilinearSensorLayout(3, 3)(images), pooled, atol=1e-6)
    # Of 8 pixels, four points are on the edges between two.
    np.testing.assert_allclose(CurvilinearSensorLayout(3, 3, samples=4)(images), pooled, atol=1e-6)


def test_noise_does_not_hold_the_curvilinear_layout(float64, rng):
    # With a point for each pixel the noise of a cell does not depend on where the points are.
    noise = rng.normal(size=(300, 64, 64, 1))
    deviations = {}
    for samples in (4, None):
        for strength in (0, 0.03):
            layer = CurvilinearSensorLayout(8, 8, samples)
            layer.build(noise.shape)
            layer.foveation.assign([np.arctanh(strength / 0.6)] * 2)
            deviations[samples, strength] = np.std(layer(noise)[:, 3:5, 3:5])
    assert deviations[4, 0.03] > 1.15 * deviations[4, 0]
    assert deviations[None, 0.03] < 1.06 * deviations[None, 0]


@pytest.mark.parametrize("strengths", [(0.6, 0.6), (-0.6, 0.6), (-0.55, -0.1)])
def test_curvilinear_map_is_one_to_one(float64, rng, strengths):
    layer = foveated(CurvilinearSensorLayout(6, 5, samples=20), *np.multiply(strengths, 1 - 1e-9))
    points, step = rng.uniform(-1, 1, size=(500, 2)), 1e-6
    columns = [
        (layer.deform(points + step * axis)[0] - layer.deform(points - step * axis)[0]) / (2 * step)
        for axis in np.eye(2)
    ]
    areas = layer.deform(points)[1]
    np.testing.assert_allclose(np.linalg.det(np.stack(columns, -1)), areas, rtol=1e-5)
    # The smallest is at the centre or the rim: 1/4 in either direction.
    assert np.all(areas > 1 / 16)
    np.testing.assert_allclose(tf.reduce_sum(layer.cell_areas()), 1, rtol=2e-3)
    assert np.all(layer.cell_areas() > 0)
    # The centre and the rim stay.
    fixed = np.array([[0, 0], [1, 0], [-0.6, 0.8], [0, -1], [0.9, -0.9]])
    np.testing.assert_allclose(layer.deform(fixed)[0], fixed, atol=1e-12)


def test_curvilinear_cells_equal_counting_pixels(float64, rng):
    # With s = t the map keeps directions, and that of -s is its inverse.
    strength, fine = 0.45, 1500
    layer = foveated(CurvilinearSensorLayout(3, 4, samples=40), strength, strength)
    smooth = rng.normal(size=(4, 4, 1))
    image = keras.ops.image.resize(smooth, (240, 240), interpolation="bicubic")
    centres = (2 * np.arange(fine) + 1) / fine - 1
    x, y = np.meshgrid(centres, centres)
    radius = np.minimum(np.hypot(x, y), 1)
    column, row = (
        np.floor((crowded(u, -strength, radius) + 1) / 2 * cells).astype(int)
        for u, cells in ((x, 4), (y, 3))
    )
    pixels = ((centres + 1) * 120).astype(int)
    sampled = np.asarray(image)[..., 0][pixels][:, pixels]
    cells = [[(row == i) & (column == j) for j in range(4)] for i in range(3)]
    means = [[sampled[inside].mean() for inside in each] for each in cells]
    np.testing.assert_allclose(layer(image[None])[0, ..., 0], means, atol=3e-3)
    # On the rim the determinant has a step.
    np.testing.assert_allclose(layer.cell_areas(), np.mean(cells, (2, 3)), rtol=5e-3)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_foveation_keeps_constants(rng, scale):
    constant = np.full((1, 32, 20, 2), 3.7, "float32")
    for layer in (CurvilinearSensorLayout(9, 7), RectangularSensorLayout(9, 7, symmetric=True)):
        layer.build(constant.shape)
        layer.foveation.assign(scale * rng.normal(size=2))
        assert np.all(layer.cell_areas() > 0)
        np.testing.assert_allclose(layer(constant), np.full((1, 9, 7, 2), 3.7), rtol=1e-5)


def test_refuses_what_is_no_sensor():
    with pytest.raises(ValueError, match="`height` must be a positive integer. Received: 0"):
        RectangularSensorLayout(0, 3)
    with pytest.raises(ValueError, match=r"`min_width` must be in \(0, 1\]. Received: 0"):
        RectangularSensorLayout(2, 3, min_width=0)
    with pytest.raises(ValueError, match="`samples` must be given for images of an open size"):
        CurvilinearSensorLayout(2, 3).build((None, None, 32, 1))
    with pytest.raises(ValueError, match="`samples` must be a positive integer or None.*0.5"):
        CurvilinearSensorLayout(2, 3, samples=0.5)
    with pytest.raises(ValueError, match="`inputs` must be .batch, height, width, channels"):
        RectangularSensorLayout(2, 3)(np.zeros((2, 3, 4)))
