"""Losses. Each drops into `model.compile(loss=...)`."""

from kzoo.losses.arcface import ArcFaceLoss
from kzoo.losses.guidance import EnergyLoss, L1Loss, PPCELoss, RRRLoss
from kzoo.losses.prototype_interpretability import prototype_interpretability_terms
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
    "EnergyLoss",
    "L1Loss",
    "PPCELoss",
    "PrototypeClusterLoss",
    "PrototypeSeparationLoss",
    "RRRLoss",
    "orthonormality_loss",
    "prototype_interpretability_terms",
    "support_closeness_loss",
    "trivial_discrimination_loss",
]
