"""Activations with a gain that falls with depth, so that a deep network is nearly linear.

    y = activation(gain x),    gain_l = l^-0.4 for layer l = 1, 2, ...

An odd activation under a small gain is linear up to a term of the order gain^2, and what layer l
adds to the growth of the gradients falls faster than 1 / l, so that it adds up to something finite.

"Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion", Meterez,
Joudaki, Orabona, Immer, Raetsch, Daneshmand, 2023, arXiv 2310.02012; section 5.

Open choices: the exponent 0.4 is that of the authors' code, for tanh and sin; the gains are
constants there too. `rescale` divides by the gain, which makes y close to x for activations of
slope 1 at 0. Batch normalisation after the next linear layer undoes it, but for the last.
"""

import keras

from kzoo.layers.uncentered_batch_norm import PAPER
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"activation": "tanh", "gain": 0.5},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5)).astype("float32"),),
    ),
)
class ShapedActivation(keras.layers.Layer):
    """activation(gain x), or activation(gain x) / gain.

    Args:
        activation: name of, or a function; those that are odd and have a slope of 1 at 0, such as
            "tanh" or `keras.ops.sin`, are what the theory is for.
        gain: a number above 0, see `shaping_gains`. Defaults to 1.
        rescale: whether to divide by the gain again. Defaults to False.

    Input and output shape: any, the same.

    Reference:
        Meterez et al. (2023), section 5, arxiv.org/abs/2310.02012
    """

    def __init__(self, activation, gain=1.0, rescale=False, **kwargs):
        if not 0 < gain < float("inf"):
            raise ValueError(f"`gain` must be finite and above 0. Received: {gain!r}")
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.gain = float(gain)
        self.rescale = bool(rescale)
        self.supports_masking = True

    def call(self, inputs):
        outputs = self.activation(self.gain * inputs)
        return outputs / self.gain if self.rescale else outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "gain": self.gain,
            "rescale": self.rescale,
        }


def shaping_gains(depth, exponent=0.4):
    """[l^-exponent for l = 1 ... depth]: the gains of the activations of a network.

    Args:
        depth: number of layers.
        exponent: at least 0; 0 leaves the activations alone. Defaults to 0.4, the authors'.

    Returns:
        a list of floats
    """
    if not exponent >= 0:
        raise ValueError(f"`exponent` must be at least 0. Received: {exponent!r}")
    return [float(layer) ** -exponent for layer in range(1, depth + 1)]
