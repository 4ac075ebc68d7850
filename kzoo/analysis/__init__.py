"""Instruments that look at a trained model."""

from kzoo.analysis import plots
from kzoo.analysis.batch_norm_inversion import Inversion, batch_norm_inversion
from kzoo.analysis.batch_norm_statistics import batch_norm_statistics_loss
from kzoo.analysis.circuits import AxisError, Circuit, Complexity, circuit_of
from kzoo.analysis.conv_spectrum import (
    conv_matrix,
    conv_singular_values,
    isometry_error,
    orthogonal_conv_exists,
)
from kzoo.analysis.coordinate_check import CoordinateCheck, coordinate_check
from kzoo.analysis.derivative_sensitivity import input_derivative_sensitivity, spearman_report
from kzoo.analysis.directional_sharpness import compare_update_directions, directional_sharpness
from kzoo.analysis.directions import Trajectory, filter_normalized_direction, pca_trajectory
from kzoo.analysis.discretization_convergence import discretization_convergence, plot_convergence
from kzoo.analysis.first_order_flatness import (
    first_order_flatness,
    hessian_trace,
    interpolation_trace,
)
from kzoo.analysis.isometry_gap import isometry_gap
from kzoo.analysis.label_locus import label_locus, next_class_selection
from kzoo.analysis.landscape import Surface, interpolate, loss_surface
from kzoo.analysis.learning_rate_sweep import LearningRateSweep, learning_rate_sweep
from kzoo.analysis.multiply_adds import multiply_adds
from kzoo.analysis.neural_collapse import (
    NeuralCollapse,
    neural_collapse_metrics,
    orthogonal_frame_distance,
)
from kzoo.analysis.online_regret import adam_counterexample, online_regret
from kzoo.analysis.sharpness import (
    HessianOperator,
    SharpnessTrajectory,
    hessian_top_eigenvalues,
    ntk_eigenvalues,
)
from kzoo.analysis.unconstrained_features import (
    UnconstrainedFeatures,
    minimize_unconstrained_features,
    orthogonal_frame_loss,
)
from kzoo.analysis.width_plots import (
    plot_coordinate_check,
    plot_learning_rate_sweep,
    plot_sharpness,
)

__all__ = [
    "AxisError",
    "Circuit",
    "Complexity",
    "CoordinateCheck",
    "HessianOperator",
    "Inversion",
    "LearningRateSweep",
    "NeuralCollapse",
    "SharpnessTrajectory",
    "Surface",
    "Trajectory",
    "UnconstrainedFeatures",
    "adam_counterexample",
    "batch_norm_inversion",
    "batch_norm_statistics_loss",
    "circuit_of",
    "compare_update_directions",
    "conv_matrix",
    "conv_singular_values",
    "coordinate_check",
    "directional_sharpness",
    "discretization_convergence",
    "filter_normalized_direction",
    "first_order_flatness",
    "hessian_top_eigenvalues",
    "hessian_trace",
    "input_derivative_sensitivity",
    "interpolate",
    "interpolation_trace",
    "isometry_error",
    "isometry_gap",
    "label_locus",
    "learning_rate_sweep",
    "loss_surface",
    "minimize_unconstrained_features",
    "multiply_adds",
    "neural_collapse_metrics",
    "next_class_selection",
    "ntk_eigenvalues",
    "online_regret",
    "orthogonal_conv_exists",
    "orthogonal_frame_distance",
    "orthogonal_frame_loss",
    "pca_trajectory",
    "plot_convergence",
    "plot_coordinate_check",
    "plot_learning_rate_sweep",
    "plot_sharpness",
    "plots",
    "spearman_report",
]
