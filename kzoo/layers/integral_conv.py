"""Convolutions that do not depend on the grid: a local integral and a local derivative.

    integral:    (K u)(x) = integral of kappa(y) u(x + y) dy  ~  h^d sum_j kappa(h j) u(x + h j)
    derivative:  (D u)(x) = 1/h sum_i (W_i - mean(W)) u(x + h i)

The plain convolution sum_i W_i u(x + h i) sees less of the domain the finer the grid is, and in
the limit is a pointwise product. The integral fixes the kernel's support in physical units instead;
the derivative keeps the stencil, divides by the grid spacing h, and tends to
sum_i W_i <i, grad u>.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973, section 4; the two kernels are from "Neural Operators with
Localized Integral and Differential Kernels", Liu-Schiaffini et al., 2024, arXiv 2402.16845.

Open choices: kappa is a sum of products of hat functions on equidistant nodes (piecewise
multilinear, 0 outside of its support), where Liu-Schiaffini et al. have polar and Morlet bases; on
a grid whose spacing is that of the nodes it is the plain convolution with the same weights. Their
discrete normalisation, which makes the integral of each basis function the same on each grid, is
left out: on equidistant grids the trapezoidal rule of a continuous kernel is of second order as
it is.
"""

import math

import keras
import tensorflow as tf

from kzoo.layers.spectral_conv import PAPER
from kzoo.papers import Example, component


