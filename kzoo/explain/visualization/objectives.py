"""What a feature visualisation maximises: a class logit, a neuron, a channel, a direction.

An objective has one or more targets, such as several classes of one model; an image is made for
each of them at once. It works on Keras models of any build with one input.

The direction's score is the dot product weighted by a power of the cosine, so that the image does
not follow a stronger direction that is merely not orthogonal to it: "Feature Visualization", Olah,
Mordvintsev, Schubert, 2017, Distill.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import find_layer, input_structure, linear_output, on_output, replace_call

_LEAST_COSINE = 0.1


class Objective:
    """One activation for each image: `objective(images, target)`.

    Made by `class_logit`, `neuron`, `channel` and `direction`, or from a function of your own.

    Args:
        model: Keras model with one input of floats, called with `training=False`.
        activation: `activation(images, target)` of images [n, ...] and int32 [n], each the position
            of a target, returns [n]. It is traced into a graph and must be differentiable.
        names: a name for each target, the captions of the pictures.

    Raises:
        ValueError: for a model with several inputs, or an input of integers.
    """

    def __init__(self, model, activation, names):
        if not isinstance(model, keras.Layer):
            raise TypeError(f"`model` must be a Keras model. Received: {type(model).__name__}")
        known = input_structure(model)
        if known is not None and keras.tree.is_nested(known):
            raise ValueError(
                "Feature visualisation makes one image for a model with one input. Received a "
                f"model with {len(keras.tree.flatten(known))}."
            )
        if known is not None and not tf.as_dtype(known.dtype).is_floating:
            raise ValueError(f"`model` must take floats. Received an input of {known.dtype}.")
        self.model = model
        self.activation = activation
        self.names = tuple(names)
        self.input_shape = None if known is None else tuple(known.shape[1:])
        double = known is not None and known.dtype == "float64"
        self.dtype = tf.float64 if double else tf.float32

    def __len__(self):
        """The number of targets."""
        return len(self.names)

    def __call__(self, images, target):
        return tf.cast(self.activation(images, target), images.dtype)


def class_logit(model, classes):
    """The logit of a class, without the softmax or sigmoid that ends the model.

    Args:
        model: see `Objective`; its output is [batch, classes].
        classes: int, or list of ints, the classes to visualise.
    """
    classes = _indices("classes", np.reshape(classes, [-1, 1]))

    def activation(images, target):
        with linear_output(model):
            outputs = model(images, training=False)
        if not tf.is_tensor(outputs) or outputs.shape.rank != 2:
            raise ValueError(
                "`class_logit` is for a model with one output [batch, classes]. Received: "
                f"{keras.tree.map_structure(lambda x: x.shape, outputs)}. Use `neuron`."
            )
        return _take("classes", outputs, classes, target)

    return Objective(model, activation, [f"class {index}" for (index,) in classes])


def neuron(model, layer, units):
    """The output of single units of a layer.

    Args:
        model: see `Objective`.
        layer: name of the layer, its index in `model.layers`, or the layer.
        units: one unit, or a list of them. A unit is an index into the layer's output without the
            batch: (row, column, channel) for a feature map, an int for an output of vectors.
    """
    layer = find_layer(model, layer)
    single = np.ndim(units) == 0 or isinstance(units, tuple)
    units = _indices("units", [np.atleast_1d(unit) for unit in ([units] if single else units)])

    def activation(images, target):
        return _take("units", layer_output(model, layer, images), units, target)

    names = [f"{layer.name}[{', '.join(map(str, unit))}]" for unit in units]
    return Objective(model, activation, names)


def channel(model, layer, channels):
    """The mean of a channel, the last axis of a layer's output, over its positions.

    Args:
        model, layer: see `neuron`.
        channels: int or list of ints.
    """
    layer = find_layer(model, layer)
    channels = _indices("channels", np.reshape(channels, [-1, 1]))

    def activation(images, target):
        output = layer_output(model, layer, images)
        means = tf.reduce_mean(output, axis=range(1, output.shape.rank - 1))
        return _take("channels", means, channels, target)

    return Objective(model, activation, [f"{layer.name} channel {index}" for (index,) in channels])


def direction(model, layer, vectors, cosine_power=2.0):
    """A direction in the space of a layer's channels: <f, v> max(0.1, cos(f, v))^p, over positions.

    Args:
        model, layer: see `neuron`.
        vectors: float [channels], or [n, channels] for n targets.
        cosine_power: p; 0 gives the plain dot product. Defaults to 2.

    Reference:
        Olah et al. (2017), Feature Visualization, doi 10.23915/distill.00007
    """
    layer = find_layer(model, layer)
    vectors = np.atleast_2d(np.asarray(vectors, "float64"))
    if vectors.ndim != 2 or not np.linalg.norm(vectors, axis=1).all():
        raise ValueError(
            "`vectors` must be directions [n, channels] other than zero. Received the shape "
            f"{list(vectors.shape)}"
        )

    def activation(images, target):
        output = layer_output(model, layer, images)
        if output.shape[-1] != vectors.shape[1]:
            raise ValueError(
                f"`vectors` must have one value for each of the {output.shape[-1]} channels of "
                f"{layer.name!r}. Received: {vectors.shape[1]}"
            )
        output = tf.reshape(output, [tf.shape(output)[0], -1, vectors.shape[1]])
        vector = tf.gather(tf.constant(vectors, output.dtype), target)
        dot = tf.einsum("npc,nc->np", output, vector)
        cosine = tf.einsum(
            "npc,nc->np", tf.math.l2_normalize(output, -1), tf.math.l2_normalize(vector, -1)
        )
        return tf.reduce_mean(dot * tf.maximum(cosine, _LEAST_COSINE) ** cosine_power, axis=1)

    names = [f"{layer.name} direction {index}" for index in range(len(vectors))]
    return Objective(model, activation, names)


def layer_output(model, layer, images):
    """What `layer` gives for `images`; of a layer that is called repeatedly, the last output.

    Raises:
        ValueError: if the model does not call the layer, or it gives several tensors.
    """
    seen = []
    with replace_call(layer, on_output(lambda output: seen.append(output) or output)):
        model(images, training=False)
    if not seen or not tf.is_tensor(seen[-1]):
        raise ValueError(
            f"The layer {layer.name!r} must give {model.name!r} one tensor. Received: "
            f"{seen[-1] if seen else 'no call of it'}"
        )
    return seen[-1]


def _indices(name, values):
    """int32 [n, d] from the indices of n targets."""
    lengths = {len(value) for value in values}
    values = np.asarray(values) if len(lengths) == 1 else None
    if values is None or not np.issubdtype(values.dtype, np.integer) or (values < 0).any():
        raise ValueError(
            f"`{name}` must be indices from 0, at least one, all of one length. Received: {values}"
        )
    return values.astype("int32")


def _take(name, outputs, indices, target):
    """outputs [n, ...] at the indices [targets, d] of each row's target -> [n]"""
    shape = outputs.shape[1:]
    if indices.shape[1] != shape.rank:
        raise ValueError(
            f"`{name}` must index {shape}, the output without the batch. Received indices of "
            f"length {indices.shape[1]}"
        )
    known = [np.iinfo(np.int32).max if size is None else size for size in shape]
    if (indices >= known).any():
        raise ValueError(f"`{name}` must be inside of {shape}. Received: {indices.tolist()}")
    return tf.gather_nd(outputs, tf.gather(indices, target), batch_dims=1)
