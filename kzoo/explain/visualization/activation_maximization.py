"""Activation maximisation: the image that a unit, a channel or a class responds to most.

    x* = argmax_x a(x) - l2 ||x - mean||^2 - tv TV(x)

With a the logit S_c of a class and no other regulariser it is the class model of "Deep Inside
Convolutional Networks: Visualising Image Classification Models and Saliency Maps", Simonyan,
Vedaldi, Zisserman, 2013, arXiv 1312.6034; section 2, equation 1:

    argmax_I S_c(I) - lambda ||I||^2

Jitter, blur, total variation and the window that masks the gradient are those of "Multifaceted
Feature Visualization", arXiv 1602.03616 (see `kzoo.explain.visualization.multifaceted`).

Open choices: the paper gives neither lambda nor the step size. Its network takes images less the
mean image of the training set, and the mean is added to the result; here the mean is an argument,
so that models which take images as they are have the same regulariser.
"""

import numpy as np
import tensorflow as tf

from kzoo.explain.saliency import PAPER
from kzoo.explain.visualization.ascent import ascend, in_graph
from kzoo.explain.visualization.objectives import class_logit
from kzoo.explain.visualization.transforms import (
    between,
    center_biased_mask,
    gaussian_blur,
    random_shift,
)
from kzoo.papers import component


@component(PAPER, not_served="it explains the model or a set, not one request")
def class_model(model, classes, l2=1e-3, mean=0.0, steps=256, optimizer=None, shape=None):
    """The image that a network has of a class: argmax_I S_c(I) - lambda ||I - mean||^2.

    The ascent begins at `mean`. S_c is the logit: the probability could also grow by making the
    other classes less likely.

    Args:
        model, classes: see `class_logit`.
        l2: lambda. Defaults to 1e-3.
        mean, steps, optimizer, shape: see `activation_maximization`.

    Returns: as `activation_maximization`.

    Example:

    >>> images = class_model(model, classes=range(10))["images"]

    Reference:
        Simonyan et al. (2013), section 2, arxiv.org/abs/1312.6034
    """
    return activation_maximization(
        class_logit(model, classes),
        l2=l2,
        mean=mean,
        noise=0.0,
        steps=steps,
        optimizer=optimizer,
        shape=shape,
    )


@component(PAPER, not_served="it explains the model or a set, not one request")
def activation_maximization(
    objective,
    start=None,
    *,
    steps=256,
    optimizer=None,
    l2=0.0,
    mean=0.0,
    total_variation=0.0,
    jitter=0,
    blur=0.0,
    window=1.0,
    noise=0.01,
    normalize=False,
    bounds=None,
    shape=None,
    seed=0,
):
    """Makes an image for each target of an objective by gradient ascent on its pixels.

    All regularisers are off unless asked for; without any the images are mostly high frequencies.

    Args:
        objective: `Objective`, see `kzoo.explain.visualization.objectives`.
        start: images at which to begin: one, or one for each target; of an objective with a
            single target, as many as are wanted. None begins at `mean`.
        steps: number of steps. Defaults to 256.
        optimizer: Keras optimizer. Defaults to Adam with a learning rate of 0.05.
        l2: weight of the squared distance from `mean`, at least 0. Defaults to 0.
        mean: image, or number, at which `l2` is zero. Defaults to 0.
        total_variation: weight of the sum of absolute differences of neighbouring pixels. Defaults
            to 0. This and all that follow but `noise`, `normalize` and `bounds` need images
            [height, width, channels].
        jitter: largest random shift of the image in a step, in pixels. Defaults to 0.
        blur: standard deviation in pixels of the Gaussian blur after each step; a pair goes from
            the first to the second. Defaults to 0.
        window: only a centred box of this part of the sides changes, in (0, 1]; a pair goes from
            the first to the second, so that the centre is worked on longest. Defaults to 1.
        noise: standard deviation of Gaussian noise added to the start: at a constant image all
            ReLUs may be off. Defaults to 0.01.
        normalize: whether to divide the gradient of each activation by the mean of its absolute
            values. The size of a step and the weights of the regularisers then mean the same for
            every model. Defaults to False.
        bounds: (lowest, highest) value of a pixel, to which images are clipped. None for none.
        shape: of an image, for models whose input leaves it open. None asks the model.
        seed: int, of the noise and the jitter.

    Returns:
        dict of `images` [n, ...] and `activations` [steps + 1, n], as met before each step (of the
        shifted image, where there is jitter) and of the final images. In float32; in float64 for
        a float64 model.

    Raises:
        ValueError: for an argument out of its range, or a `start` of another shape.

    Example:

    >>> goal = channel(model, "conv5", [3, 14])
    >>> result = activation_maximization(goal, jitter=4, blur=(1.0, 0.0), bounds=(0, 1))

    Reference:
        Simonyan et al. (2013), arxiv.org/abs/1312.6034;
        Nguyen et al. (2016), arxiv.org/abs/1602.03616
    """
    blur, window = _pair("blur", blur), _pair("window", window)
    _check_ranges(l2, total_variation, jitter, blur, window, noise, bounds)
    start, mean = _beginning(objective, start, mean, shape)
    if (total_variation, jitter, blur, window) != (0, 0, (0, 0), (1, 1)) and start.ndim != 4:
        raise ValueError(
            "`total_variation`, `jitter`, `blur` and `window` are for images [height, width, "
            f"channels]. Received images of the shape {list(start.shape[1:])}"
        )
    target = tf.range(start.shape[0]) if len(objective) > 1 else tf.zeros(start.shape[0], tf.int32)

    def penalty(images):
        squared = l2 * tf.reduce_sum((images - mean) ** 2)
        if not total_variation:
            return squared
        return squared + total_variation * tf.reduce_sum(tf.image.total_variation(images))

    def evaluate(images, step):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(images)
            seen = random_shift(images, jitter, [seed, step]) if jitter else images
            activations = objective(seen, target)
            penalties = penalty(images)
        gradient = _gradient(tape, activations, images)
        if normalize:
            gradient /= _row_mean(tf.abs(gradient)) + np.finfo(images.dtype.name).tiny
        gradient -= tape.gradient(penalties, images)
        if window != (1, 1):
            extent = between(window, step, steps, images.dtype)
            gradient *= center_biased_mask(*images.shape[1:3], extent, images.dtype)
        return gradient, activations, ()

    def project(images, step):
        if blur != (0, 0):
            images = gaussian_blur(images, between(blur, step, steps, images.dtype), max(blur))
        return images if bounds is None else tf.clip_by_value(images, *bounds)

    start = start + noise * np.random.default_rng(seed).normal(size=start.shape)
    start = start if bounds is None else np.clip(start, *bounds)
    images, activations, _ = ascend(
        tf.constant(start, objective.dtype),
        evaluate,
        steps,
        optimizer or {"class_name": "Adam", "config": {"learning_rate": 0.05}},
        project=None if bounds is None and blur == (0, 0) else project,
    )
    last = in_graph(objective, images, target)
    return {"images": images, "activations": tf.concat([activations, [last]], 0)}


