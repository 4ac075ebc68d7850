"""Grid-free convolutions against quadrature by hand, plain convolutions, and derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.integrate import quad

from kzoo.layers.integral_conv import DifferentialConv, IntegralConv

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


def waves(n):
    """[1, n, n, 2], two smooth periodic functions."""
    x, y = np.meshgrid(*[2 * np.pi * np.arange(n) / n] * 2, indexing="ij")
    return np.stack([np.sin(x + 2 * y), np.exp(np.cos(x) * np.sin(y))], -1)[None]


def differences(call, function, sizes):
    """The largest difference to the finest grid's output at the coarsest grid's points."""
    outputs = [np.asarray(call(function(n))) for n in sizes]
    axes = outputs[0].ndim - 2
    strides = [(slice(None), *[slice(None, None, n // sizes[0])] * axes) for n in sizes]
    shared = [out[stride] for out, stride in zip(outputs, strides, strict=True)]
    return np.array([np.abs(each - shared[-1]).max() for each in shared[:-1]])


def test_integral_equals_quadrature(float64):
    """The integral of a hat kernel and a cosine, by SciPy."""
    layer = IntegralConv(1, 3, radius=0.2, length=2.0, use_bias=False)
    n = 4096
    x = np.arange(n) * 2.0 / n
    layer.build((None, n, 1))
    layer.kernel.assign(np.reshape([1.0, -2.0, 4.0], (3, 1, 1)))
    nodes, spacing = np.array([-0.1, 0.0, 0.1]), 0.1

    def kappa(y):
        hats = np.maximum(0, 1 - np.abs(y - nodes) / spacing)
        return hats @ [1.0, -2.0, 4.0] / spacing

    def expected(x):
        return quad(lambda y: kappa(y) * np.cos(np.pi * (x + y)), -0.2, 0.2, points=nodes)[0]

    chosen = [0, 1000, 4095]
    outputs = layer(np.cos(np.pi * x)[None, :, None]).numpy()[0, chosen, 0]
    np.testing.assert_allclose(outputs, [expected(x[i]) for i in chosen], atol=3e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_integral_is_the_plain_convolution_at_the_spacing_of_its_nodes(float64, rng, axes):
    size, shape = 8, (8,) * axes
    layer = IntegralConv(3, (3,) * axes, radius=2 / size, padding="zeros")
    plain = getattr(keras.layers, f"Conv{axes}D")(3, 3, padding="same")
    u = rng.normal(size=(2, *shape, 2))
    layer.build(u.shape)
    plain.build(u.shape)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    plain.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(u), plain(u), atol=1e-12)


def test_integral_of_a_constant_kernel_on_a_coarse_and_a_fine_grid_by_hand(float64):
    """A kernel of one node is a hat of area 1: a grid twice as fine has taps 1/4, 1/2, 1/4."""
    layer = IntegralConv(1, 1, radius=0.25, use_bias=False)
    layer.build((None, None, 1))
    layer.kernel.assign([[[1.0]]])
    np.testing.assert_allclose(layer(np.eye(4)[None, :, :1])[0, :, 0], [1, 0, 0, 0])
    fine = layer(np.eye(8)[None, :, :1])[0, :, 0]
    np.testing.assert_allclose(fine, [0.5, 0.25, 0, 0, 0, 0, 0, 0.25])


@pytest.mark.parametrize(("padding", "end"), [("periodic", 1.0), ("zeros", 0.75)])
def test_integral_is_periodic_or_zero_outside(float64, padding, end):
    layer = IntegralConv(1, 1, radius=0.5, padding=padding, use_bias=False)
    layer.build((None, 4, 1))
    layer.kernel.assign([[[1.0]]])
    # Taps 1/4, 1/2, 1/4, since the spacing is half of the radius.
    np.testing.assert_allclose(layer(np.ones((1, 4, 1)))[0, :, 0], [end, 1, 1, end])


def test_only_the_grid_free_layers_keep_what_they_do(float64):
    """Per doubling of the grid the difference to the finest falls to 0.6 of what it was or less.

    A plain convolution becomes a pointwise product, far from what it is on the coarse grid.
    """
    integral, derivative = IntegralConv(2, (3, 3), radius=0.2), DifferentialConv(2, (3, 3))
    sizes = (16, 32, 64, 128)
    for layer in (integral, derivative):
        errors = differences(layer, waves, sizes)
        assert np.all(errors[1:] <= 0.6 * errors[:-1])
    plain = keras.layers.Conv2D(2, 3, padding="valid")
    plain.build((None, None, None, 2))
    plain.set_weights(integral.get_weights())

    def pointwise_product(u):
        return u @ plain.kernel.numpy().sum((0, 1))

    def periodic(u):
        return plain(np.pad(u, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap"))

    far = np.abs(periodic(waves(16)) - pointwise_product(waves(16))).max()
    assert differences(periodic, waves, sizes)[0] > 0.9 * far
    assert far > 5 * differences(integral, waves, sizes)[0]


def test_derivative_tends_to_the_directional_derivative(float64, rng):
    layer = DifferentialConv(1, (3, 3), length=2 * np.pi, use_bias=False)
    n = 512
    x, y = np.meshgrid(*[2 * np.pi * np.arange(n) / n] * 2, indexing="ij")
    layer.build((None, n, n, 1))
    stencil = rng.normal(size=(3, 3))
    layer.kernel.assign(stencil[..., None, None])
    offsets = np.array([-1, 0, 1])
    dx, dy = (stencil.sum(1) @ offsets, stencil.sum(0) @ offsets)
    expected = dx * np.cos(x) * np.cos(y) - dy * np.sin(x) * np.sin(y)
    outputs = layer((np.sin(x) * np.cos(y))[None, ..., None])[0, ..., 0]
    np.testing.assert_allclose(outputs, expected, atol=0.1)


def test_derivative_of_a_line_is_exact_and_of_a_constant_zero(float64):
    layer = DifferentialConv(1, 3, length=3.0, padding="edge", use_bias=False)
    layer.build((None, 6, 1))
    layer.kernel.assign(np.reshape([-0.5, 7.0, 0.5], (3, 1, 1)))
    # The mean, 7/3, is subtracted: -17/6, 14/3, -11/6; times the slope 4, over the spacing 1/2.
    line = 4 * np.arange(6) * 0.5
    outputs = layer(line[None, :, None])[0, :, 0]
    np.testing.assert_allclose(outputs[1:-1], (-17 / 6 * -1 - 11 / 6) * 4 * np.ones(4), atol=1e-12)
    # At the edges the value is repeated: one of the two outer taps sees no change.
    np.testing.assert_allclose(outputs[0], -11 / 6 * 4)
    np.testing.assert_allclose(layer(np.full((1, 6, 1), 5.0)), 0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        IntegralConv(2, 3, radius=0.35, padding="zeros", dtype="float64"),
        DifferentialConv(2, 3, padding="edge", dtype="float64"),
        DifferentialConv(2, 3, dtype="float64"),
    ],
)
def test_gradients_equal_finite_differences(rng, layer):
    u = rng.normal(size=(2, 7, 2))
    layer.build(u.shape)

    def outputs(kernel, bias, u):
        state = [(layer.kernel, kernel), (layer.bias, bias)]
        with keras.StatelessScope(state_mapping=state):
            return layer(u)

    arguments = [layer.kernel.value, layer.bias.value, tf.constant(u)]
    theory, numeric = tf.test.compute_gradient(outputs, arguments, delta=1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_open_grid_in_a_graph_gives_the_same(rng, axes):
    for layer in (IntegralConv(2, (3,) * axes, radius=0.4), DifferentialConv(2, (3,) * axes)):
        spec = tf.TensorSpec([None] * (axes + 1) + [2])
        layer.build(spec.shape)
        for jit in (False, True):
            graph = tf.function(layer.call, input_signature=[spec], jit_compile=jit)
            for size in (7, 10):
                u = rng.normal(size=(2, *[size] * axes, 2)).astype("float32")
                np.testing.assert_allclose(graph(u), layer(u), atol=2e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"filters": 0}, "`filters`.*Received: 0"),
        ({"kernel_size": 2}, "`kernel_size` must be odd.*Received: 2"),
        ({"kernel_size": (3, 3, 3, 3)}, "1 to 3 axes"),
        ({"length": 0}, "`length`.*Received: 0"),
        ({"length": (1.0, 1.0)}, "each of 1 axes"),
        ({"padding": "same"}, "`padding`.*'zeros'.*Received: 'same'"),
        ({"radius": 0.6}, "`radius` must be at most half"),
        ({"radius": -1.0}, "`radius`.*Received: -1.0"),
    ],
)
def test_bad_arguments_of_the_integral(kwargs, message):
    with pytest.raises(ValueError, match=message):
        IntegralConv(**{"filters": 1, "kernel_size": 3, "radius": 0.2, **kwargs})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 2, 8, 1), "at least `kernel_size` = .*Received"),
        ((None, 8, 9, 1), "same on all axes"),
        ((None, 8, 8, None), "channels, must be known"),
    ],
)
def test_grids_that_the_derivative_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        DifferentialConv(1, (3, 3)).build(shape)
