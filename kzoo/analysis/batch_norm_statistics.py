"""How far images are from the statistics that a model's batch normalisations have stored.

    L_BN = sum_i ||mu~_i - mu_i||^2 + ||sigma~_i - sigma_i||^2

with mu~_i and sigma~_i the mean and the standard deviation, per channel and over the batch, of what
enters the i-th batch normalisation, and mu_i, sigma_i the moving ones stored there.

"ArcFace: Additive Angular Margin Loss for Deep Face Recognition", Deng, Guo, Yang, Xue, Kotsia,
Zafeiriou, 2018, arXiv 1801.07698; equation 8.
"""

import contextlib

import keras
import tensorflow as tf

from kzoo.layers.arcface import PAPER
from kzoo.papers import component

# Below this a variance has no direction: the floor keeps the root's gradient finite.
_LEAST_VARIANCE = 1e-12


@component(PAPER)
def batch_norm_statistics_loss(model, images):
    """How far a batch is from the statistics that a model's batch normalisations have stored.

    Differentiable in `images`; those of a batch count together, so it should be of many images.

    Args:
        model: a Keras model with `keras.layers.BatchNormalization` layers, nested or not.
        images: float tensor [n, ...], the input of the model.

    Returns:
        A scalar tensor, L_BN: the squared distances of means and standard deviations, summed over
        channels and layers (a layer that is called twice counts twice).

    Raises:
        ValueError: for a model without batch normalisation.

    Reference:
        Deng et al. (2018), equation 8, arxiv.org/abs/1801.07698
    """
    layers = batch_norms(model)
    return run_with_statistics(model, layers, tf.cast(images, keras.config.floatx()))[1]


def batch_norms(model):
    """The batch normalisations of a model, nested or not; refuses a model without."""
    kind = keras.layers.BatchNormalization
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
    if not layers:
        raise ValueError(
            "`model` must have `keras.layers.BatchNormalization` layers, whose statistics are the "
            f"prior. Received: {model.name!r}, which has none"
        )
    return layers


def run_with_statistics(model, layers, images):
    """The model's output and L_BN of its `batch_norms`, as in inference."""
    with _recorded_inputs(layers) as recorded:
        outputs = model(images, training=False)
    losses = [_distance(layer, inputs) for layer, inputs in recorded]
    return outputs, tf.add_n(losses)


@contextlib.contextmanager
def _recorded_inputs(layers):
    """Within the context, every call of one of the layers adds (layer, its inputs) to the list."""
    recorded = []

    def recording(layer, call):
        def record(inputs, *args, **kwargs):
            recorded.append((layer, inputs))
            return call(inputs, *args, **kwargs)

        return record

    with contextlib.ExitStack() as stack:
        for layer in layers:
            # Past Keras's attribute tracking, which has no use for it.
            object.__setattr__(layer, "call", recording(layer, layer.call))
            stack.callback(layer.__dict__.pop, "call")
        yield recorded


def _distance(layer, inputs):
    """The squared distances from the moving mean and standard deviation of one layer."""
    inputs = tf.cast(inputs, layer.moving_mean.dtype)
    axis = layer.axis % len(inputs.shape)
    others = [i for i in range(len(inputs.shape)) if i != axis]
    mean, variance = tf.nn.moments(inputs, others)
    change = _root(variance) - _root(tf.convert_to_tensor(layer.moving_variance))
    distance = tf.reduce_sum(tf.square(mean - layer.moving_mean) + tf.square(change))
    return tf.cast(distance, keras.config.floatx())


def _root(variance):
    return tf.sqrt(tf.maximum(variance, _LEAST_VARIANCE))
