import numpy as np
import pytest
import tensorflow as tf
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from kzoo.ops.grids import affine_grid, attention_grid, grid_sample, projective_grid, tps_grid

pytestmark = pytest.mark.paper("Spatial Transformer Networks")

IDENTITY = [[1.0, 0, 0], [0, 1.0, 0]]
CORNERS = [[x, y] for y in (-1.0, 0, 1) for x in (-1.0, 0, 1)]


def images(rng, height, width, batch=2, channels=3, dtype="float32"):
    return rng.normal(size=(batch, height, width, channels)).astype(dtype)


def affine(theta, batch=2, dtype="float32"):
    return tf.constant(np.tile(np.asarray(theta)[None], (batch, 1, 1)), dtype)


@pytest.mark.parametrize("size", [(5, 5), (6, 7), (8, 4), (1, 3), (1, 1)])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic"])
def test_identity_gives_back_the_image(rng, size, align_corners, interpolation):
    x = images(rng, *size)
    grids = [
        affine_grid(affine(IDENTITY), size, align_corners),
        attention_grid(tf.constant([[1.0, 0, 0]] * 2), size, align_corners),
        projective_grid(affine(np.eye(3) * 2), size, align_corners),
        tps_grid(tf.zeros((2, 9, 2)), CORNERS, size, align_corners),
    ]
    for grid in grids:
        outputs = grid_sample(x, grid, interpolation, align_corners=align_corners)
        np.testing.assert_allclose(outputs, x, atol=1e-6)


