"""What the measures share: a model's scores of many versions of each input, and checked arrays.

All versions of a batch go through the model inside one `tf.function`, in chunks of about `rows`.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.baselines import broadcast_baseline
from kzoo.explain.explainer import Explainer, merge_steps, split_steps, tile_steps

_AUTO_SIZE = 2**19  # numbers in the inputs of one chunk


def query(model, x, attributions, prepare, steps, target=None, score=None, rows="auto"):
    """The scores of `steps` versions of each input.

    Args:
        model: a Keras model with one input, or a function of tensors; see `Explainer`, as is
            `score`.
        x: array [batch, ...].
        attributions: array of the shape of `x`, or of that without the last axis.
        prepare: `prepare(x, attributions)` of tensors, called once for a batch, returns
            `versions(step)`: int32 [k] numbers of versions -> (their inputs [k, batch, ...],
            {name: [k, batch]} of what else is to be kept).
        steps: number of versions.
        target: int [batch] or one for all; None for the top class of `x`, which is then the target
            of all its versions.
        rows: how many inputs are sent through the model at once. "auto" for 80, and fewer where
            they are large.

    Returns:
        dict of arrays: `score` [batch] of `x`, `scores` [batch, steps], and what `versions` names,
        [batch, steps].
    """
    attributions, x = matched(x, attributions), np.asarray(x)
    size = _chunk_rows(x, rows)
    engine = _Engine(model, prepare, steps, attributions, score, size)
    target = np.broadcast_to(-1 if target is None else np.asarray(target), len(x))
    parts = [
        engine(x[i : i + size], target[i : i + size], attributions=attributions[i : i + size])
        for i in range(0, len(x), size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Engine(Explainer):
    """The machinery of explainers, for the scores of versions of the inputs."""

    differentiates_inputs = False

    def __init__(self, model, prepare, steps, attributions, score, rows):
        super().__init__(model, score=score, rows=rows)
        self.prepare, self.steps = prepare, steps
        self.spec = tf.TensorSpec([None, *attributions.shape[1:]], attributions.dtype)

    def request_specs(self, spec):
        return {"attributions": self.spec}

    def attribute(self, values, target, inputs, attributions):
        scored = self.scores(values, target, inputs)
        versions, batch = self.prepare(values, attributions), tf.shape(values)[0]

        def evaluate(step):
            points, kept = versions(step)
            targets = tile_steps(scored["target"], tf.size(step))
            answered = self.scores(merge_steps(points), targets, merge_steps(points))["score"]
            kept = {"scores": split_steps(answered, tf.size(step)), **kept}
            return {
                name: tf.scatter_nd(step[:, tf.newaxis], value, [self.steps, batch])
                for name, value in kept.items()
            }

        table = self.sum_over_steps(evaluate, self.steps, batch)
        transposed = {name: tf.transpose(value) for name, value in table.items()}
        return {"score": scored["score"], **transposed}


def explain_in_batches(explainer, x, target=None, size=64):
    """Attributions and resolved targets of many inputs, `size` at a time.

    Returns:
        (array [batch, ...], int array [batch])
    """
    x = as_input(x)
    target = np.broadcast_to(-1 if target is None else np.asarray(target), len(x))
    maps, targets = [], []
    for begin in range(0, len(x), size):
        result = explainer(x[begin : begin + size], target[begin : begin + size])
        if keras.tree.is_nested(result["attributions"]):
            raise ValueError("`explainer` must give one array of attributions, not a structure.")
        maps.append(np.asarray(result["attributions"]))
        targets.append(np.asarray(result["target"]))
    return np.concatenate(maps), np.concatenate(targets)


def as_input(x):
    """The one input of a model, as an array [batch, ...]."""
    if keras.tree.is_nested(x) and not isinstance(x, list):
        raise ValueError("`x` must be one array. Received a structure of several.")
    x = np.asarray(x)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"`x` must have the shape [batch, ...]. Received: {list(x.shape)}")
    return x


def matched(x, attributions):
    """Attributions as a finite array in the precision of `x`, one for each value or position."""
    x, attributions = as_input(x), np.asarray(attributions)
    allowed = [list(x.shape)] + ([list(x.shape[:-1])] if x.ndim > 2 else [])
    if list(attributions.shape) not in allowed:
        raise ValueError(
            f"`attributions` must have the shape {' or '.join(map(str, allowed))}. Received: "
            f"{list(attributions.shape)}"
        )
    if not np.isfinite(attributions).all():
        raise ValueError("`attributions` must be finite.")
    return attributions.astype("float64" if x.dtype == np.float64 else "float32")


def as_counts(name, fractions, size):
    """Shares in [0, 1] as numbers of `size` values, int32."""
    fractions = np.asarray(fractions, np.float64)
    if fractions.ndim != 1 or not fractions.size or not np.all((fractions >= 0) & (fractions <= 1)):
        raise ValueError(f"`{name}` must be a list of numbers in [0, 1]. Received: {fractions}")
    return np.rint(fractions * size).astype("int32")


def check_count(name, value):
    """Refuses what is no positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")


def over_channels(mask, x):
    """`mask` [..., *positions], which may lack the last axis of `x` [batch, ...], with it."""
    return mask if mask.shape.rank == x.shape.rank + 1 else mask[..., tf.newaxis]


def make_baseline(baseline, x):
    """What stands where a value is taken away, in the shape of the tensor `x`.

    Args:
        baseline: a number, or an array that broadcasts to one input; "mean" for the mean of each
            input over its positions, by channel; "blur" for the input blurred by a Gaussian whose
            standard deviation is an eighth of the longer side; or a function of tensors.
    """
    if callable(baseline):
        return baseline(x)
    if not isinstance(baseline, str):
        return broadcast_baseline(baseline, x)
    if baseline not in _BASELINES:
        raise ValueError(
            f"`baseline` must be a number, an array, a function or one of "
            f"{', '.join(_BASELINES)}. Received: {baseline!r}"
        )
    if not x.dtype.is_floating or x.shape.rank < 3:
        raise ValueError(
            f"`baseline` {baseline!r} is for inputs [batch, ..., channels] of real numbers. "
            f"Received: {x.dtype.name} {x.shape}"
        )
    return _BASELINES[baseline](x)


def _mean(x):
    mean = tf.reduce_mean(x, axis=range(1, x.shape.rank - 1), keepdims=True)
    return tf.broadcast_to(mean, tf.shape(x))


def _blur(x):
    """Blurred along every axis of positions; what a kernel has beyond the border is left out."""
    longest = tf.cast(tf.reduce_max(tf.shape(x)[1:-1]), x.dtype)
    for axis in range(1, x.shape.rank - 1):
        place = tf.cast(tf.range(tf.shape(x)[axis]), x.dtype)
        square = tf.square((place[:, tf.newaxis] - place) * 8 / longest)
        # The rows of the matrix are summed with this axis, which comes back as the last.
        x = tf.tensordot(x, tf.nn.softmax(-square / 2), [[axis], [1]])
        x = _last_axis_to(x, axis)
    return x


def _last_axis_to(x, axis):
    order = list(range(x.shape.rank - 1))
    return tf.transpose(x, [*order[:axis], x.shape.rank - 1, *order[axis:]])


_BASELINES = {"mean": _mean, "blur": _blur}


def _chunk_rows(x, rows):
    if rows == "auto":
        return max(1, min(80, _AUTO_SIZE // x[0].size))
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ValueError(f'`rows` must be a positive integer or "auto". Received: {rows!r}')
    return rows
