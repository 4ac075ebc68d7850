"""Fully connected layers, convolutions and classifiers in the Poincaré ball.

    v_k(x) = 2|z_k|/s arsinh(lambda_x s<x, z_k/|z_k|> cosh(2 s r_k) - (lambda_x - 1) sinh(2 s r_k))
    PoincareMLR     logits v_k(x)
    PoincareDense   y = w / (1 + sqrt(1 + c|w|^2)),  w_k = sinh(s v_k(x)) / s
    PoincareConv2D  PoincareDense of exp_0([B(nK/2, 1/2) / B(n/2, 1/2) log_0(x_1), ...])

with s = sqrt(c), K points x_1 ... of n channels in a patch, and B the beta function: the factor
keeps the distribution of norms as vectors are put side by side (beta-concatenation). z_k is the
normal of a hyperplane at the origin and r_k its distance from there. Both are Euclidean
parameters, so that any optimizer trains them: on these layers Riemannian Adam is Adam.

    HyperbolicMLR   2|a_k|/s arsinh(2s<-p_k + x, a_k> / ((1 - c|-p_k + x|^2) |a_k|))

has normals at points p_k = exp_0(u_k) of its own, also Euclidean parameters.

"Poincaré ResNet", van Spengler, Berkhout, Mettes, 2023, arXiv 2303.14027, sections 3.1-3.3, on
"Hyperbolic Neural Networks++", Shimizu, Mukuta, Harada, 2021, arXiv 2006.08210, equations 6 and 7.
`HyperbolicMLR` is that of Ganea, Becigneul, Hofmann (2018), as Hyp-OC uses it.

Deviations: lambda_x = 2 / (1 - c|x|^2) as in the papers; the authors' code multiplies by the
denominator. A patch's padding is the origin, whose tangent vector is 0, as there.

Open choices: initial values, see `kzoo.layers.poincare_initializers`.
"""

import math

import keras
import tensorflow as tf

from kzoo.layers.poincare import HYP_OC_PAPER, PAPER, PoincareLayer, points
from kzoo.layers.poincare_initializers import PoincareIdentity, PoincareNormal
from kzoo.ops import poincare as ball
from kzoo.papers import Example, component


