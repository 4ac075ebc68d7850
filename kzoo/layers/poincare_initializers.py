"""Initial values for layers in the Poincaré ball: identity-based ones keep norms, normal ones not.

    PoincareIdentity   z = 1/2 I
    PoincareNormal     z ~ N(0, 1 / (2 n m)) for n inputs and m units

With 1/2 I, no offsets and as many units as inputs, `PoincareDense` is the identity; the 1/2 undoes
the 2 in the distance. The normal ones are those of "Hyperbolic Neural Networks++", Shimizu et al.,
2021; each layer then shrinks its input by about m^(-1/2), and a deep network ends in the origin.

"Poincaré ResNet", van Spengler, Berkhout, Mettes, 2023, arXiv 2303.14027, section 3.3.

Open choices: a convolution has the identity at the center of its patch; the authors' code has it in
the first rows of the patch laid out channel by channel, which takes the first channels at all of
their offsets. As the patch is scaled by the ratio of two beta functions, about 1/3 for 3x3, so is
what such a convolution gives: `PoincareIdentity(0.5 / beta_ratio(channels, 9))` keeps norms there.
In a ResNet, batch normalization does.
"""

import math

import keras
import tensorflow as tf

from kzoo.ops.poincare import check_curvature


@keras.saving.register_keras_serializable("kzoo")
class PoincareIdentity(keras.initializers.Initializer):
    """`scale` times the identity, [inputs, units], or at the center of [..., inputs, units].

    Args:
        scale: above 0. Defaults to 1/2.

    Reference:
        van Spengler et al. (2023), section 3.3, arxiv.org/abs/2303.14027
    """

    def __init__(self, scale=0.5):
        self.scale = check_curvature(scale, "scale")

    def __call__(self, shape, dtype=None):
        *patch, inputs, units = shape
        identity = self.scale * tf.eye(inputs, units, dtype=dtype or keras.config.floatx())
        positions = math.prod(patch)
        center = positions // 2
        padding = [[center, positions - center - 1], [0, 0], [0, 0]]
        return tf.reshape(tf.pad(identity[None], padding), shape)

    def get_config(self):
        return {"scale": self.scale}


@keras.saving.register_keras_serializable("kzoo")
class PoincareNormal(keras.initializers.Initializer):
    """A normal distribution of the standard deviation (2 n m)^(-1/2), for [..., inputs, m].

    n counts all inputs of a unit, those of all positions of a patch.

    Args:
        seed: as in `keras.initializers.RandomNormal`.

    Reference:
        Shimizu et al. (2021), arxiv.org/abs/2006.08210
    """

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        stddev = (2 * math.prod(shape)) ** -0.5
        return keras.initializers.RandomNormal(stddev=stddev, seed=self.seed)(shape, dtype)

    def get_config(self):
        return {"seed": self.seed}
