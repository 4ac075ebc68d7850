"""Class sensitivity: does an explanation change with the class that it explains?

    rho(x) = corr(M(x, most probable class), M(x, least probable class))

with Pearson's correlation over the values of the two maps. A map that says where something is, but
not what, has a rho near 1; one that is of its class has a rho near 0 or below.

"There and Back Again: Revisiting Backpropagation Saliency Methods", Rebuffi, Fong, Ji, Vedaldi,
2020, arXiv 2004.02866; section on class sensitivity.

Open choices: where one of the maps is constant, as that of a class with no positive evidence can be
after a ReLU, rho is not defined: NaN, which `numpy.nanmean` leaves out.
"""

import keras
import numpy as np

from kzoo.explain.norm_grad import PAPER
from kzoo.papers import component


@component(PAPER, not_served="it measures explanations of a whole set")
def class_sensitivity(explainer, inputs, batch_size=64):
    """The correlation of the maps for the most and the least probable class.

    Args:
        explainer: an `Explainer` of a model with outputs [batch, classes], at least two classes,
            whose maps are one tensor.
        inputs: the model's inputs, batch first.
        batch_size: how many are explained at once. Defaults to 64.

    Returns:
        Float array [batch] in [-1, 1], the lower the more sensitive; NaN where a map is constant.

    Example:

    >>> np.nanmean(class_sensitivity(NormGrad(model), images)) <= 1
    True

    Reference:
        Rebuffi et al. (2020), arxiv.org/abs/2004.02866
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: {batch_size!r}")
    count = len(keras.tree.flatten(inputs)[0])
    slices = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    return np.concatenate([_of_batch(explainer, inputs, rows) for rows in slices])


def _of_batch(explainer, inputs, rows):
    inputs = keras.tree.map_structure(lambda x: x[rows], inputs)
    most = explainer(inputs, target=-1)
    classes = _number_of_classes(most["predictions"])
    least = explainer(inputs, target=-classes)
    if keras.tree.is_nested(most["attributions"]):
        raise ValueError(
            "`explainer` must give one map. Received a structure of "
            f"{len(keras.tree.flatten(most['attributions']))}."
        )
    return _row_correlation(most["attributions"].numpy(), least["attributions"].numpy())


def _number_of_classes(predictions):
    shapes = keras.tree.map_structure(lambda x: tuple(x.shape), predictions)
    if keras.tree.is_nested(predictions) or len(shapes) != 2 or shapes[1] < 2:
        raise ValueError(
            "`explainer` must explain a model with outputs [batch, classes] of at least two "
            f"classes. Received one with outputs of the shape {shapes}."
        )
    return shapes[1]


def _row_correlation(a, b):
    """Pearson's correlation of each row of two arrays [rows, ...]."""
    a, b = (_centred(x.reshape(len(x), -1)) for x in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    product = np.sum(a * b, axis=1)
    return np.divide(product, norm, out=np.full(len(a), np.nan), where=norm > 0)


def _centred(x):
    """Rows less their mean; exactly 0 where constant, which the rounding of a mean is not."""
    x = x.astype(np.float64) - x[:, :1]
    return x - x.mean(axis=1, keepdims=True)
