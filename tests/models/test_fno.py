"""The Fourier neural operator: its parts in NumPy, its size, its independence of the grid."""

import keras
import numpy as np
import pytest
from scipy.special import erf

from kzoo.models.fno import FNO

pytestmark = pytest.mark.paper(
    "Principled Approaches for Extending Neural Architectures to Function Spaces for "
    "Operator Learning"
)


def random_weights(model, rng, scale=0.3):
    model.set_weights([rng.normal(size=w.shape) * scale for w in model.weights])
    return model


def test_equals_numpy(float64, rng):
    model = random_weights(FNO(3, filters=4, blocks=2, hidden=5), rng)
    n, u = 8, rng.normal(size=(2, 8, 1))
    lifting, *rest = np.split(np.array(model.get_weights(), object), [2])
    blocks, last = rest[0][:8], rest[0][8:]
    x = np.concatenate([u, np.tile(np.arange(n)[:, None] / n, (2, 1, 1))], -1)
    x = x @ lifting[0] + lifting[1]
    for block in (0, 1):
        real, imaginary, w, b = blocks[4 * block : 4 * block + 4]
        spectrum = np.fft.rfft(x, axis=1)
        spectrum[:, :3] = np.einsum("bki,kio->bko", spectrum[:, :3], real + 1j * imaginary)
        spectrum[:, 3:] = 0
        x = np.fft.irfft(spectrum, n, axis=1) + x @ w + b
        x = gelu(x) if block == 0 else x
    expected = gelu(x @ last[0] + last[1]) @ last[2] + last[3]
    np.testing.assert_allclose(model(u), expected, atol=1e-12)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def test_number_of_weights():
    """Two real numbers for each mode of the half plane, and the pointwise layers."""
    model = FNO((4, 3), input_channels=2, filters=8, blocks=4, hidden=16, output_channels=3)
    block = 2 * (2 * 4 - 1) * 3 * 8 * 8 + 8 * 8 + 8
    assert model.count_params() == (2 + 2) * 8 + 8 + 4 * block + 8 * 16 + 16 + 16 * 3 + 3


@pytest.mark.parametrize("coordinates", [None, "periodic"])
def test_a_band_limited_function_gives_the_same_output_on_every_grid(rng, coordinates):
    model = FNO((3, 3), filters=6, blocks=3, hidden=8, coordinates=coordinates)
    random_weights(model, rng, 0.1)

    def sampled(n):
        x, y = np.meshgrid(*[2 * np.pi * np.arange(n) / n] * 2, indexing="ij")
        return (np.cos(x) + np.sin(2 * y) + np.cos(x + y) / 2)[None, ..., None].astype("float32")

    fine = model(sampled(96)).numpy()
    for n in (24, 32, 48):
        shared = fine[:, :: 96 // n, :: 96 // n]
        np.testing.assert_allclose(model(sampled(n)), shared, atol=1e-5 * np.abs(fine).max())


def test_without_coordinates_it_commutes_with_shifts(float64, rng):
    model = random_weights(FNO((2, 3), filters=4, blocks=2, hidden=5, coordinates=None), rng)
    u = rng.normal(size=(1, 6, 8, 1))
    shifted = model(np.roll(u, (1, 3), (1, 2)))
    np.testing.assert_allclose(shifted, np.roll(model(u), (1, 3), (1, 2)), atol=1e-12)


def test_it_learns_a_derivative(rng):
    """Adam finds u -> u', a spectral multiplication, on band-limited functions."""
    x = 2 * np.pi * np.arange(16) / 16
    a, b = rng.normal(size=(2, 64, 3, 1)) / 3
    k = np.arange(1, 4)[:, None]
    u = (a * np.cos(k * x) + b * np.sin(k * x)).sum(1)[..., None]
    du = (k * (b * np.cos(k * x) - a * np.sin(k * x))).sum(1)[..., None]
    model = FNO(4, filters=8, blocks=1, hidden=16, coordinates=None)
    model.compile(keras.optimizers.Adam(0.03), "mse")
    history = model.fit(u, du, epochs=40, batch_size=64, verbose=0).history["loss"]
    assert history[-1] < 0.05 * history[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"blocks": 0}, "`blocks`.*Received: 0"),
        ({"coordinates": "polar"}, "`coordinates`.*Received: 'polar'"),
        ({"modes": 0}, "`modes`.*Received: 0"),
        ({"filters": 0}, "Received"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FNO(**{"modes": 2, **kwargs})
