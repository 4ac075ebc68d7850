"""Training: the loop, its checkpoints and strategies, and the methods that own a `train_step`."""

from kzoo.training.adversarial import AdversarialTraining
from kzoo.training.checkpoint import CheckpointError, Checkpoints
from kzoo.training.distribution import GlobalBatches, make_strategy
from kzoo.training.explanation_guided import ExplanationGuided
from kzoo.training.loop import Loop, NonFiniteLossError
from kzoo.training.method import TrainingMethod
from kzoo.training.protopnet import PrototypeTrainer, fit_in_stages
from kzoo.training.prototype_case import PrototypeCaseTraining
from kzoo.training.prototype_push import PushPrototypes, push_prototypes
from kzoo.training.sam import SAM

__all__ = [
    "SAM",
    "AdversarialTraining",
    "CheckpointError",
    "Checkpoints",
    "ExplanationGuided",
    "GlobalBatches",
    "Loop",
    "NonFiniteLossError",
    "PrototypeCaseTraining",
    "PrototypeTrainer",
    "PushPrototypes",
    "TrainingMethod",
    "fit_in_stages",
    "make_strategy",
    "push_prototypes",
]
