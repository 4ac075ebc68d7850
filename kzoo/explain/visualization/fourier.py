"""Images by their Fourier phase: magnitude and colours are those of natural images.

    x_raw = F^-1(r e^(i phi)),   x = sigmoid(standardised x_raw, recoloured), scaled to the bounds

Part of MACO, see `kzoo.explain.visualization.maco`.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True, eq=False)
class NaturalSpectrum:
    """What images of nature have in common.

    Args:
        magnitude: [channels, height, width // 2 + 1], the mean of |rfft2| of the images, their
            colours decorrelated; zero at frequency zero. It is never trained.
        colors: [channels, channels], turns decorrelated colours, last axis, into colours.
        size: (height, width) of the images.
    """

    magnitude: np.ndarray
    colors: np.ndarray
    size: tuple[int, int]


def natural_spectrum(images, size=None):
    """Measures the spectrum and the colours of images.

    Colours are decorrelated by the principal axes of their covariance, as in "Feature
    Visualization", Olah et al., 2017; the same axes with their standard deviations, the longest
    scaled to 1, bring them back.

    Args:
        images: float [n, height, width, channels], n at least 1, for example photographs.
        size: (height, width) of the images to make; images of another size are resized. None
            keeps theirs.

    Returns:
        `NaturalSpectrum`

    Raises:
        ValueError: for images of another form, or without any contrast.
    """
    images = np.asarray(images, "float64")
    if images.ndim != 4 or not images.size:
        raise ValueError(
            "`images` must have the shape [n, height, width, channels]. Received: "
            f"{list(images.shape)}"
        )
    size = images.shape[1:3] if size is None else tuple(size)
    if images.shape[1:3] != size:
        images = tf.image.resize(images, size, antialias=True).numpy().astype("float64")
    centred = images - images.mean((0, 1, 2))
    variances, axes = np.linalg.eigh(np.cov(centred.reshape(-1, images.shape[-1]).T, ddof=0))
    if not variances[-1] > 0:
        raise ValueError("`images` must not all be of one colour.")
    deviations = np.sqrt(np.maximum(variances, 0))
    # Images that are grey in spite of three channels vary along one axis only.
    inverse = np.where(deviations > 1e-6 * deviations[-1], 1 / np.maximum(deviations, 1e-300), 0)
    decorrelated = np.moveaxis(centred @ (axes * inverse), -1, 1)
    magnitude = np.abs(np.fft.rfft2(decorrelated)).mean(0)
    magnitude[:, 0, 0] = 0
    colors = (axes * deviations).T
    return NaturalSpectrum(magnitude, colors / np.linalg.norm(colors, axis=1).max(), size)


def fourier_image(phase, magnitude, width):
    """F^-1(r e^(i phi)): real images whose spectrum has exactly the given magnitude.

    Args:
        phase: [n, channels, height, width // 2 + 1] in radians. In the columns that hold both a
            frequency and its negative, only its odd part counts: the spectrum of a real image.
        magnitude: [channels, height, width // 2 + 1], even in those columns.
        width: of the image, an int: odd and even widths have spectra of the same shape.

    Returns:
        [n, channels, height, width]
    """
    mirrored = tf.roll(tf.reverse(phase, [-2]), 1, axis=-2)
    both = np.isin(np.arange(width // 2 + 1), [0, width / 2])
    phase = tf.where(both, (phase - mirrored) / 2, phase)
    spectrum = tf.complex(magnitude * tf.cos(phase), magnitude * tf.sin(phase))
    return tf.signal.irfft2d(spectrum, [phase.shape[-2], width])


def color_image(raw, colors, bounds):
    """Turns raw images of decorrelated colours into images inside of the bounds.

    Args:
        raw: [n, channels, height, width].
        colors: [channels, channels], see `NaturalSpectrum`.
        bounds: (lowest, highest) value of a pixel.

    Returns:
        [n, height, width, channels]
    """
    mean, variance = tf.nn.moments(raw, axes=[1, 2, 3], keepdims=True)
    standardised = (raw - mean) * tf.math.rsqrt(variance)
    images = tf.einsum("nchw,cd->nhwd", standardised, colors)
    return bounds[0] + (bounds[1] - bounds[0]) * tf.sigmoid(images)
