"""Solvers that are no Keras optimizers: linear systems, convex problems, full-batch methods."""

from kzoo.solvers.active_set import identification_radius
from kzoo.solvers.block_coordinate_descent import BlockCoordinateDescent, DescentResult
from kzoo.solvers.deep_conjugate_direction import (
    DeepConjugateDirection,
    LinearSolution,
    ScaledResidualLoss,
)
from kzoo.solvers.forests import (
    coloring_partition,
    forest_partition,
    greedy_forest,
    solve_forest,
)
from kzoo.solvers.greedy_rules import sorted_blocks
from kzoo.solvers.large_step_logistic import (
    SeparationRun,
    batch_perceptron,
    logistic_gradient_descent,
    separation_bounds,
    separation_margin,
)
from kzoo.solvers.penalties import L1, Bounds
from kzoo.solvers.poisson import PoissonOperator
from kzoo.solvers.problems import (
    LeastSquares,
    LogisticRegression,
    Quadratic,
    SoftmaxRegression,
    label_propagation,
)
from kzoo.solvers.prospect import Prospect
from kzoo.solvers.ritz import ritz_right_hand_sides

__all__ = [
    "L1",
    "BlockCoordinateDescent",
    "Bounds",
    "DeepConjugateDirection",
    "DescentResult",
    "LeastSquares",
    "LinearSolution",
    "LogisticRegression",
    "PoissonOperator",
    "Prospect",
    "Quadratic",
    "ScaledResidualLoss",
    "SeparationRun",
    "SoftmaxRegression",
    "batch_perceptron",
    "coloring_partition",
    "forest_partition",
    "greedy_forest",
    "identification_radius",
    "label_propagation",
    "logistic_gradient_descent",
    "ritz_right_hand_sides",
    "separation_bounds",
    "separation_margin",
    "solve_forest",
    "sorted_blocks",
]
