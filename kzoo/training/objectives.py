"""The loss of a model as several objectives, and their gradients from one forward pass."""

import keras
import tensorflow as tf

from kzoo.ops.distribute import num_replicas
from kzoo.training.distribution import is_multi_worker


class Objectives:
    """A recorded forward pass, and the gradients of the parts of its loss.

    A part is told by the derivatives of the loss with respect to the outputs: of one output, or of
    one row of all. So outputs must not be made from each other; see `as_output`. What comes back is
    this replica's part, free of loss scaling.

    Args:
        batch: a `kzoo.training.several_passes.Batch`.

    Attributes:
        kept: the `Pass`.
    """

    def __init__(self, batch):
        self.batch = batch
        # Of a replica without rows all gradients are 0 by themselves.
        self._scale = batch.nonzero_scale
        self._weights = [tf.convert_to_tensor(weight) for weight in batch.weights]
        with tf.GradientTape(persistent=True) as self._tape:
            self._tape.watch(self._weights)
            self.kept = batch.forward(self._weights)
        outputs = keras.tree.flatten(self.kept.outputs)
        found = self._tape.gradient(self.kept.loss, outputs)
        kept = [i for i, gradient in enumerate(found) if gradient is not None]
        self._outputs = [outputs[i] for i in kept]
        self._upstream = [tf.convert_to_tensor(found[i]) for i in kept]

    def task_gradients(self):
        """For each output with a loss the list of gradients of that loss, None where none is."""
        return [
            self._gradients(output, upstream * tf.cast(self._scale, upstream.dtype))
            for output, upstream in zip(self._outputs, self._upstream, strict=True)
        ]

    def row_gradients(self, chunk_size=None):
        """{index of a weight: [rows, ...]}, the gradients of the losses of the rows."""
        if not self._outputs:
            raise ValueError("`loss` must depend on the model's outputs: compile with a loss.")
        with self._tape:
            # TensorFlow's vectorisation fails on a replica without rows: give it one of zero.
            missing = tf.maximum(1 - self.batch.rows, 0)
            by_row = tf.pad(self._row_products(), [[0, missing]])
        pieces = self._tape.jacobian(by_row, self._weights, parallel_iterations=chunk_size)
        pieces = [None if piece is None else piece[: self.batch.rows] for piece in pieces]
        unscaled = self.batch.unscaled(pieces)
        return {index: piece for index, piece in enumerate(unscaled) if piece is not None}

    def penalty_gradients(self):
        """The gradients of all of the loss that does not come from the outputs."""
        targets = [self.kept.loss, *self._outputs]
        one = tf.ones_like(self.kept.loss)
        scale = [tf.cast(self._scale, each.dtype) for each in targets]
        upstream = [one, *[-each for each in self._upstream]]
        return self._gradients(targets, [s * u for s, u in zip(scale, upstream, strict=True)])

    def _gradients(self, targets, upstream):
        found = self._tape.gradient(targets, self._weights, output_gradients=upstream)
        return self.batch.unscaled(found)

    def _row_products(self):
        """[rows], whose derivatives are those of the losses of the rows, times the scale."""
        # The loss is the mean over the rows, divided by the number of replicas.
        factor = tf.cast(self.batch.rows * num_replicas(), self._scale.dtype) * self._scale
        products = [
            tf.reduce_sum(
                tf.reshape(tf.cast(output, factor.dtype), [self.batch.rows, -1])
                * tf.reshape(tf.cast(upstream, factor.dtype), [self.batch.rows, -1]),
                axis=1,
            )
            for output, upstream in zip(self._outputs, self._upstream, strict=True)
        ]
        return factor * tf.add_n(products)


def gather_rows(pieces):
    """The rows [m_r, ...] of all replicas, one replica's after the other's, in each piece.

    Raises:
        ValueError: under several workers.
    """

    # Not by a collective, whose shapes may not change from batch to batch.
    def gather(strategy, *pieces):
        if is_multi_worker(strategy):
            raise ValueError(
                "The rows of several workers cannot be brought together. Use `per_replica=True`."
            )
        return [tf.concat(strategy.experimental_local_results(each), axis=0) for each in pieces]

    return tf.distribute.get_replica_context().merge_call(gather, args=pieces)


def as_output(output):
    """A copy of an output that nothing is made from, with its mask."""
    copy = tf.identity(output)
    # How Keras hands a mask to the loss.
    mask = getattr(output, "_keras_mask", None)
    if mask is not None:
        copy._keras_mask = mask
    return copy
