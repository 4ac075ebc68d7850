"""Directional sharpness: the curvature of the loss along the steps of an optimizer.

    S(v) = v' H v / v' v,           f(w + a v) = f(w) + a g'v + a^2 / 2 v' H v + O(a^3)

A step along v lowers the loss by at most (g'v)^2 / (2 v' H v) to second order, so an optimizer with
lower S and as good a correlation -g'v / (|g| |v|) gets further.

"Toward Understanding Why Adam Converges Faster Than SGD for Transformers", Pan, Li, 2023, arXiv
2306.00204; sections 3 and 4.

Deviation: gradients are those of the whole data given, not of a batch. As in the paper, all
optimizers are shown the gradients of one path, which one of them makes.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.analysis.directions import as_arrays
from kzoo.analysis.loss_derivatives import LossDerivatives
from kzoo.optimizers.coordinate_clip import PAPER
from kzoo.papers import component


@component(PAPER)
def directional_sharpness(model, data, directions, loss=None, batch_size=256):
    """The curvature of a model's mean loss along directions, by exact Hessian products.

    Args:
        model: a built `keras.Model`; called in inference mode, and only read.
        data: (x, y) of arrays.
        directions: one or more directions v, in any scale. Each is a list of arrays shaped like
            `model.trainable_variables`, or an array [d] of them in a row.
        loss: `loss(y_true, y_pred)` -> scalar or [batch]. Defaults to what the model was compiled
            with, regularization included.
        batch_size: rows per pass. Defaults to 256.

    Returns:
        v' H v / v' v, float64 [directions]; NaN for a direction of zeros.

    Raises:
        ValueError: if an argument does not fit the model.

    Example:

    >>> gradient_step = [-g for g in gradients]
    >>> sharpness = directional_sharpness(model, (x, y), [gradient_step])

    Reference:
        Pan, Li (2023), definition of directional sharpness, arxiv.org/abs/2306.00204
    """
    derivatives = LossDerivatives(model, data, loss, batch_size)
    weights = derivatives.weights
    directions = [as_arrays(direction, model.trainable_variables) for direction in directions]
    return np.array([_sharpness(derivatives, weights, direction) for direction in directions])


@dataclass(frozen=True)
class UpdateComparison:
    """Update directions of several optimizers along one path.

    Attributes:
        steps: int [S], the steps at which they were looked at, from 0.
        losses: float64 [S], the loss there.
        sharpness: {name: float64 [S]}, the directional sharpness of the optimizer's update.
        correlation: {name: float64 [S]}, -g'v / (|g| |v|) of it: 1 for gradient descent.
        decrease: {name: float64 [S]}, (g'v)^2 / (2 v' H v), how much a step of the best length
            along it lowers the loss to second order; infinite where the curvature is not positive.
    """

    steps: np.ndarray
    losses: np.ndarray
    sharpness: dict
    correlation: dict
    decrease: dict


@component(PAPER)
def compare_update_directions(model, data, optimizers, steps, every=1, loss=None, batch_size=256):
    """Curvature and correlation of what several optimizers would do on the same path.

    The first optimizer makes the path; the others get the same gradients, so that their averages
    are as if they were there by themselves, and what they do is measured and not done.

    Args:
        model: a built `keras.Model`; called in inference mode, and only read: the path begins at
            its weights.
        data: (x, y) of arrays; all of it makes the gradients, and the Hessian.
        optimizers: {name: `keras.optimizers.Optimizer`} that have not been used; used up. Weight
            decay, if any, is part of the update.
        steps: length of the path.
        every: steps from one measurement to the next. Defaults to 1.
        loss, batch_size: see `directional_sharpness`.

    Returns:
        An `UpdateComparison`.

    Raises:
        ValueError: if an argument does not fit.

    Reference:
        Pan, Li (2023), section 4, arxiv.org/abs/2306.00204
    """
    for name, value in (("steps", steps), ("every", every)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    if not optimizers:
        raise ValueError("`optimizers` must name at least one. Received: {}")
    derivatives = LossDerivatives(model, data, loss, batch_size)
    weights = derivatives.weights
    shadows = {name: _Shadow(optimizer, weights) for name, optimizer in optimizers.items()}
    losses, rows = [], []
    for step in range(steps):
        value, gradients = derivatives.gradients(weights)
        moves = {name: shadow.move(weights, gradients) for name, shadow in shadows.items()}
        if step % every == 0:
            losses.append(float(value))
            rows.append([_measures(derivatives, weights, gradients, v) for v in moves.values()])
        weights = [w + v for w, v in zip(weights, next(iter(moves.values())), strict=True)]
    measures = np.array(rows).transpose(2, 1, 0)
    return UpdateComparison(
        np.arange(0, steps, every),
        np.array(losses),
        *(dict(zip(shadows, measure, strict=True)) for measure in measures),
    )


class _Shadow:
    """An optimizer over variables of its own, which are set to where the path is."""

    def __init__(self, optimizer, weights):
        self._variables = [keras.Variable(w, dtype=w.dtype.name) for w in weights]
        optimizer.build(self._variables)
        self._apply = tf.function(
            lambda gradients: optimizer.apply(gradients, self._variables), autograph=False
        )

    def move(self, weights, gradients):
        """What the optimizer adds to the weights, list of tensors."""
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)
        self._apply(gradients)
        return [v.value - w for v, w in zip(self._variables, weights, strict=True)]


def _measures(derivatives, weights, gradients, direction):
    """(sharpness, correlation, decrease)"""
    sharpness = _sharpness(derivatives, weights, direction)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = _dot(gradients, direction) / np.sqrt(_dot(direction, direction))
        decrease = slope**2 / (2 * sharpness) if sharpness > 0 else np.inf
        return sharpness, -slope / np.sqrt(_dot(gradients, gradients)), decrease


def _sharpness(derivatives, weights, direction):
    # Of length 1: updates are small, and the squares of small numbers vanish in float32.
    norm = np.sqrt(_dot(direction, direction))
    if norm == 0:
        return np.nan
    unit = [tf.cast(v / norm, w.dtype) for v, w in zip(direction, weights, strict=True)]
    _, products = derivatives.hessian_vector_product(weights, unit)
    return _dot(unit, products) / _dot(unit, unit)


def _dot(left, right):
    """Sum of products in float64."""
    return np.float64(
        sum(np.vdot(np.float64(a), np.float64(b)) for a, b in zip(left, right, strict=True))
    )
