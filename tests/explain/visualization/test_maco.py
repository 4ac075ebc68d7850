import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.visualization import (
    channel,
    fourier_image,
    maco,
    natural_spectrum,
    neuron,
    visualization_sheet,
)
from kzoo.explain.visualization.maco import random_crops

pytestmark = pytest.mark.paper(
    "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization"
)


def smooth_images(rng, count, height, width):
    """Colour noise with a 1/f spectrum and correlated colours, in [0, 1]."""
    noise = np.fft.fft2(rng.normal(size=(count, height, width, 3)), axes=(1, 2))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    images = np.fft.ifft2(noise / np.maximum(radius, 0.05)[..., None], axes=(1, 2)).real
    images = images @ [[1.0, 0.9, 0.8], [0.1, 0, -0.1], [0.05, -0.1, 0.05]]
    return (images - images.min()) / np.ptp(images)


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([12, 12, 3]),
            keras.layers.Conv2D(6, 5, name="features"),
            keras.layers.ReLU(name="rectified"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("size", [(12, 12), (11, 13), (12, 13), (13, 12)])
def test_the_magnitude_is_the_template_whatever_the_phase(rng, size):
    spectrum = natural_spectrum(smooth_images(rng, 4, *size))
    assert spectrum.magnitude.shape == (3, size[0], size[1] // 2 + 1)
    phase = rng.normal(scale=5, size=(2, *spectrum.magnitude.shape))
    raw = fourier_image(tf.constant(phase), spectrum.magnitude, size[1]).numpy()
    assert raw.shape == (2, 3, *size)
    # NumPy sees the full spectrum: exactly the template, so nothing was lost as imaginary part.
    found = np.abs(np.fft.rfft2(raw))
    np.testing.assert_allclose(found[0], spectrum.magnitude, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[1], spectrum.magnitude, rtol=1e-9, atol=1e-9)
    # Where nothing is redundant the phase is the one asked for.
    inner = np.exp(1j * phase)[..., 1 : (size[1] + 1) // 2]
    got = (
        np.fft.rfft2(raw)[..., 1 : (size[1] + 1) // 2]
        / spectrum.magnitude[..., 1 : (size[1] + 1) // 2]
    )
    np.testing.assert_allclose(got, inner, atol=1e-9)


def test_the_spectrum_of_images_by_hand(rng):
    images = smooth_images(rng, 5, 8, 10)
    spectrum = natural_spectrum(images)
    flat = (images - images.mean((0, 1, 2))).reshape(-1, 3)
    # The colours are a square root of the covariance, up to the scale.
    covariance = spectrum.colors.T @ spectrum.colors
    reference = flat.T @ flat / len(flat)
    np.testing.assert_allclose(
        covariance / np.trace(covariance), reference / np.trace(reference), atol=1e-12
    )
    assert np.isclose(np.linalg.norm(spectrum.colors, axis=1).max(), 1)
    # Parseval: decorrelated colours have variance one, and |rfft2| at most its root mean square.
    doubled = np.concatenate([spectrum.magnitude, spectrum.magnitude[..., 1:-1]], -1)
    energy = (doubled**2).sum((1, 2)) / 80**2
    assert np.all((energy > 0.5) & (energy <= 1))
    assert not spectrum.magnitude[:, 0, 0].any()


def test_grey_images_in_colour_have_one_axis(rng):
    grey = np.repeat(smooth_images(rng, 3, 8, 8)[..., :1], 3, axis=-1)
    spectrum = natural_spectrum(grey, size=(6, 6))
    assert np.isfinite(spectrum.magnitude).all()
    assert spectrum.size == (6, 6)
    np.testing.assert_allclose(np.abs(spectrum.colors[-1]), np.full(3, 3**-0.5), rtol=1e-6)
    np.testing.assert_allclose(spectrum.colors[:-1], 0, atol=1e-6)


def test_every_step_keeps_the_magnitude_and_alpha_is_the_sum_of_gradients(cnn, rng):
    spectrum = natural_spectrum(smooth_images(rng, 4, 12, 12))
    goal = channel(cnn, "rectified", [0, 4])
    options = {"crops": 0, "noise": 0.0, "optimizer": keras.optimizers.SGD(5.0)}
    phase = rng.uniform(-np.pi, np.pi, (2, *spectrum.magnitude.shape)).astype("float32")
    start, alphas = phase, []
    for _ in range(4):
        raw = fourier_image(phase, spectrum.magnitude.astype("float32"), 12)
        found = np.abs(np.fft.rfft2(raw.numpy()))
        assert np.abs(found - spectrum.magnitude).max() < 1e-5 * spectrum.magnitude.max()
        # The image by NumPy, and the gradient of the activation at it by a tape of our own.
        image = _image(phase, spectrum)
        with tf.GradientTape() as tape:
            tape.watch(image)
            output = tf.reduce_mean(tf.nn.relu(cnn.get_layer("features")(image)), [1, 2])
            score = tf.stack([output[0, 0], output[1, 4]])
        alphas.append(np.abs(tape.gradient(score, image)))
        result = maco(goal, spectrum, steps=1, start=phase, **options)
        np.testing.assert_allclose(result["activations"][0], score, rtol=1e-4)
        phase = result["phase"].numpy()
    assert np.abs(alphas[0] - alphas[-1]).max() > 1e-3, "the gradients differ from step to step"
    whole = maco(goal, spectrum, steps=4, start=start, **options)
    np.testing.assert_allclose(whole["transparency"], np.sum(alphas, 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(whole["phase"], phase, atol=1e-3)
    np.testing.assert_allclose(whole["images"], _image(phase, spectrum), atol=1e-4)
    assert whole["activations"].shape == (5, 2)


def test_phase_alone_raises_the_activation_of_a_random_unit_fivefold(cnn, rng):
    """Beyond the spread over random phases; a fixed part is due to the grey of the image."""
    spectrum = natural_spectrum(smooth_images(rng, 4, 12, 12))
    units = neuron(cnn, "features", [(3, 3, index) for index in range(6)])
    options = {"crops": 0, "noise": 0.0, "steps": 40}
    starts = rng.uniform(-np.pi, np.pi, (30, 6, *spectrum.magnitude.shape))
    result = maco(units, spectrum, start=starts[0], **options)
    at_random = [units(_image(phase, spectrum), np.arange(6)) for phase in starts.astype("float32")]
    gain = result["activations"][-1] - np.mean(at_random, 0)
    assert np.all(gain > 5 * np.std(at_random, 0))
    assert result["images"].shape == result["transparency"].shape == (6, 12, 12, 3)
    assert np.all((result["images"] > 0) & (result["images"] < 1))


def _image(phase, spectrum):
    """The image of a phase, by NumPy but for the transform."""
    raw = fourier_image(phase, spectrum.magnitude.astype("float32"), spectrum.size[1]).numpy()
    standard = (raw - raw.mean((1, 2, 3), keepdims=True)) / raw.std((1, 2, 3), keepdims=True)
    return tf.constant(
        1 / (1 + np.exp(-np.moveaxis(standard, 1, -1) @ spectrum.colors)), tf.float32
    )


def test_crops_of_a_larger_canvas(cnn, rng):
    spectrum = natural_spectrum(smooth_images(rng, 4, 24, 30))
    result = maco(channel(cnn, "rectified", [0, 1]), spectrum, steps=30, crops=6, noise=0.02)
    assert np.all(result["activations"][-5:].numpy().mean(0) > result["activations"][0])
    assert result["images"].shape == (2, 24, 30, 3)


def test_alpha_is_zero_outside_of_the_receptive_field(cnn, rng):
    """A unit of a 5x5 convolution at (2, 6) sees rows 2 to 6 and columns 6 to 10."""
    spectrum = natural_spectrum(smooth_images(rng, 4, 12, 12))
    result = maco(neuron(cnn, "features", (2, 6, 1)), spectrum, steps=3, crops=0)
    alpha = result["transparency"][0].numpy().sum(-1)
    assert np.all(alpha[2:7, 6:11] > 0)
    alpha[2:7, 6:11] = 0
    assert not alpha.any()


def test_crops_lie_inside_and_have_the_sizes_asked_for():
    ramp = np.stack(np.meshgrid(np.arange(101.0), np.arange(101.0)), -1)[None] / 100
    crops = random_crops(tf.constant(ramp, tf.float32), 300, (0.05, 0.25), [2, 2], [0, 0]).numpy()
    assert crops.shape == (300, 2, 2, 2)
    sides = crops[:, 0, 1, 0] - crops[:, 0, 0, 0]
    np.testing.assert_allclose(crops[:, 1, 0, 1] - crops[:, 0, 0, 1], sides, atol=1e-5)
    assert crops.min() > -1e-6
    assert crops.max() < 1 + 1e-6
    assert 0.05 <= sides.min() < 0.07
    assert 0.23 < sides.max() <= 0.2501
    assert abs(crops.mean() - 0.5) < 0.03


def test_a_target_is_optimised_as_if_it_were_alone(cnn, rng):
    spectrum = natural_spectrum(smooth_images(rng, 4, 24, 24))
    phase = rng.normal(size=(1, *spectrum.magnitude.shape))
    options = {"steps": 3, "crops": 3, "crop_size": (0.4, 0.6)}
    sgd = keras.optimizers.SGD(1.0)
    together = maco(
        channel(cnn, "features", [0, 2]),
        spectrum,
        optimizer=sgd,
        start=np.tile(phase, [2, 1, 1, 1]),
        **options,
    )
    alone = maco(channel(cnn, "features", 2), spectrum, optimizer=sgd, start=phase, **options)
    np.testing.assert_allclose(together["images"][1:], alone["images"], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crops": -1}, "`crops` must be an integer"),
        ({"crop_size": (0.0, 0.5)}, "`crop_size` must be a range"),
        ({"noise": -1.0}, "`noise` must be at least 0"),
        ({"bounds": (1, 1)}, "`bounds` must be"),
        ({"start": np.zeros([1, 3, 12, 12])}, "`start` must have the shape"),
        ({"shape": (12, 12, 1)}, "channels"),
    ],
)
def test_bad_arguments_are_refused(cnn, rng, options, says):
    spectrum = natural_spectrum(smooth_images(rng, 2, 12, 12))
    with pytest.raises(ValueError, match=says):
        maco(channel(cnn, "features", 0), spectrum, **options)


def test_bad_spectra_are_refused(cnn):
    with pytest.raises(TypeError, match="NaturalSpectrum"):
        maco(channel(cnn, "features", 0), np.ones([3, 12, 7]))
    with pytest.raises(ValueError, match="n, height, width, channels"):
        natural_spectrum(np.zeros([8, 8, 3]))
    with pytest.raises(ValueError, match="one colour"):
        natural_spectrum(np.full([2, 8, 8, 3], 0.5))


def test_the_sheet_shows_white_paper_where_alpha_is_low(rng):
    images = rng.uniform(size=(5, 6, 8, 3))
    alpha = np.ones([5, 6, 8])
    alpha[:, :, :4] = 0
    figure = visualization_sheet(images, list("abcde"), alpha, columns=3)
    assert [axis.get_xlabel() for axis in figure.axes] == list("abcde")
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown[:, :4], 1)
    plain = visualization_sheet(images, stretch=False).axes[0].images[0].get_array()
    np.testing.assert_allclose(plain, images[0])
    assert np.all(shown[:, 4:] <= 1)
    with pytest.raises(ValueError, match="`captions` must be 5"):
        visualization_sheet(images, ["one"])
    with pytest.raises(ValueError, match="`transparency` must have"):
        visualization_sheet(images, transparency=alpha[:, :3])
