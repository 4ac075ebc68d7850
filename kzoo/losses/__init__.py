"""Losses. Each drops into `model.compile(loss=...)`."""

from kzoo.losses.arcface import ArcFaceLoss
from kzoo.losses.circle import CircleLoss, UnifiedPairLoss
from kzoo.losses.guidance import EnergyLoss, L1Loss, PPCELoss, RRRLoss
from kzoo.losses.hyperbolic import HyperbolicPairwiseConfusion
from kzoo.losses.prototype_interpretability import prototype_interpretability_terms
from kzoo.losses.prototype_patches import (
    PrototypeClusterLoss,
    PrototypeSeparationLoss,
    orthonormality_loss,
    support_closeness_loss,
    trivial_discrimination_loss,
)
from kzoo.losses.spectral_decoupling import ClassSpectralDecoupling
from kzoo.losses.spectral_risk import (
    SpectralRisk,
    risk_spectrum,
    spectral_risk_value,
    spectral_weights,
)
from kzoo.losses.sup_con import SupervisedContrastiveLoss

__all__ = [
    "ArcFaceLoss",
    "CircleLoss",
    "ClassSpectralDecoupling",
    "EnergyLoss",
    "HyperbolicPairwiseConfusion",
    "L1Loss",
    "PPCELoss",
    "PrototypeClusterLoss",
    "PrototypeSeparationLoss",
    "RRRLoss",
    "SpectralRisk",
    "SupervisedContrastiveLoss",
    "UnifiedPairLoss",
    "orthonormality_loss",
    "prototype_interpretability_terms",
    "risk_spectrum",
    "spectral_risk_value",
    "spectral_weights",
    "support_closeness_loss",
    "trivial_discrimination_loss",
]
