"""A mixture of experts in space and time: one hard constraint for each cell of the domain.

The router cuts the grid into K equal cells; the expert of each cell solves for coefficients of its
own at its own points; their solutions are put together. All experts are solved at once.

"Scaling physics-informed hard constraints with mixture-of-experts", Chalapathi, Du, Krishnapriyan,
2024, arXiv 2402.13412, section 3.2. Open choices: see `kzoo/layers/hard_constraint.py`.
"""

import math

import numpy as np
import tensorflow as tf

from kzoo.layers.hard_constraint import PAPER, HardConstraintLeastSquares, linear_residual
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"experts": (2, 2), "points": 5},
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, 4, 6, 1, 2)).astype("float32"),
            rng.normal(size=(batch, 4, 6, 1)).astype("float32"),
        ),
    ),
)
class PhysicsMoE(HardConstraintLeastSquares):
    """Solves a hard constraint in each cell of a grid, and puts the solutions together.

    With one expert, the same coefficients hold everywhere. Solutions of neighbouring cells may
    differ where they meet.

    Args:
        residual: see `HardConstraintLeastSquares`.
        experts: number of cells on each axis of the grid; each divides the points of its axis.
        points: number of points of each cell at which the residual is made least, drawn once;
            None takes all of them. Defaults to None.
        seed: of the points. Defaults to 0.
        kwargs: `ridge`, `initial`, `iterations`, `tolerance`.

    Call arguments:
        terms: [batch, n_1, ..., n_d, fields, basis], the fields of each basis function.
        offset: [batch, n_1, ..., n_d, fields] or None.
        data: [batch, n_1, ..., n_d, channels] or None.

    Returns:
        The fields of the solution, [batch, n_1, ..., n_d, fields].

    Reference:
        Chalapathi et al. (2024), section 3.2, arxiv.org/abs/2402.13412
    """

    def __init__(self, experts, residual=linear_residual, points=None, seed=0, **kwargs):
        super().__init__(residual, **kwargs)
        self.experts = (experts,) if isinstance(experts, int) else tuple(experts)
        if not self.experts or not all(isinstance(k, int) and k > 0 for k in self.experts):
            raise ValueError(f"`experts` must be integers of at least 1. Received: {experts!r}")
        self.points = points
        self.seed = seed

    def call(self, terms, offset=None, data=None):
        grid = self._checked_grid(terms.shape)
        cells = [None if x is None else self._cells(x, grid) for x in (terms, offset, data)]
        chosen = self._chosen(math.prod(grid) // math.prod(self.experts))
        sampled = [
            x if x is None or chosen is None else tf.gather(x, chosen, axis=1) for x in cells
        ]
        coefficients = super().call(*sampled)
        terms, offset, _ = (x if x is None else tf.cast(x, coefficients.dtype) for x in cells)
        fields = tf.einsum("bpfn,bn->bpf", terms, coefficients)
        return self._grid(fields if offset is None else fields + offset, grid)

    def _checked_grid(self, shape):
        axes = len(self.experts)
        if shape.rank != axes + 3 or None in shape[1 : axes + 1]:
            raise ValueError(
                f"`terms` must be [batch, {axes} axes of known size, fields, basis]. "
                f"Received the shape {shape}"
            )
        grid = tuple(shape[1 : axes + 1])
        if any(n % k for n, k in zip(grid, self.experts, strict=True)):
            raise ValueError(
                "`experts` must divide the points of each axis. "
                f"Received: {self.experts} for a grid {grid}"
            )
        return grid

    def _chosen(self, size):
        if self.points is None:
            return None
        if not 1 <= self.points <= size:
            raise ValueError(
                f"`points` must be from 1 to the {size} points of a cell. Received: {self.points}"
            )
        chosen = np.random.default_rng(self.seed).choice(size, self.points, replace=False)
        return np.sort(chosen).astype("int32")

    def _cells(self, tensor, grid):
        """[batch, n_1, ..., n_d, ...] as [batch x cells, points of a cell, ...]."""
        axes, rest = len(grid), tensor.shape[1 + len(grid) :]
        both = [size for n, k in zip(grid, self.experts, strict=True) for size in (k, n // k)]
        split = tf.reshape(tensor, [-1, *both, *rest])
        order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
        order += range(2 * axes + 1, split.shape.rank)
        points = math.prod(grid) // math.prod(self.experts)
        return tf.reshape(tf.transpose(split, order), [-1, points, *rest])

    def _grid(self, cells, grid):
        """The inverse of `_cells`, for tensors of one more axis."""
        axes, sizes = len(grid), [n // k for n, k in zip(grid, self.experts, strict=True)]
        split = tf.reshape(cells, [-1, *self.experts, *sizes, cells.shape[-1]])
        order = [0, *(i for axis in range(1, axes + 1) for i in (axis, axis + axes)), 2 * axes + 1]
        return tf.reshape(tf.transpose(split, order), [-1, *grid, cells.shape[-1]])

    def compute_output_shape(self, terms_shape, offset_shape=None, data_shape=None):
        return tuple(terms_shape[:-1])

    def get_config(self):
        return {
            **super().get_config(),
            "experts": self.experts,
            "points": self.points,
            "seed": self.seed,
        }
