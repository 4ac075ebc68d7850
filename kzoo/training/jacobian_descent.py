"""Jacobian descent: an aggregator puts the gradients of several objectives together.

    w <- base_optimizer(w, A(J)),   J = [grad f_1; ...; grad f_m]          (section 2.1)

`JacobianDescent`: f_k is the loss of the k-th output of a model, "multi-task learning".
`InstanceWiseRiskMinimization`: f_i is the loss of the i-th row of the batch (section 4).

"Jacobian Descent for Multi-Objective Optimization", Pierre Quinton, Valerian Rey, 2024, arXiv
2406.16232.

The compiled loss is any: what an objective is, is read from its derivatives with respect to the
outputs, as those of one output, or of one row of all outputs. So it has its sample weights and loss
weights in it, and must be a sum over outputs or rows, as every Keras loss is.

Open choices, where the paper is silent: penalties (regularizers, `add_loss`) are no objectives,
their gradient is added to A(J); half precision's loss scaling is taken off before aggregation.
"""

import keras
import tensorflow as tf

from kzoo.ops.aggregation import Aggregator, UPGrad
from kzoo.ops.distribute import num_replicas
from kzoo.papers import Example, Paper, component
from kzoo.training.objectives import Objectives, as_output, gather_rows
from kzoo.training.several_passes import Batch, SeveralPasses

PAPER = Paper(
    title="Jacobian Descent for Multi-Objective Optimization",
    authors=("Pierre Quinton", "Valérian Rey"),
    year=2024,
    arxiv="2406.16232",
)


class _Aggregating(SeveralPasses):
    """What both trainers share: the aggregator, one forward pass, products with its Jacobian."""

    def __init__(self, model, aggregator=None, **kwargs):
        super().__init__(model, **kwargs)
        if isinstance(aggregator, dict):
            aggregator = keras.saving.deserialize_keras_object(aggregator)
        aggregator = UPGrad() if aggregator is None else aggregator
        if not isinstance(aggregator, Aggregator):
            raise TypeError(
                "`aggregator` must be an Aggregator of kzoo.ops.aggregation. Received: "
                f"{aggregator!r}"
            )
        self.aggregator = aggregator

    def call(self, inputs, training=None):
        # Outputs of their own: one that another is made from, or that stands twice among them,
        # would have the derivatives of both losses.
        return keras.tree.map_structure(as_output, super().call(inputs, training=training))

    def jacobian(self, x, y=None, sample_weight=None):
        """J at the present weights, to look at: float [m, n].

        Args:
            x, y, sample_weight: one batch, as in `fit`.
        """
        if not self.compiled:
            raise ValueError("`jacobian` needs a compiled trainer: call `compile` first.")
        rows = self.objectives(Objectives(Batch(self, (x, y, sample_weight)))).values()
        return tf.concat([tf.reshape(each, [tf.shape(each)[0], -1]) for each in rows], axis=1)

    def aggregated(self, rows):
        """This replica's part of A(J), {index of a weight: gradient}, from rows of all replicas."""
        updates = self.aggregator.aggregate(list(rows.values()), step=self.optimizer.iterations)
        parts = [update / num_replicas() for update in updates]
        return dict(zip(rows, parts, strict=True))

    def with_penalty(self, gradients, taped):
        """{index: gradient} as a list, None where there is none, plus that of the penalties."""
        gradients = [gradients.get(index) for index in range(len(taped.batch.weights))]
        if not (self.losses or taped.kept.scope.losses):
            return gradients
        return [_sum(g, p) for g, p in zip(gradients, taped.penalty_gradients(), strict=True)]

    def get_config(self):
        aggregator = keras.saving.serialize_keras_object(self.aggregator)
        return {**super().get_config(), "aggregator": aggregator}


def _example_of_tasks():
    inputs = keras.Input([6])
    shared = keras.layers.Dense(8, "relu")(inputs)
    heads = [keras.layers.Dense(3, name=name)(shared) for name in ("first", "second")]
    return {"model": keras.Model(inputs, heads)}


def _rows_of_tasks(rng, batch):
    return rng.normal(size=(batch, 6)), tuple(rng.integers(0, 3, (2, batch)))


