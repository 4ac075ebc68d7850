"""Coordinates of the grid's points as features: positional encoding by functions, not by index.

    [u(x), x]    or, for a periodic domain,    [u(x), sin(2 pi k x), cos(2 pi k x), k = 1 ... F]

An encoding by index means another function on every grid; one by coordinates means the same.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973, section 4 (positional encodings).

Open choices: x_j = j / n, in units of the domain's extent.
"""

import math

import keras
import tensorflow as tf

from kzoo.layers.spectral_conv import PAPER
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"frequencies": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 3, 4, 2)).astype("float32"),),
    ),
)
class GridCoordinates(keras.layers.Layer):
    """Concatenates the coordinates of an equidistant grid to a function's values.

    Args:
        frequencies: 0 gives x itself, between 0 and 1; F gives sine and cosine of F frequencies of
            each coordinate, which are continuous on a periodic domain. Defaults to 0.

    Input shape: [batch, n_1, ..., n_d, channels]. Output shape: [..., channels + d], or
    [..., channels + 2 d F].

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """

    def __init__(self, frequencies=0, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(frequencies, int) or frequencies < 0:
            raise ValueError(
                f"`frequencies` must be an integer of at least 0. Received: {frequencies!r}"
            )
        self.frequencies = frequencies

    def call(self, inputs):
        shape, axes = tf.shape(inputs), inputs.shape.rank - 2
        dtype = "float64" if inputs.dtype == "float64" else "float32"
        features = [inputs]
        for axis in range(1, axes + 1):
            x = tf.cast(tf.range(shape[axis]), dtype) / tf.cast(shape[axis], dtype)
            for feature in self._functions(x):
                column = [1] * (axes + 2)
                column[axis] = -1
                feature = tf.cast(tf.reshape(feature, column), inputs.dtype)
                features.append(tf.broadcast_to(feature, [*tf.unstack(shape[:-1]), 1]))
        outputs = tf.concat(features, -1)
        return tf.ensure_shape(outputs, self.compute_output_shape(inputs.shape))

    def _functions(self, x):
        if not self.frequencies:
            return [x]
        angles = [2 * math.pi * k * x for k in range(1, self.frequencies + 1)]
        return [f(angle) for angle in angles for f in (tf.sin, tf.cos)]

    def compute_output_shape(self, input_shape):
        added = (len(input_shape) - 2) * (2 * self.frequencies or 1)
        return (*input_shape[:-1], input_shape[-1] + added)

    def get_config(self):
        return {**super().get_config(), "frequencies": self.frequencies}
