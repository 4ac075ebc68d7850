"""When block coordinate descent has found which variables stay at 0 or at a bound.

    delta = min over active i of the slack of the optimality conditions    (nondegeneracy)
    ||x - x*|| <= delta / (2 L)  =>  x - g / L goes to the active set of x*

"Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing,
Active-Set Complexity, and Superlinear Convergence", Nutini, Laradji, Schmidt, 2017, arXiv
1712.08859; section 5.
"""

import numpy as np

from kzoo.papers import component
from kzoo.solvers.forests import PAPER
from kzoo.solvers.greedy_rules import largest_eigenvalue


@component(PAPER)
def identification_radius(problem, penalty, solution):
    """How near to the solution a proximal-gradient step finds the whole active set.

    delta / (2 L): delta is the nondegeneracy of the solution, the least slack of the optimality
    conditions of the active variables, and L the Lipschitz constant of the gradient. From a point
    within this distance the step x <- prox(x - g / L) puts every active variable on its bound, or
    to 0. With a linear rate rho of ||x_k - x*|| the active set is found within
    log(||x_0 - x*|| / radius) / log(1 / rho) steps, the active-set complexity.

    Args:
        problem, penalty: as in `BlockCoordinateDescent`.
        solution: [n], the minimum of f + h.

    Returns:
        float; 0 for a degenerate solution, infinite where nothing is active.

    Reference:
        Nutini et al. (2017), section 5, arxiv.org/abs/1712.08859
    """
    solution = np.asarray(solution, float)
    slack = np.min(penalty.slack(solution, problem.gradient(solution)), initial=np.inf)
    bound = problem.bound(np.arange(problem.size))
    return float(max(slack, 0.0) / (2 * largest_eigenvalue(bound)))
