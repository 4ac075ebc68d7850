"""Into the Poincaré ball, out of it, and what happens to its points one by one.

    ExpMap0            exp_0(v)
    LogMap0            log_0(x)
    FeatureClipping    v min(1, r / |v|)
    TangentActivation  exp_0(f(log_0(x)))
    MobiusAdd          x + y, the residual connection

Points have |x|^2 < 1 / c for a curvature of -c; `kzoo.ops.poincare` has the formulas. The layers
with weights are in `kzoo.layers.poincare_dense` and `kzoo.layers.poincare_batch_norm`.

"Poincaré ResNet", van Spengler, Berkhout, Mettes, 2023, arXiv 2303.14027; section 3. Feature
clipping (Guo, Wang, Clear, Yu, 2021) as in "Hyp-OC: Hyperbolic One Class Classification for Face
Anti-Spoofing", Narayan, Patel, 2024, arXiv 2404.14406, section III.

Open choices: all layers take points and give points, where the authors' code hands the tangent
vectors at the origin from layer to layer and maps them at both ends of each; that is the same. The
curvature is a number, not learned, as in their experiments.
"""

import keras

from kzoo.ops import poincare as ball
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Poincaré ResNet",
    authors=("Max van Spengler", "Erwin Berkhout", "Pascal Mettes"),
    year=2023,
    arxiv="2303.14027",
)
HYP_OC_PAPER = Paper(
    title="Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing",
    authors=("Kartik Narayan", "Vishal M. Patel"),
    year=2024,
    arxiv="2404.14406",
)


def vectors(rng, batch):
    return (rng.normal(size=(batch, 4)).astype("float32"),)


def points(rng, batch):
    return (rng.uniform(-0.4, 0.4, size=(batch, 4)).astype("float32"),)


class PoincareLayer(keras.layers.Layer):
    """The base of the layers on the Poincaré ball.

    Under a 16-bit policy they compute, and return, float32: near the boundary, where most of the
    ball is, 8 bits do not tell points apart.

    Args:
        curvature: c, above 0: the ball has the curvature -c and the radius 1 / sqrt(c). Defaults
            to 1.
        dtype: as in `keras.layers.Layer`.
        kwargs: `name` and the other arguments of `keras.layers.Layer`.
    """

    def __init__(self, curvature=1.0, dtype=None, **kwargs):
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.curvature = ball.check_curvature(curvature, "curvature")

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "curvature": self.curvature}


@component(PAPER, HYP_OC_PAPER, example=Example(inputs=vectors))
class ExpMap0(PoincareLayer):
    """Takes vectors to points of the ball, along geodesics from the origin.

    Args:
        curvature: c, above 0. Defaults to 1.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], any floats. Output shape: the same, points of the ball.

    Reference:
        van Spengler et al. (2023), section 3.1, arxiv.org/abs/2303.14027
    """

    def call(self, inputs):
        return ball.expmap0(inputs, self.curvature)


@component(PAPER, example=Example(inputs=points))
class LogMap0(PoincareLayer):
    """Takes points of the ball to tangent vectors at the origin; the inverse of `ExpMap0`.

    Args:
        curvature: c, above 0. Defaults to 1.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], points of the ball. Output shape: the same, vectors.

    Reference:
        van Spengler et al. (2023), section 3.1, arxiv.org/abs/2303.14027
    """

    def call(self, inputs):
        return ball.logmap0(inputs, self.curvature)


@component(PAPER, example=Example(kwargs={"activation": "relu"}, inputs=points))
class TangentActivation(PoincareLayer):
    """An activation function, taken of the points' tangent vectors at the origin.

    Args:
        activation: function or name, as in `keras.layers.Activation`. Defaults to "relu".
        curvature: c, above 0. Defaults to 1.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], points of the ball. Output shape: the same, points.

    Reference:
        van Spengler et al. (2023), section 3.2, arxiv.org/abs/2303.14027
    """

    def __init__(self, activation="relu", curvature=1.0, **kwargs):
        super().__init__(curvature, **kwargs)
        self.activation = keras.activations.get(activation)

    def call(self, inputs):
        tangent = self.activation(ball.logmap0(inputs, self.curvature))
        return ball.expmap0(tangent, self.curvature)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}


@component(
    PAPER, example=Example(inputs=lambda rng, batch: points(rng, batch) + points(rng, batch))
)
class MobiusAdd(PoincareLayer):
    """The Möbius sum of points, from the left to the right: a residual connection in the ball.

    The sum does not commute. The authors' code adds the skip path on the right of the block's
    output.

    Args:
        curvature: c, above 0. Defaults to 1.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: two points [..., d] as arguments of the call. Output shape: [..., d].

    Reference:
        van Spengler et al. (2023), section 3.2, arxiv.org/abs/2303.14027
    """

    def call(self, first, second):
        return ball.project(ball.mobius_add(first, second, self.curvature), self.curvature)

    def compute_output_shape(self, first_shape, second_shape):
        return first_shape


@component(HYP_OC_PAPER, example=Example(kwargs={"radius": 1.5}, inputs=vectors))
class FeatureClipping(keras.layers.Layer):
    """Shortens vectors that are longer than `radius` to it, and leaves their directions.

    Before `ExpMap0` it keeps the points away from the boundary of the ball, where gradients vanish.

    Args:
        radius: r, above 0. Defaults to 2, as in Hyp-OC.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], floats. Output shape: the same.

    Reference:
        Narayan and Patel (2024), section III, arxiv.org/abs/2404.14406
    """

    def __init__(self, radius=2.0, **kwargs):
        super().__init__(**kwargs)
        self.radius = ball.check_curvature(radius, "radius")

    def call(self, inputs):
        return ball.clip_norm(inputs, self.radius)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "radius": self.radius}
