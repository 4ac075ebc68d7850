"""The spectral convolution against NumPy's FFT, Fourier series by hand, and other grids."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.spectral_conv import SpectralConv

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


def built(shape, **kwargs):
    layer = SpectralConv(**kwargs, kernel_initializer=keras.initializers.RandomNormal(seed=3))
    layer.build((None, *shape))
    return layer


def kernel(layer):
    return layer.kernel_real.numpy() + 1j * layer.kernel_imag.numpy()


def test_a_cosine_is_scaled_and_shifted_by_its_weight(float64):
    layer = built((12, 1), filters=1, modes=3)
    weights = np.zeros((3, 1, 1))
    layer.kernel_real.assign(np.reshape([5.0, 7.0, 2.0], weights.shape))
    layer.kernel_imag.assign(np.reshape([9.0, 9.0, -3.0], weights.shape))
    x = np.arange(12) / 12
    u = 1.5 + 4 * np.cos(2 * np.pi * 2 * x) + 6 * np.sin(2 * np.pi * 4 * x)
    # 2 - 3i times exp(i a): 2 cos(a) + 3 sin(a); the mode 4 is not kept; the mean's weight is 5.
    expected = 7.5 + 8 * np.cos(4 * np.pi * x) + 12 * np.sin(4 * np.pi * x)
    np.testing.assert_allclose(layer(u[None, :, None])[0, :, 0], expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 9), (7, 6), (3, 4), (2, 1)])
def test_two_axes_equal_numpy(float64, rng, size):
    """Also on grids too coarse for all modes."""
    modes = (3, 4)
    layer = built((*size, 2), filters=3, modes=modes)
    u = rng.normal(size=(2, *size, 2))
    frequencies = [np.round(np.fft.fftfreq(n) * n).astype(int) for n in size]
    full, weights = np.fft.fftn(u, axes=(1, 2)), kernel(layer)
    out = np.zeros((2, *size, 3), complex)
    for a, k in enumerate(frequencies[0]):
        for b, j in enumerate(frequencies[1]):
            if abs(k) >= modes[0] or abs(j) >= modes[1] or 2 * abs(k) == size[0]:
                continue
            # Real functions: what is stored for (k, j) is conjugated at (-k, -j).
            stored, mirror = weights[k, abs(j)], weights[-k, abs(j)].conj()
            weight = stored if j > 0 else mirror
            if j == 0 or 2 * abs(j) == size[1]:
                weight = (stored + mirror) / 2
            out[:, a, b] = full[:, a, b] @ weight
    expected = np.fft.ifftn(out, axes=(1, 2))
    assert np.abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(layer(u), expected.real, atol=1e-12)


def test_three_axes_equal_one_axis_after_another(float64, rng):
    """A kernel that is a product filters each axis on its own."""
    layer = built((5, 6, 7, 1), filters=1, modes=(2, 2, 2))
    parts = [rng.normal(size=2) for _ in range(3)]
    both = [np.concatenate([p, p[1:]]) for p in parts[:2]]
    product = np.einsum("x,y,z->xyz", *both, parts[2])[..., None, None]
    layer.kernel_real.assign(product)
    layer.kernel_imag.assign(np.zeros_like(product))
    u = rng.normal(size=(1, 5, 6, 7, 1))
    expected = u
    for axis, part in enumerate(parts, 1):
        line = built((None, 1), filters=1, modes=2)
        line.kernel_real.assign(part[:, None, None])
        line.kernel_imag.assign(np.zeros((2, 1, 1)))
        moved = np.moveaxis(expected, axis, -2)
        rows = line(moved.reshape(-1, moved.shape[-2], 1)).numpy().reshape(moved.shape)
        expected = np.moveaxis(rows, -2, axis)
    np.testing.assert_allclose(layer(u), expected, atol=1e-12)


def test_a_band_limited_function_gives_the_same_output_on_every_grid(rng):
    layer = built((None, None, 1), filters=2, modes=(4, 3))
    coefficients = rng.normal(size=(4, 4, 2))

    def sampled(n, m):
        x, y = np.meshgrid(np.arange(n) / n, np.arange(m) / m, indexing="ij")
        return sum(
            c * np.cos(2 * np.pi * (k * x + s * j * y) + c)
            for (k, j, i), c in np.ndenumerate(coefficients)
            for s in [1 - 2 * i]
        )[None, ..., None].astype("float32")

    coarse = layer(sampled(10, 9)).numpy()
    fine = layer(sampled(30, 63)).numpy()
    np.testing.assert_allclose(coarse, fine[:, ::3, ::7], atol=1e-5 * np.abs(fine).max())


def test_gradients_equal_finite_differences(float64, rng):
    layer = built((4, 5, 1), filters=2, modes=(2, 3))
    u = rng.normal(size=(1, 4, 5, 1))

    @tf.function
    def outputs(real, imaginary, u):
        values = (real, imaginary)
        state = zip((layer.kernel_real, layer.kernel_imag), values, strict=True)
        with keras.StatelessScope(state_mapping=list(state)):
            return layer(u)

    arguments = [layer.kernel_real.value, layer.kernel_imag.value, tf.constant(u)]
    theory, numeric = tf.test.compute_gradient(outputs, arguments, delta=1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_an_open_grid_in_a_graph_gives_the_same(rng):
    layer = built((None, None, 2), filters=2, modes=(3, 3))
    graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 2])])
    for size in ((8, 6), (3, 4)):
        u = rng.normal(size=(2, *size, 2)).astype("float32")
        np.testing.assert_allclose(graph(u), layer(u), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"filters": 0, "modes": 2}, "`filters`.*Received: 0"),
        ({"filters": 1, "modes": (2, 0)}, "`modes`.*Received: 0"),
        ({"filters": 1, "modes": ()}, "`modes`"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SpectralConv(**kwargs)


def test_a_grid_with_other_axes_is_refused():
    with pytest.raises(ValueError, match="ndim"):
        SpectralConv(1, (2, 2))(np.zeros((1, 8, 2), "float32"))
