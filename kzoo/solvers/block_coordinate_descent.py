"""Block coordinate descent: which blocks there are, which is chosen, how it is updated.

    x_b <- x_b + d_b,   minimizing f(x) + sum_i h_i(x_i)

    gradient   d = -g_b / L_b                          (2.1 of the paper)
    matrix     d = -H_b^-1 g_b, H_b >= hessian of f everywhere
    newton     d = -alpha hessian_bb(x)^-1 g_b, alpha by backtracking
    message_passing   as newton, for a block whose Hessian is a forest, in linear time

With a penalty h, d minimizes the same quadratic model plus h: a projected or proximal step for
`gradient`, a projected or proximal Newton step for the others (BCD2: with blocks of more variables
than the solution has nonzeros it becomes Newton's method on the support, which ends after finitely
many steps where f is quadratic).

"Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing,
Active-Set Complexity, and Superlinear Convergence", Nutini, Laradji, Schmidt, 2017, arXiv
1712.08859.

Deviations: the authors' code updates bound-constrained blocks by a two-metric projection; here the
model of the block is minimized exactly under the bounds. Their rules GSL and GSD sum absolute
values over a block where the paper's have squares; the squares are followed.
Open choices: L_b is the largest eigenvalue of H_b; Armijo's constant is 1e-4 and steps are halved.
The run stops when no coordinate would move by more than `tolerance` in a proximal step of 1.
"""

from dataclasses import dataclass

import numpy as np

from kzoo.papers import component
from kzoo.solvers.forests import PAPER, greedy_forest, solve_forest
from kzoo.solvers.greedy_rules import (
    RULES,
    FixedBlocks,
    VariableBlocks,
    block_lipschitz,
    sorted_blocks,
)
from kzoo.solvers.penalties import NoPenalty, minimize_model, violation

UPDATES = ("gradient", "matrix", "newton", "message_passing")
_ARMIJO, _MAX_HALVINGS = 1e-4, 60


@dataclass(frozen=True)
class DescentResult:
    """How a run of block coordinate descent went.

    Attributes:
        x: [n], the last iterate.
        values: [iterations + 1], f + h at every iterate.
        violations: [iterations + 1], the optimality violation at every iterate.
        converged: whether the last violation is within the tolerance.
        identified_at: the first iteration from which on the active set (variables at 0 with `L1`,
            at a bound with `Bounds`) is that of the last iterate.
        active: bool [n], that active set.
    """

    x: np.ndarray
    values: np.ndarray
    violations: np.ndarray
    converged: bool
    identified_at: int
    active: np.ndarray

    @property
    def iterations(self):
        return len(self.values) - 1


