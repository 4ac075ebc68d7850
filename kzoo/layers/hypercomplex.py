"""Parameterised hypercomplex layers: kernels that are sums of Kronecker products.

    H = sum_i A_i (x) F_i,  i = 1 ... n
    y = H x + b             (dense);        y = H * x + b             (convolution)

The n matrices A_i, [n, n], are the algebra: they say how the n groups of channels are combined,
and are learned together with the n small filters F_i, [d/n, s/n, kernel ...], for s channels in and
d out. A layer has n^3 + s d k / n (+ d) weights for a kernel of k places, about 1/n of the plain
layer's, and costs the multiplications of the plain layer. With n = 1 and A = 1 it is the plain
layer, with the algebra "complex" or "quaternion" it multiplies in these numbers; the components
of a number lie in n equal blocks of channels, one after the other, the real parts first.

"PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions", Grassucci, Zhang,
Comminiello, 2021, arXiv 2110.04176; equations 6-10. The dense layer is from "Beyond Fully-Connected
Layers with Quaternions", Zhang et al., 2021, arXiv 2102.08597.

Open choices: the initial values are those of the authors' code, where A and F are Glorot uniform
with the fans that PyTorch reads off the shapes [n, n, n] and [n, d/n, s/n, ...]. For F these are
s d k / n^2 and s k, so that outputs start small: what follows should normalise, or the kernel take
another initializer. In their code the convolutions' bias is never added; here `use_bias` decides.
"""

import math

import keras
import numpy as np
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
    authors=("Eleonora Grassucci", "Aston Zhang", "Danilo Comminiello"),
    year=2021,
    arxiv="2110.04176",
)

