"""Training with less memory: a functional model that recomputes what is cheap in backward passes.

"Memory-Efficient Implementation of DenseNets", Pleiss, Chen, Huang, Li, van der Maaten,
Weinberger, 2017, arXiv 1707.06990.

Deviations: the paper shares storage between layers; here the runtime frees and reuses it. The
batch statistics of a feature map, which all later layers of its dense block normalise with, are
computed once instead of once per layer.
"""

import keras
import tensorflow as tf

from kzoo.ops.recompute import recomputed_conv


@keras.saving.register_keras_serializable("kzoo")
class RecomputeModel(keras.Model):
    """A functional model whose batch norms, ReLUs and concatenations are recomputed in training.

    Wherever a `BatchNormalization` (of a `Concatenate` or of anything else) is followed by
    `Activation("relu")` and a `Conv2D` without bias, a training step stores neither the
    concatenation nor the normalised and the rectified map, and makes them again when it comes to
    their gradients. Convolutions are never repeated. Values, gradients of any order and updates
    of moving statistics are those of the plain model, up to rounding.

    Layers, weights and their names are those of `keras.Model(inputs, outputs)`: weight files fit
    both. Outside of training (`training=False`) it is that model, with every activation. The saving
    needs a compiled step, as `fit` has it: run eagerly, TensorFlow's tape keeps more.

    Args:
        inputs: see `keras.Model`, as is `outputs`. Images are channels last.
        kwargs: `name` and the other arguments of `keras.Model`.

    Example:

    >>> slim = RecomputeModel(plain.inputs, plain.outputs)  # shares the layers of `plain`
    """

    def call(self, inputs, training=None, mask=None, **kwargs):
        if not training:
            return super().call(inputs, training=training, mask=mask, **kwargs)
        outputs = self._run_through_graph(self._standardize_inputs(inputs), _Interpreter())
        outputs = keras.tree.map_structure(_materialize, outputs)
        return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs


class _Interpreter:
    """Gives, for each operation of the graph, the function to call in its stead.

    Values that are to be recomputed travel as `_Concatenation`, `_Normalized` and `_Rectified`
    until a convolution takes them; any other operation gets the tensor that they stand for.
    """

    def __init__(self):
        self._features = {}

    def __call__(self, operation):
        handler = self._handler(operation)
        if handler is None:
            return lambda *args, **kwargs: _call(operation, *args, **kwargs)
        return lambda value, mask=None: (
            handler(operation, value) if mask is None else _call(operation, value, mask=mask)
        )

    def _handler(self, operation):
        if _is_concatenation(operation):
            return self._concatenate
        if _is_batch_norm(operation):
            return self._normalize
        if _is_relu(operation):
            return _rectify
        if type(operation) is keras.layers.Identity:
            return lambda layer, value: value
        return _convolve if _is_convolution(operation) else None

    def _concatenate(self, layer, values):
        return _Concatenation([self._features_of(each, layer.compute_dtype) for each in values])

    def _features_of(self, value, dtype):
        """`value`, a tensor or what stands for it, as a `_Concatenation` or a `_Feature`."""
        if isinstance(value, _Concatenation):
            return value
        tensor = _materialize(value)
        # One feature for each tensor, so that its moments are computed once.
        if id(tensor) not in self._features:
            self._features[id(tensor)] = _Feature(tensor, dtype)
        return self._features[id(tensor)]

    def _normalize(self, layer, value):
        joined = self._features_of(value, layer.compute_dtype)
        if layer.trainable:
            mean, variance = joined.moments(layer.synchronized)
            _update_moving_statistics(layer, mean, variance)
        else:
            mean, variance = (
                tf.cast(each, joined.statistics_dtype)
                for each in (layer.moving_mean, layer.moving_variance)
            )
        gamma, beta = (tf.cast(each, mean.dtype) for each in (layer.gamma, layer.beta))
        scale = tf.math.rsqrt(variance + layer.epsilon) * gamma
        return _Normalized(joined, scale, beta - mean * scale, layer.compute_dtype)


