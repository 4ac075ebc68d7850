"""Which block of variables a step of block coordinate descent updates.

Fixed blocks b (section 3 of the paper), g the gradient, L_b and H_b bounds of the curvature:

    gs     argmax_b ||g_b||                    Gauss-Southwell
    gsl    argmax_b ||g_b||^2 / L_b            Lipschitz
    gsd    argmax_b sum_{i in b} g_i^2 / L_i   diagonal, D_b = k diag(L_i)
    gsq    argmax_b g_b^T H_b^-1 g_b           quadratic

The last three maximize the decrease of an upper bound of f, 1/2 of these numbers. Variable blocks
are the k best variables: by |g_i| for gs, by g_i^2 / L_i for gsl and gsd; gsq looks for them by
iterative hard thresholding of the quadratic bound.

With a penalty h, g_i^2 / (2 c) becomes what the bound with the curvature c loses along x_i,
max_d -(g_i d + c d^2 / 2 + h_i(x_i + d) - h_i(x_i)), the paper's rules for bounds and L1.

Open choices: with a penalty, gs has the largest L_i as the curvature of all; hard thresholding
starts from the k best variables of gsd and makes 10 steps of 1 / L_max.
"""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from kzoo.solvers.penalties import minimize_model

RULES = ("gs", "gsl", "gsd", "gsq", "random", "cyclic", "lipschitz")
_THRESHOLDING_STEPS = 10


def sorted_blocks(lipschitz, block_size):
    """Splits the variables into blocks of like constants L_i, the paper's `Sort` partition.

    Args:
        lipschitz: [n].
        block_size: k; the last block may be smaller.

    Returns:
        List of int arrays.
    """
    return split(np.argsort(lipschitz, kind="stable"), block_size)


def split(order, block_size):
    """Cuts `order` into pieces of `block_size`, the last maybe smaller."""
    return np.split(order, np.arange(block_size, len(order), block_size))


class FixedBlocks:
    """Chooses one of the blocks of a partition.

    Args:
        problem: see `kzoo.solvers.problems`.
        penalty: see `kzoo.solvers.penalties`.
        blocks: list of int arrays that hold every variable once.
        rule: one of `RULES`; "random" is uniform, "lipschitz" random in proportion to L_b.
        rng: `numpy.random.Generator` of the random rules.
    """

    def __init__(self, problem, penalty, blocks, rule, rng):
        self.problem, self.penalty, self.rule, self.rng = problem, penalty, rule, rng
        self.blocks = [np.asarray(block, int) for block in blocks]
        if not np.array_equal(np.sort(np.concatenate(self.blocks)), np.arange(problem.size)):
            raise ValueError(f"`blocks` must hold each of the {problem.size} variables once.")
        self.constants = None
        if rule in ("gsl", "lipschitz"):
            self.constants = np.array([block_lipschitz(problem, block) for block in self.blocks])
        self.bounds = [problem.bound(b) for b in self.blocks] if rule == "gsq" else None
        # Sums over blocks of any sizes by one call of `np.add.reduceat`.
        self.order = np.concatenate(self.blocks)
        self.starts = np.cumsum([0, *(len(block) for block in self.blocks[:-1])])

    def choose(self, x, gradient, iteration):
        """The block to update, an int array."""
        if self.rule == "cyclic":
            return self.blocks[iteration % len(self.blocks)]
        if self.rule in ("random", "lipschitz"):
            p = None if self.constants is None else self.constants / self.constants.sum()
            return self.blocks[self.rng.choice(len(self.blocks), p=p)]
        return self.blocks[np.argmax(self.decreases(x, gradient))]

    def decreases(self, x, gradient):
        """How much the bound that belongs to the rule loses in each block, [blocks]."""
        if self.rule == "gsq":
            return np.array(
                [
                    _model_decrease(bound, gradient[b], x[b], self.penalty[b])
                    for bound, b in zip(self.bounds, self.blocks, strict=True)
                ]
            )
        curvature = self._curvature()
        each = separable_decrease(x, gradient, curvature, self.penalty)
        return np.add.reduceat(each[self.order], self.starts)

    def _curvature(self):
        if self.rule == "gs":
            return np.full(self.problem.size, self.problem.lipschitz.max())
        if self.rule == "gsd":
            return self.problem.lipschitz
        curvature = np.empty(self.problem.size)
        curvature[self.order] = np.repeat(self.constants, [len(block) for block in self.blocks])
        return curvature


