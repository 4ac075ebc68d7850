"""Tensor attention: softmax attention to pairs (or longer tuples) of tokens.

    A_i,(j,k) = exp(sum_d Q_id K1_jd K2_kd / d)       A = exp(Q (K1 (/) K2)^T / d), [n, n^2]
    out_i = sum_jk A_i,(j,k) V1_j * V2_k / sum_jk A_i,(j,k)            D^-1 A (V1 (/) V2)

with (/) the column-wise Kronecker (Khatri-Rao) product and * the elementwise one. One such layer
detects triples of tokens, which one layer of ordinary attention cannot.

"How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker
Computation", Alman, Song, 2023, arXiv 2310.04064; definition 1.2, section 4 (the polynomial path),
appendix (order k).

The polynomial path replaces exp(x) by its Taylor polynomial of degree g. A monomial of the
products Q_id K1_jd K2_kd is a product of monomials, so that A = U1 (U2 (/) U3)^T with few columns
for bounded entries, and (U2 (/) U3)^T (V1 (/) V2) = (U2^T V1) * (U3^T V2): no n x n^2 matrix, time
linear in n.

Open choices: the paper uses the best polynomial approximation of exp on the range of the entries;
this is the Taylor polynomial, of the same order of degree. Heads, projections and the mask are as
in `keras.layers.MultiHeadAttention`; the scale is the paper's 1/d, for every order.
"""

import itertools
import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to "
    "Kronecker Computation",
    authors=("Josh Alman", "Zhao Song"),
    year=2023,
    arxiv="2310.04064",
)

_KEYS, _LARGEST_ORDER = "jklmnopq", 9


@component(PAPER)
def tensor_attention_exact(query, keys, values, mask=None):
    """Attention of order k = 1 + len(keys), in time and memory n^k.

    Args:
        query: [..., n, d].
        keys: k - 1 tensors [..., s, d]; two for the paper's third order, one is softmax attention
            with the scale 1/d.
        values: k - 1 tensors [..., s, v].
        mask: bool, [..., s]; a tuple with a token that is False gets no weight. None keeps all.

    Returns:
        (outputs [..., n, v], weights [..., n, s, ..., s]); the weights of a row sum to 1.
    """
    _check_tuples(keys, values)
    axes = _KEYS[: len(keys)]
    products = ",".join(f"...{axis}d" for axis in axes)
    logits = tf.einsum(f"...id,{products}->...i{axes}", query, *keys) / query.shape[-1]
    if mask is not None:
        logits += _mask_logits(mask, axes, logits.dtype)
    rank, shape = logits.shape.rank, tf.shape(logits)
    flat = tf.reshape(logits, tf.concat([shape[: rank - len(axes)], [-1]], 0))
    weights = tf.reshape(tf.nn.softmax(flat), shape)
    return tf.einsum(f"...i{axes},{products}->...id", weights, *values), weights


@component(PAPER)
def tensor_attention_polynomial(query, keys, values, degree, mask=None):
    """`tensor_attention_exact` with the Taylor polynomial of exp, in time linear in n.

    Accurate where the products sum_d Q_id K1_jd K2_kd / d are small against the degree; an odd
    degree allows weights below 0 for products far below 0. Time and memory are those of n x r
    matrices with r = (d + degree choose degree) columns.

    Args:
        query, keys, values, mask: see `tensor_attention_exact`.
        degree: of the polynomial, an integer of at least 1.

    Returns:
        outputs [..., n, v].
    """
    _check_tuples(keys, values)
    exponents = _exponents(query.shape[-1], _checked_degree(degree))
    powers = exponents.sum(1)
    # exp(x / d) = sum over the exponents a of x^a / (a! d^|a|), in as many variables as features.
    coefficients = [
        1.0 / (math.prod(map(math.factorial, row)) * float(query.shape[-1]) ** power)
        for row, power in zip(exponents.tolist(), powers, strict=True)
    ]
    features = _monomials(query, exponents) * tf.constant(coefficients, query.dtype)
    numerator = denominator = 1.0
    for key, value in zip(keys, values, strict=True):
        columns = _monomials(key, exponents)
        if mask is not None:
            columns *= tf.cast(mask, columns.dtype)[..., None]
        numerator *= tf.matmul(columns, value, transpose_a=True)
        denominator *= tf.reduce_sum(columns, -2)[..., None]
    return tf.matmul(features, numerator) / tf.matmul(features, denominator)


