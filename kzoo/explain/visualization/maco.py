"""MACO: feature visualisation by the phase of the Fourier spectrum alone.

    phi* = argmax_phi a(F^-1(r e^(i phi)))        (r: the mean magnitude of natural images, fixed)
    alpha = sum_t |d a(x_t) / d x_t|              (transparency)

Each step sees random crops of the image, 5 to 25 % of its sides, with noise.

"Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization", Fel,
Boissin, Boutin, Picard, Novello, Colin, Linsley, Rousseau, Cadene, Gardes, Serre, 2023,
arXiv 2306.06805; section 3.

Open choices and deviations. The spectrum is measured on images of the caller's, as none is brought
along, at the size of the canvas. Frequencies that a half spectrum holds twice get the odd part of
the phase, so that the magnitude of the image is r exactly, and the frequency zero, which has no
phase, is left out (the authors' code takes the mean off the image afterwards); their code also
standardises the phase in each step, which the equation does not. The phase begins uniform; the
centre of a crop is normal around the middle of the image, as in their code, but moved so that the
crop lies inside. The 5 to 25 % are of the side of the image, drawn uniformly, one for both sides.
"""

import numpy as np
import tensorflow as tf

from kzoo.explain.visualization.ascent import ascend, in_graph
from kzoo.explain.visualization.fourier import NaturalSpectrum, color_image, fourier_image
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained "
    "Optimization",
    authors=(
        "Thomas Fel",
        "Thibaut Boissin",
        "Victor Boutin",
        "Agustin Picard",
        "Paul Novello",
        "Julien Colin",
        "Drew Linsley",
        "Tom Rousseau",
        "Rémi Cadène",
        "Laurent Gardes",
        "Thomas Serre",
    ),
    year=2023,
    arxiv="2306.06805",
)
_CENTER_DEVIATION = 0.15


@component(PAPER, not_served="it explains the model or a set, not one request")
def maco(
    objective,
    spectrum,
    *,
    steps=256,
    optimizer=None,
    crops=32,
    crop_size=(0.05, 0.25),
    noise=0.1,
    bounds=(0.0, 1.0),
    shape=None,
    start=None,
    seed=0,
):
    """Makes an image with the spectrum of nature for each target of an objective.

    Args:
        objective: `Objective`, see `kzoo.explain.visualization.objectives`.
        spectrum: `NaturalSpectrum`, see `natural_spectrum`. Its size is that of the image, which
            may be larger than the model's input: crops are resized to that.
        steps: number of steps. Defaults to 256.
        optimizer: Keras optimizer. Defaults to Nadam with a learning rate of 1.
        crops: number of random crops in a step; 0 shows the model the whole image. All targets
            see the same crops. Defaults to 32.
        crop_size: range of the sides of a crop relative to the image's, in (0, 1]. Defaults to
            (0.05, 0.25), for images some five times as large as the model's input.
        noise: standard deviation of the Gaussian noise on the crops, relative to `bounds`.
            Defaults to 0.1.
        bounds: (lowest, highest) value of a pixel that the model takes. Defaults to (0, 1).
        shape: (height, width, channels) of the model's input, where the model leaves it open.
        start: phase at which to begin, [n, channels, height, width // 2 + 1]. None draws it.
        seed: int, of the phase, the crops and the noise.

    Returns:
        dict of `images` [n, height, width, channels]; `activations` [steps + 1, n], means over the
        crops of each step (the last: of a further draw of crops, of the final image);
        `transparency`, alpha, of the images' shape; and `phase`.

    Raises:
        ValueError: for an argument out of its range, or channels that do not fit the model.

    Example:

    >>> spectrum = natural_spectrum(photographs, size=(512, 512))
    >>> result = maco(class_logit(model, [1, 7]), spectrum)

    Reference:
        Fel et al. (2023), section 3, arxiv.org/abs/2306.06805
    """
    shape = _input_shape(objective, spectrum, shape)
    _check_ranges(crops, crop_size, noise, bounds)
    phase = _first_phase(start, len(objective), spectrum, seed)
    dtype, width = objective.dtype, spectrum.size[1]
    magnitude, colors = (tf.constant(x, dtype) for x in (spectrum.magnitude, spectrum.colors))
    looks = max(crops, 1)
    target = tf.repeat(tf.range(len(objective)), looks)
    deviation = noise * (bounds[1] - bounds[0])

    def image(phase):
        return color_image(fourier_image(phase, magnitude, width), colors, bounds)

    def activation(images, step):
        of_crops, of_noise = tf.unstack(tf.random.split([seed, step], 2, alg="philox"))
        seen = random_crops(images, crops, crop_size, shape[:2], of_crops)
        jolt = tf.random.stateless_normal([looks, *shape], of_noise, dtype=dtype, alg="philox")
        seen += deviation * tf.tile(jolt, [len(objective), 1, 1, 1])
        return tf.reduce_mean(tf.reshape(objective(seen, target), [-1, looks]), axis=1)

    def evaluate(phase, step):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(phase)
            images = image(phase)
            activations = activation(images, step)
        of_phase, of_images = tape.gradient(activations, [phase, images])
        return of_phase, activations, tf.abs(of_images)

    phase, activations, transparency = ascend(
        tf.constant(phase, dtype),
        evaluate,
        steps,
        optimizer or {"class_name": "Nadam", "config": {"learning_rate": 1.0}},
        total=tf.zeros([len(objective), *spectrum.size, shape[2]], dtype),
    )
    images = image(phase)
    last = in_graph(activation, images, tf.constant(steps))
    return {
        "images": images,
        "activations": tf.concat([activations, [last]], 0),
        "transparency": transparency,
        "phase": phase,
    }