class _Gyroplanes(PoincareLayer):
    """A layer with the normals and offsets of hyperplanes as weights."""

    def __init__(
        self,
        units,
        curvature=1.0,
        use_bias=True,
        kernel_initializer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(curvature, **kwargs)
        self.units = checked_count("units", units)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer or PoincareIdentity())
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def _add_weights(self, patch, channels):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*patch, channels, self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        axes = {-1: channels}
        self.input_spec = keras.layers.InputSpec(min_ndim=2 if not patch else 4, axes=axes)

    @property
    def _offsets(self):
        if self.bias is None:
            return tf.zeros([self.units], self.compute_dtype)
        return tf.convert_to_tensor(self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@component(PAPER, example=Example(kwargs={"units": 3}, inputs=points))
class PoincareMLR(_Gyroplanes):
    """The head of a hyperbolic classifier: scaled distances to one hyperplane per class.

    Args:
        units: number of classes, at least 1.
        curvature: c, above 0. Defaults to 1.
        use_bias: whether the hyperplanes may leave the origin. Defaults to True.
        kernel_initializer: of z, [d, units]. Defaults to `PoincareNormal`.
        kernel_regularizer: of z.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], points of the ball. Output shape: [..., units], logits.

    Reference:
        Shimizu et al. (2021), equation 6; van Spengler et al. (2023), arxiv.org/abs/2303.14027
    """

    def __init__(self, units, curvature=1.0, use_bias=True, kernel_initializer=None, **kwargs):
        initializer = kernel_initializer or PoincareNormal()
        super().__init__(units, curvature, use_bias, initializer, **kwargs)

    def build(self, input_shape):
        self._add_weights((), input_shape[-1])

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        return ball.gyroplane_scores(inputs, kernel, self._offsets, self.curvature)


@component(PAPER, example=Example(kwargs={"units": 3, "curvature": 0.5}, inputs=points))
class PoincareDense(_Gyroplanes):
    """The fully connected layer of Hyperbolic Neural Networks++: points in, points out.

    Args:
        units: number of dimensions of the output, at least 1.
        curvature: c, above 0. Defaults to 1.
        use_bias: whether there are offsets r. Defaults to True.
        kernel_initializer: of z, [d, units]. Defaults to `PoincareIdentity`.
        kernel_regularizer: of z.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [..., d], points of the ball. Output shape: [..., units], points.

    Reference:
        Shimizu et al. (2021), equation 7; van Spengler et al. (2023), arxiv.org/abs/2303.14027
    """

    def build(self, input_shape):
        self._add_weights((), input_shape[-1])

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        scores = ball.gyroplane_scores(inputs, kernel, self._offsets, self.curvature)
        return ball.from_scores(scores, self.curvature)


def beta_ratio(channels, positions):
    """B(nK / 2, 1 / 2) / B(n / 2, 1 / 2), the factor of the beta-concatenation."""

    def log_beta(a):
        return math.lgamma(a) - math.lgamma(a + 0.5)

    return math.exp(log_beta(channels * positions / 2) - log_beta(channels / 2))


def _images(rng, batch):
    return (rng.uniform(-0.4, 0.4, size=(batch, 5, 4, 3)).astype("float32"),)


@component(
    PAPER,
    example=Example(kwargs={"filters": 4, "kernel_size": 3, "strides": 2}, inputs=_images),
)
class PoincareConv2D(_Gyroplanes):
    """A convolution over points of the ball, one at each position.

    The points of a patch are beta-concatenated and go through `PoincareDense`. No patch is laid
    out: an ordinary convolution, and a sum of squares, give all that the formula needs.

    Args:
        filters: number of channels of the output, at least 1.
        kernel_size: height and width of the patch, an integer or a pair.
        strides: an integer or a pair. Defaults to 1.
        padding: "valid" or "same" (with the origin). Defaults to "valid".
        curvature: c, above 0. Defaults to 1.
        use_bias: whether there are offsets r. Defaults to True.
        kernel_initializer: of z, [height, width, channels, filters]. Defaults to
            `PoincareIdentity`.
        kernel_regularizer: of z.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, height, width, channels], points of the ball along the last axis.
    Output shape: [batch, new height, new width, filters], points.

    Reference:
        van Spengler et al. (2023), section 3.1, arxiv.org/abs/2303.14027
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        curvature=1.0,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(checked_count("filters", filters), curvature, use_bias, **kwargs)
        self.filters = filters
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.strides = _pair("strides", strides)
        if padding not in ("valid", "same"):
            raise ValueError(f'`padding` must be "valid" or "same". Received: {padding!r}')
        self.padding = padding

    def build(self, input_shape):
        self._add_weights(self.kernel_size, input_shape[-1])
        self._scale = beta_ratio(input_shape[-1], math.prod(self.kernel_size))

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel)
        tangent = self._scale * ball.logmap0(inputs, self.curvature)
        ones = tf.ones((*self.kernel_size, 1, 1), tangent.dtype)
        inner = self._convolve(tangent, kernel)
        squares = self._convolve(ball.squared_norm(tangent), ones)
        scores = ball.tangent_gyroplane_scores(
            inner, squares, kernel, self._offsets, self.curvature
        )
        return ball.from_scores(scores, self.curvature)

    def _convolve(self, images, kernel):
        return tf.nn.conv2d(images, kernel, self.strides, self.padding.upper())

    def compute_output_shape(self, input_shape):
        sizes = [
            size if size is None else -(-(size - (k - 1 if self.padding == "valid" else 0)) // s)
            for size, k, s in zip(input_shape[1:3], self.kernel_size, self.strides, strict=True)
        ]
        return (input_shape[0], *sizes, self.filters)

    def get_config(self):
        config = super().get_config()
        del config["units"]
        return {
            **config,
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
        }


@component(HYP_OC_PAPER, example=Example(kwargs={"units": 3}, inputs=points))
class HyperbolicMLR(PoincareLayer):
    """Scaled distances to hyperplanes through points of their own, as Hyp-OC classifies.

    For c -> 0 the logits are 4 <x - p, a>. For small c, of which Hyp-OC takes 0.1, and large
    margins they grow with the logarithm of the Euclidean distance only.

    Args:
        units: number of classes, at least 1.
        curvature: c, above 0. Defaults to 1.
        kernel_initializer: of the normals a, [d, units]. Defaults to a uniform distribution over
            +-d^(-1/2).
        position_initializer: of u, the points' tangent vectors at the origin, [d, units]. Defaults
            to the same distribution.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, d], points of the ball. Output shape: [batch, units], logits.

    Reference:
        Narayan and Patel (2024), section III, arxiv.org/abs/2404.14406
    """

    def __init__(
        self,
        units,
        curvature=1.0,
        kernel_initializer=None,
        position_initializer=None,
        **kwargs,
    ):
        super().__init__(curvature, **kwargs)
        self.units = checked_count("units", units)
        self.kernel_initializer = _or_uniform(kernel_initializer)
        self.position_initializer = _or_uniform(position_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(size, self.units), initializer=self.kernel_initializer
        )
        self.position = self.add_weight(
            name="position", shape=(size, self.units), initializer=self.position_initializer
        )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: size})

    @property
    def points(self):
        """The points p that the hyperplanes go through, [units, d]."""
        return ball.expmap0(tf.transpose(tf.convert_to_tensor(self.position)), self.curvature)

    def call(self, inputs):
        c, kernel, points = self.curvature, tf.convert_to_tensor(self.kernel), self.points
        norms = ball.safe_sqrt(tf.reduce_sum(tf.square(kernel), axis=0))
        xx, pp = ball.squared_norm(inputs), ball.squared_norm(points)[:, 0]
        # -p + x times the denominator of the sum, which cancels.
        of_p = 1.0 - 2.0 * c * tf.matmul(inputs, points, transpose_b=True) + c * xx
        of_x = 1.0 - c * pp
        inner = of_x * tf.matmul(inputs, kernel) - of_p * tf.einsum("ud,du->u", points, kernel)
        root = math.sqrt(c)
        gap = 2.0 / ball.conformal_factor(inputs, c)
        return 2.0 / root * norms * tf.asinh(2.0 * root * inner / (norms * of_x * gap))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "position_initializer": keras.initializers.serialize(self.position_initializer),
        }


def _or_uniform(initializer):
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return keras.initializers.get(initializer or uniform)


def checked_count(name, value):
    """Returns `value`; a ValueError unless it is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")
    return value


def _pair(name, value):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"`{name}` must be an integer or a pair. Received: {value!r}")
    return tuple(checked_count(name, each) for each in pair)
