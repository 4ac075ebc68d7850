"""Images of an identity, drawn by a recogniser alone: gradient descent on the images themselves.

    minimize over I   L_id(I) + lambda L_BN(I) + alpha TV(I) + beta |I|
    L_BN = sum_i ||mu~_i - mu_i||^2 + ||sigma~_i - sigma_i||^2

with mu~_i and sigma~_i the mean and the standard deviation, per channel and over the batch, of what
enters the i-th batch normalisation, and mu_i, sigma_i the moving ones stored there. L_id is the
ArcFace loss of a class (the closed set), or the squared distance of the model's output from a given
embedding (the open set, for identities that were never trained).

"ArcFace: Additive Angular Margin Loss for Deep Face Recognition", Deng, Guo, Yang, Xue, Kotsia,
Zafeiriou, 2018, arXiv 1801.07698; section 3.3, equation 8, algorithm 1 and section 4.5. The
defaults are those of section 4.5.

Open choices, where the paper is silent: L_id, TV (`tf.image.total_variation`, the sum of the
absolute differences of neighbours) and |I| are means over the images, the distance of embeddings is
a sum over their components. The model runs as in inference. Values are not clipped.
"""

import math
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.analysis.batch_norm_statistics import batch_norms, run_with_statistics
from kzoo.layers.arcface import PAPER, ArcFaceHead
from kzoo.losses.arcface import ArcFaceLoss
from kzoo.papers import component


@dataclass(frozen=True)
class Inversion:
    """What `batch_norm_inversion` found.

    Attributes:
        images: float [n, ...], in the values that the model takes, not clipped.
        identity_loss: float [steps], L_id before each step.
        statistics_loss: float [steps], L_BN before each step.
    """

    images: np.ndarray
    identity_loss: np.ndarray
    statistics_loss: np.ndarray


@component(PAPER)
def batch_norm_inversion(
    model,
    targets,
    loss=None,
    statistics_weight=0.05,
    total_variation_weight=1e-3,
    norm_weight=1e-4,
    steps=20_000,
    learning_rate=0.25,
    shape=None,
    seed=0,
):
    """Generates images of given classes, or of given embeddings, from a trained model.

    The images begin as standard normal noise and are optimised together, by Adam, in one compiled
    loop: the statistics are those of the whole batch, so let it mix classes as the training data
    did. The paper's 20 000 steps of 256 images are for a GPU; hundreds do for small networks.

    Args:
        model: a built functional or Sequential model with one input, one output and
            `keras.layers.BatchNormalization` layers.
        targets: [n] integers, the class of each image, for a model that returns logits; or [n, d]
            floats, embeddings that the model's output has to reach. For embeddings, pass the model
            without its head; where their direction is the identity, as with ArcFace, end it with
            `keras.layers.UnitNormalization` and give unit vectors.
        loss: of classes, `loss(targets, outputs)`, such as a `keras.losses.Loss`. None for
            `ArcFaceLoss` (margin 0.5) with the scale of the model's `ArcFaceHead`.
        statistics_weight: lambda, at least 0; 0 leaves the statistics free. Defaults to 0.05.
        total_variation_weight: alpha, at least 0; only 0 for inputs that are not [height, width,
            channels]. Defaults to 1e-3.
        norm_weight: beta, at least 0. Defaults to 1e-4.
        steps: of Adam, at least 1. Defaults to 20 000.
        learning_rate: of Adam, above 0. Defaults to 0.25.
        shape: of one image, where the model leaves sizes open. Defaults to that of the model.
        seed: of the noise; the same seed gives the same images.

    Returns:
        An `Inversion`.

    Raises:
        ValueError: for a model without batch normalisation or with several inputs or outputs,
            classes out of range, embeddings of another size, a missing loss, or arguments out of
            range.

    Example:

    >>> found = batch_norm_inversion(recogniser, [0, 1, 2, 3], steps=500, learning_rate=0.05)
    >>> found.images.shape
    (4, 112, 112, 3)

    Reference:
        Deng et al. (2018), sections 3.3 and 4.5, arxiv.org/abs/1801.07698
    """
    weights = (statistics_weight, total_variation_weight, norm_weight)
    _check_numbers(*weights, steps, learning_rate)
    layers = batch_norms(model)
    shape = _image_shape(model, shape)
    if total_variation_weight and len(shape) != 3:
        raise ValueError(
            "`total_variation_weight` must be 0 for inputs that are not [height, width, channels]. "
            f"Received: {total_variation_weight} for inputs of shape {shape}"
        )
    targets = np.asarray(targets)
    identity_loss = _identity_loss(model, targets, loss)

    def evaluate(images):
        outputs, statistics = run_with_statistics(model, layers, images)
        identity = identity_loss(outputs)
        total = identity + statistics_weight * statistics + norm_weight * _mean_norm(images)
        if total_variation_weight:
            total += total_variation_weight * tf.reduce_mean(tf.image.total_variation(images))
        return total, (identity, statistics)

    dtype = keras.config.floatx()
    noise = np.random.default_rng(seed).normal(size=(len(targets), *shape)).astype(dtype)
    images, history = _descend(noise, evaluate, steps, learning_rate)
    return Inversion(images, *history)


