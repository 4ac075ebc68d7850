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

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import find_layer, last_feature_map
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
class GradCAM(Explainer):
    """A coarse map of the regions that speak for the target class.

    One forward pass, and a backward pass only down to the chosen layer, so it costs hardly more
    than a prediction.

    Args:
        model: a Keras model, channels last; see `Explainer`, as is `score`.
        layer: name of the layer (or its index, or the layer) whose output [batch, height, width,
            channels], or [batch, steps, channels], is looked at. Defaults to the last feature map
            of a functional or Sequential model; a subclassed model must name it.
        counterfactual: whether to map the regions that speak against the class, with negated
            gradients. Defaults to False.
        relu: whether to keep only positive values. Defaults to True.
        upsample: whether to resize the map bilinearly to the input's height and width, else it has
            those of the layer. Defaults to True.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences),
    `score` and `target` [batch].

    Example:

    >>> result = GradCAM(model)(images, target=3)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Selvaraju et al. (2016), equations 1 and 2, arxiv.org/abs/1610.02391
    """

    differentiates_inputs = False

    def __init__(
        self, model, layer=None, counterfactual=False, relu=True, upsample=True, score=None
    ):
        super().__init__(model, score=score)
        self.layer = last_feature_map(model) if layer is None else find_layer(model, layer)
        self.counterfactual = bool(counterfactual)
        self.relu = bool(relu)
        self.upsample = bool(upsample)

    def attribute(self, values, target, inputs):
        activations, gradients, scored = self.activation_gradients(
            self.layer, values, target, inputs
        )
        rank = activations.shape.rank
        if rank not in (3, 4):
            raise ValueError(
                f"`layer` must have an output of shape [batch, height, width, channels] or [batch, "
                f"steps, channels]. Received: {self.layer.name!r}, whose output has the shape "
                f"{activations.shape}"
            )
        alpha = tf.reduce_mean(gradients, axis=range(1, rank - 1), keepdims=True)
        if self.counterfactual:
            alpha = -alpha
        cam = tf.reduce_sum(alpha * activations, axis=-1)
        cam = tf.nn.relu(cam) if self.relu else cam
        if self.upsample:
            cam = _resize(cam, _input_size(values, rank - 2))
        return {"attributions": cam, **scored}

    def get_config(self):
        return {
            "layer": self.layer.name,
            "counterfactual": self.counterfactual,
            "relu": self.relu,
            "upsample": self.upsample,
        }


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


def _input_size(values, positions):
    """Height and width, or steps, int32 [positions], of the one input that has them."""
    for rank in (positions + 2, positions + 1):
        found = [x for x in keras.tree.flatten(values) if x.shape.rank == rank]
        if len(found) == 1:
            return tf.shape(found[0])[1 : positions + 1]
    shapes = keras.tree.map_structure(lambda x: x.shape, values)
    raise ValueError(
        "The size to which the map is resized is that of the one input of its rank. Received "
        f"inputs of the shapes {shapes}. Pass `upsample=False`."
    )


def _resize(cam, size):
    """[batch, height, width] or [batch, steps] -> the same at `size`, bilinearly."""
    if cam.shape.rank == 2:
        return _resize(cam[..., tf.newaxis], tf.concat([size, [1]], 0))[..., 0]
    resized = tf.image.resize(cam[..., tf.newaxis], size)
    return tf.cast(resized[..., 0], cam.dtype)
