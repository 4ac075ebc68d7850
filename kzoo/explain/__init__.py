"""Explanations of a prediction: tensors in, tensors out, every method a possible signature."""

from kzoo.explain.deep_lift import DeepLIFT
from kzoo.explain.drise import DRISE
from kzoo.explain.explainer import Explainer
from kzoo.explain.feature_ablation import FeatureAblation
from kzoo.explain.grad_cam import GradCAM, GuidedGradCAM
from kzoo.explain.grad_cam_plus_plus import GradCAMPlusPlus
from kzoo.explain.guided import Deconvnet, GuidedBackprop
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.kernel_shap import KernelSHAP
from kzoo.explain.layer_cam import LayerCAM
from kzoo.explain.lime import LIME
from kzoo.explain.lrp import LRP, DeepTaylor
from kzoo.explain.occlusion import Occlusion
from kzoo.explain.region_map import RegionMap
from kzoo.explain.rise import RISE
from kzoo.explain.saliency import Saliency
from kzoo.explain.sampled_shapley import SampledShapley
from kzoo.explain.score_cam import ScoreCAM
from kzoo.explain.smoothgrad import SmoothGrad

__all__ = [
    "DRISE",
    "LIME",
    "LRP",
    "RISE",
    "Deconvnet",
    "DeepLIFT",
    "DeepTaylor",
    "Explainer",
    "FeatureAblation",
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "Occlusion",
    "RegionMap",
    "Saliency",
    "SampledShapley",
    "ScoreCAM",
    "SmoothGrad",
]