def _gradient(tape, activations, images):
    gradient = tape.gradient(activations, images)
    if gradient is None:
        raise ValueError("The objective has no gradient with respect to the images.")
    return gradient


def _row_mean(x):
    return tf.reduce_mean(x, axis=range(1, x.shape.rank), keepdims=True)


def _pair(name, value):
    pair = tuple(value) if np.ndim(value) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"`{name}` must be a number or a pair of them. Received: {value!r}")
    return pair


def _check_ranges(l2, total_variation, jitter, blur, window, noise, bounds):
    for name, value in (("l2", l2), ("total_variation", total_variation), ("noise", noise)):
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0. Received: {value!r}")
    if not isinstance(jitter, int) or jitter < 0:
        raise ValueError(f"`jitter` must be an integer from 0. Received: {jitter!r}")
    if not min(blur) >= 0:
        raise ValueError(f"`blur` must be at least 0. Received: {blur!r}")
    if not 0 < min(window) <= max(window) <= 1:
        raise ValueError(f"`window` must be in (0, 1]. Received: {window!r}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest). Received: {bounds!r}")


def _beginning(objective, start, mean, shape):
    """The first images [n, ...] and the mean image, as arrays."""
    shape = _image_shape(objective, start, shape)
    mean = np.broadcast_to(np.asarray(mean, "float64"), shape)
    start = mean if start is None else np.asarray(start, "float64")
    if start.shape == shape:
        start = np.broadcast_to(start, [len(objective), *shape])
    counts = {len(objective)} if len(objective) > 1 else {len(start)}
    if start.shape[1:] != shape or len(start) not in counts or not len(start):
        raise ValueError(
            f"`start` must be one image of shape {list(shape)} or one for each of the "
            f"{len(objective)} targets. Received the shape {list(start.shape)}"
        )
    return start, mean


def _image_shape(objective, start, shape):
    known = objective.input_shape
    if shape is None and known is not None and None not in known:
        return known
    if shape is None and start is not None:
        rank = np.ndim(start) - 1 if known is None else len(known)
        shape = np.shape(start)[-rank:]
    if shape is None:
        raise ValueError("`shape` of an image is needed: the model leaves it open.")
    shape = tuple(shape)
    if known is not None and not tf.TensorShape(known).is_compatible_with(shape):
        raise ValueError(f"`shape` must fit the model's {list(known)}. Received: {list(shape)}")
    return shape
