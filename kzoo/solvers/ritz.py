"""Training data of the deep conjugate direction method: mixtures of Ritz vectors.

    b = sum_j c_j q_j / ||.||,   c_j ~ N(0, 9^2) for the lower half of the Ritz values, else N(0, 1)

"A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", Kaneda, Akar, Chen,
Kala, Hyde, Teran, 2022, arXiv 2205.10763; section 5.1.

Open choice: the paper's half is shifted by a small number theta, which is 0 here.
"""

import numpy as np
from scipy.linalg import eigh_tridiagonal

from kzoo.models.dcdm import PAPER
from kzoo.papers import component


@component(PAPER)
def ritz_right_hand_sides(operator, count, num_vectors=100, emphasis=9.0, seed=0):
    """Right-hand sides to train on: random mixtures of Ritz vectors of A, of length 1.

    Lanczos' method makes m Ritz vectors from a random start; the mixture has normal coefficients,
    `emphasis` times larger for the lower half of the Ritz values (section 5.1).

    Args:
        operator: a `PoissonOperator`.
        count: how many.
        num_vectors: m, at most the number of cells. Defaults to 100.
        emphasis: Defaults to 9.
        seed: Defaults to 0.

    Returns:
        float32 [count, *grid], 0 in the obstacles.
    """
    rng = np.random.default_rng(seed)
    vectors = ritz_vectors(operator.matrix(), num_vectors, rng)
    coefficients = rng.normal(size=(count, len(vectors)))
    coefficients[:, : len(vectors) // 2] *= emphasis
    mixtures = coefficients @ vectors
    mixtures /= np.linalg.norm(mixtures, axis=1, keepdims=True)
    fields = np.zeros((count, *operator.shape), "float32")
    fields[:, operator.fluid] = mixtures
    return fields


def ritz_vectors(matrix, count, rng):
    """The Ritz vectors of a symmetric matrix by Lanczos' method, by rising Ritz values.

    Args:
        matrix: [n, n], sparse or dense.
        count: m, at most n; fewer are made where the method ends early.
        rng: `numpy.random.Generator` of the start.

    Returns:
        float64 [m, n], orthonormal rows.
    """
    size = matrix.shape[0]
    basis, diagonal, beside = np.zeros((min(count, size), size)), [], []
    basis[0] = rng.normal(size=size)
    basis[0] /= np.linalg.norm(basis[0])
    for number in range(len(basis)):
        image = matrix @ basis[number]
        diagonal.append(basis[number] @ image)
        # Twice is enough to keep the basis orthogonal to rounding.
        for _ in range(2):
            image -= basis[: number + 1].T @ (basis[: number + 1] @ image)
        length = np.linalg.norm(image)
        if number + 1 == len(basis) or length < 1e-10 * abs(diagonal[0]):
            break
        beside.append(length)
        basis[number + 1] = image / length
    rotation = eigh_tridiagonal(diagonal, beside)[1]
    return rotation.T @ basis[: len(diagonal)]
