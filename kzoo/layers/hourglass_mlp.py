"""Residual blocks of two dense layers: the hourglass, narrower inside than its skip connection.

    z <- z + W2 activation(W1 norm(z)),    W1 [d_z, d_h],  W2 [d_h, d_z],  d_h < d_z

The usual block, as in a transformer, has d_h > d_z: what is refined is narrow, what refines it is
wide. The hourglass spends the same weights on a wide z, which many cheap blocks refine.

"Rethinking the shape convention of an MLP", Chen, Lee, Liao, Shiu, 2025, arXiv 2510.01796.
A model of such blocks is `kzoo.models.HourglassMLP`.

Open choices, where the equation says no more than "norm" and an activation: layer normalization or
RMS normalization with their trainable scales, GELU; no biases, as in the equation.
"""

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Rethinking the shape convention of an MLP",
    authors=("Meng-Hsi Chen", "Yu-Ang Lee", "Feng-Ting Liao", "Da-shan Shiu"),
    year=2025,
    arxiv="2510.01796",
)

_NORMALIZATIONS = {
    "layer": keras.layers.LayerNormalization,
    "rms": keras.layers.RMSNormalization,
}


def _rows(rng, batch):
    return (rng.normal(size=(batch, 6)).astype("float32"),)


@component(PAPER, example=Example(kwargs={"hidden_units": 9}, inputs=_rows))
class ResidualMLPBlock(keras.layers.Layer):
    """Two dense layers behind a normalization, and a skip connection around them, of any widths.

    Args:
        hidden_units: d_h, the width between the two dense layers.
        activation: between the two dense layers. Defaults to "gelu".
        normalization: "layer" or "rms". Defaults to "layer".
        use_bias: whether the dense layers have biases. Defaults to False.
        kernel_initializer: of both kernels, without a seed. Defaults to "glorot_uniform".
        kwargs: of `keras.layers.Layer`.

    Input: floating [batch, ..., width].

    Output shape: that shape.

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Chen et al. (2025), arxiv.org/abs/2510.01796
    """

    def __init__(
        self,
        hidden_units,
        activation="gelu",
        normalization="layer",
        use_bias=False,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(hidden_units, int) or isinstance(hidden_units, bool) or hidden_units < 1:
            raise ValueError(
                f"`hidden_units` must be a positive integer. Received: {hidden_units!r}"
            )
        if normalization not in _NORMALIZATIONS:
            raise ValueError(
                f'`normalization` must be "layer" or "rms". Received: {normalization!r}'
            )
        self.hidden_units = hidden_units
        self.activation = keras.activations.get(activation)
        self.normalization = normalization
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.norm = _NORMALIZATIONS[normalization](dtype=self.dtype_policy, name="norm")
        self.narrow = self._dense(hidden_units, "hidden", self.activation)

    def _dense(self, units, name, activation=None):
        return keras.layers.Dense(
            units,
            activation=activation,
            use_bias=self.use_bias,
            # One each: an initializer gives the same values again.
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        width = input_shape[-1]
        self.widen = self._dense(width, "residual")
        self.norm.build(input_shape)
        self.narrow.build(input_shape)
        self.widen.build((*input_shape[:-1], self.hidden_units))

    def call(self, inputs):
        return inputs + self.widen(self.narrow(self.norm(inputs)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            "normalization": self.normalization,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@component(PAPER, example=Example(kwargs={"hidden_units": 2}, inputs=_rows))
class HourglassMLPBlock(ResidualMLPBlock):
    """A `ResidualMLPBlock` that is narrower inside than its skip connection.

    Args:
        hidden_units: d_h, less than the width of the inputs.
        kwargs: see `ResidualMLPBlock`.

    Input: floating [batch, ..., width].

    Output shape: that shape.

    Raises:
        ValueError: for arguments out of range, and for inputs that are no wider than the block is
            inside.

    Example:

    >>> z = HourglassMLPBlock(hidden_units=64)(z)  # z: [batch, 1024]

    Reference:
        Chen et al. (2025), arxiv.org/abs/2510.01796
    """

    def build(self, input_shape):
        if input_shape[-1] <= self.hidden_units:
            raise ValueError(
                f"`hidden_units` of {self.name!r} must be less than the width of its inputs, "
                f"{input_shape[-1]}; ResidualMLPBlock has any. Received: {self.hidden_units}"
            )
        super().build(input_shape)


@component(PAPER, example=Example(kwargs={"units": 9, "seed": 1}, inputs=_rows))
class RandomLift(keras.layers.Layer):
    """A product with a random matrix that no training changes: x W, W_ij ~ N(0, 1 / features).

    The matrix is a function of its shape and `seed`. It stays frozen whatever `trainable` is set
    to, also where the whole model's is.

    Args:
        units: number of outputs.
        seed: integer, of the matrix. Defaults to 0.
        kwargs: of `keras.layers.Layer`.

    Input: floating [batch, ..., features].

    Output shape: [batch, ..., units].

    Raises:
        ValueError: for arguments that are no integers of their ranges.

    Reference:
        Chen et al. (2025), arxiv.org/abs/2510.01796
    """

    def __init__(self, units, seed=0, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(units, int) or isinstance(units, bool) or units < 1:
            raise ValueError(f"`units` must be a positive integer. Received: {units!r}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"`seed` must be an integer. Received: {seed!r}")
        self.units = units
        self.seed = seed

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units),
            initializer=keras.initializers.VarianceScaling(
                1.0, "fan_in", "untruncated_normal", seed=self.seed
            ),
            trainable=False,
            name="kernel",
        )

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "seed": self.seed}