class _LocalConv(keras.layers.Layer):
    """What both have: weights like those of a convolution, a physical domain, a padding."""

    _PADDINGS = ()

    def __init__(
        self,
        filters,
        kernel_size,
        length=1.0,
        padding="periodic",
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(filters, int) or filters < 1:
            raise ValueError(f"`filters` must be an integer of at least 1. Received: {filters!r}")
        self.filters = filters
        self.kernel_size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(self.kernel_size) not in (1, 2, 3):
            raise ValueError(f"`kernel_size` must have 1 to 3 axes. Received: {kernel_size!r}")
        if not all(isinstance(k, int) and k > 0 and k % 2 for k in self.kernel_size):
            raise ValueError(
                "`kernel_size` must be odd, so that the kernel has a centre. "
                f"Received: {kernel_size!r}"
            )
        self.length = self._lengths("length", length)
        if padding not in self._PADDINGS:
            allowed = ", ".join(map(repr, self._PADDINGS))
            raise ValueError(f"`padding` must be one of {allowed}. Received: {padding!r}")
        self.padding = padding
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.input_spec = keras.layers.InputSpec(ndim=len(self.kernel_size) + 2)

    def _lengths(self, name, value):
        lengths = (value,) * len(self.kernel_size) if isinstance(value, int | float) else value
        lengths = tuple(float(each) for each in lengths)
        if len(lengths) != len(self.kernel_size) or not all(each > 0 for each in lengths):
            raise ValueError(
                f"`{name}` must be a number above 0, or one for each of "
                f"{len(self.kernel_size)} axes. Received: {value!r}"
            )
        return lengths

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"The last axis, channels, must be known. Received: {input_shape}")
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer=self.bias_initializer
            )

    def _convolved(self, inputs, kernel, reach):
        """The convolution with a kernel of 2 reach + 1 taps on each axis, and what follows it."""
        axes = len(self.kernel_size)
        for axis in range(axes):
            inputs = _padded(inputs, axis + 1, reach[axis], self.padding)
        outputs = tf.nn.convolution(inputs, kernel, padding="VALID")
        if self.bias is not None:
            outputs += self.bias
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "length": self.length,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 3, "kernel_size": 3, "radius": 0.3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 9, 2)).astype("float32"),),
    ),
)
class IntegralConv(_LocalConv):
    """A convolution with a continuous kernel of fixed physical size, on grids of any spacing.

    `kernel` has the shape, the scale and the initialisation of a plain convolution's: it is that
    convolution where the grid's spacing is 2 radius / (kernel_size + 1), the distance of the nodes.
    A finer grid makes more taps, at the cost of a convolution with that many.

    Args:
        filters: number of output channels.
        kernel_size: number of nodes of the kernel on each axis, odd: one to three integers, or an
            integer for one axis.
        radius: distance from the centre at which the kernel has fallen to 0; one for each axis, or
            for all. In the units of `length`.
        length: extent of the domain on each axis; a grid of n points has the spacing length / n.
            Defaults to 1.
        padding: "periodic" (the points are at 0, h, 2h, ...), or "zeros" for a function that is 0
            outside of the domain (the points are the centres of n cells). Defaults to "periodic".
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer: see
            `keras.layers.Conv2D`.

    Input shape: [batch, n_1, ..., n_d, channels]. Output shape: [batch, n_1, ..., n_d, filters].

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """

    _PADDINGS = ("periodic", "zeros")

    def __init__(self, filters, kernel_size, radius, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        self.radius = self._lengths("radius", radius)
        if any(2 * r > n for r, n in zip(self.radius, self.length, strict=True)):
            raise ValueError(
                "`radius` must be at most half of `length`. "
                f"Received: {self.radius} and {self.length}"
            )

    def call(self, inputs):
        dtype = "float64" if inputs.dtype == "float64" else "float32"
        kernel, reach = tf.cast(self.kernel, dtype), []
        for axis, size in enumerate(self.kernel_size):
            # The distance of the nodes is the unit of length here.
            extent = self.length[axis] * (size + 1) / (2 * self.radius[axis])
            step = _spacing(extent, inputs, axis + 1)
            reach.append(_last_tap((size + 1) / 2 / step))
            step = tf.cast(step, dtype) if tf.is_tensor(step) else tf.constant(step, dtype)
            kernel = _on_axis(step * _hats(size, step, reach[-1]), kernel, axis)
        return self._convolved(inputs, tf.cast(kernel, inputs.dtype), reach)

    def get_config(self):
        return {**super().get_config(), "radius": self.radius}


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 3, "kernel_size": (3, 3)},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 5, 2)).astype("float32") / 4,),
    ),
)
class DifferentialConv(_LocalConv):
    """A convolution that tends to a first-order differential operator as the grid becomes finer.

    The kernel has its mean subtracted and is divided by the grid's spacing, which must be the same
    on all axes. Outputs are of the size of derivatives.

    Args:
        filters: number of output channels.
        kernel_size: taps of the stencil on each axis, odd: one to three integers, or an integer
            for one axis.
        length: extent of the domain on each axis; a grid of n points has the spacing length / n.
            Defaults to 1.
        padding: "periodic", or "edge" to go on with the value at the edge. Defaults to "periodic".
        activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer: see
            `keras.layers.Conv2D`.

    Input shape: [batch, n_1, ..., n_d, channels]. Output shape: [batch, n_1, ..., n_d, filters].

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """

    _PADDINGS = ("periodic", "edge")

    def build(self, input_shape):
        sizes = input_shape[1:-1]
        if any(n and n < k for n, k in zip(sizes, self.kernel_size, strict=True)):
            raise ValueError(
                f"The grid must have at least `kernel_size` = {self.kernel_size} points. "
                f"Received: {tuple(sizes)}"
            )
        spacings = [length / n for n, length in zip(sizes, self.length, strict=True) if n]
        if spacings and not math.isclose(min(spacings), max(spacings), rel_tol=1e-6):
            raise ValueError(
                "The spacing of the grid, `length` over the number of points, must be the same on "
                f"all axes. Received: `length` = {self.length} and a grid {tuple(sizes)}"
            )
        super().build(input_shape)

    def call(self, inputs):
        axes = tuple(range(len(self.kernel_size)))
        kernel = self.kernel - tf.reduce_mean(self.kernel, axes, keepdims=True)
        spacing = tf.cast(_spacing(self.length[0], inputs, 1), inputs.dtype)
        return self._convolved(inputs, kernel / spacing, [k // 2 for k in self.kernel_size])


def _size(tensor, axis):
    """An int where the graph knows it, so that static shapes stay static; else a tensor."""
    return tensor.shape[axis] if tensor.shape[axis] is not None else tf.shape(tensor)[axis]


def _spacing(extent, inputs, axis):
    points = _size(inputs, axis)
    return extent / (tf.cast(points, "float64") if tf.is_tensor(points) else points)


def _last_tap(distance):
    """How many steps of length 1 are shorter than a distance; that at the distance adds nothing."""
    if tf.is_tensor(distance):
        return tf.cast(tf.math.ceil(distance - 1e-3), "int32") - 1
    return math.ceil(distance - 1e-3) - 1


def _hats(nodes, step, reach):
    """The hat function of each node at the taps -reach ... reach, [taps, nodes]."""
    taps = step * tf.cast(tf.range(-reach, reach + 1), step.dtype)
    centres = tf.range(nodes, dtype=step.dtype) - (nodes - 1) / 2
    return tf.nn.relu(1.0 - tf.abs(taps[:, None] - centres))


def _on_axis(matrix, tensor, axis):
    """The matrix times an axis of the tensor."""
    product = tf.tensordot(matrix, tensor, [[1], [axis]])
    order = list(range(1, tensor.shape.rank))
    order.insert(axis, 0)
    return tf.transpose(product, order)


def _padded(tensor, axis, reach, padding):
    """`reach` more rows at both ends of an axis."""
    if padding == "zeros":
        paddings = [[0, 0] for _ in tensor.shape]
        paddings[axis] = [reach, reach]
        return tf.pad(tensor, paddings)
    points, before = _size(tensor, axis), (slice(None),) * axis
    if padding == "periodic":
        ends = tensor[(*before, slice(points - reach, None))], tensor[(*before, slice(reach))]
    else:
        repeats = [1] * tensor.shape.rank
        repeats[axis] = reach
        ends = (tf.tile(tensor[(*before, each)], repeats) for each in (slice(1), slice(-1, None)))
    first, last = ends
    return tf.concat([first, tensor, last], axis)
