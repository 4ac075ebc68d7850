"""Feature visualisation: images made so that a part of a network responds to them."""

from kzoo.explain.visualization.activation_maximization import activation_maximization, class_model
from kzoo.explain.visualization.fourier import NaturalSpectrum, fourier_image, natural_spectrum
from kzoo.explain.visualization.maco import maco
from kzoo.explain.visualization.multifaceted import (
    Facets,
    find_facets,
    multifaceted_visualization,
)
from kzoo.explain.visualization.objectives import (
    Objective,
    channel,
    class_logit,
    direction,
    neuron,
)
from kzoo.explain.visualization.ppgn import class_log_probability, ppgn, ppgn_sheet
from kzoo.explain.visualization.sheets import visualization_sheet
from kzoo.explain.visualization.transforms import center_biased_mask

__all__ = [
    "Facets",
    "NaturalSpectrum",
    "Objective",
    "activation_maximization",
    "center_biased_mask",
    "channel",
    "class_log_probability",
    "class_logit",
    "class_model",
    "direction",
    "find_facets",
    "fourier_image",
    "maco",
    "multifaceted_visualization",
    "natural_spectrum",
    "neuron",
    "ppgn",
    "ppgn_sheet",
    "visualization_sheet",
]
