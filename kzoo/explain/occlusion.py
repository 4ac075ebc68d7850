"""Occlusion: by how much the score falls when a window slides over the input and hides it.

    A_i = mean over the windows w that cover i of  F(x) - F(x with w replaced by the baseline)

"Visualizing and Understanding Convolutional Networks", Zeiler, Fergus, 2013, arXiv 1311.2901;
section 4.2.

Deviations: the paper maps the score at each place of the window; here the fall of the score is
averaged over the windows that cover a value, so that the map has the shape of the input and is
large where hiding hurts. A window at the border is cut off there.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline
from kzoo.explain.explainer import Explainer, merge_steps, split_steps, tile_steps
from kzoo.explain.guided import DECONVNET_PAPER
from kzoo.papers import Example, component


@component(DECONVNET_PAPER, example=Example(kwargs={"window": 4}))
class Occlusion(Explainer):
    """How much the score falls when a part of the input is hidden.

    It asks for predictions only, so the model need not be differentiable and integer inputs are
    taken as well.

    Args:
        model: a model of one input [batch, ..., channels]; see `Explainer`, as are `score`, `tap`
            and `rows`.
        window: sizes of the window along the axes between batch and channels (the one axis of
            [batch, features]), or one for all. Defaults to an eighth of each, at least 1.
        strides: by how much it moves. Defaults to half of the window, at least 1.
        baseline: what hidden values become: a number or an array that broadcasts to one input.
            Defaults to 0.

    Returns (when called): `attributions` [batch, ...] without the channels; `score`, `target`,
    `predictions`.

    Example:

    >>> result = Occlusion(model, window=8, strides=4)(images)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Zeiler and Fergus (2013), section 4.2, arxiv.org/abs/1311.2901
    """

    differentiates_inputs = False

    def __init__(
        self, model, window=None, strides=None, baseline=0.0, score=None, tap=None, rows="auto"
    ):
        super().__init__(model, score=score, tap=tap, rows=rows)
        for name, value in (("window", window), ("strides", strides)):
            sizes = [1] if value is None else np.ravel(value)
            if any(size != int(size) or size < 1 for size in sizes):
                raise ValueError(f"`{name}` must be positive integers. Received: {value!r}")
        self.window = window
        self.strides = strides
        self.baseline = baseline

    def attribute(self, values, target, inputs):
        windows = self._windows(values)
        scored = self.scores(values, target, inputs)
        baseline = broadcast_baseline(self.baseline, values)

        def evaluate(step):
            hidden = _hidden(step, windows)
            shape = tf.shape(hidden)
            spread = tf.reshape(hidden, tf.concat([shape[:1], [1], shape[1:]], 0))
            spread = spread if values.shape.rank == 2 else spread[..., tf.newaxis]
            score = self.scores(
                merge_steps(tf.where(spread, baseline, values)),
                tf.tile(scored["target"], tf.shape(step)),
                keras.tree.map_structure(lambda x: tile_steps(x, tf.size(step)), inputs),
            )["score"]
            fall = scored["score"] - split_steps(score, tf.size(step))
            hidden = tf.cast(hidden, fall.dtype)
            return tf.tensordot(fall, hidden, [[0], [0]]), tf.reduce_sum(hidden, 0)

        places = math.prod(len(starts) for _, _, starts in windows)
        falls, covering = self.sum_over_steps(evaluate, places, tf.shape(target)[0])
        return {"attributions": falls / covering, **scored}

    def _windows(self, values):
        """(size, window, where it begins) for each axis along which the window moves."""
        if keras.tree.is_nested(values) or values.shape.rank < 2 or None in values.shape[1:-1]:
            shapes = keras.tree.map_structure(lambda x: x.shape, values)
            raise ValueError(
                "Occlusion is for a model of one input [batch, ..., channels] of a known size. "
                f"Received: {shapes}"
            )
        sizes = values.shape[1:2] if values.shape.rank == 2 else values.shape[1:-1]
        windows = _for_each(self.window, [math.ceil(size / 8) for size in sizes])
        strides = _for_each(self.strides, [max(1, width // 2) for width in windows])
        return [
            (size, width, range(0, max(size - width, 0) + stride, stride))
            for size, width, stride in zip(sizes, windows, strides, strict=True)
        ]

    def get_config(self):
        return {
            "window": self.window,
            "strides": self.strides,
            "baseline": baseline_config(self.baseline),
            "rows": self.rows,
        }


def _hidden(step, windows):
    """What the windows of the numbers `step` [k] cover: bool [k, size of each axis]."""
    hidden, rank = True, 1 + len(windows)
    for axis, (size, width, starts) in reversed(list(enumerate(windows, 1))):
        start = tf.gather(tf.constant(list(starts)), step % len(starts))[:, tf.newaxis]
        step = step // len(starts)
        inside = (tf.range(size) >= start) & (tf.range(size) < start + width)
        shape = [-1, *(size if each == axis else 1 for each in range(1, rank))]
        hidden &= tf.reshape(inside, shape)
    return hidden


def _for_each(value, default):
    values = default if value is None else list(np.broadcast_to(value, len(default)))
    return [int(each) for each in values]
