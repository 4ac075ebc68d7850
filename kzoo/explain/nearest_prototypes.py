"""Why a `PrototypeCaseNet` decides as it does: the prototypes that an input is near to.

    logit_c = sum_j W_jc d_j,  d_j = ||f(x) - p_j||^2

The shares W_jc d_j of the prototypes are the computation itself. A prototype stands for the class
of its most negative weight: nearness to it takes least from that class. The decoder draws it.

"Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", Li, Liu, Chen, Rudin, 2017, arXiv 1710.04806; its case study of a prediction, and its
table of weights.
"""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import on_output, replace_call
from kzoo.layers.prototype_distance import PAPER
from kzoo.models.prototype_case_net import PrototypeCaseNet
from kzoo.papers import component
from kzoo.plots import picture


@component(PAPER)
class NearestPrototypes(Explainer):
    """The nearest prototypes of each input, as distances, pictures and shares of the logit.

    Args:
        model: a `kzoo.models.PrototypeCaseNet`.
        count: how many of the nearest prototypes to give, 1 to all of them. Defaults to 3.

    Returns (when called), for m prototypes:
        attributions: [batch, m], W_jc d_j for the target c; they add up to the score.
        distances: [batch, m], squared.
        nearest: int32 [batch, count], numbers of the nearest prototypes, the nearest first.
        nearest_classes: int32 [batch, count], the classes that these stand for.
        decoded: [batch, count, *input shape], what the decoder makes of them.
        score, target, predictions: as of every explainer.

    Example:

    >>> explainer = NearestPrototypes(model)
    >>> figure = nearest_prototypes_sheet(images, explainer(images))

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """

    differentiates_inputs = False

    def __init__(self, model, count=3):
        if not isinstance(model, PrototypeCaseNet):
            raise TypeError(f"`model` must be a PrototypeCaseNet. Received: {type(model).__name__}")
        super().__init__(model)
        most = model.prototypes.units
        if not isinstance(count, int) or not 1 <= count <= most:
            raise ValueError(f"`count` must be an integer from 1 to {most}. Received: {count!r}")
        self.count = count

    def attribute(self, values, target, inputs):
        seen = []
        record = on_output(lambda output: seen.append(output) or output)
        with replace_call(self.model.prototypes, record):
            scored = self.scores(values, target, inputs)
        distances = seen[-1]
        kernel = tf.cast(self.model.classifier.kernel, distances.dtype)
        _, nearest = tf.math.top_k(-distances, self.count)
        classes = tf.cast(self.model.prototype_classes(), tf.int32)
        return {
            "attributions": distances * tf.gather(tf.transpose(kernel), scored["target"]),
            "distances": distances,
            "nearest": nearest,
            "nearest_classes": tf.gather(classes, nearest),
            "decoded": tf.gather(self.model.decoded_prototypes(), nearest),
            **scored,
        }

    def get_config(self):
        return {"count": self.count}


@component(PAPER, not_served="it draws a picture")
def nearest_prototypes_sheet(images, result, titles=None):
    """A sheet with one row per image: the image, then its nearest prototypes with their distances.

    Args:
        images: [batch, height, width, 1 or 3], see `kzoo.plots.picture`.
        result: what `NearestPrototypes` returns for them.
        titles: [batch] captions of the images. None for none.

    Returns:
        `matplotlib.figure.Figure`

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """
    images = np.asarray(images)
    result = {name: np.asarray(value) for name, value in result.items()}
    count, columns = len(images), 1 + result["nearest"].shape[1]
    if len(result["nearest"]) != count:
        raise ValueError(
            f"`result` must be of the {count} images. Received: one of {len(result['nearest'])}"
        )
    figure = Figure(figsize=(1.25 * columns, 1.55 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for row, axis in enumerate(axes):
        _show(axis[0], images[row], "image" if titles is None else str(titles[row]))
        nearest = result["nearest"][row]
        for place, j in enumerate(nearest):
            label = result["nearest_classes"][row, place]
            caption = f"d = {result['distances'][row, j]:.2f}\nclass {label}"
            _show(axis[1 + place], result["decoded"][row, place], caption)
    return figure


@component(PAPER, not_served="it draws a picture")
def prototype_sheet(model, columns=5):
    """All prototypes as the decoder draws them, each with its class and its weights.

    Args:
        model: a `PrototypeCaseNet` of images [height, width, 1 or 3].
        columns: pictures in a row. Defaults to 5.

    Returns:
        `matplotlib.figure.Figure`: above the transposed weights, a column for each prototype, with
        blue for the negative ones.

    Reference:
        Li et al. (2017), figure of the prototypes and table of weights, arxiv.org/abs/1710.04806
    """
    decoded = keras.ops.convert_to_numpy(model.decoded_prototypes())
    classes = keras.ops.convert_to_numpy(model.prototype_classes())
    weights = keras.ops.convert_to_numpy(model.classifier.kernel).T
    rows = -(-len(decoded) // columns)
    heights = [1.4 * rows, 0.22 * len(weights) + 0.6]
    figure = Figure(figsize=(1.2 * columns, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=heights)
    axes = top.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for j, axis in enumerate(axes[: len(decoded)]):
        _show(axis, decoded[j], "")
        axis.set_title(f"{j}: class {classes[j]}", fontsize=8)
    axis = bottom.subplots()
    level = np.abs(weights).max()
    shown = axis.imshow(weights, cmap="RdBu_r", vmin=-level, vmax=level, aspect="auto")
    axis.set_xticks(range(len(decoded)), range(len(decoded)), fontsize=7)
    axis.set_yticks(range(len(weights)), range(len(weights)), fontsize=7)
    axis.set_xlabel("prototype", fontsize=8)
    axis.set_ylabel("class", fontsize=8)
    bottom.colorbar(shown, ax=axis)
    return figure


def _show(axis, image, caption):
    axis.imshow(picture(image), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(caption, fontsize=8)
