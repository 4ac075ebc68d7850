"""Explanations of a prediction: tensors in, tensors out, every method a possible signature."""

from kzoo.explain.activation_profiles import neuron_activation_profiles
from kzoo.explain.blur_integrated_gradients import BlurIntegratedGradients
from kzoo.explain.deep_lift import DeepLIFT
from kzoo.explain.drise import DRISE
from kzoo.explain.expected_gradients import BatchExpectedGradients, ExpectedGradients
from kzoo.explain.explainer import Explainer
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
from kzoo.explain.faithfulness.retraining import attribution_leakage, diff_roar, roar
from kzoo.explain.feature_ablation import FeatureAblation
from kzoo.explain.feature_elimination import RFEwNA
from kzoo.explain.frechet_shapley import FrechetShapley
from kzoo.explain.grad_cam import GradCAM, GuidedGradCAM
from kzoo.explain.grad_cam_plus_plus import GradCAMPlusPlus
from kzoo.explain.guided import Deconvnet, GuidedBackprop
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.integrated_jacobians import IntegratedJacobians
from kzoo.explain.kernel_shap import KernelSHAP
from kzoo.explain.layer_cam import LayerCAM
from kzoo.explain.lime import LIME
from kzoo.explain.lrp import LRP, DeepTaylor
from kzoo.explain.moreau_grad import MoreauGrad
from kzoo.explain.neuron_names import NeuronImportance, explain_in_words, name_neurons
from kzoo.explain.occlusion import Occlusion
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
from kzoo.explain.visualization.activation_maximization import activation_maximization, class_model
from kzoo.explain.visualization.maco import maco
from kzoo.explain.visualization.multifaceted import multifaceted_visualization

__all__ = [
    "DRISE",
    "LIME",
    "LRP",
    "RISE",
    "BatchExpectedGradients",
    "BlurIntegratedGradients",
    "Deconvnet",
    "DeepLIFT",
    "DeepTaylor",
    "ExpectedGradients",
    "Explainer",
    "FeatureAblation",
    "FrechetShapley",
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "ImageCharacteristicPerturbations",
    "InputXGradient",
    "IntegratedGradients",
    "IntegratedJacobians",
    "KernelSHAP",
    "LayerCAM",
    "MoreauGrad",
    "NeuronImportance",
    "Occlusion",
    "RFEwNA",
    "RegionMap",
    "Saliency",
    "SampledShapley",
    "ScoreCAM",
    "SmoothGrad",
    "activation_maximization",
    "attribution_leakage",
    "box_iou",
    "characteristic_importance",
    "class_model",
    "describe_prototype",
    "diff_roar",
    "equal_attribution_pairs",
    "explain_in_words",
    "explain_prototypes",
    "functional_precision",
    "impossibility_benchmark",
    "maco",
    "model_query_test",
    "multifaceted_visualization",
    "name_neurons",
    "neuron_activation_profiles",
    "prototype_redundancy",
    "roar",
    "saliency_cut",
    "sensitivity_specificity",
    "shapley_values",
    "top_k_precision",
    "uniform_score",
]
