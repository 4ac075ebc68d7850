"""Training: the loop, its checkpoints and strategies, and the methods that own a `train_step`."""

from kzoo.training.adversarial import AdversarialTraining
from kzoo.training.checkpoint import CheckpointError, Checkpoints
from kzoo.training.distribution import GlobalBatches, make_strategy
from kzoo.training.explanation_guided import ExplanationGuided
from kzoo.training.generative_causal import GenerativeCausalExplainer
from kzoo.training.learning_rate_finder import LearningRates, find_learning_rate
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
    "GenerativeCausalExplainer",
    "GlobalBatches",
    "LearningRates",
    "Loop",
    "NonFiniteLossError",
    "PrototypeCaseTraining",
    "PrototypeTrainer",
    "PushPrototypes",
    "TrainingMethod",
    "find_learning_rate",
    "fit_in_stages",
    "make_strategy",
    "push_prototypes",
]
