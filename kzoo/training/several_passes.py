"""The base of training methods that look at the loss at several points in one step."""

import keras
import tensorflow as tf

from kzoo.ops.distribute import num_replicas, sum_over_replicas
from kzoo.ops.hessian import hessian_vector_product
from kzoo.training.method import TrainingMethod


class SeveralPasses(TrainingMethod):
    """A training method whose step is made of several forward and backward passes.

    A subclass implements `step_gradients`. The optimizer is any: what it does with gradients
    (momentum, clipping, accumulation, loss scaling) comes after they have been put together.

    All passes of a step see the same batch and the same dropout masks, so they are passes through
    one function of the weights. What layers update as they are called (moving statistics, states
    of generators) is that of the pass which `step_gradients` returns.
    """

    def step_gradients(self, batch):
        """The gradients that the optimizer takes; to be implemented by a method.

        Args:
            batch: `Batch`, the loss of which can be looked at anywhere.

        Returns:
            (gradients, the `Pass` whose state is kept and whose outputs and loss are reported)
        """
        raise NotImplementedError

    def train_step(self, data):
        batch = Batch(self, data)
        gradients, kept = self.step_gradients(batch)
        batch.keep_state(kept)
        gradients = [None if g is None else g * tf.cast(batch.scale, g.dtype) for g in gradients]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        # `compute_loss` divides by the number of replicas.
        self._loss_tracker.update_state(kept.loss * num_replicas(), sample_weight=batch.rows)
        return self.compute_metrics(
            batch.x, batch.y, kept.outputs, sample_weight=batch.sample_weight
        )


class Pass:
    """A forward pass: its outputs, its loss (this replica's part), and the state it leaves."""

    def __init__(self, outputs, loss, scope):
        self.outputs = outputs
        self.loss = loss
        self.scope = scope


class Batch:
    """The loss of a model on one batch, as a function of its trainable weights.

    Losses and gradients are this replica's part of the global ones, which are the sum over the
    replicas, and are free of loss scaling.

    Args:
        method: the `SeveralPasses` that is trained.
        data: what `train_step` received.
    """

    def __init__(self, method, data):
        self.x, self.y, self.sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.weights = [weight.value for weight in method.trainable_variables]
        # Against underflow in half precision; `kzoo.training.Loop` adds the weight of the replica.
        self.scale = method.optimizer.scale_loss(tf.ones([], keras.config.floatx()))
        # A replica without rows has the scale 0.
        self.nonzero_scale = tf.where(self.scale > 0, self.scale, tf.ones_like(self.scale))
        self._method = method
        self._before = [(v, tf.identity(v.value)) for v in method.non_trainable_variables]

    @property
    def rows(self):
        """Number of rows in this replica's part."""
        return tf.shape(keras.tree.flatten(self.x)[0])[0]

    def forward(self, weights=None):
        """The `Pass` with the given values of the trainable weights; None for what they are."""
        method = self._method
        # Also where they are what they were: in the scope, regularizers see mapped weights only.
        moved = zip(
            method.trainable_variables, self.weights if weights is None else weights, strict=True
        )
        mapping = [*self._before, *moved]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = method(self.x, training=True)
            loss = method.compute_loss(
                x=self.x,
                y=self.y,
                y_pred=outputs,
                sample_weight=self.sample_weight,
                training=True,
            )
        return Pass(outputs, loss, scope)

    def gradients(self, weights=None):
        """(gradients of the loss at the given weights, `Pass`), None where there is no gradient."""
        values = None if weights is None else [tf.convert_to_tensor(w) for w in weights]
        with tf.GradientTape() as tape:
            tape.watch(values or [])
            found = self.forward(values)
            scaled = found.loss * tf.cast(self.scale, found.loss.dtype)
        gradients = tape.gradient(scaled, self.weights if values is None else values)
        return self.unscaled(gradients), found

    def unscaled(self, gradients):
        """Gradients of the loss times `scale` as those of the loss; None stays None."""
        tensors = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        return [None if t is None else t / tf.cast(self.nonzero_scale, t.dtype) for t in tensors]

    def hessian_vector_product(self, vectors, weights=None):
        """(gradients, Hessian times `vectors`) of the loss; see `kzoo.ops.hessian`."""
        values = self.weights if weights is None else weights
        return hessian_vector_product(lambda moved: self.forward(moved).loss, values, vectors)

    def sum_over_replicas(self, tensors):
        """This replica's parts to their global sum, each replica weighed by its number of rows."""
        if num_replicas() == 1:
            return tensors
        (total,) = sum_over_replicas([self.rows])
        share = num_replicas() * self.rows / total
        return sum_over_replicas([t if t is None else tf.cast(share, t.dtype) * t for t in tensors])

    def keep_state(self, kept):
        """Leaves the model's state, and the losses of its outputs, as the pass left them."""
        of_metrics = [v for metric in self._method.metrics for v in metric.variables]
        for variable in (*(v for v, _ in self._before), *of_metrics):
            value = kept.scope.get_current_value(variable)
            if value is not None:
                variable.assign(value)