@component(PAPER, example=Example(kwargs=_example_of_tasks, inputs=_rows_of_tasks))
class JacobianDescent(_Aggregating):
    """Trains a model of several outputs, each with a loss, by Jacobian descent.

    The objectives are the losses of the outputs, in the order in which the model has them, each
    times its `loss_weights`. Weights that more than one objective depends on, the shared trunk, get
    A(J), where J has the gradients of all shared weights together; those of one output, its head,
    have nothing to agree on and get that objective's own gradient. So with `Constant(1.0)` it is
    training on the sum of the losses, as without this class; `Mean` takes 1/m of the shared step.

    Costs one forward pass and m backward passes, and m gradients of memory. Under several replicas
    the gradients of each objective are summed before they are aggregated, so the result is that of
    one device; with accumulation, each micro-batch is aggregated on its own.

    Args:
        model: the `keras.Model` to train, with two outputs or more.
        aggregator: an `Aggregator` of `kzoo.ops.aggregation`; None for `UPGrad()`. One that draws
            does so by its seed and the number of the optimizer's step.

    Example:

    >>> trainer = JacobianDescent(model, UPGrad())
    >>> trainer.compile("adam", {"depth": "mse", "label": "sparse_categorical_crossentropy"})
    >>> history = trainer.fit(x, {"depth": depth, "label": label})

    Raises:
        ValueError: for a batch whose loss depends on fewer than two outputs.

    Reference:
        Quinton and Rey (2024), section 2.1, arxiv.org/abs/2406.16232
    """

    def step_gradients(self, batch):
        taped = Objectives(batch)
        by_task = taped.task_gradients()
        shared = _shared(by_task)
        own = {
            index: gradient
            for gradients in by_task
            for index, gradient in enumerate(gradients)
            if gradient is not None and index not in shared
        }
        gradients = {**own, **self.aggregated(_stacked(by_task, shared, batch))}
        return self.with_penalty(gradients, taped), taped.kept

    def objectives(self, taped):
        """{index of a shared weight: [m, ...], the gradients of the objectives}."""
        by_task = taped.task_gradients()
        return _stacked(by_task, _shared(by_task), taped.batch)


def _shared(by_task):
    """Indices of the weights that more than one objective depends on."""
    if len(by_task) < 2:
        raise ValueError(
            "`model` must have a loss for at least two outputs; see InstanceWiseRiskMinimization "
            f"for one. Received losses of {len(by_task)}."
        )
    counts = [sum(g is not None for g in each) for each in zip(*by_task, strict=True)]
    return [index for index, count in enumerate(counts) if count > 1]


def _stacked(by_task, shared, batch):
    pieces = []
    for index in shared:
        rows = [gradients[index] for gradients in by_task]
        zero = tf.zeros_like(next(row for row in rows if row is not None))
        pieces.append(tf.stack([zero if row is None else row for row in rows]))
    return dict(zip(shared, batch.sum_over_replicas(pieces), strict=True))


def _example_of_rows():
    layers = [keras.Input([6]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers)}


@component(PAPER, example=Example(kwargs=_example_of_rows))
class InstanceWiseRiskMinimization(_Aggregating):
    """Trains a model with the loss of each row of the batch as an objective of its own (IWRM).

    With `Mean` it is training on the mean loss, as without this class.

    The gradients of all rows come from one forward pass and one vectorised backward pass of m times
    the work and memory of a plain one, so layers that mix rows, such as batch normalization, have
    their true derivatives; the Jacobian takes m gradients of memory. `chunk_size` bounds what the
    backward pass needs, not the Jacobian, and is slow for convolutions under XLA. The batches of
    the paper have 32 rows.

    Args:
        model: the `keras.Model` to train.
        aggregator: an `Aggregator` of `kzoo.ops.aggregation`; None for `UPGrad()`. One that draws
            does so by its seed and the number of the optimizer's step.
        chunk_size: number of rows that are differentiated at once, one chunk after the other; None
            for all.
        per_replica: whether each replica aggregates the rows of its own share of the batch, of
            which then the mean is taken: no row conflicts within its share. Otherwise the rows of
            all replicas are brought together first, which takes memory and traffic for the whole
            Jacobian, and the result is that of one device; several workers cannot. Defaults to
            False.

    Example:

    >>> trainer = InstanceWiseRiskMinimization(model, UPGrad())
    >>> trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = trainer.fit(x, y, batch_size=32)

    Reference:
        Quinton and Rey (2024), section 4, arxiv.org/abs/2406.16232
    """

    def __init__(self, model, aggregator=None, chunk_size=None, per_replica=False, **kwargs):
        super().__init__(model, aggregator, **kwargs)
        is_count = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
        if chunk_size is not None and not (is_count and chunk_size > 0):
            raise ValueError(
                f"`chunk_size` must be a positive integer or None. Received: {chunk_size!r}"
            )
        self.chunk_size = chunk_size
        self.per_replica = bool(per_replica)

    def step_gradients(self, batch):
        taped = Objectives(batch)
        gradients = self.aggregated(self.objectives(taped))
        return self.with_penalty(gradients, taped), taped.kept

    def objectives(self, taped):
        """{index of a weight: [m, ...], the gradients of the losses of the rows}."""
        rows = taped.row_gradients(self.chunk_size)
        if self.per_replica or num_replicas() == 1:
            return rows
        return dict(zip(rows, gather_rows(list(rows.values())), strict=True))

    def get_config(self):
        return {
            **super().get_config(),
            "chunk_size": self.chunk_size,
            "per_replica": self.per_replica,
        }


def _sum(first, second):
    present = [each for each in (first, second) if each is not None]
    return tf.add_n(present) if present else None
