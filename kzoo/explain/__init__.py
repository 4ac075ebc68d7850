"""Explanations of a prediction: tensors in, tensors out, every method a possible signature."""

from kzoo.explain.drise import DRISE
from kzoo.explain.explainer import Explainer
from kzoo.explain.grad_cam import GradCAM, GuidedGradCAM
from kzoo.explain.grad_cam_plus_plus import GradCAMPlusPlus
from kzoo.explain.guided import Deconvnet, GuidedBackprop
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.layer_cam import LayerCAM
from kzoo.explain.occlusion import Occlusion
from kzoo.explain.rise import RISE
from kzoo.explain.saliency import Saliency
from kzoo.explain.score_cam import ScoreCAM
from kzoo.explain.smoothgrad import SmoothGrad

__all__ = [
    "DRISE",
    "RISE",
    "Deconvnet",
    "Explainer",
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "IntegratedGradients",
    "LayerCAM",
    "Occlusion",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
]