# A_i[o, c]: the coefficient of w_i x_c in component o of the product w x.
_ALGEBRAS = {
    "complex": [
        [[1, 0], [0, 1]],
        [[0, -1], [1, 0]],
    ],
    "quaternion": [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
        [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
    ],
}


class _Hypercomplex:
    """Weights and kernel of a layer whose plain form is a `Dense` or a convolution."""

    def __init__(
        self, outputs, *args, n, algebra, kernel_initializer=None, bias_initializer=None, **kwargs
    ):
        super().__init__(
            outputs,
            *args,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"`n` must be a positive integer. Received: {n!r}")
        if outputs % n:
            raise ValueError(f"`n` must divide the {outputs} outputs. Received: {n}")
        if getattr(self, "groups", 1) != 1:
            raise ValueError(
                f"`groups` must be 1: n takes the place of groups. Received: {self.groups}"
            )
        if self.lora_rank:
            raise ValueError(f"`lora_rank` must be None. Received: {self.lora_rank}")
        self.n = n
        self.algebra_config = _checked_algebra(algebra, n)

    def _add_weights(self, channels, outputs, kernel_size=()):
        if channels is None or channels % self.n:
            raise ValueError(f"`n` must divide the input's channels, {channels}. It is: {self.n}")
        n, taps = self.n, math.prod(kernel_size)
        self.algebra = self.add_weight(
            name="algebra",
            shape=(n, n, n),
            initializer=_algebra_initializer(self.algebra_config),
            trainable=self.algebra_config is None,
        )
        fans = channels * outputs * taps / n**2 + channels * taps
        self.component_kernels = self.add_weight(
            name="component_kernels",
            shape=(n, *kernel_size, channels // n, outputs // n),
            initializer=self.kernel_initializer or _uniform(math.sqrt(6 / fans)),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(outputs,),
                initializer=self.bias_initializer or _uniform(1 / math.sqrt(channels)),
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    @property
    def kernel(self):
        """H, [kernel ..., s, d]: that of the plain layer with the same outputs."""
        if not self.built:
            raise AttributeError("You must build the layer before accessing `kernel`.")
        filters = ops.convert_to_tensor(self.component_kernels)
        *taps, inputs, outputs = filters.shape[1:]
        product = ops.tensordot(ops.convert_to_tensor(self.algebra), filters, [[0], [0]])
        places = range(2, 2 + len(taps))
        product = ops.transpose(product, [*places, 1, len(taps) + 2, 0, len(taps) + 3])
        return ops.reshape(product, [*taps, self.n * inputs, self.n * outputs])

    def save_own_variables(self, store):
        # The plain layer would save its kernel.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} has no kernel of its own to adapt.")

    def get_config(self):
        config = {**super().get_config(), "n": self.n, "algebra": self.algebra_config}
        config.pop("groups", None)
        return config


class _HypercomplexConv(_Hypercomplex):
    def build(self, input_shape):
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        self._add_weights(channels, self.filters, self.kernel_size)
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self.rank + 2,
            axes={-1 if self.data_format == "channels_last" else 1: channels},
        )
        self.compute_output_shape(input_shape)
        self.built = True


@component(
    PAPER,
    example=Example(
        kwargs={"units": 6, "n": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class PHMDense(_Hypercomplex, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel is a sum of n Kronecker products, H = sum A_i (x) F_i.

    Args:
        units: size of the output.
        n: components of a hypercomplex number, a positive integer that divides the units and the
            features.
        algebra: None for matrices A that are learned, from Glorot uniform ones; for fixed ones
            "complex" (n = 2), "quaternion" (n = 4) or nested lists [n][n][n] of A_i[output, input].
        kernel_initializer: of the filters F, [n, s/n, units/n]. None for the authors'.
        bias_initializer: None for the authors', uniform within 1 / sqrt(s).
        kwargs: see `keras.layers.Dense`; the `kernel_*` ones are those of F.

    Input shape: [batch, ..., s]. Output shape: [batch, ..., units].

    Raises:
        ValueError: if `n` does not divide the units or the features, or is not that of `algebra`.

    Reference:
        Grassucci et al. (2021), section 3, arxiv.org/abs/2110.04176
    """

    def __init__(self, units, n, algebra=None, **kwargs):
        super().__init__(units, n=n, algebra=algebra, **kwargs)

    def build(self, input_shape):
        self._add_weights(input_shape[-1], self.units)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})
        self.built = True


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 6, "kernel_size": 3, "n": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 6, 4)).astype("float32"),),
    ),
)
class PHMConv1D(_HypercomplexConv, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` whose kernel is a sum of n Kronecker products, H = sum A_i (x) F_i.

    Args:
        filters: number of output channels.
        kernel_size: an integer.
        n, algebra, kernel_initializer, bias_initializer: see `PHMDense`; F is [n, kernel ..., s/n,
            filters/n].
        kwargs: see `keras.layers.Conv1D`; the `kernel_*` ones are those of F.

    Input shape: [batch, steps, s], or as `data_format` says.

    Raises:
        ValueError: if `n` does not divide the filters or the channels, or is not that of `algebra`.

    Reference:
        Grassucci et al. (2021), section 3, arxiv.org/abs/2110.04176
    """

    def __init__(self, filters, kernel_size, n, algebra=None, **kwargs):
        super().__init__(filters, kernel_size, n=n, algebra=algebra, **kwargs)


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 6, "kernel_size": 3, "n": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 6, 4)).astype("float32"),),
    ),
)
class PHMConv2D(_HypercomplexConv, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` whose kernel is a sum of n Kronecker products, H = sum A_i (x) F_i.

    RGB images fit n = 3, or with a channel of zeros n = 4 (a quaternion without real part).

    Args:
        filters: number of output channels.
        kernel_size: one or two integers.
        n, algebra, kernel_initializer, bias_initializer: see `PHMDense`; F is [n, kernel ..., s/n,
            filters/n].
        kwargs: see `keras.layers.Conv2D`; the `kernel_*` ones are those of F.

    Input shape: [batch, height, width, s], or as `data_format` says.

    Raises:
        ValueError: if `n` does not divide the filters or the channels, or is not that of `algebra`.

    Reference:
        Grassucci et al. (2021), section 3, arxiv.org/abs/2110.04176
    """

    def __init__(self, filters, kernel_size, n, algebra=None, **kwargs):
        super().__init__(filters, kernel_size, n=n, algebra=algebra, **kwargs)


def _uniform(limit):
    return keras.initializers.RandomUniform(-limit, limit)


def _algebra_initializer(algebra):
    if algebra is None:
        return "glorot_uniform"
    values = np.array(_ALGEBRAS[algebra] if isinstance(algebra, str) else algebra, float)
    return lambda shape, dtype=None: ops.convert_to_tensor(values, dtype=dtype)


def _checked_algebra(algebra, n):
    """The algebra as it is written into a configuration."""
    if algebra is None:
        return None
    if isinstance(algebra, str) and algebra not in _ALGEBRAS:
        raise ValueError(
            f"`algebra` must be None, {', '.join(map(repr, _ALGEBRAS))} or nested lists. "
            f"Received: {algebra!r}"
        )
    values = np.asarray(_ALGEBRAS[algebra] if isinstance(algebra, str) else algebra, float)
    if values.shape != (n, n, n):
        raise ValueError(
            f"`algebra` must be of shape [n, n, n] with n = {n}. Received: {list(values.shape)}"
        )
    return algebra if isinstance(algebra, str) else values.tolist()
