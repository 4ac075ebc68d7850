"""Regularizers. Each drops into the `*_regularizer` argument that its docstring names."""

from kzoo.regularizers.attribution_priors import (
    AttributionGini,
    AttributionGraphLaplacian,
    AttributionTotalVariation,
)
from kzoo.regularizers.spectral_decoupling import SpectralDecoupling

__all__ = [
    "AttributionGini",
    "AttributionGraphLaplacian",
    "AttributionTotalVariation",
    "SpectralDecoupling",
]
