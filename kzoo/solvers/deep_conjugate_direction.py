"""The deep conjugate direction method: conjugate directions from a network.

    d = f(r / ||r||)
    d <- d - sum_i (d^T A d_i / d_i^T A d_i) d_i      over the last `memory` directions
    x <- x + (d^T r / d^T A d) d,   r <- b - A x                            (algorithm 2)

and the loss that trains f, without solutions of A x = b:

    ||b - alpha A f(b)||^2,   alpha = f(b)^T b / f(b)^T A f(b)              (section 5)

With f the identity it is the conjugate gradient method, with f = A^-1 one step solves the system.
The line search is exact, so that for any f the error falls in the norm of A.

"A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", Kaneda, Akar, Chen,
Kala, Hyde, Teran, 2022, arXiv 2205.10763.

Deviations: none known. The formula of alpha is that of the authors' code, the step of the exact
line search along f(b) from 0.
Open choices: a row of the batch that has converged is left as it is while others go on; a
direction without length, d^T A d = 0, makes no step.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.models.dcdm import PAPER
from kzoo.papers import component


@component(PAPER)
class ScaledResidualLoss(keras.losses.Loss):
    """||b - alpha A f(b)||^2: how far f(b) is from A^-1 b, whatever its length.

    Args:
        operator: A, see `PoissonOperator`.
        reduction, name: see `keras.losses.Loss`.

    Call arguments:
        y_true: b, [batch, *grid].
        y_pred: f(b), of the same shape.

    Example:

    >>> model.compile("adam", ScaledResidualLoss(operator))
    >>> model.fit(b, b, epochs=10)

    Reference:
        Kaneda et al. (2022), section 5, arxiv.org/abs/2205.10763
    """

    def __init__(self, operator, reduction="sum_over_batch_size", name="scaled_residual"):
        super().__init__(name=name, reduction=reduction)
        self.operator = operator

    def call(self, y_true, y_pred):
        direction = self.operator.restrict(y_pred)
        image = self.operator(direction)
        alpha = tf.math.divide_no_nan(_dot(direction, y_true), _dot(direction, image))
        residual = y_true - _scale(image, alpha)
        return _dot(residual, residual)

    def get_config(self):
        operator = keras.saving.serialize_keras_object(self.operator)
        return {**super().get_config(), "operator": operator}

    @classmethod
    def from_config(cls, config):
        operator = keras.saving.deserialize_keras_object(config["operator"])
        return cls(**{**config, "operator": operator})


@dataclass(frozen=True)
class LinearSolution:
    """The solutions of a batch of linear systems.

    Attributes:
        x: [batch, *grid].
        residuals: [steps + 1, batch], ||b - A x|| / ||b|| at every step; it stays where it is once
            a row has converged.
        steps: int [batch], how many steps each row took.
        converged: bool [batch].
        directions: [steps, batch, *grid], if they were asked for; else None.
    """

    x: np.ndarray
    residuals: np.ndarray
    steps: np.ndarray
    converged: np.ndarray
    directions: np.ndarray | None


@component(PAPER)
class DeepConjugateDirection:
    """Solves A x = b with the search directions of a network, to any tolerance.

    Args:
        direction: f, a Keras model or a function of [batch, *grid] tensors.
        operator: A, symmetric positive definite: a function of such tensors with a method
            `restrict`, see `PoissonOperator`.
        memory: to how many of the last directions a new one is made conjugate, at least 1.
            Defaults to 2.
        tolerance: of ||b - A x|| / ||b||, at least 0. Defaults to 1e-4.
        max_steps: Defaults to 100.
        keep_directions: whether the result holds every direction. Defaults to False.

    Example:

    >>> solver = DeepConjugateDirection(model, operator)
    >>> solution = solver.solve(b)
    >>> solution.x, solution.steps

    Reference:
        Kaneda et al. (2022), algorithm 2, arxiv.org/abs/2205.10763
    """

    def __init__(
        self, direction, operator, memory=2, tolerance=1e-4, max_steps=100, keep_directions=False
    ):
        for name, value in {"memory": memory, "max_steps": max_steps}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        if not tolerance >= 0:
            raise ValueError(f"`tolerance` must be at least 0. Received: {tolerance!r}")
        self.direction, self.operator = direction, operator
        self.memory, self.tolerance, self.max_steps = memory, tolerance, max_steps
        self.keep_directions = keep_directions
        self._loop = tf.function(self._iterate)

    def solve(self, b, start=None):
        """Solves the systems of a batch together.

        Args:
            b: floating [batch, *grid].
            start: x_0, of the same shape. Defaults to 0.

        Returns:
            `LinearSolution`
        """
        b = tf.convert_to_tensor(b)
        if b.shape[1:] != tuple(self.operator.shape) or not b.dtype.is_floating:
            raise ValueError(
                f"`b` must be floating [batch, {', '.join(map(str, self.operator.shape))}]. "
                f"Received: {b.dtype.name} {list(b.shape)}"
            )
        b = self.operator.restrict(b)
        start = tf.zeros_like(b) if start is None else tf.cast(start, b.dtype)
        x, residuals, directions, steps = self._loop(b, self.operator.restrict(start))
        residuals = residuals.numpy()
        running = residuals > self.tolerance
        return LinearSolution(
            x.numpy(),
            residuals,
            running[:-1].sum(0),
            ~running[-1],
            directions.numpy()[: int(steps)] if self.keep_directions else None,
        )

    def _iterate(self, b, x):
        norm = _norm(b)
        residual = b - self.operator(x)
        past = tf.stack([tf.zeros_like(b)] * self.memory)
        relative = tf.math.divide_no_nan(_norm(residual), norm)
        history = tf.TensorArray(b.dtype, 0, dynamic_size=True, clear_after_read=False)
        kept = tf.TensorArray(b.dtype, 0, dynamic_size=True, clear_after_read=False)

        def step(number, x, residual, relative, past, images, history, kept):
            direction, image = self._conjugate(residual, past, images)
            alpha = tf.math.divide_no_nan(_dot(direction, residual), _dot(direction, image))
            moved = x + _scale(direction, alpha)
            x = tf.where(_column(relative > self.tolerance, x), moved, x)
            residual = b - self.operator(x)
            relative = tf.math.divide_no_nan(_norm(residual), norm)
            past = tf.concat([past[1:], direction[tf.newaxis]], 0)
            images = tf.concat([images[1:], image[tf.newaxis]], 0)
            history = history.write(number + 1, relative)
            if self.keep_directions:
                kept = kept.write(number, direction)
            return number + 1, x, residual, relative, past, images, history, kept

        number, x, _, _, _, _, history, kept = tf.while_loop(
            lambda number, x, residual, relative, *_: tf.reduce_any(relative > self.tolerance),
            step,
            (0, x, residual, relative, past, past, history.write(0, relative), kept),
            maximum_iterations=self.max_steps,
        )
        directions = kept.stack() if self.keep_directions else past
        return x, history.stack(), directions, number

    def _conjugate(self, residual, past, images):
        """The next direction d, and A d."""
        unit = _scale(residual, tf.math.reciprocal_no_nan(_norm(residual)))
        direction = tf.ensure_shape(tf.cast(self.direction(unit), unit.dtype), unit.shape)
        direction = self.operator.restrict(direction)
        axes = list(range(2, past.shape.rank))
        overlaps = tf.reduce_sum(direction * images, axes, keepdims=True)
        energies = tf.reduce_sum(past * images, axes, keepdims=True)
        direction -= tf.reduce_sum(tf.math.divide_no_nan(overlaps, energies) * past, 0)
        return direction, self.operator(direction)


def _dot(a, b):
    """Inner products of the rows of two batches, [batch]."""
    return tf.reduce_sum(a * b, axis=list(range(1, a.shape.rank)))


def _norm(a):
    return tf.sqrt(_dot(a, a))


def _scale(a, factor):
    return a * _column(factor, a)


def _column(values, like):
    """[batch] values with the rank of `like`."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))
