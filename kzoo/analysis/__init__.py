"""Instruments that look at a trained model."""

from kzoo.analysis import plots
from kzoo.analysis.derivative_sensitivity import input_derivative_sensitivity, spearman_report
from kzoo.analysis.directions import Trajectory, filter_normalized_direction, pca_trajectory
from kzoo.analysis.landscape import Surface, interpolate, loss_surface

__all__ = [
    "Surface",
    "Trajectory",
    "filter_normalized_direction",
    "input_derivative_sensitivity",
    "interpolate",
    "loss_surface",
    "pca_trajectory",
    "plots",
    "spearman_report",
]
