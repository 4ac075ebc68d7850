"""What maps of the Grad-CAM family share: the layer looked at, and the way back to the input."""

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import find_layer, last_feature_map


class ActivationMap(Explainer):
    """Base of the maps that are made of a layer's output and the gradients there.

    A subclass implements `combine`.

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
    """

    differentiates_inputs = False

    def __init__(
        self,
        model,
        layer=None,
        counterfactual=False,
        relu=True,
        upsample=True,
        score=None,
        rows="auto",
    ):
        super().__init__(model, score=score, rows=rows)
        self.layer = last_feature_map(model) if layer is None else find_layer(model, layer)
        self.counterfactual = bool(counterfactual)
        self.relu = bool(relu)
        self.upsample = bool(upsample)

    def attribute(self, values, target, inputs):
        activations, gradients, scored = self.activation_gradients(
            self.layer, values, target, inputs
        )
        self.check_map(activations)
        cam = self.combine(activations, -gradients if self.counterfactual else gradients)
        return {"attributions": self.finish(cam, values), **scored}

    def combine(self, activations, gradients):
        """The map [batch, ...] from activations and gradients, both [batch, ..., channels]."""
        raise NotImplementedError

    def check_map(self, activations):
        """Refuses activations without places."""
        if activations.shape.rank not in (3, 4):
            raise ValueError(
                f"`layer` must have an output of shape [batch, height, width, channels] or [batch, "
                f"steps, channels]. Received: {self.layer.name!r}, whose output is of shape "
                f"{activations.shape}"
            )

    def finish(self, cam, values):
        """Rectifies a map [batch, ...] and brings it to the size of the input."""
        cam = tf.nn.relu(cam) if self.relu else cam
        return resize_map(cam, input_size(values, cam.shape.rank - 1)) if self.upsample else cam

    def get_config(self):
        return {
            "layer": self.layer.name,
            "counterfactual": self.counterfactual,
            "relu": self.relu,
            "upsample": self.upsample,
        }


def input_size(values, positions):
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


def resize_map(cam, size):
    """[batch, height, width] or [batch, steps] -> the same at `size`, bilinearly."""
    if cam.shape.rank == 2:
        return resize_map(cam[..., tf.newaxis], tf.concat([size, [1]], 0))[..., 0]
    resized = tf.image.resize(cam[..., tf.newaxis], size)
    return tf.cast(resized[..., 0], cam.dtype)
