"""Quadratic neurons, which multiply two linear functions of their inputs, and their training.

    y = sigma((W_r x + b_r) * (W_g x + b_g) + W_b (x * x) + c)

With W_g = 0, b_g = 1, W_b = 0, c = 0 this is the plain layer sigma(W_r x + b_r). ReLinear starts
there, for every layer, and lets the quadratic terms grow slowly, by any of

    gradient shrinkage: the learning rates of (W_g, b_g) and (W_b, c) are multiplied by gamma_g and
                        gamma_b, see `relinear_multipliers`;
    weight shrinkage:   after each step these weights are multiplied by alpha_g, alpha_b
                        (`shrink_g`, `shrink_b`), or clipped to within beta_g, beta_b (`clip_g`,
                        `clip_b`).

At 0 each of them leaves the network linear, at 1 (infinity for clipping) quadratic.

"On Expressivity and Trainability of Quadratic Networks", Fan, Li, Wang, Lai, Wang, 2021, arXiv
2110.06081; equation 1 and section 4.

Open choices: b_g is shrunk to, and clipped around, 1, its value in the linear network. Without
`use_bias` b_r and c are left out, and b_g is kept. The convolution squares before it pads.
"""

import math
import re

import keras
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="On Expressivity and Trainability of Quadratic Networks",
    authors=("Feng-Lei Fan", "Mengzhou Li", "Fei Wang", "Rongjie Lai", "Ge Wang"),
    year=2021,
    arxiv="2110.06081",
)


@keras.saving.register_keras_serializable("kzoo")
class _ShrinkAndClip(keras.constraints.Constraint):
    """w <- center + clip(shrink (w - center), -limit, limit)"""

    def __init__(self, shrink, limit, center=0.0):
        self.shrink, self.limit, self.center = shrink, limit, center

    def __call__(self, w):
        difference = self.shrink * (w - self.center)
        if self.limit is not None:
            difference = ops.clip(difference, -self.limit, self.limit)
        return self.center + difference

    def get_config(self):
        return {"shrink": self.shrink, "limit": self.limit, "center": self.center}


class _Quadratic:
    """The quadratic terms of a layer whose plain form is a `Dense` or a convolution."""

    def __init__(
        self,
        *args,
        kernel_g_initializer="zeros",
        bias_g_initializer="ones",
        kernel_b_initializer="zeros",
        shrink_g=1.0,
        shrink_b=1.0,
        clip_g=None,
        clip_b=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.lora_rank:
            raise ValueError(f"`lora_rank` must be None. Received: {self.lora_rank}")
        self.kernel_g_initializer = keras.initializers.get(kernel_g_initializer)
        self.bias_g_initializer = keras.initializers.get(bias_g_initializer)
        self.kernel_b_initializer = keras.initializers.get(kernel_b_initializer)
        self.shrink_g = _checked_shrinkage("shrink_g", shrink_g)
        self.shrink_b = _checked_shrinkage("shrink_b", shrink_b)
        self.clip_g = _checked_bound("clip_g", clip_g)
        self.clip_b = _checked_bound("clip_b", clip_b)

    def build(self, input_shape):
        super().build(input_shape)
        shape, outputs = self.kernel.shape, self.kernel.shape[-1:]
        gate, power = self.kernel_g_initializer, self.kernel_b_initializer
        self.kernel_g = self._add_term("kernel_g", shape, gate, self.shrink_g, self.clip_g)
        self.bias_g = self._add_term(
            "bias_g", outputs, self.bias_g_initializer, self.shrink_g, self.clip_g, center=1.0
        )
        self.kernel_b = self._add_term("kernel_b", shape, power, self.shrink_b, self.clip_b)
        self.bias_b = None
        if self.use_bias:
            self.bias_b = self._add_term("bias_b", outputs, "zeros", self.shrink_b, self.clip_b)

    def _add_term(self, name, shape, initializer, shrink, limit, center=0.0):
        free = shrink == 1 and limit is None
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            constraint=None if free else _ShrinkAndClip(shrink, limit, center),
        )

    @property
    def quadratic_variables(self):
        """([W_g, b_g], [W_b, c]), c only where there is a bias."""
        power = [self.kernel_b] if self.bias_b is None else [self.kernel_b, self.bias_b]
        return [self.kernel_g, self.bias_g], power

    def call(self, inputs, training=None):
        linear = self._affine(inputs, self.kernel, self.bias)
        gate = self._affine(inputs, self.kernel_g, self.bias_g)
        power = self._affine(ops.square(inputs), self.kernel_b, self.bias_b)
        outputs = linear * gate + power
        return outputs if self.activation is None else self.activation(outputs)

    def save_own_variables(self, store):
        # The plain layer knows only kernel and bias.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} has more than one kernel to adapt.")

    def get_config(self):
        serialize = keras.initializers.serialize
        return {
            **super().get_config(),
            "kernel_g_initializer": serialize(self.kernel_g_initializer),
            "bias_g_initializer": serialize(self.bias_g_initializer),
            "kernel_b_initializer": serialize(self.kernel_b_initializer),
            "shrink_g": self.shrink_g,
            "shrink_b": self.shrink_b,
            "clip_g": self.clip_g,
            "clip_b": self.clip_b,
        }


