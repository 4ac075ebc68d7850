"""Training: the loop, its checkpoints and strategies, and the methods that own a `train_step`."""

from kzoo.training.adversarial import AdversarialTraining
from kzoo.training.checkpoint import CheckpointError, Checkpoints
from kzoo.training.distribution import GlobalBatches, make_strategy
from kzoo.training.explanation_guided import ExplanationGuided
from kzoo.training.feature_inverter_gan import FeatureInverterGAN
from kzoo.training.gam import GAM, AcceleratedGAM
from kzoo.training.generative_causal import GenerativeCausalExplainer
from kzoo.training.gradient_regularization import GradientRegularization
from kzoo.training.hyp_one_class import HypOneClass, hyp_one_class_model
from kzoo.training.hypergradient import HypergradientTrainer, decay_variables, l2_decay
from kzoo.training.jacobian_descent import InstanceWiseRiskMinimization, JacobianDescent
from kzoo.training.learning_rate_finder import LearningRates, find_learning_rate
from kzoo.training.loop import Loop, NonFiniteLossError
from kzoo.training.method import TrainingMethod
from kzoo.training.oasis import OASIS
from kzoo.training.primal_dual import PrimalDualTraining
from kzoo.training.protopnet import PrototypeTrainer, fit_in_stages
from kzoo.training.prototype_case import PrototypeCaseTraining
from kzoo.training.prototype_push import PushPrototypes, push_prototypes
from kzoo.training.sam import SAM

__all__ = [
    "GAM",
    "OASIS",
    "SAM",
    "AcceleratedGAM",
    "AdversarialTraining",
    "CheckpointError",
    "Checkpoints",
    "ExplanationGuided",
    "FeatureInverterGAN",
    "GenerativeCausalExplainer",
    "GlobalBatches",
    "GradientRegularization",
    "HypOneClass",
    "HypergradientTrainer",
    "InstanceWiseRiskMinimization",
    "JacobianDescent",
    "LearningRates",
    "Loop",
    "NonFiniteLossError",
    "PrimalDualTraining",
    "PrototypeCaseTraining",
    "PrototypeTrainer",
    "PushPrototypes",
    "TrainingMethod",
    "decay_variables",
    "find_learning_rate",
    "fit_in_stages",
    "hyp_one_class_model",
    "l2_decay",
    "make_strategy",
    "push_prototypes",
]
