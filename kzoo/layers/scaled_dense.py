"""A dense layer with a fixed multiplier on its weights: the readout of muP, any layer of abc.

    y = activation(multiplier x W + b)

"Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit", Yang, Littwin, 2023,
arXiv 2308.01814: the multiplier n^-a of the abcd-parametrization. Multiplier, initial values and
learning rate of a weight are exchangeable to some extent, so only some forms of muP need it.

Deviations: none.
"""

import math

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit",
    authors=("Greg Yang", "Etai Littwin"),
    year=2023,
    arxiv="2308.01814",
)


@component(
    PAPER,
    example=Example(
        kwargs={"units": 3, "multiplier": 0.25, "activation": "tanh"},
        inputs=lambda rng, batch: rng.normal(size=(batch, 4)).astype("float32"),
    ),
)
class ScaledDense(keras.layers.Dense):
    """`keras.layers.Dense` whose product with the kernel, but not its bias, is multiplied.

    As the last layer of a model it takes the output multiplier of muP: `mup_parametrize` divides
    `multiplier` by the width.

    Args:
        units: number of outputs.
        multiplier: a number of at least 0. Defaults to 1.
        kwargs: see `keras.layers.Dense`.

    Inputs:
        floating [batch, ..., features].

    Returns:
        [batch, ..., units]

    Reference:
        Yang, Littwin (2023), arxiv.org/abs/2308.01814
    """

    def __init__(self, units, multiplier=1.0, **kwargs):
        if not 0 <= multiplier < math.inf:
            raise ValueError(
                f"`multiplier` must be finite and at least 0. Received: {multiplier!r}"
            )
        super().__init__(units, **kwargs)
        self.multiplier = float(multiplier)

    def call(self, inputs, training=None):
        return super().call(inputs * self.multiplier, training=training)

    def get_config(self):
        return {**super().get_config(), "multiplier": self.multiplier}
