"""The Fourier neural operator: a map between functions on a periodic domain, for grids of any size.

    v_0 = P u,    v_{t+1} = gelu(W_t v_t + b_t + K_t v_t),    out = Q v_T

K_t is a spectral convolution, W_t, P and Q act on the channels of each point; the last block has no
activation.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973; the model is from "Fourier Neural Operator for Parametric
Partial Differential Equations", Li et al., 2020, arXiv 2010.08895, section 4 and figure 2.

Open choices: as in Li et al.'s code, P is linear, Q has one hidden layer of 128, and the
coordinates are features of the input. Their raw coordinate jumps at the end of a periodic domain,
so that the output is the same on every grid only up to the spacing; `coordinates="periodic"` gives
its sine and cosine, None no coordinates. Their padding for domains that are not periodic is left
out.
"""

import keras

from kzoo.layers.grid_coordinates import GridCoordinates
from kzoo.layers.spectral_conv import PAPER, SpectralConv
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"modes": (2, 2), "input_channels": 2, "filters": 3, "blocks": 2, "hidden": 4},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 6, 5, 2)).astype("float32"),),
    ),
)
def FNO(
    modes,
    input_channels=1,
    output_channels=1,
    filters=32,
    blocks=4,
    hidden=128,
    coordinates="grid",
    activation="gelu",
    name="fno",
):
    """A Fourier neural operator.

    The grid of the model's input is open: train on one grid, evaluate on another. A grid must be
    fine enough for `modes` in training, and for what the activations add to the frequencies.

    Args:
        modes: frequencies to keep, for each axis of the domain; see `kzoo.layers.SpectralConv`. An
            integer for one axis.
        input_channels: components of the input function. Defaults to 1.
        output_channels: components of the output function. Defaults to 1.
        filters: channels of the blocks. Defaults to 32.
        blocks: number of Fourier layers. Defaults to 4.
        hidden: hidden units of the last, pointwise network. Defaults to 128.
        coordinates: "grid" adds the coordinates of each point to its input, between 0 and 1,
            "periodic" their sine and cosine, None nothing, so that the model commutes with shifts.
            Defaults to "grid".
        activation: of the blocks and of the last network. Defaults to "gelu".
        name: of the model.

    Returns:
        A `keras.Model` from [batch, n_1, ..., n_d, input_channels] to
        [batch, n_1, ..., n_d, output_channels].

    Reference:
        Berner et al. (2025), arxiv.org/abs/2506.10973; Li et al. (2020), arxiv.org/abs/2010.08895
    """
    counts = {"blocks": blocks, "hidden": hidden, "output_channels": output_channels}
    for argument, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{argument}` must be an integer of at least 1. Received: {value!r}")
    if coordinates not in ("grid", "periodic", None):
        raise ValueError(
            f"`coordinates` must be 'grid', 'periodic' or None. Received: {coordinates!r}"
        )
    modes = (modes,) if isinstance(modes, int) else tuple(modes)
    inputs = x = keras.Input((*[None] * len(modes), input_channels))
    if coordinates:
        frequencies = 1 if coordinates == "periodic" else 0
        x = GridCoordinates(frequencies, name="coordinates")(x)
    x = keras.layers.Dense(filters, name="lifting")(x)
    for block in range(1, blocks + 1):
        spectral = SpectralConv(filters, modes, name=f"block{block}_spectral")(x)
        pointwise = keras.layers.Dense(filters, name=f"block{block}_pointwise")(x)
        x = keras.layers.Add(name=f"block{block}_add")([spectral, pointwise])
        if block < blocks:
            x = keras.layers.Activation(activation, name=f"block{block}_activation")(x)
    x = keras.layers.Dense(hidden, activation=activation, name="projection")(x)
    outputs = keras.layers.Dense(output_channels, name="outputs")(x)
    return keras.Model(inputs, outputs, name=name)