class VariableBlocks:
    """Chooses any `block_size` of the variables.

    Args:
        problem, penalty, rule, rng: see `FixedBlocks`; "cyclic" goes through a random order.
        block_size: k, at most the number of variables.
    """

    def __init__(self, problem, penalty, block_size, rule, rng):
        self.problem, self.penalty, self.rule, self.rng = problem, penalty, rule, rng
        self.block_size = min(block_size, problem.size)
        if rule == "gsq":
            self.bound = problem.bound(np.arange(problem.size))
            self.largest = largest_eigenvalue(self.bound)
        if rule == "cyclic":
            self.fixed = split(rng.permutation(problem.size), self.block_size)

    def choose(self, x, gradient, iteration):
        """The block to update, an int array in rising order."""
        if self.rule == "cyclic":
            return np.sort(self.fixed[iteration % len(self.fixed)])
        if self.rule in ("random", "lipschitz"):
            constants = self.problem.lipschitz
            p = constants / constants.sum() if self.rule == "lipschitz" else None
            return np.sort(self.rng.choice(self.problem.size, self.block_size, False, p))
        best = self._best(self.scores(x, gradient))
        return self._threshold(x, gradient, best) if self.rule == "gsq" else best

    def scores(self, x, gradient):
        """How much the bound of gs or gsd loses along each variable, [n]."""
        constants = self.problem.lipschitz
        curvature = np.full_like(constants, constants.max()) if self.rule == "gs" else constants
        return separable_decrease(x, gradient, curvature, self.penalty)

    def _best(self, scores):
        return np.sort(np.argpartition(-scores, self.block_size - 1)[: self.block_size])

    def _threshold(self, x, gradient, block):
        """Iterative hard thresholding: min of the bound over steps of at most k variables."""
        step = np.zeros_like(x)
        step[block] = -gradient[block] / np.maximum(self.problem.lipschitz[block], 1e-300)
        for _ in range(_THRESHOLDING_STEPS):
            slope = gradient + self.bound @ step
            target = self.penalty.prox(x + step - slope / self.largest, 1 / self.largest) - x
            block = self._best(np.abs(target))
            step = np.zeros_like(x)
            step[block] = target[block]
        return block


def separable_decrease(x, gradient, curvature, penalty):
    """max_d -(g_i d + c_i d^2 / 2 + h_i(x_i + d) - h_i(x_i)) for each i, [n], at least 0."""
    curvature = np.maximum(curvature, np.finfo(float).tiny)
    z = penalty.prox(x - gradient / curvature, 1 / curvature)
    moved = z - x
    # The same number without the cancellation that would leave noise close to the minimum.
    return 0.5 * curvature * moved**2 + penalty.gap(x, z, -(gradient + curvature * moved))


def block_lipschitz(problem, block):
    """L_b, the largest eigenvalue of the block's bound H_b."""
    return largest_eigenvalue(problem.bound(block))


def largest_eigenvalue(matrix):
    """Of a symmetric positive semidefinite array."""
    if len(matrix) <= 64:
        return max(float(np.linalg.eigvalsh(matrix)[-1]), np.finfo(float).tiny)
    operator = LinearOperator(matrix.shape, matvec=matrix.__matmul__, dtype=float)
    start = np.ones(len(matrix))
    return float(eigsh(operator, 1, which="LA", v0=start, return_eigenvectors=False)[0])


def _model_decrease(bound, gradient, x, penalty):
    z = minimize_model(bound, gradient, x, penalty)
    step = z - x
    curved = bound @ step
    return 0.5 * step @ curved + np.sum(penalty.gap(x, z, -(gradient + curved)))
