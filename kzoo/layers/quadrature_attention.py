"""Attention as a quotient of integrals over the domain, on any grid.

    out(x) = integral of exp(<q(x), k(y)> / sqrt(d)) v(y) dy / integral of exp(...) dy
           ~ sum_j w_j exp(<q(x), k_j> / sqrt(d)) v_j / sum_j w_j exp(<q(x), k_j> / sqrt(d))

with w_j the quadrature weights of the points: areas of their cells, for example. Plain attention
has the same weight everywhere, and so looks more at where points are dense.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973, section 4 (attention).

Open choices: the weights' scale does not matter, since it is in numerator and denominator.
Projections are as in `keras.layers.MultiHeadAttention`, whose weights load in the same order.
"""

import keras
import tensorflow as tf

from kzoo.layers.spectral_conv import PAPER
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"num_heads": 2, "key_dim": 3},
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, 5, 4)).astype("float32"),
            rng.uniform(0.1, 1.0, (batch, 5)).astype("float32"),
        ),
    ),
)
class QuadratureAttention(keras.layers.Layer):
    """Multi-head self-attention of a function on points with quadrature weights.

    Points are in any order and number; give the layer coordinates as features. A point that is
    there twice with half of the weight each changes nothing, one of weight 0 is not seen. With
    equal weights this is `keras.layers.MultiHeadAttention`, with the same weights in the same
    order.

    Args:
        num_heads: number of heads.
        key_dim: features of queries, keys and values of a head.
        use_bias: whether projections have biases. Defaults to True.
        kernel_initializer: of the projections. Defaults to "glorot_uniform".

    Call arguments:
        inputs: [batch, n, features], the function's values.
        quadrature_weights: [batch, n] or [n], at least 0 and not all 0; None for equal ones.
        mask: bool, [batch, n]; points that are False are as those of weight 0.

    Output shape: that of `inputs`.

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """

    def __init__(
        self, num_heads, key_dim, use_bias=True, kernel_initializer="glorot_uniform", **kwargs
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        for name, value in (("num_heads", num_heads), ("key_dim", key_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, inputs_shape, quadrature_weights_shape=None):
        if len(inputs_shape) != 3:
            raise ValueError(
                f"`inputs` must be [batch, points, features]. Received the shape {inputs_shape}"
            )
        heads = (None, self.num_heads, self.key_dim)
        self._query, self._key, self._value = (
            self._projection("bnf,fhd->bnhd", "hd", heads, name)
            for name in ("query", "key", "value")
        )
        for layer in (self._query, self._key, self._value):
            layer.build(inputs_shape)
        self._output = self._projection("bnhd,hdf->bnf", "f", (None, inputs_shape[-1]), "output")
        self._output.build((None, *heads))

    def _projection(self, equation, bias_axes, output_shape, name):
        return keras.layers.EinsumDense(
            equation,
            output_shape,
            bias_axes=bias_axes if self.use_bias else None,
            # A clone, since one seeded initializer gives the same values twice.
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, inputs, quadrature_weights=None, mask=None):
        inputs = tf.identity(inputs)  # Without its mask, which the projections would refuse.
        logits = tf.einsum("bihd,bjhd->bhij", self._query(inputs), self._key(inputs))
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        logits = tf.cast(logits, dtype) / self.key_dim**0.5
        if quadrature_weights is not None:
            logits += _logarithm(tf.cast(quadrature_weights, dtype))
        if mask is not None:
            logits += _logarithm(tf.cast(mask, dtype))
        attention = tf.cast(tf.nn.softmax(logits), self.compute_dtype)
        return self._output(tf.einsum("bhij,bjhd->bihd", attention, self._value(inputs)))

    def compute_output_shape(self, inputs_shape, quadrature_weights_shape=None):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _logarithm(weights):
    """log(weights) as [batch or 1, 1, 1, n], the most negative number for those of 0."""
    positive = weights > 0
    # The inner `where` keeps the gradient of log(0) out.
    logarithm = tf.math.log(tf.where(positive, weights, tf.ones_like(weights)))
    logarithm = tf.where(positive, logarithm, weights.dtype.min / 4)
    return logarithm[None, None, None] if weights.shape.rank == 1 else logarithm[:, None, None]
