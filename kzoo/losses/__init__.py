"""Losses. Each drops into `model.compile(loss=...)`."""

from kzoo.losses.arcface import ArcFaceLoss
from kzoo.losses.prototype_patches import (
    PrototypeClusterLoss,
    PrototypeSeparationLoss,
    orthonormality_loss,
    support_closeness_loss,
    trivial_discrimination_loss,
)
from kzoo.losses.spectral_decoupling import ClassSpectralDecoupling

__all__ = [
    "ArcFaceLoss",
    "ClassSpectralDecoupling",
    "PrototypeClusterLoss",
    "PrototypeSeparationLoss",
    "orthonormality_loss",
    "support_closeness_loss",
    "trivial_discrimination_loss",
]
