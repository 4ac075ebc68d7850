"""Permutation importance: what a model's score loses when the values of a feature are shuffled.

    I_j = s(x, y) - 1/K sum_k s(x with column j in the k-th random order, y)

It is one of the probes of "Interpreting Black-box Machine Learning Models for High Dimensional
Datasets", Karim, Shajalal, Grass, Doehmen, Chala, Boden, Beecks, Decker, 2022, arXiv 2208.13405;
the measure is Breiman's (2001, "Random Forests").

The orders are those of `sklearn.inspection.permutation_importance` for the same integer seed, so
the importances of both are the same; here all of it runs in one graph, with bounded memory.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.models.self_attention_tabular import PAPER
from kzoo.papers import component


def correct(y, outputs):
    """1 where the top class is the label, else 0; its mean is the accuracy.

    Args:
        y: labels [n].
        outputs: [n, classes], probabilities or logits; of a single column, probabilities.
    """
    if outputs.shape[-1] == 1:
        top = tf.cast(outputs[:, 0] > 0.5, tf.int64)
    else:
        top = tf.argmax(outputs, -1)
    return tf.cast(top == tf.cast(tf.reshape(y, [-1]), tf.int64), tf.float64)


def negative_squared_error(y, outputs):
    """Less the square of the error, the mean over outputs [n] or [n, channels]."""
    error = tf.cast(tf.reshape(y, tf.shape(outputs)), outputs.dtype) - outputs
    return -tf.reduce_mean(tf.reshape(tf.square(error), [tf.shape(outputs)[0], -1]), 1)


_SCORES = {"accuracy": correct, "negative_squared_error": negative_squared_error}


@dataclass(frozen=True)
class PermutationImportance:
    """What `permutation_importance` measured: `importances`, float64 [features, repeats], and the
    `score` of the data as they are."""

    importances: np.ndarray
    score: float

    @property
    def mean(self):
        """float64 [features]"""
        return self.importances.mean(axis=1)

    @property
    def std(self):
        """float64 [features], over the repeats."""
        return self.importances.std(axis=1)


@component(PAPER, not_served="it looks at a whole set of inputs")
def permutation_importance(model, x, y, score="accuracy", repeats=5, seed=0, rows=4096):
    """The importance of every column of a table for a model.

    Args:
        model: a Keras model, called with `training=False`, or a function of a tensor.
        x: [n, features].
        y: [n, ...], what `score` compares with: labels, or the model's own predictions.
        score: "accuracy", "negative_squared_error", or `score(y, outputs) -> [batch]`, a function
            of tensors whose mean over the rows is meant; higher is better. Defaults to
            "accuracy".
        repeats: orders for each column. Defaults to 5.
        seed: int; all columns get the same orders.
        rows: how many rows go through the model at once. Defaults to 4096.

    Returns:
        `PermutationImportance`

    Example:

    >>> importance = permutation_importance(model, x_validation, y_validation)
    >>> np.argsort(-importance.mean)[:20]
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or not len(x) or len(x) != len(y):
        raise ValueError(
            "`x` must be of shape [n, features], and `y` have n rows, at least one. Received: "
            f"{x.shape} and {y.shape}"
        )
    if not callable(score) and score not in _SCORES:
        raise ValueError(
            f"`score` must be one of {', '.join(_SCORES)} or a function. Received: {score!r}"
        )
    for name, value in {"repeats": repeats, "rows": rows}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    measure = _Measure(model, x, y, _SCORES.get(score, score), rows)
    base, scores = measure(tf.constant(_orders(len(x), repeats, seed)))
    return PermutationImportance((base - scores).numpy(), float(base))


def _orders(count, repeats, seed):
    """The orders of scikit-learn: one generator for all columns, each order put on the last."""
    rng = np.random.RandomState(np.random.RandomState(seed).randint(np.iinfo(np.int32).max + 1))
    shuffle, order, orders = np.arange(count), np.arange(count), []
    for _ in range(repeats):
        rng.shuffle(shuffle)
        order = order[shuffle]
        orders.append(order)
    return np.stack(orders)


class _Measure:
    """The mean score of a table, as it is and with each of its columns in other orders."""

    def __init__(self, model, x, y, score, rows):
        self.x, self.y = tf.constant(x), tf.constant(y)
        self.model, self.score, self.rows = model, score, rows

    @tf.function(autograph=False)
    def __call__(self, orders):
        """orders int [repeats, n] -> the score, and the scores [features, repeats]"""
        repeats, features = orders.shape[0], self.x.shape[1]
        scores = tf.TensorArray(tf.float64, repeats * features, element_shape=[])
        _, scores = tf.while_loop(
            lambda step, _: step < repeats * features,
            lambda step, scores: (
                step + 1,
                scores.write(step, self._mean_score(step // repeats, orders[step % repeats])),
            ),
            (0, scores),
            parallel_iterations=1,
        )
        as_it_is = self._mean_score(0, tf.range(len(self.x), dtype=orders.dtype))
        return as_it_is, tf.reshape(scores.stack(), [features, repeats])

    def _mean_score(self, column, order):
        shuffled = tf.gather(self.x[:, column], order)
        is_column = tf.range(self.x.shape[1]) == column

        def add(start, total):
            stop = start + self.rows
            x = tf.where(is_column, shuffled[start:stop, tf.newaxis], self.x[start:stop])
            score = self.score(self.y[start:stop], self._outputs(x))
            return stop, total + tf.reduce_sum(tf.cast(score, tf.float64))

        zero = tf.constant(0, tf.float64)
        _, total = tf.while_loop(lambda start, _: start < len(self.x), add, (0, zero))
        return total / len(self.x)

    def _outputs(self, x):
        if isinstance(self.model, keras.Layer):
            return self.model(x, training=False)
        return self.model(x)
