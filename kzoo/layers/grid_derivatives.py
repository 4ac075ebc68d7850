"""Derivatives of functions on a grid by finite differences, as fields for an equation's residual.

Second-order central differences, and one-sided ones of second order at the ends, as `np.gradient`
has them; the second derivative is [1, -2, 1] / h^2 inside and [2, -5, 4, -1] / h^2 at the ends.

Used for "Scaling physics-informed hard constraints with mixture-of-experts", Chalapathi, Du,
Krishnapriyan, 2024, arXiv 2402.13412, appendix (their second derivative is the first one, twice).
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.layers.hard_constraint import PAPER
from kzoo.papers import Example, component

_FACTORS = {
    None: np.ones_like,
    "start": lambda x: x,
    "ends": lambda x: 4 * x * (1 - x),
}


@component(
    PAPER,
    example=Example(
        kwargs={
            "orders": ((0, 0), (1, 0), (0, 2)),
            "length": (1.0, 2.0),
            "zero_at": (None, "ends"),
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4, 5, 2)).astype("float32") / 10,),
    ),
)
class GridDerivatives(keras.layers.Layer):
    """Partial derivatives of functions on a grid whose first and last points are the boundary.

    Args:
        orders: one tuple for each field, with the order of the derivative, 0, 1 or 2, on each axis.
        length: extent of the domain, for each axis or for all; a grid of n points has the spacing
            length / (n - 1). Defaults to 1.
        zero_at: for each axis, a factor by which the functions are multiplied first: "start", x, is
            0 at the first point; "ends", 4 x (1 - x), is 0 at both; None is none. x is between 0
            and 1. Defaults to none.

    Input shape: [batch, n_1, ..., n_d, functions], the grid known, at least 4 points each.
    Output shape: [batch, n_1, ..., n_d, fields, functions].

    Reference:
        Chalapathi et al. (2024), arxiv.org/abs/2402.13412
    """

    def __init__(self, orders, length=1.0, zero_at=None, **kwargs):
        super().__init__(**kwargs)
        self.orders = tuple(tuple(each) for each in orders)
        axes = len(self.orders[0])
        allowed = {len(each) for each in self.orders} == {axes}
        if not allowed or not all(order in (0, 1, 2) for each in self.orders for order in each):
            raise ValueError(
                "`orders` must be tuples of 0, 1 or 2, one number for each axis. "
                f"Received: {orders!r}"
            )
        self.length = (length,) * axes if isinstance(length, int | float) else tuple(length)
        self.zero_at = (None,) * axes if zero_at is None else tuple(zero_at)
        if not set(self.zero_at) <= _FACTORS.keys() or len(self.zero_at) != axes:
            raise ValueError(
                f"`zero_at` must be 'start', 'ends' or None for each of {axes} axes. "
                f"Received: {zero_at!r}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=axes + 2)

    def build(self, input_shape):
        grid = input_shape[1:-1]
        if None in grid or min(grid) < 4:
            raise ValueError(f"The grid must be known, at least 4 points each. Received: {grid}")
        # [order][axis]: the matrix of a derivative, after the factor.
        self._matrices = [
            [_matrix(n, length / (n - 1), order) * _FACTORS[zero](np.linspace(0, 1, n))
             for n, length, zero in zip(grid, self.length, self.zero_at, strict=True)]
            for order in (0, 1, 2)
        ]  # fmt: skip

    def call(self, inputs):
        dtype = "float64" if inputs.dtype == "float64" else "float32"
        values, fields = tf.cast(inputs, dtype), []
        for orders in self.orders:
            field = values
            for axis, order in enumerate(orders):
                matrix = tf.constant(self._matrices[order][axis], dtype)
                letters = "uvwxyz"[: len(orders)]
                result = letters.replace(letters[axis], "n")
                equation = f"n{letters[axis]},b{letters}c->b{result}c"
                field = tf.einsum(equation, matrix, field)
            fields.append(field)
        return tf.cast(tf.stack(fields, -2), inputs.dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.orders), input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "orders": self.orders,
            "length": self.length,
            "zero_at": self.zero_at,
        }


def _matrix(points, spacing, order):
    """The matrix of a derivative on an axis."""
    identity = np.eye(points)
    if order == 0:
        return identity
    if order == 1:
        return np.gradient(identity, spacing, axis=0, edge_order=2)
    matrix = np.roll(identity, -1, 0) - 2 * identity + np.roll(identity, 1, 0)
    matrix[0], matrix[-1] = 0, 0
    matrix[0, :4] = matrix[-1, :-5:-1] = [2, -5, 4, -1]
    return matrix / spacing**2
