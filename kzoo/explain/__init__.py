"""Explanations of a prediction: tensors in, tensors out, every method a possible signature."""

from kzoo.explain.activation_profiles import neuron_activation_profiles
from kzoo.explain.attention_rollout import (
    AttentionRollout,
    RawAttention,
    rollout,
)
from kzoo.explain.blur_integrated_gradients import BlurIntegratedGradients
from kzoo.explain.combined_layers import CombinedLayers
from kzoo.explain.decision_rules import extract_rules
from kzoo.explain.deep_lift import DeepLIFT
from kzoo.explain.drise import DRISE
from kzoo.explain.expected_gradients import BatchExpectedGradients, ExpectedGradients
from kzoo.explain.explainer import Explainer
from kzoo.explain.faithfulness.class_sensitivity import class_sensitivity
from kzoo.explain.faithfulness.compare import compare
from kzoo.explain.faithfulness.comparison import Comparison, Measure
from kzoo.explain.faithfulness.curves import (
    deletion,
    insertion,
    perturbation_accuracy,
    perturbation_curve,
    pixel_perturbation,
)
from kzoo.explain.faithfulness.ground_truth import (
    box_iou,
    functional_precision,
    top_k_precision,
    uniform_score,
)
from kzoo.explain.faithfulness.impossibility import (
    equal_attribution_pairs,
    impossibility_benchmark,
    model_query_test,
    sensitivity_specificity,
)
from kzoo.explain.faithfulness.infidelity import infidelity, max_sensitivity
from kzoo.explain.faithfulness.localisation import (
    attribution_localisation,
    energy_pointing_game,
    pointing_game,
)
from kzoo.explain.faithfulness.randomization import model_randomization
from kzoo.explain.faithfulness.retraining import attribution_leakage, diff_roar, roar
from kzoo.explain.faithfulness.sensitivity_n import sensitivity_n
from kzoo.explain.feature_ablation import FeatureAblation
from kzoo.explain.feature_elimination import RFEwNA
from kzoo.explain.frechet_shapley import FrechetShapley
from kzoo.explain.full_grad import FullGrad
from kzoo.explain.full_gradients import full_gradient_decomposition
from kzoo.explain.grad_cam import GradCAM, GuidedGradCAM
from kzoo.explain.grad_cam_plus_plus import GradCAMPlusPlus
from kzoo.explain.guided import Deconvnet, GuidedBackprop
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.integrated_jacobians import IntegratedJacobians
from kzoo.explain.kernel_shap import KernelSHAP
from kzoo.explain.latent_sweep import latent_sweep, latent_sweep_sheet
from kzoo.explain.layer_cam import LayerCAM
from kzoo.explain.lime import LIME
from kzoo.explain.lrp import LRP, DeepTaylor
from kzoo.explain.meta_saliency import MetaSaliency
from kzoo.explain.moreau_grad import MoreauGrad
from kzoo.explain.nearest_prototypes import (
    NearestPrototypes,
    nearest_prototypes_sheet,
    prototype_sheet,
)
from kzoo.explain.neuron_names import NeuronImportance, explain_in_words, name_neurons
from kzoo.explain.norm_grad import LinearApproximation, NormGrad, extract_and_aggregate
from kzoo.explain.observable_propagation import (
    AttentionHead,
    Observable,
    ObservablePropagation,
    coupling_coefficient,
    feature_vector,
)
from kzoo.explain.occlusion import Occlusion
from kzoo.explain.permutation_importance import permutation_importance
from kzoo.explain.prototype_characteristics import (
    ImageCharacteristicPerturbations,
    characteristic_importance,
    describe_prototype,
    explain_prototypes,
    prototype_redundancy,
)
from kzoo.explain.region_map import RegionMap
from kzoo.explain.rise import RISE
from kzoo.explain.saliency import Saliency
from kzoo.explain.saliency_cut import saliency_cut
from kzoo.explain.sampled_shapley import SampledShapley
from kzoo.explain.score_cam import ScoreCAM
from kzoo.explain.shapley_values import shapley_values
from kzoo.explain.smoothgrad import SmoothGrad
from kzoo.explain.surrogate import SurrogatePipeline, surrogate_fidelity
from kzoo.explain.transformer_relevance import GradientAttentionRollout, TransformerRelevance
from kzoo.explain.tversky_prototypes import TverskyFeatures, tversky_parameter_sheet, tversky_sheet
from kzoo.explain.visualization.activation_maximization import activation_maximization, class_model
from kzoo.explain.visualization.dendromap import DendroMap, underperforming_subgroups
from kzoo.explain.visualization.maco import maco
from kzoo.explain.visualization.multifaceted import multifaceted_visualization
from kzoo.explain.visualization.ppgn import ppgn

__all__ = [
    "DRISE",
    "LIME",
    "LRP",
    "RISE",
    "AttentionHead",
    "AttentionRollout",
    "BatchExpectedGradients",
    "BlurIntegratedGradients",
    "CombinedLayers",
    "Comparison",
    "Deconvnet",
    "DeepLIFT",
    "DeepTaylor",
    "DendroMap",
    "ExpectedGradients",
    "Explainer",
    "FeatureAblation",
    "FrechetShapley",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientAttentionRollout",
    "GuidedBackprop",
    "GuidedGradCAM",
    "ImageCharacteristicPerturbations",
    "InputXGradient",
    "IntegratedGradients",
    "IntegratedJacobians",
    "KernelSHAP",
    "LayerCAM",
    "LinearApproximation",
    "Measure",
    "MetaSaliency",
    "MoreauGrad",
    "NearestPrototypes",
    "NeuronImportance",
    "NormGrad",
    "Observable",
    "ObservablePropagation",
    "Occlusion",
    "RFEwNA",
    "RawAttention",
    "RegionMap",
    "Saliency",
    "SampledShapley",
    "ScoreCAM",
    "SmoothGrad",
    "SurrogatePipeline",
    "TransformerRelevance",
    "TverskyFeatures",
    "activation_maximization",
    "attribution_leakage",
    "attribution_localisation",
    "box_iou",
    "characteristic_importance",
    "class_model",
    "class_sensitivity",
    "compare",
    "coupling_coefficient",
    "deletion",
    "describe_prototype",
    "diff_roar",
    "energy_pointing_game",
    "equal_attribution_pairs",
    "explain_in_words",
    "explain_prototypes",
    "extract_and_aggregate",
    "extract_rules",
    "feature_vector",
    "full_gradient_decomposition",
    "functional_precision",
    "impossibility_benchmark",
    "infidelity",
    "insertion",
    "latent_sweep",
    "latent_sweep_sheet",
    "maco",
    "max_sensitivity",
    "model_query_test",
    "model_randomization",
    "multifaceted_visualization",
    "name_neurons",
    "nearest_prototypes_sheet",
    "neuron_activation_profiles",
    "permutation_importance",
    "perturbation_accuracy",
    "perturbation_curve",
    "pixel_perturbation",
    "pointing_game",
    "ppgn",
    "prototype_redundancy",
    "prototype_sheet",
    "roar",
    "rollout",
    "saliency_cut",
    "sensitivity_n",
    "sensitivity_specificity",
    "shapley_values",
    "surrogate_fidelity",
    "top_k_precision",
    "tversky_parameter_sheet",
    "tversky_sheet",
    "underperforming_subgroups",
    "uniform_score",
]