class _Feature:
    """A feature map with its batch moments."""

    def __init__(self, tensor, dtype):
        self.original = tensor
        self.tensor = tf.cast(tensor, dtype)
        self.statistics_dtype = keras.backend.result_type(self.tensor.dtype, "float32")
        self.features = [self]
        self._moments = {}

    def moments(self, synchronized):
        """Mean and variance of each channel over batch and positions, at least in float32."""
        if synchronized not in self._moments:
            self._moments[synchronized] = self._compute_moments(synchronized)
        return self._moments[synchronized]

    def _compute_moments(self, synchronized):
        values = tf.cast(self.tensor, self.statistics_dtype)
        return keras.ops.moments(values, axes=(0, 1, 2), synchronized=synchronized)

    def materialize(self):
        return self.tensor


class _Concatenation(_Feature):
    """Features, and concatenations of them, that stand for their concatenation."""

    def __init__(self, parts):
        self._parts = parts
        self.features = [feature for part in parts for feature in part.features]
        self.statistics_dtype = parts[0].statistics_dtype
        self._moments = {}

    def _compute_moments(self, synchronized):
        pairs = [part.moments(synchronized) for part in self._parts]
        return [tf.concat(each, axis=0) for each in zip(*pairs, strict=True)]

    def materialize(self):
        return tf.concat([feature.tensor for feature in self.features], axis=-1)


class _Normalized:
    """Stands for `scale * joined + offset`, a batch norm's output."""

    def __init__(self, joined, scale, offset, dtype):
        self.joined = joined
        self.scale = scale
        self.offset = offset
        self.dtype = dtype

    def materialize(self):
        joined = tf.cast(self.joined.materialize(), self.scale.dtype)
        return tf.cast(joined * self.scale + self.offset, self.dtype)


class _Rectified:
    """Stands for the ReLU of a `_Normalized`."""

    def __init__(self, normalized):
        self.normalized = normalized

    def materialize(self):
        return tf.nn.relu(self.normalized.materialize())


def _rectify(layer, value):
    return _Rectified(value) if isinstance(value, _Normalized) else _call(layer, value)


def _convolve(layer, value):
    if not isinstance(value, _Rectified):
        return _call(layer, value)
    normalized = value.normalized
    features = normalized.joined.features
    y, tensors = recomputed_conv(
        [feature.tensor for feature in features],
        normalized.scale,
        normalized.offset,
        tf.cast(layer.kernel, layer.compute_dtype),
        layer.strides[0],
        layer.padding.upper(),
    )
    for feature, tensor in zip(features, tensors, strict=True):
        feature.tensor = tensor
    return y


def _materialize(value):
    stands_for = isinstance(value, _Concatenation | _Normalized | _Rectified)
    return value.materialize() if stands_for else value


def _call(operation, *args, **kwargs):
    args, kwargs = keras.tree.map_structure(_materialize, (args, kwargs))
    return operation(*args, **kwargs)


def _update_moving_statistics(layer, mean, variance):
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        value = tf.cast(tf.stop_gradient(value), moving.dtype)
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))


def _is_along_channels(operation):
    return operation.axis in (-1, 3) and len(operation.output.shape) == 4


def _is_concatenation(operation):
    return type(operation) is keras.layers.Concatenate and _is_along_channels(operation)


def _is_batch_norm(operation):
    return (
        type(operation) is keras.layers.BatchNormalization
        and _is_along_channels(operation)
        and operation.center
        and operation.scale
        and not operation.renorm
    )


def _is_relu(operation):
    return (
        type(operation) is keras.layers.Activation
        and operation.activation is keras.activations.relu
    )


def _is_convolution(operation):
    return (
        type(operation) is keras.layers.Conv2D
        and operation.data_format == "channels_last"
        and operation.strides[0] == operation.strides[1]
        and operation.padding in ("valid", "same")
        and operation.dilation_rate == (1, 1)
        and operation.groups == 1
        and not operation.use_bias
        and operation.activation is keras.activations.linear
        and operation.activity_regularizer is None
    )
