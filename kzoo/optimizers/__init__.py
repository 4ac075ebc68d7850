"""Optimizers and learning-rate schedules. Each drops into `model.compile(optimizer=...)`."""

from kzoo.optimizers import schedules
from kzoo.optimizers.ademamix import AdEMAMix
from kzoo.optimizers.amsgrad import AdamNC, AMSGrad
from kzoo.optimizers.cautious import CautiousAdamW, CautiousLion
from kzoo.optimizers.coordinate_clip import CoordinateClip
from kzoo.optimizers.diff_grad import DiffGrad
from kzoo.optimizers.gradient_noise import GradientNoise
from kzoo.optimizers.grams import Grams
from kzoo.optimizers.grassmann import GrassmannSGD
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers, layerwise_decay
from kzoo.optimizers.opt_amsgrad import OptAMSGrad
from kzoo.optimizers.optimizer import Optimizer, reduce_before_apply
from kzoo.optimizers.schedules import LinearDecay, RefinedSchedule, refine_from_gradient_norms
from kzoo.optimizers.schedules.inverse_sqrt_decay import InverseSqrtDecay

__all__ = [
    "AMSGrad",
    "AdEMAMix",
    "AdamNC",
    "CautiousAdamW",
    "CautiousLion",
    "CoordinateClip",
    "DiffGrad",
    "GradientNoise",
    "Grams",
    "GrassmannSGD",
    "InverseSqrtDecay",
    "LearningRateMultipliers",
    "LinearDecay",
    "OptAMSGrad",
    "Optimizer",
    "RefinedSchedule",
    "layerwise_decay",
    "reduce_before_apply",
    "refine_from_gradient_norms",
    "schedules",
]
