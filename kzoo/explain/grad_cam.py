"""Grad-CAM: where the feature maps that speak for a class are active.

    alpha_k = 1/Z sum_ij dy / dA^k_ij        (Z positions)
    L = ReLU(sum_k alpha_k A^k)
    counterfactual: the same with -dy / dA^k_ij
    Guided Grad-CAM: guided backpropagation times L at the input's size

For a network that ends in global average pooling and a dense layer with weights w, alpha = w / Z,
and L is CAM.

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", Selvaraju,
Cogswell, Das, Vedantam, Parikh, Batra, 2016, arXiv 1610.02391; equations 1 and 2, and the
sections on Guided Grad-CAM and on counterfactual explanations.

Deviations: none.
"""

import keras
import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap
from kzoo.explain.guided import GuidedBackprop
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    authors=(
        "Ramprasaath R. Selvaraju", "Michael Cogswell", "Abhishek Das", "Ramakrishna Vedantam",
        "Devi Parikh", "Dhruv Batra",
    ),
    year=2016,
    arxiv="1610.02391",
)  # fmt: skip


@component(PAPER, example=Example())
class GradCAM(ActivationMap):
    """A coarse map of the regions that speak for the target class.

    One forward pass, and a backward pass only down to the chosen layer, so it costs hardly more
    than a prediction.

    Args:
        model: see `ActivationMap`, as are `layer`, `counterfactual`, `relu`, `upsample`, `score`.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences),
    `score` and `target` [batch].

    Example:

    >>> result = GradCAM(model)(images, target=3)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Selvaraju et al. (2016), equations 1 and 2, arxiv.org/abs/1610.02391
    """

    def combine(self, activations, gradients):
        alpha = tf.reduce_mean(gradients, axis=range(1, gradients.shape.rank - 1), keepdims=True)
        return tf.reduce_sum(alpha * activations, axis=-1)


@component(PAPER, example=Example())
class GuidedGradCAM(GradCAM):
    """Guided backpropagation within the region that Grad-CAM finds: sharp and of one class.

    Args:
        model: a model with one float input; see `GradCAM`, as are `layer`, `counterfactual` and
            `score`. Its ReLUs must be reachable, see `GuidedBackprop`.

    Returns (when called): `attributions` of the input's shape, signed; `score`, `target` [batch].

    Reference:
        Selvaraju et al. (2016), section on Guided Grad-CAM, arxiv.org/abs/1610.02391
    """

    differentiates_inputs = True

    def __init__(self, model, layer=None, counterfactual=False, score=None):
        super().__init__(model, layer=layer, counterfactual=counterfactual, score=score)
        self.guided = GuidedBackprop(model, score=score)

    def attribute(self, values, target, inputs):
        if keras.tree.is_nested(values):
            raise ValueError(
                "Guided Grad-CAM explains a model with one input. Received a structure of "
                f"{len(keras.tree.flatten(values))}."
            )
        result = super().attribute(values, target, inputs)
        guided = self.guided.attribute(values, result["target"], inputs)["attributions"]
        cam = result["attributions"]
        if guided.shape.rank > cam.shape.rank:
            cam = cam[..., tf.newaxis]
        return {**result, "attributions": tf.cast(cam, guided.dtype) * guided}

    def get_config(self):
        return {"layer": self.layer.name, "counterfactual": self.counterfactual}
