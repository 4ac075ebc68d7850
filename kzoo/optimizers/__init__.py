"""Optimizers and learning-rate schedules. Each drops into `model.compile(optimizer=...)`."""

from kzoo.optimizers import schedules
from kzoo.optimizers.ademamix import AdEMAMix
from kzoo.optimizers.cautious import CautiousAdamW, CautiousLion
from kzoo.optimizers.grams import Grams
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers, layerwise_decay
from kzoo.optimizers.optimizer import Optimizer, reduce_before_apply
from kzoo.optimizers.schedules import LinearDecay, RefinedSchedule, refine_from_gradient_norms

__all__ = [
    "AdEMAMix",
    "CautiousAdamW",
    "CautiousLion",
    "Grams",
    "LearningRateMultipliers",
    "LinearDecay",
    "Optimizer",
    "RefinedSchedule",
    "layerwise_decay",
    "reduce_before_apply",
    "refine_from_gradient_norms",
    "schedules",
]
