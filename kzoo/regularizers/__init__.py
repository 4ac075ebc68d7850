"""Regularizers. Each drops into the `*_regularizer` argument that its docstring names."""

from kzoo.regularizers.attribution_priors import (
    AttributionGini,
    AttributionGraphLaplacian,
    AttributionTotalVariation,
)
from kzoo.regularizers.functional import FunctionalOrthogonality, FunctionalSparsity
from kzoo.regularizers.manifold_lipschitz import (
    LaplacianPenalty,
    heat_kernel_graph,
    squared_local_gradients,
)
from kzoo.regularizers.orthogonal_conv import OrthogonalConv
from kzoo.regularizers.spectral_decoupling import SpectralDecoupling

__all__ = [
    "AttributionGini",
    "AttributionGraphLaplacian",
    "AttributionTotalVariation",
    "FunctionalOrthogonality",
    "FunctionalSparsity",
    "LaplacianPenalty",
    "OrthogonalConv",
    "SpectralDecoupling",
    "heat_kernel_graph",
    "squared_local_gradients",
]
