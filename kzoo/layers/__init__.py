"""Layers. Each is used like any Keras layer."""

from kzoo.layers.arcface import ArcFaceHead, purify
from kzoo.layers.prototype_patches import PrototypePatchSimilarity
from kzoo.layers.tract import TrActConv2D, TrActDense, TrActPatchEmbed

__all__ = [
    "ArcFaceHead",
    "PrototypePatchSimilarity",
    "TrActConv2D",
    "TrActDense",
    "TrActPatchEmbed",
    "purify",
]