@pytest.mark.parametrize("side", [5, 6])
@pytest.mark.parametrize("align_corners", [True, False])
def test_quarter_turn(rng, side, align_corners):
    x = images(rng, side, side)
    # Output (x', y') is taken from (-y', x'): what was on the right comes to the top.
    grid = affine_grid(affine([[0, -1.0, 0], [1.0, 0, 0]]), (side, side), align_corners)
    outputs = grid_sample(x, grid, align_corners=align_corners)
    np.testing.assert_allclose(outputs, np.rot90(x, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("fill_mode", ["constant", "nearest"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_whole_pixel_shifts(rng, fill_mode, align_corners):
    x = images(rng, 5, 7)
    step = 2 / (7 - 1) if align_corners else 2 / 7
    theta = affine([[1.0, 0, 2 * step], [0, 1.0, 0]])
    outputs = grid_sample(
        x,
        affine_grid(theta, (5, 7), align_corners),
        fill_mode=fill_mode,
        align_corners=align_corners,
    )
    np.testing.assert_allclose(outputs[:, :, :5], x[:, :, 2:], atol=1e-5)
    outside = np.zeros_like(x[:, :, :2]) if fill_mode == "constant" else x[:, :, [6, 6]]
    np.testing.assert_allclose(outputs[:, :, 5:], outside, atol=1e-5)


def test_theta_by_hand():
    # Row 0 is x: columns of a 2 x 3 output are at x' = -1, 0, 1, its rows at y' = -1, 1.
    theta = tf.constant([[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]])
    grid = affine_grid(theta, (2, 3))
    np.testing.assert_allclose(grid[0, 0, 2], [1 - 10 + 100, 2 - 20 + 200])
    np.testing.assert_allclose(grid[0, 1, 0], [-1 + 10 + 100, -2 + 20 + 200])
    attention = attention_grid(tf.constant([[0.5, 10.0, 20.0]]), (2, 3))
    np.testing.assert_allclose(attention[0, 1, 2], [10.5, 20.5])
    pixels = affine_grid(tf.constant([IDENTITY]), (2, 4), align_corners=False)
    np.testing.assert_allclose(pixels[0, 1], [[-0.75, 0.5], [-0.25, 0.5], [0.25, 0.5], [0.75, 0.5]])


def test_projective_is_a_homography(float64, rng):
    theta = rng.normal(size=(3, 3, 3)) * 0.1 + np.eye(3)
    grid = projective_grid(tf.constant(theta), (3, 4)).numpy()
    for b in range(3):
        u, v, w = theta[b] @ [1.0, -1.0, 1.0]  # top right
        np.testing.assert_allclose(grid[b, 0, 3], [u / w, v / w], rtol=1e-12)
    affine_part = theta.copy()
    affine_part[:, 2] = [0, 0, 1]
    np.testing.assert_allclose(
        projective_grid(tf.constant(affine_part), (3, 4)),
        affine_grid(tf.constant(affine_part[:, :2]), (3, 4)),
        rtol=1e-12,
    )


@pytest.mark.parametrize("align_corners", [True, False])
def test_thin_plate_spline_is_scipys(float64, rng, align_corners):
    points = np.asarray(CORNERS) + 0.1 * rng.normal(size=(9, 2))
    displacements = 0.3 * rng.normal(size=(2, 9, 2))
    grid = tps_grid(tf.constant(displacements), points, (4, 5), align_corners)
    plane = affine_grid(tf.constant([IDENTITY], "float64"), (4, 5), align_corners)[0].numpy()
    for b in range(2):
        spline = RBFInterpolator(points, points + displacements[b], kernel="thin_plate_spline")
        expected = spline(plane.reshape(-1, 2)).reshape(4, 5, 2)
        np.testing.assert_allclose(grid[b], expected, rtol=1e-8, atol=1e-10)


def test_thin_plate_spline_of_affine_displacements_is_affine(float64, rng):
    points = np.asarray(CORNERS)
    theta = rng.normal(size=(1, 2, 3))
    moved = points @ theta[0, :, :2].T + theta[0, :, 2]
    np.testing.assert_allclose(
        tps_grid(tf.constant((moved - points)[None]), points, (5, 6)),
        affine_grid(tf.constant(theta), (5, 6)),
        atol=1e-10,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_sampler_is_scipys_inside_the_image(float64, rng, interpolation):
    x = images(rng, 6, 9, dtype="float64")
    grid = rng.uniform(-1, 1, (2, 4, 5, 2))
    outputs = grid_sample(x, grid, interpolation)
    rows, columns = (grid[..., 1] + 1) * 5 / 2, (grid[..., 0] + 1) * 8 / 2
    for b in range(2):
        for c in range(3):
            expected = map_coordinates(
                x[b, ..., c], [rows[b], columns[b]], order=int(interpolation == "bilinear")
            )
            np.testing.assert_allclose(outputs[b, ..., c], expected, atol=1e-12)


def test_bilinear_fades_out_and_nearest_goes_on(float64):
    x = np.full((1, 3, 3, 1), 6.0)
    # Half a pixel outside to the right, and far away in the corner.
    grid = np.array([[[1.5, 0.0], [1.25, 0.0], [30.0, -1e20]]])
    np.testing.assert_allclose(grid_sample(x, grid)[0, :, 0], [3, 4.5, 0])
    np.testing.assert_allclose(grid_sample(x, grid, fill_mode="nearest")[0, :, 0], [6, 6, 6])


def test_bicubic_is_exact_for_parabolas_inside(float64, rng):
    rows, columns = np.meshgrid(np.arange(7.0), np.arange(8.0), indexing="ij")
    surface = lambda r, c: 1 + r - 2 * c + 0.5 * r * c + 0.3 * r**2 - 0.2 * c**2  # noqa: E731
    x = surface(rows, columns)[None, ..., None]
    r, c = rng.uniform(1, 5, (1, 20)), rng.uniform(1, 6, (1, 20))
    grid = np.stack([c / 3.5 - 1, r / 3 - 1], axis=-1)
    np.testing.assert_allclose(grid_sample(x, grid, "bicubic")[..., 0], surface(r, c), rtol=1e-10)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fill_mode", ["constant", "nearest"])
def test_gradients_by_finite_differences(float64, rng, interpolation, fill_mode):
    x = tf.constant(images(rng, 3, 4, batch=1, channels=1, dtype="float64"))
    grid = tf.constant(rng.uniform(-1.3, 1.3, (1, 5, 2)))
    theoretical, numerical = tf.test.compute_gradient(
        lambda x, g: grid_sample(x, g, interpolation, fill_mode), [x, grid], delta=1e-6
    )
    for a, b in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(theoretical[1]).max() > 0.1


def test_grids_are_differentiable(float64, rng):
    theta = tf.constant(np.eye(3)[None] + 0.1 * rng.normal(size=(1, 3, 3)))
    moved = tf.constant(0.1 * rng.normal(size=(1, 9, 2)))
    cases = [
        (lambda t: affine_grid(t[:, :2], (2, 3)), theta),
        (lambda t: attention_grid(t[:, 0], (2, 3)), theta),
        (lambda t: projective_grid(t, (2, 3)), theta),
        (lambda d: tps_grid(d, CORNERS, (2, 3)), moved),
    ]
    for function, argument in cases:
        theoretical, numerical = tf.test.compute_gradient(function, [argument], delta=1e-5)
        np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-8)


def test_what_is_not_finite_is_0_and_does_no_harm():
    x = tf.ones((1, 3, 3, 1))
    grid = tf.constant([[[np.nan, 0.0], [0.0, np.inf], [0.0, 0.0]]], "float32")
    with tf.GradientTape() as tape:
        tape.watch([x, grid])
        outputs = grid_sample(x, grid)
    np.testing.assert_allclose(outputs[0, :, 0], [0, 0, 1])
    for gradient in tape.gradient(outputs, [x, grid]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_open_shapes_in_graphs(rng, jit_compile):
    x, theta = images(rng, 5, 4), affine([[0.7, 0.1, 0], [0, 0.8, 0.1]])
    function = lambda x, t: grid_sample(x, affine_grid(t, (3, 3)))  # noqa: E731
    graph = tf.function(
        function,
        input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, 2, 3])],
        jit_compile=jit_compile,
    )
    np.testing.assert_allclose(graph(x, theta), function(x, theta), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine_grid(tf.zeros((2, 3)), (2, 2)), "`theta` must be"),
        (lambda: affine_grid(tf.zeros((1, 2, 3)), (0, 2)), "`size` must be"),
        (lambda: projective_grid(tf.zeros((1, 2, 3)), (2, 2)), "`theta` must be"),
        (lambda: attention_grid(tf.zeros((1, 2)), (2, 2)), "`parameters` must be"),
        (lambda: tps_grid(tf.zeros((1, 2, 2)), CORNERS, (2, 2)), "`displacements` must be"),
        (lambda: tps_grid(tf.zeros((1, 3, 2)), [[0, 0], [1, 1], [2, 2]], (2, 2)), "on one line"),
        (lambda: tps_grid(tf.zeros((1, 3, 2)), [0, 1, 2], (2, 2)), "`control_points` must be"),
        (lambda: grid_sample(tf.zeros((2, 3, 1)), tf.zeros((2, 1, 2))), "`images` must be"),
        (lambda: grid_sample(tf.zeros((1, 2, 3, 1)), tf.zeros((1, 4, 3))), "`grid` must be"),
        (
            lambda: grid_sample(tf.zeros((1, 2, 3, 1)), tf.zeros((1, 4, 2)), "cubic"),
            "`interpolation` must be",
        ),
        (
            lambda: grid_sample(tf.zeros((1, 2, 3, 1)), tf.zeros((1, 4, 2)), fill_mode="wrap"),
            "`fill_mode` must be",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
