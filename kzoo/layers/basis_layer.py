"""Basis Layer: scores of a function on basis functions that are learned with the task.

    c_k = integral of beta_k(t) X(t) dt  ~  sum_j w_j beta_k(t_j) X(t_j),   k = 1 ... K

with w_j the weights of the trapezoidal rule, and each beta_k a small network of its own from a
number to a number, whose hidden layers are

    h = activation(z + LayerNorm(z)),   z = W h' + b

"Deep Learning for Functional Data Analysis with Adaptive Basis Layers", Yao, Mueller, Wang, 2021,
arXiv 2106.10414; section 3. The skip connection around the normalization, SELU and the
initialisation are those of the authors' code: affine maps uniform within 1 / sqrt(inputs), biases
too (with biases of 0 the normalization would hide t), scales and shifts of the normalization
standard normal.

Deviation: the normalization divides by sqrt(variance + 1e-6), the authors' by the unbiased
deviation + 1e-6.
Open choices: a row's own times and masks, which the paper leaves to "any quadrature": the
trapezoidal rule over the points that were observed, from the first to the last of them.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Deep Learning for Functional Data Analysis with Adaptive Basis Layers",
    authors=("Junwen Yao", "Jonas Mueller", "Jane-Ling Wang"),
    year=2021,
    arxiv="2106.10414",
)


def trapezoid_weights(times, mask=None):
    """The weights of the trapezoidal rule on the observed points of each row.

    Args:
        times: float [..., points], in any order.
        mask: bool [..., points]; what is False was not observed. None if all were.

    Returns:
        [..., points] in the type of `times`, at least 0; 0 where not observed. Their sum is the
        distance from the first to the last observed point: 0 where fewer than two were.
    """
    times = tf.convert_to_tensor(times)
    key, filled = times, times
    if mask is not None:
        key = tf.where(mask, times, times.dtype.max)
        last = tf.reduce_max(tf.where(mask, times, times.dtype.min), axis=-1, keepdims=True)
        filled = tf.where(mask, times, last)
    # Sorted behind the last point and at its place, those not observed have intervals of 0.
    order = tf.argsort(key, axis=-1, stable=True)
    ordered = tf.gather(filled, order, axis=-1, batch_dims=times.shape.rank - 1)
    halves = (ordered[..., 1:] - ordered[..., :-1]) / 2
    none = tf.zeros_like(ordered[..., :1])
    weights = tf.concat([halves, none], -1) + tf.concat([none, halves], -1)
    back = tf.argsort(order, axis=-1)
    return tf.gather(weights, back, axis=-1, batch_dims=times.shape.rank - 1)


@component(
    PAPER,
    example=Example(
        kwargs={"num_bases": 2, "hidden_units": (4, 3)},
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, 6)).astype("float32"),
            np.sort(rng.uniform(size=(batch, 6)), axis=1).astype("float32"),
        ),
    ),
)
class BasisLayer(keras.layers.Layer):
    """Inner products of sampled functions with learned basis functions.

    Args:
        num_bases: K, the number of basis functions and of outputs.
        hidden_units: widths of the hidden layers of each basis function. Defaults to (64, 64, 64).
        activation: of those. Defaults to "selu".
        dropout_rate: after each of them, in [0, 1). Defaults to 0.
        grid: the points t_j where all rows are sampled, increasing. None for equidistant ones from
            0 to 1. Regularizers see the basis functions on it, also where rows have own times.
        basis_regularizers: such as `kzoo.regularizers.FunctionalOrthogonality(0.1)` and
            `FunctionalSparsity(0.1)`, each called with the values of the basis functions on the
            grid [points, K] and the quadrature weights [points]. Defaults to none.

    Call arguments:
        inputs: [batch, points], the functions' values.
        times: [batch, points], where each row was sampled, in any order. None for the grid.
        mask: bool [batch, points]; what is False was not observed, and may be NaN.

    Output shape: [batch, K]. Basis functions and integrals are in float32 at least.

    Example:

    >>> layer = BasisLayer(4, basis_regularizers=[FunctionalOrthogonality(0.1)])
    >>> scores = layer(curves)  # [batch, 4]
    >>> betas = layer.bases(np.linspace(0, 1, 101))  # [101, 4], to look at

    Reference:
        Yao et al. (2021), section 3, arxiv.org/abs/2106.10414
    """

    def __init__(
        self,
        num_bases,
        hidden_units=(64, 64, 64),
        activation="selu",
        dropout_rate=0.0,
        grid=None,
        basis_regularizers=(),
        **kwargs,
    ):
        # Not cast: neighbouring points may be the same number in half precision.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        for name, value in [("num_bases", num_bases), *(("hidden_units", n) for n in hidden_units)]:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be positive integers. Received: {value!r}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")
        self.num_bases = num_bases
        self.hidden_units = tuple(hidden_units)
        self.activation = keras.activations.get(activation)
        self.dropout_rate = dropout_rate
        self.grid = None if grid is None else _checked_grid(grid)
        self.basis_regularizers = [keras.regularizers.get(each) for each in basis_regularizers]
        self._dropout = keras.layers.Dropout(dropout_rate, dtype=self.variable_dtype)

    def build(self, inputs_shape, times_shape=None):
        if len(inputs_shape) != 2:
            raise ValueError(f"`inputs` must be [batch, points]. Received: {inputs_shape}")
        if times_shape is not None and tuple(times_shape[1:]) != tuple(inputs_shape[1:]):
            raise ValueError(
                f"`times` must have the shape of `inputs`, {inputs_shape}. Received: {times_shape}"
            )
        points = inputs_shape[1]
        if self.grid is None and points is not None:
            self._points = np.linspace(0, 1, max(points, 2)).tolist()
        else:
            self._points = self.grid
        if times_shape is None and (self._points is None or len(self._points) != points):
            raise ValueError(
                "`inputs` without `times` must be sampled on the grid, at "
                f"{len(self._points) if self._points else 'a known number of'} points. "
                f"Received the shape {inputs_shape}"
            )
        if self.basis_regularizers and self._points is None:
            raise ValueError("`grid` must be given for regularizers of an open number of points.")
        widths = [1, *self.hidden_units, 1]
        self._affine = [self._dense(*pair) for pair in itertools.pairwise(widths)]
        self._norms = [self._norm(units) for units in self.hidden_units]

    def _dense(self, inputs, outputs):
        uniform = keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
        kernel = self.add_weight((self.num_bases, inputs, outputs), uniform, name="kernel")
        return kernel, self.add_weight((self.num_bases, outputs), uniform.clone(), name="bias")

    def _norm(self, units):
        normal = keras.initializers.RandomNormal(stddev=1.0)
        gamma = self.add_weight((self.num_bases, units), normal, name="gamma")
        return gamma, self.add_weight((self.num_bases, units), normal.clone(), name="beta")

    def bases(self, times, training=False):
        """The basis functions at `times`, float [...]: [..., num_bases]."""
        times = tf.cast(times, self.variable_dtype)
        x = tf.reshape(times, [1, -1, 1])
        for (kernel, bias), (gamma, beta) in zip(self._affine, self._norms, strict=False):
            x = tf.matmul(x, kernel) + bias[:, None]
            mean, variance = tf.nn.moments(x, axes=-1, keepdims=True)
            normal = (x - mean) * tf.math.rsqrt(variance + 1e-6)
            x = self.activation(x + normal * gamma[:, None] + beta[:, None])
            x = self._dropout(x, training=training)
        kernel, bias = self._affine[-1]
        values = tf.transpose((tf.matmul(x, kernel) + bias[:, None])[..., 0])
        return tf.reshape(values, tf.concat([tf.shape(times), [self.num_bases]], 0))

    def call(self, inputs, times=None, mask=None, training=False):
        values = tf.cast(inputs, self.variable_dtype)
        for regularizer in self.basis_regularizers:
            points = tf.constant(self._points, self.variable_dtype)
            self.add_loss(regularizer(self.bases(points), trapezoid_weights(points)))
        if times is None:
            times = tf.constant(self._points, self.variable_dtype)
            bases = self.bases(times, training)[None]
            times = times[None] if mask is None else tf.broadcast_to(times, tf.shape(values))
        else:
            times = tf.cast(times, self.variable_dtype)
            bases = self.bases(times, training)
        if mask is not None:
            # Not a product: 0 times NaN is NaN.
            values = tf.where(mask, values, tf.zeros_like(values))
            bases = tf.where(mask[..., None], bases, tf.zeros_like(bases))
        weighted = (values * trapezoid_weights(times, mask))[..., None]
        return tf.cast(tf.reduce_sum(weighted * bases, axis=1), self.compute_dtype)

    def compute_output_shape(self, inputs_shape, times_shape=None):
        return (inputs_shape[0], self.num_bases)

    def compute_mask(self, inputs, previous_mask=None):
        return None

    def get_config(self):
        return {
            **super().get_config(),
            "num_bases": self.num_bases,
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            "dropout_rate": self.dropout_rate,
            "grid": self.grid,
            "basis_regularizers": [
                keras.regularizers.serialize(each) for each in self.basis_regularizers
            ],
        }


def _checked_grid(grid):
    grid = np.asarray(grid, "float64")
    if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) > 0):
        raise ValueError(
            "`grid` must be at least two increasing numbers. Received: "
            f"{np.array2string(grid, threshold=8)}"
        )
    return grid.tolist()