def random_crops(images, crops, crop_size, size, seed):
    """The same random square crops of each image, resized.

    Args:
        images: [n, height, width, channels].
        crops: number of crops of each image; 0 resizes the whole image.
        crop_size: range of the sides relative to the image's.
        size: (height, width) of the result.
        seed: int32 [2].

    Returns:
        [n * crops, *size, channels], the crops of an image in a row.
    """
    if not crops:
        same = tuple(images.shape[1:3]) == tuple(size)
        return images if same else tf.cast(tf.image.resize(images, size), images.dtype)
    of_side, of_offset = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    side = tf.random.stateless_uniform([crops, 1], of_side, *crop_size, alg="philox")
    offset = tf.random.stateless_normal(
        [crops, 2], of_offset, stddev=_CENTER_DEVIATION, alg="philox"
    )
    corner = tf.clip_by_value(0.5 + offset - side / 2, 0, 1 - side)
    boxes = tf.tile(tf.concat([corner, corner + side], 1), [images.shape[0], 1])
    owner = tf.repeat(tf.range(images.shape[0]), crops)
    return tf.cast(tf.image.crop_and_resize(images, boxes, owner, size), images.dtype)


def _first_phase(start, count, spectrum, seed):
    shape = [count, *spectrum.magnitude.shape]
    if start is None:
        return np.random.default_rng(seed).uniform(-np.pi, np.pi, shape)
    if list(np.shape(start)) != shape:
        raise ValueError(f"`start` must have the shape {shape}. Received: {list(np.shape(start))}")
    return start


def _input_shape(objective, spectrum, shape):
    if not isinstance(spectrum, NaturalSpectrum):
        raise TypeError(
            f"`spectrum` must be a NaturalSpectrum, see `natural_spectrum`. Received: {spectrum!r}"
        )
    shape = objective.input_shape if shape is None else tuple(shape)
    channels = len(spectrum.magnitude)
    if shape is None or len(shape) != 3 or None in shape or shape[2] != channels:
        raise ValueError(
            f"`shape`, of the model's input, must be (height, width, {channels}), the channels "
            f"those of the spectrum. Received: {shape}"
        )
    return shape


def _check_ranges(crops, crop_size, noise, bounds):
    if not isinstance(crops, int) or crops < 0:
        raise ValueError(f"`crops` must be an integer from 0. Received: {crops!r}")
    if len(crop_size) != 2 or not 0 < crop_size[0] <= crop_size[1] <= 1:
        raise ValueError(f"`crop_size` must be a range in (0, 1]. Received: {crop_size!r}")
    if not noise >= 0:
        raise ValueError(f"`noise` must be at least 0. Received: {noise!r}")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest). Received: {bounds!r}")
