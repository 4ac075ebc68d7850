"""Coordinate check: how the activations of a network move in training as its width grows.

    size_t   = sqrt(mean h_t^2)              h_t: activations of a layer after t steps
    change_t = sqrt(mean (h_t - h_0)^2)
    slope    = d log change / d log width

In muP all slopes of hidden layers are about 0: every layer learns features at the same rate at all
widths. A positive slope ends in divergence, a negative one in a network that learns no features.

"Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit", Yang, Littwin, 2023, arXiv
2308.01814. The check itself is from "Tensor Programs V", Yang et al., 2022, arXiv 2203.03466,
appendix D.1; "Feature Learning in Infinite-Width Neural Networks", Yang, Hu, 2020, arXiv 2011.14522
predicts slopes of -r.

Deviations: root mean squares instead of mean absolute values or standard deviations, which have
the same slopes.
"""

from dataclasses import dataclass

import keras
import numpy as np

from kzoo.layers.scaled_dense import PAPER
from kzoo.papers import component


@dataclass(frozen=True)
class CoordinateCheck:
    """Root mean squares of activations over widths and steps, means over the seeds.

    Attributes:
        widths: int [W].
        layers: names of the layers, [L].
        sizes: float64 [W, steps + 1, L], of the activations.
        changes: float64 [W, steps + 1, L], of what they have moved since the start; 0 there.
    """

    widths: np.ndarray
    layers: tuple[str, ...]
    sizes: np.ndarray
    changes: np.ndarray

    def slopes(self, of="changes", step=-1):
        """{layer: exponent of the width}, by least squares in the logarithms; NaN of zeros.

        Args:
            of: "changes" or "sizes".
            step: index of the step. Defaults to the last.
        """
        if of not in ("changes", "sizes"):
            raise ValueError(f'`of` must be "changes" or "sizes". Received: {of!r}')
        return {
            layer: log_slope(self.widths, values)
            for layer, values in zip(self.layers, getattr(self, of)[:, step].T, strict=True)
        }


@component(PAPER)
def coordinate_check(make_model, widths, data, steps=5, layers=None, seeds=(0,)):
    """Trains a model of each width on one batch, and measures how far its activations move.

    Args:
        make_model: `make_model(width)` -> a compiled functional or Sequential `keras.Model`. Give
            it a constant learning rate, the same for all widths.
        widths: at least two increasing positive integers.
        data: (x, y), the batch.
        steps: number of training steps, at least 1. Defaults to 5.
        layers: names of the layers to look at. None for all of the model's layers with variables;
            their activation is part of the output if they have one.
        seeds: integers; the measurements are averaged over them.

    Returns:
        `CoordinateCheck`

    Raises:
        ValueError: for bad widths, steps or layers.

    Example:

    >>> check = coordinate_check(make_mup_model, [64, 256, 1024], (x, y))
    >>> check.slopes()  # muP: about 0 in every layer
    >>> plot_coordinate_check({"muP": check}).savefig("check.png")
    """
    widths = check_widths(widths)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer. Received: {steps!r}")
    measured, names = [], None
    for seed in seeds:
        for width in widths:
            keras.utils.set_random_seed(seed)
            model = make_model(int(width))
            chosen = _chosen(model, layers)
            names = names or tuple(layer.name for layer in chosen)
            measured.append(_measure(model, chosen, data, steps))
    sizes, changes = np.moveaxis(np.reshape(measured, (len(seeds), len(widths), 2, steps + 1, -1)).
                                 mean(axis=0), 1, 0)  # fmt: skip
    return CoordinateCheck(widths, names, sizes, changes)


def log_slope(x, y):
    """The exponent p of y ~ x^p, by least squares in the logarithms; NaN unless y is positive."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not (np.isfinite(y).all() and (y > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def check_widths(widths):
    """`widths` as an integer array; a ValueError unless they increase from a positive one."""
    array = np.asarray(widths)
    integer = np.issubdtype(array.dtype, np.integer)
    if array.ndim != 1 or len(array) < 2 or not integer or array[0] < 1 or any(np.diff(array) <= 0):
        raise ValueError(
            f"`widths` must be at least two increasing positive integers. Received: {widths!r}"
        )
    return array


def _chosen(model, names):
    if names is not None:
        known = {layer.name for layer in model.layers}
        unknown = set(names) - known
        if unknown:
            raise ValueError(
                f"`layers` must name layers of the model: {', '.join(sorted(known))}. "
                f"Received: {', '.join(sorted(unknown))}"
            )
        return [model.get_layer(name) for name in names]
    return [layer for layer in model.layers if layer.variables]


def _measure(model, layers, data, steps):
    """Sizes and changes, [2, steps + 1, layers]."""
    x, y = data
    inputs = keras.tree.flatten(x)
    activations = keras.Model(model.inputs, [layer.output for layer in layers])
    seen = [_arrays(activations, inputs)]
    for _ in range(steps):
        model.train_on_batch(x, y)
        seen.append(_arrays(activations, inputs))
    sizes = [[_root_mean_square(h) for h in hs] for hs in seen]
    changes = [[_root_mean_square(h - h0) for h, h0 in zip(hs, seen[0], strict=True)]
               for hs in seen]  # fmt: skip
    return [sizes, changes]


def _arrays(activations, inputs):
    return [keras.ops.convert_to_numpy(h).astype("float64")
            for h in keras.tree.flatten(activations(inputs, training=False))]  # fmt: skip


def _root_mean_square(array):
    return float(np.sqrt(np.mean(array**2)))