@component(
    PAPER,
    example=Example(
        kwargs={"num_heads": 2, "key_dim": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 4)).astype("float32"),),
    ),
)
class TensorAttention(keras.layers.Layer):
    """Multi-head self-attention to tuples of tokens; order 3 attends to pairs.

    Takes the mask of its inputs (as from `Embedding(mask_zero=True)`) or `attention_mask`.

    Args:
        num_heads: number of heads.
        key_dim: features d of queries, keys and values of a head.
        order: 2 is ordinary attention (with the scale 1 / key_dim), 3 attends to pairs; up to 9.
            Defaults to 3.
        degree: None computes softmax exactly, with time and memory n^order; an integer uses its
            Taylor polynomial of that degree, in linear time, for small products, see
            `tensor_attention_polynomial`. Defaults to None.
        use_bias: whether projections have biases. Defaults to True.
        kernel_initializer: of the projections. Defaults to "glorot_uniform".

    Input shape: [batch, n, features]. Output shape: the same.

    Reference:
        Alman, Song (2023), definition 1.2, arxiv.org/abs/2310.04064
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        order=3,
        degree=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        for name, value in (("num_heads", num_heads), ("key_dim", key_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")
        if order not in range(2, _LARGEST_ORDER + 1):
            raise ValueError(
                f"`order` must be an integer from 2 to {_LARGEST_ORDER}. Received: {order!r}"
            )
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.order = order
        self.degree = None if degree is None else _checked_degree(degree)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        features = input_shape[-1]
        into = {"output_shape": (self.num_heads, None, self.key_dim)}
        bias_axes = "hd" if self.use_bias else None
        names = ["query"]
        names += [f"{what}_{i}" for what in ("key", "value") for i in range(1, self.order)]
        self._projections = []
        for name in names:
            layer = self._dense("bnf,fhd->bhnd", name, bias_axes, **into)
            layer.build((None, None, features))
            self._projections.append(layer)
        self._output = self._dense(
            "bhnd,hdf->bnf",
            "output",
            "f" if self.use_bias else None,
            output_shape=(None, features),
        )
        self._output.build((None, self.num_heads, None, self.key_dim))

    def _dense(self, equation, name, bias_axes, output_shape):
        return keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=bias_axes,
            # A clone, since one seeded initializer gives the same values twice.
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, inputs, attention_mask=None, mask=None):
        # Exponentials and powers of sums over n^2 pairs lose too much in half precision.
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        inputs = tf.identity(inputs)  # Without its mask, which the projections would refuse.
        query, *rest = (tf.cast(project(inputs), dtype) for project in self._projections)
        keys, values = rest[: self.order - 1], rest[self.order - 1 :]
        allowed = _combined(attention_mask, mask)
        if self.degree is None:
            attended, _ = tensor_attention_exact(query, keys, values, allowed)
        else:
            attended = tensor_attention_polynomial(query, keys, values, self.degree, allowed)
        return self._output(tf.cast(attended, self.compute_dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "order": self.order,
            "degree": self.degree,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _combined(*masks):
    """The tokens that all masks keep, [batch, 1, n] for the heads; None for no mask."""
    masks = [tf.cast(mask, "bool") for mask in masks if mask is not None]
    if not masks:
        return None
    return tf.reduce_all(tf.stack(masks), 0)[:, None]


def _mask_logits(mask, axes, dtype):
    """Zeros, and where a tuple has a masked token the most negative number, [..., 1, s, ..., s]."""
    kept = tf.cast(mask, dtype)
    equation = ",".join(f"...{axis}" for axis in axes) + f"->...{axes}"
    tuples = tf.einsum(equation, *[kept] * len(axes))
    return tf.expand_dims((1.0 - tuples) * (dtype.min / 2), -1 - len(axes))


def _monomials(tensor, exponents):
    """All products of powers of the features, [..., n, r]."""
    powers = [tf.ones_like(tensor)]
    for _ in range(exponents.max()):
        powers.append(powers[-1] * tensor)
    table = tf.stack(powers, -1)
    factors = [
        tf.gather(table[..., feature, :], column, axis=-1)
        for feature, column in enumerate(exponents.T)
    ]
    return math.prod(factors[1:], start=factors[0])


def _exponents(features, degree):
    """The exponents of all monomials up to a degree, int [r, features]."""
    rows = [
        np.bincount(chosen, minlength=features)
        for power in range(degree + 1)
        for chosen in itertools.combinations_with_replacement(range(features), power)
    ]
    return np.stack([row.astype(int) for row in rows])


def _check_tuples(keys, values):
    if not 1 <= len(keys) == len(values) < _LARGEST_ORDER:
        raise ValueError(
            f"`keys` and `values` must be as many, from 1 to {_LARGEST_ORDER - 1} tensors. "
            f"Received: {len(keys)} and {len(values)}"
        )


def _checked_degree(degree):
    if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
        raise ValueError(f"`degree` must be an integer of at least 1. Received: {degree!r}")
    return degree
