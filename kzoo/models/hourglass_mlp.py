"""Hourglass MLP: inputs are lifted to a wide z, which blocks with narrow insides refine.

    z = x W_in,    z <- z + W2 activation(W1 norm(z))  L times,    y = z W_out

    W_in [d_x, d_z] frozen and random, or trained;  d_h < d_z,  usually d_z > d_x

Its conventional twin has no lift and a wide inside: d_z = d_x and d_h > d_x. With D outputs, scales
and shifts of layer normalization and no biases the numbers of trainable weights are

    hourglass:     L (2 d_z d_h + 2 d_z) + d_z D   (+ d_x d_z with a trained lift)
    conventional:  L (2 d_x d_h + 2 d_x) + d_x D

"Rethinking the shape convention of an MLP", Chen, Lee, Liao, Shiu, 2025, arXiv 2510.01796.
The blocks are `kzoo.layers.HourglassMLPBlock` and `ResidualMLPBlock`, which list their open
choices.

Open choices: entries of the lift have the variance 1 / d_x; the readout is linear and stands
directly behind the last block, also in the conventional twin.
"""

import keras

from kzoo.layers.hourglass_mlp import PAPER, HourglassMLPBlock, RandomLift, ResidualMLPBlock
from kzoo.papers import Example, component


def _rows(rng, batch):
    return (rng.normal(size=(batch, 4)).astype("float32"),)


@component(
    PAPER,
    example=Example(
        kwargs={"features": 4, "outputs": 3, "width": 8, "hidden_units": 2, "depth": 2},
        inputs=_rows,
    ),
)
def HourglassMLP(
    features,
    outputs,
    width,
    hidden_units,
    depth,
    trainable_lift=False,
    seed=0,
    activation="gelu",
    normalization="layer",
    use_bias=False,
    name="hourglass_mlp",
):
    """An MLP whose skip connections are wide and whose blocks are narrow inside.

    Args:
        features: d_x, number of inputs.
        outputs: number of outputs.
        width: d_z, of the skip connections.
        hidden_units: d_h of every block, less than `width`.
        depth: L, number of blocks; 0 for a linear model of random features.
        trainable_lift: whether W_in is trained. Defaults to False: random and frozen.
        seed: integer, of W_in; frozen or trained, it begins with the same values.
        activation: of the blocks. Defaults to "gelu".
        normalization: of the blocks, "layer" or "rms". Defaults to "layer".
        use_bias: whether dense layers of the blocks and the readout have biases. Defaults to False.
        name: of the model.

    Returns:
        A functional `keras.Model`: floating [batch, features] -> [batch, outputs].

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> model = HourglassMLP(784, 784, width=2048, hidden_units=128, depth=6)

    Reference:
        Chen et al. (2025), arxiv.org/abs/2510.01796
    """
    _check_sizes(features=features, outputs=outputs, width=width, hidden_units=hidden_units)
    lift = RandomLift(width, seed=seed, name="frozen_lift")
    if trainable_lift:
        lift = keras.layers.Dense(
            width,
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                1.0, "fan_in", "untruncated_normal", seed=seed
            ),
            name="lift",
        )
    inputs = keras.Input([features])
    block = HourglassMLPBlock, hidden_units, activation, normalization, use_bias
    return keras.Model(inputs, _refine(lift(inputs), outputs, depth, *block), name=name)


@component(
    PAPER,
    example=Example(
        kwargs={"features": 4, "outputs": 3, "hidden_units": 8, "depth": 2}, inputs=_rows
    ),
)
def ResidualMLP(
    features,
    outputs,
    hidden_units,
    depth,
    activation="gelu",
    normalization="layer",
    use_bias=False,
    name="residual_mlp",
):
    """The conventional twin of `HourglassMLP`: skip connections as wide as the inputs.

    Args:
        features: d_x, number of inputs and width of the skip connections.
        outputs: number of outputs.
        hidden_units: d_h of every block, usually two to four times `features`.
        depth: number of blocks.
        activation: of the blocks. Defaults to "gelu".
        normalization: of the blocks, "layer" or "rms". Defaults to "layer".
        use_bias: whether dense layers of the blocks and the readout have biases. Defaults to False.
        name: of the model.

    Returns:
        A functional `keras.Model`: floating [batch, features] -> [batch, outputs].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Chen et al. (2025), arxiv.org/abs/2510.01796
    """
    _check_sizes(features=features, outputs=outputs, hidden_units=hidden_units)
    inputs = keras.Input([features])
    block = ResidualMLPBlock, hidden_units, activation, normalization, use_bias
    return keras.Model(inputs, _refine(inputs, outputs, depth, *block), name=name)


def _refine(z, outputs, depth, block, hidden_units, activation, normalization, use_bias):
    """The blocks and the readout."""
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
        raise ValueError(f"`depth` must be an integer of at least 0. Received: {depth!r}")
    for number in range(1, depth + 1):
        z = block(hidden_units, activation, normalization, use_bias, name=f"block{number}")(z)
    dtype = keras.backend.result_type(z.dtype, "float32")
    return keras.layers.Dense(outputs, use_bias=use_bias, dtype=dtype, name="readout")(z)


def _check_sizes(**sizes):
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
