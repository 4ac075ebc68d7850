"""The Poisson operator of a grid with obstacles, matrix-free, and as a sparse matrix.

    (A x)_i = sum_{j next to i} (x_i - x_j)

over the cells that are not obstacles. Outside the grid x is 0 (Dirichlet); an obstacle passes
nothing (Neumann: the sum leaves it out). With D the differences across the faces of the cells and
C = 1 on open faces, 0 on faces of obstacles, A = D^T C D: symmetric, and positive definite on the
cells from which the edge of the grid can be reached.
"""

import keras
import numpy as np
import tensorflow as tf
from scipy import sparse
from scipy.sparse.csgraph import connected_components


@keras.saving.register_keras_serializable("kzoo")
class PoissonOperator:
    """A, on fields of the shape [batch, *grid].

    Args:
        obstacles: bool [*grid] in 2 or 3 dimensions, true in solid cells.

    Raises:
        ValueError: for a grid of other dimensions, or with cells that obstacles shut in.

    Example:

    >>> operator = PoissonOperator(np.zeros((32, 32), bool))
    >>> operator(tf.ones([1, 32, 32]))  # 2 in the corners, 1 on the sides, 0 within
    """

    def __init__(self, obstacles):
        self.obstacles = np.asarray(obstacles, bool)
        if self.obstacles.ndim not in (2, 3):
            raise ValueError(
                "`obstacles` must be a grid of 2 or 3 dimensions. "
                f"Received: shape {list(self.obstacles.shape)}"
            )
        self.fluid = ~self.obstacles
        self._check_open()

    @property
    def shape(self):
        return self.obstacles.shape

    def __call__(self, x):
        """A x; obstacles count as 0, whatever x has there.

        Args:
            x: floating [batch, *grid].

        Returns:
            As x.
        """
        x = tf.convert_to_tensor(x)
        result = tf.zeros_like(x)
        for axis in range(1, 1 + self.obstacles.ndim):
            padding = [[0, 0] for _ in x.shape]
            padding[axis] = [1, 1]
            flow = _difference(tf.pad(x, padding), axis) * self._open_faces(axis - 1, x.dtype)
            result -= _difference(flow, axis)
        return result

    def restrict(self, x):
        """x with 0 in the obstacles."""
        x = tf.convert_to_tensor(x)
        return x * tf.constant(self.fluid, x.dtype)

    def matrix(self):
        """A as a SciPy sparse matrix over the cells that are not obstacles, in row-major order."""
        total = 0
        for axis, size in enumerate(self.shape):
            parts = [sparse.eye_array(n) for n in self.shape]
            parts[axis] = sparse.diags_array([1.0, -1.0], offsets=[0, -1], shape=(size + 1, size))
            differences = parts[0]
            for part in parts[1:]:
                differences = sparse.kron(differences, part, format="csr")
            opened = sparse.diags_array(self._face_mask(axis).ravel().astype(float))
            total = total + differences.T @ opened @ differences
        cells = np.flatnonzero(self.fluid.ravel())
        return sparse.csr_array(total)[cells][:, cells]

    def get_config(self):
        return {"obstacles": self.obstacles.tolist()}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _open_faces(self, axis, dtype):
        return tf.constant(self._face_mask(axis), dtype)

    def _face_mask(self, axis):
        """The faces across `axis` with an obstacle on neither side; outside is none."""
        width = [(1, 1) if a == axis else (0, 0) for a in range(self.fluid.ndim)]
        padded = np.pad(self.fluid, width, constant_values=True)
        size = padded.shape[axis]
        below = np.take(padded, np.arange(size - 1), axis)
        return below & np.take(padded, np.arange(1, size), axis)

    def _check_open(self):
        matrix = self.matrix()
        if not matrix.shape[0]:
            raise ValueError("`obstacles` must leave at least one cell.")
        count, labels = connected_components(matrix, directed=False)
        # A row sum is the number of faces to the outside.
        outlets = np.bincount(labels, weights=np.asarray(matrix.sum(1)).ravel(), minlength=count)
        if (outlets <= 0).any():
            raise ValueError("`obstacles` must not shut in any cell: A would be singular.")


def _difference(x, axis):
    """x_{i+1} - x_i along an axis."""
    size = x.shape[axis]
    above, below = [slice(None)] * x.shape.rank, [slice(None)] * x.shape.rank
    above[axis], below[axis] = slice(1, size), slice(0, size - 1)
    return x[tuple(above)] - x[tuple(below)]
