"""Layers. Each is used like any Keras layer."""

from kzoo.layers.arcface import ArcFaceHead, purify
from kzoo.layers.equiangular_head import EquiangularBasisHead, equiangular_vectors
from kzoo.layers.prototype_distance import PrototypeDistance
from kzoo.layers.prototype_patches import PrototypePatchSimilarity
from kzoo.layers.scaled_dense import ScaledDense
from kzoo.layers.tract import TrActConv2D, TrActDense, TrActPatchEmbed
from kzoo.layers.tversky import TverskyFeatureBank, TverskyProjection, TverskySimilarity
from kzoo.layers.tversky_input_domain import TverskyInputDomainProjection

__all__ = [
    "ArcFaceHead",
    "EquiangularBasisHead",
    "PrototypeDistance",
    "PrototypePatchSimilarity",
    "ScaledDense",
    "TrActConv2D",
    "TrActDense",
    "TrActPatchEmbed",
    "TverskyFeatureBank",
    "TverskyInputDomainProjection",
    "TverskyProjection",
    "TverskySimilarity",
    "equiangular_vectors",
    "purify",
]