def _descend(start, evaluate, steps, learning_rate):
    """Adam on an array; returns the last one and, [steps] each, what `evaluate` told of it."""
    variable = keras.Variable(start, name="images")
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build([variable])

    def descend(step, history):
        images = tf.convert_to_tensor(variable.value)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            total, told = evaluate(images)
        optimizer.apply([tape.gradient(total, images)], [variable])
        return step + 1, tuple(
            array.write(step, value) for array, value in zip(history, told, strict=True)
        )

    def run():
        arrays = tuple(tf.TensorArray(start.dtype, steps, element_shape=[]) for _ in range(2))
        _, history = tf.while_loop(
            lambda step, _: step < steps, descend, (0, arrays), maximum_iterations=steps
        )
        return [array.stack() for array in history]

    # Not by calling the tf.function, which would warn of retracing where inversions are many.
    history = tf.function(run, autograph=False).get_concrete_function()()
    return keras.ops.convert_to_numpy(variable), [values.numpy() for values in history]


def _mean_norm(images):
    squares = tf.reduce_sum(tf.square(images), axis=list(range(1, len(images.shape))))
    # The floor keeps the root's gradient finite.
    return tf.reduce_mean(tf.sqrt(tf.maximum(squares, 1e-12)))


def _identity_loss(model, targets, loss):
    """The function of the model's outputs that is small for the identities."""
    size = model.output_shape[-1]
    dtype = keras.config.floatx()
    if targets.ndim == 1 and len(targets) and targets.dtype.kind in "iu":
        if not 0 <= targets.min() <= targets.max() < size:
            raise ValueError(
                f"`targets` must be classes in [0, {size}). "
                f"Received: {targets.min()} to {targets.max()}"
            )
        loss = loss or _arcface_loss(model)
        return lambda outputs: tf.cast(tf.reduce_mean(loss(targets, outputs)), dtype)
    if targets.ndim == 2 and len(targets) and targets.dtype.kind == "f":
        if targets.shape[1] != size:
            raise ValueError(
                f"`targets` must be embeddings of the size of the model's output, {size}. "
                f"Received: shape {targets.shape}"
            )
        if loss is not None:
            raise ValueError(f"`loss` must be None for embeddings. Received: {loss!r}")
        goal = tf.constant(targets, dtype)
        return lambda outputs: tf.reduce_mean(
            tf.reduce_sum(tf.square(tf.cast(outputs, dtype) - goal), axis=-1)
        )
    raise ValueError(
        "`targets` must be [n] integers (classes) or [n, d] floats (embeddings), n of at least 1. "
        f"Received: {targets.dtype} of shape {targets.shape}"
    )


def _arcface_loss(model):
    heads = [layer for layer in model._flatten_layers() if isinstance(layer, ArcFaceHead)]
    if len(heads) != 1:
        raise ValueError(
            "`loss` must be given for a model that does not have one `ArcFaceHead`. "
            f"Received: None, and {model.name!r} has {len(heads)}"
        )
    return ArcFaceLoss(heads[0].scale)


def _image_shape(model, shape):
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ValueError(
            "`model` must be a built functional or Sequential model with one input and one output "
            f"[batch, size]. Received: {model.name!r}"
        )
    own = tuple(inputs[0].shape[1:])
    shape = own if shape is None else tuple(shape)
    fits = len(shape) == len(own) and all(
        size is not None and known in (None, size) for size, known in zip(shape, own, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`shape` must be that of one image, without open sizes, and fit to {own}. "
            f"Received: {shape}"
        )
    return shape


def _check_numbers(statistics_weight, total_variation_weight, norm_weight, steps, learning_rate):
    for name, value in (
        ("statistics_weight", statistics_weight),
        ("total_variation_weight", total_variation_weight),
        ("norm_weight", norm_weight),
    ):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be a finite number of at least 0. Received: {value!r}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"`steps` must be an integer of at least 1. Received: {steps!r}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"`learning_rate` must be a finite number above 0. Received: {learning_rate!r}"
        )