@component(PAPER)
class BlockCoordinateDescent:
    """Minimizes f + h by updating a block of variables at a time, on the CPU.

    Args:
        rule: which block is updated: "gs", "gsl", "gsd", "gsq" (greedy, see
            `kzoo.solvers.greedy_rules`), "random", "cyclic" or "lipschitz". Defaults to "gsd".
        update: "gradient", "matrix", "newton" or "message_passing". Defaults to "newton".
        blocks: "variable" for any `block_size` variables; "sorted" for a fixed partition into
            blocks of like Lipschitz constants; "forest" for as many variables as make a forest,
            taken in the order of the rule; or a partition, a list of int arrays. Defaults to
            "variable".
        block_size: variables in a block, for "variable" and "sorted". Defaults to 20.
        penalty: `L1(...)`, `Bounds(...)` or None.
        tolerance: of the optimality violation, at least 0. Defaults to 1e-8.
        max_iterations: Defaults to 1000.
        seed: of the random rules.

    Example:

    >>> problem = LeastSquares(features, targets)
    >>> solver = BlockCoordinateDescent(penalty=L1(0.1), tolerance=1e-12)
    >>> result = solver.minimize(problem)
    >>> np.flatnonzero(result.x), result.identified_at

    Reference:
        Nutini et al. (2017), arxiv.org/abs/1712.08859
    """

    def __init__(
        self,
        rule="gsd",
        update="newton",
        blocks="variable",
        block_size=20,
        penalty=None,
        tolerance=1e-8,
        max_iterations=1000,
        seed=0,
    ):
        _check_choice("rule", rule, RULES)
        _check_choice("update", update, UPDATES)
        if isinstance(blocks, str):
            _check_choice("blocks", blocks, ("variable", "sorted", "forest"))
        if not isinstance(block_size, int) or block_size < 1:
            raise ValueError(f"`block_size` must be a positive integer. Received: {block_size!r}")
        if not tolerance >= 0:
            raise ValueError(f"`tolerance` must be at least 0. Received: {tolerance!r}")
        if update == "message_passing" and penalty is not None:
            raise ValueError('`update="message_passing"` takes no `penalty`.')
        if isinstance(blocks, str) and blocks == "forest" and rule not in ("gs", "gsd", "random"):
            raise ValueError(
                f'`blocks="forest"` needs the `rule` "gs", "gsd" or "random". Received: {rule!r}'
            )
        self.rule, self.update, self.blocks, self.block_size = rule, update, blocks, block_size
        self.penalty = NoPenalty() if penalty is None else penalty
        self.tolerance, self.max_iterations, self.seed = tolerance, max_iterations, seed

    def minimize(self, problem, start=None):
        """Runs until the tolerance or the last iteration.

        Args:
            problem: a problem of `kzoo.solvers.problems`, or an object with the same members.
            start: [n]. Defaults to the point nearest to 0 within the bounds.

        Returns:
            `DescentResult`
        """
        start = np.zeros(problem.size) if start is None else np.asarray(start, float)
        if start.shape != (problem.size,):
            raise ValueError(f"`start` must be [{problem.size}]. Received: {list(start.shape)}")
        x = np.array(self.penalty.prox(start, 0.0))
        selector = self._selector(problem)
        constants = {}
        values, violations, identified_at = [], [], 0
        active = ~self.penalty.free(x)
        for iteration in range(self.max_iterations + 1):
            gradient = problem.gradient(x)
            values.append(self._value(problem, x))
            violations.append(violation(x, gradient, self.penalty))
            now = ~self.penalty.free(x)
            if (now != active).any():
                active, identified_at = now, iteration
            if violations[-1] <= self.tolerance or iteration == self.max_iterations:
                break
            block = selector.choose(x, gradient, iteration)
            x[block] = self._updated(problem, x, gradient[block], block, values[-1], constants)
        converged = violations[-1] <= self.tolerance
        return DescentResult(
            x, np.array(values), np.array(violations), converged, identified_at, active
        )

    def _selector(self, problem):
        rng = np.random.default_rng(self.seed)
        if not isinstance(self.blocks, str):
            return FixedBlocks(problem, self.penalty, self.blocks, self.rule, rng)
        if self.blocks == "sorted":
            blocks = sorted_blocks(problem.lipschitz, self.block_size)
            return FixedBlocks(problem, self.penalty, blocks, self.rule, rng)
        if self.blocks == "forest":
            return _ForestBlocks(problem, self.rule, rng)
        return VariableBlocks(problem, self.penalty, self.block_size, self.rule, rng)

    def _value(self, problem, x):
        return problem.value(x) + np.sum(self.penalty.each(x))

    def _updated(self, problem, x, gradient, block, value, constants):
        """The new values of the variables `block`."""
        penalty = self.penalty[block]
        if self.update == "gradient":
            key = block.tobytes()
            if key not in constants:
                constants[key] = block_lipschitz(problem, block)
            return penalty.prox(x[block] - gradient / constants[key], 1 / constants[key])
        if self.update == "matrix":
            return minimize_model(problem.bound(block), gradient, x[block], penalty)
        if self.update == "message_passing":
            target = x[block] + solve_forest(problem.graph_hessian(x, block), -gradient)
        else:
            target = minimize_model(problem.hessian(x, block), gradient, x[block], penalty)
        return self._line_search(problem, x, gradient, block, target, value)

    def _line_search(self, problem, x, gradient, block, target, value):
        """Halves the step to `target` until f + h falls by Armijo's share of the model's slope."""
        penalty, step = self.penalty[block], target - x[block]
        slope = gradient @ step + np.sum(penalty.each(target) - penalty.each(x[block]))
        rounding = 10 * np.finfo(float).eps * max(abs(value), 1.0)
        trial = x.copy()
        for halvings in range(_MAX_HALVINGS):
            alpha = 0.5**halvings
            trial[block] = x[block] + alpha * step if halvings else target
            if self._value(problem, trial) <= value + _ARMIJO * alpha * slope + rounding:
                return trial[block]
        return x[block]


class _ForestBlocks:
    """Chooses as many variables as make a forest of the problem's graph, best first."""

    def __init__(self, problem, rule, rng):
        if not hasattr(problem, "matrix"):
            raise ValueError(
                '`blocks="forest"` needs a problem with a `matrix`, such as `Quadratic`. '
                f"Received: {type(problem).__name__}"
            )
        self.problem, self.rule, self.rng = problem, rule, rng

    def choose(self, x, gradient, iteration):
        if self.rule == "random":
            order = self.rng.permutation(self.problem.size)
        else:
            curvature = self.problem.lipschitz if self.rule == "gsd" else 1.0
            order = np.argsort(-(gradient**2) / curvature, kind="stable")
        return greedy_forest(self.problem.matrix, order)


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}")