@component(
    PAPER,
    example=Example(
        kwargs={
            "units": 3,
            "kernel_g_initializer": "glorot_uniform",
            "kernel_b_initializer": "glorot_uniform",
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class QuadraticDense(_Quadratic, keras.layers.Dense):
    """A `keras.layers.Dense` of quadratic neurons, which starts as the plain one.

    It has three kernels and biases, and three matrix products, for the plain layer's one.

    Args:
        units: size of the output.
        kernel_g_initializer, bias_g_initializer, kernel_b_initializer: of W_g, b_g and W_b. The
            defaults, "zeros", "ones" and "zeros", are those of ReLinear. The plain layer's
            arguments `kernel_*` and `bias_*` are those of W_r and b_r.
        shrink_g, shrink_b: in [0, 1], what (W_g, b_g - 1) and (W_b, c) are multiplied by after each
            step of an optimizer. Defaults to 1.
        clip_g, clip_b: what the absolute values of (W_g, b_g - 1) and (W_b, c) are clipped to after
            each step, at least 0. None for no bound.
        kwargs: see `keras.layers.Dense`.

    Input shape: [batch, ..., features]. Output shape: [batch, ..., units].

    Reference:
        Fan et al. (2021), equation 1, arxiv.org/abs/2110.06081
    """

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)

    def _affine(self, inputs, kernel, bias):
        outputs = ops.matmul(inputs, kernel)
        return outputs if bias is None else ops.add(outputs, bias)


@component(
    PAPER,
    example=Example(
        kwargs={
            "filters": 3,
            "kernel_size": 3,
            "kernel_g_initializer": "glorot_uniform",
            "kernel_b_initializer": "glorot_uniform",
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 6, 2)).astype("float32"),),
    ),
)
class QuadraticConv2D(_Quadratic, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` of quadratic neurons, which starts as the plain one.

    It has three kernels and biases, and three convolutions, for the plain layer's one.

    Args:
        filters: number of output channels.
        kernel_size: one or two integers.
        kernel_g_initializer, bias_g_initializer, kernel_b_initializer, shrink_g, shrink_b, clip_g,
            clip_b: see `QuadraticDense`.
        kwargs: see `keras.layers.Conv2D`.

    Input shape: [batch, height, width, channels], or as `data_format` says.

    Reference:
        Fan et al. (2021), equation 1, arxiv.org/abs/2110.06081
    """

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)

    def _affine(self, inputs, kernel, bias):
        outputs = self.convolution_op(inputs, kernel)
        if bias is None:
            return outputs
        shape = [-1] if self.data_format == "channels_last" else [-1, 1, 1]
        return ops.add(outputs, ops.reshape(bias, shape))


def relinear_multipliers(model, gamma_g, gamma_b):
    """Learning rate multipliers of the quadratic terms of a model, for ReLinear.

    Args:
        model: built, with at least one `QuadraticDense` or `QuadraticConv2D`.
        gamma_g: of W_g and b_g, at least 0; the paper's are in [0, 1], the authors' code has 1e-4.
        gamma_b: of W_b and c.

    Returns:
        {pattern of a variable's path: number}, for `kzoo.optimizers.LearningRateMultipliers`.

    Raises:
        ValueError: for a model without built quadratic layers, or a negative number.

    Example:

    >>> optimizer = LearningRateMultipliers(
    ...     keras.optimizers.SGD(0.1), relinear_multipliers(model, 1e-4, 1e-4)
    ... )

    Reference:
        Fan et al. (2021), section 4, arxiv.org/abs/2110.06081
    """
    for name, gamma in (("gamma_g", gamma_g), ("gamma_b", gamma_b)):
        if not 0 <= gamma < math.inf:
            raise ValueError(f"`{name}` must be finite and at least 0. Received: {gamma!r}")
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, _Quadratic)]
    if not layers or not all(layer.built for layer in layers):
        raise ValueError(
            "`model` must be built and have a QuadraticDense or QuadraticConv2D. "
            f"Received: {model.name!r} with {len(layers)} of them"
        )
    return {
        f"^{re.escape(variable.path)}$": float(gamma)
        for layer in layers
        for gamma, variables in zip((gamma_g, gamma_b), layer.quadratic_variables, strict=True)
        for variable in variables
    }


def _checked_shrinkage(name, factor):
    if not (isinstance(factor, int | float) and 0 <= factor <= 1):
        raise ValueError(f"`{name}` must be in [0, 1]. Received: {factor!r}")
    return float(factor)


def _checked_bound(name, bound):
    if bound is None:
        return None
    if not (isinstance(bound, int | float) and 0 <= bound < math.inf):
        raise ValueError(f"`{name}` must be None or finite and at least 0. Received: {bound!r}")
    return float(bound)
