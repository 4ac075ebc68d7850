"""Primal-dual training of the smoothest function on a manifold that fits the data.

    min rho   subject to   L(f) <= epsilon,   ||grad_M f(x_i)||^2 <= rho at every point

With multipliers nu of the loss and mu_i of the points, whose sum is 1 because rho is free, it is

    max_{mu, nu} min_f   nu (L(f) - epsilon) + sum_i mu_i ||grad_M f(x_i)||^2

solved by steps of the optimizer on f, and of gradient ascent on the multipliers:

    nu <- max(0, nu + loss_rate (L(f) - epsilon))
    mu <- projection onto the simplex of (mu + point_rate ||grad_M f(x_i)||^2)

where the gradients along the manifold come from the graph Laplacian of `kzoo.regularizers`.

"Learning Globally Smooth Functions on Manifolds", Cerviño, Chamon, Haeffele, Vidal, Ribeiro, 2022,
arXiv 2210.00301.

Deviations and open choices: rho is eliminated by projecting onto the simplex in place of a descent
on it, and estimated by the steepest point; one ascent follows each step of the optimizer; the
multipliers begin equal, and nu at 1. All points of the cloud are passed through the model at every
step, as it predicts (dropout off, batch normalization with its moving statistics).
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.distribute import num_replicas, sum_over_replicas
from kzoo.papers import Example, component
from kzoo.regularizers.manifold_lipschitz import (
    PAPER,
    heat_kernel_graph,
    squared_local_gradients,
)
from kzoo.training.method import TrainingMethod


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    points = np.random.default_rng(0).normal(size=(12, 6))
    graph = heat_kernel_graph(points, neighbors=3)
    return {"model": keras.Sequential(layers), "points": points, "epsilon": 0.1, "graph": graph}


@component(PAPER, example=Example(kwargs=_example))
class PrimalDualTraining(TrainingMethod):
    """Trains a model to a given loss, as smooth as can be where the data live.

    The reported loss is that of the labelled data. The optimizer sees the Lagrangian, whose scale
    grows with nu: optimizers that do not depend on it, such as Adam, are the safe choice.

    Args:
        model: the `keras.Model` to train; one floating input, one output.
        points: [n, ...], the cloud of points, labelled and unlabelled, in the form of the inputs.
        epsilon: the loss that is to be reached, in the units of the compiled loss.
        graph: (edges, weights, lengths) of the points as `heat_kernel_graph` makes them; None for
            its defaults.
        dimension: of the manifold, at least 1, for the scale of the gradients. Defaults to 1.
        point_rate: step of the ascent on the points' multipliers, at least 0, with 0 for manifold
            regularization that weighs all points alike. Defaults to 1e-2.
        loss_rate: step of the ascent on the loss's multiplier, at least 0. Defaults to 0.1.

    Attributes:
        multipliers: mu, variable [n] of numbers of at least 0 with the sum 1: high where the
            function is steepest.
        loss_multiplier: nu, a variable.

    Example:

    >>> trainer = PrimalDualTraining(model, points, epsilon=0.05)
    >>> trainer.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    >>> history = trainer.fit(x, y, epochs=1000)
    >>> lipschitz = tf.sqrt(tf.reduce_max(trainer.squared_gradients()))

    Reference:
        Cerviño et al. (2022), arxiv.org/abs/2210.00301
    """

    def __init__(
        self,
        model,
        points,
        epsilon,
        graph=None,
        dimension=1,
        point_rate=1e-2,
        loss_rate=0.1,
        **kwargs,
    ):
        rates = {"epsilon": epsilon, "point_rate": point_rate, "loss_rate": loss_rate}
        for name, value in rates.items():
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
        if not isinstance(dimension, int) or dimension < 1:
            raise ValueError(f"`dimension` must be a positive integer. Received: {dimension!r}")
        super().__init__(model, **kwargs)
        points = np.asarray(points, keras.config.floatx())
        edges, weights, lengths = heat_kernel_graph(points) if graph is None else graph
        if len(weights) and np.max(edges) >= len(points):
            raise ValueError(
                f"`graph` names the point {np.max(edges)}. Received {len(points)} `points`."
            )
        self.epsilon = epsilon
        self.dimension = dimension
        self.point_rate = point_rate
        self.loss_rate = loss_rate
        self.points = self._kept("points", points)
        self.edges = self._kept("edges", np.asarray(edges, "int32"))
        self.edge_weights = self._kept("edge_weights", np.asarray(weights, points.dtype))
        self.edge_lengths = self._kept("edge_lengths", np.asarray(lengths, points.dtype))
        equal = np.full(len(points), 1 / len(points), points.dtype)
        self.multipliers = self._kept("multipliers", equal)
        self.loss_multiplier = self._kept("loss_multiplier", np.ones([], points.dtype))

    def _kept(self, name, value):
        """A variable that is saved with the weights, and the same on all replicas."""
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=value.dtype.name,
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(value, dtype),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def squared_gradients(self):
        """||grad_M f||^2 at each point of the cloud, [n]."""
        outputs = self(self.points.value, training=False)
        return squared_local_gradients(
            outputs,
            self.edges.value,
            self.edge_weights.value,
            self.edge_lengths.value,
            self.dimension,
        )

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
            )
            squared = self.squared_gradients()
            smoothness = tf.reduce_sum(tf.cast(self.multipliers.value, squared.dtype) * squared)
            # Every replica sees the whole cloud; `compute_loss` divides by their number already.
            lagrangian = tf.cast(self.loss_multiplier.value, loss.dtype) * loss
            lagrangian += tf.cast(smoothness, loss.dtype) / num_replicas()
            scaled = self.optimizer.scale_loss(lagrangian)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        rows = tf.shape(keras.tree.flatten(x)[0])[0]
        self._ascend(loss, squared, rows)
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=rows)
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def _ascend(self, loss, squared, rows):
        """Gradient ascent on the multipliers, the same on all replicas."""
        rows = tf.cast(rows, loss.dtype)
        total, count = sum_over_replicas([loss * num_replicas() * rows, rows])
        excess = tf.cast(total / count - self.epsilon, self.loss_multiplier.dtype)
        self.loss_multiplier.assign(
            tf.maximum(self.loss_multiplier.value + self.loss_rate * excess, 0)
        )
        steeper = self.point_rate * tf.cast(squared, self.multipliers.dtype)
        self.multipliers.assign(projected_onto_simplex(self.multipliers.value + steeper))

    def get_config(self):
        return {
            **super().get_config(),
            "points_shape": list(self.points.shape),
            "num_edges": self.edges.shape[0],
            "epsilon": self.epsilon,
            "dimension": self.dimension,
            "point_rate": self.point_rate,
            "loss_rate": self.loss_rate,
        }

    @classmethod
    def from_config(cls, config):
        # The cloud and its graph are weights: they are loaded, not configured.
        edges = config.pop("num_edges")
        config["points"] = np.zeros(config.pop("points_shape"))
        config["graph"] = np.zeros([edges, 2], "int32"), np.zeros(edges), np.zeros(edges)
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)


def projected_onto_simplex(values):
    """The nearest point with entries of at least 0 and the sum 1.

    Args:
        values: float tensor [n].

    Returns:
        max(0, values - theta), [n], with theta so that the sum is 1.
    """
    descending = tf.sort(values, direction="DESCENDING")
    ranks = tf.cast(tf.range(1, tf.size(values) + 1), values.dtype)
    thresholds = (tf.cumsum(descending) - 1) / ranks
    # theta is the threshold of the last entry that stays above its own.
    support = tf.reduce_sum(tf.cast(descending > thresholds, tf.int32))
    return tf.maximum(values - thresholds[support - 1], 0)
