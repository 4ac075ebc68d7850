"""First and second derivatives of a model's mean loss over fixed data, wherever its weights are."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.hessian import hessian_vector_product


class LossDerivatives:
    """The mean loss of a model over data as a function of its trainable weights.

    The model is called in inference mode and its variables are only read.

    Args:
        model: a built `keras.Model`.
        data: (x, y) of arrays.
        loss: `loss(y_true, y_pred)` -> scalar or [batch]; None for what the model was compiled
            with, regularization included.
        batch_size: rows per pass.
    """

    def __init__(self, model, data, loss=None, batch_size=256):
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(f"`model` must be a built keras.Model. Received: {model!r}")
        if loss is None and not model.compiled:
            raise ValueError("`model` must be compiled with a loss, or `loss` be given.")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: {batch_size!r}")
        if not isinstance(data, tuple) or len(data) != 2:
            raise ValueError(f"`data` must be (x, y). Received: {type(data).__name__}")
        x, y = (keras.tree.map_structure(np.asarray, part) for part in data)
        self._rows = len(keras.tree.flatten(x)[0])
        if self._rows == 0 or any(len(a) != self._rows for a in keras.tree.flatten((x, y))):
            raise ValueError("The arrays of `data` must have one length of at least 1.")
        self._model = model
        self._loss = loss
        self._batches = [
            keras.tree.map_structure(
                lambda a, at=start: tf.constant(a[at : at + batch_size]), (x, y)
            )
            for start in range(0, self._rows, batch_size)
        ]
        self._gradients = tf.function(self._batch_gradients, reduce_retracing=True)
        self._products = tf.function(self._batch_products, reduce_retracing=True)

    @property
    def weights(self):
        """Values of the model's trainable weights, a list of tensors."""
        return [
            tf.convert_to_tensor(variable.value) for variable in self._model.trainable_variables
        ]

    def gradients(self, weights):
        """(loss, its gradients) at the weights, a scalar and a list of tensors."""
        loss, gradients = self._mean(self._gradients, weights)
        return loss, gradients

    def hessian_vector_product(self, weights, vectors):
        """(gradients, Hessian times the vectors) at the weights, two lists of tensors."""
        return self._mean(self._products, weights, vectors)

    def _mean(self, function, *arguments):
        """The function's results over all batches, each weighed by its share of the rows."""
        total = None
        for x, y in self._batches:
            share = len(keras.tree.flatten(x)[0]) / self._rows
            part = tf.nest.map_structure(lambda t, s=share: s * t, function(x, y, *arguments))
            total = part if total is None else tf.nest.map_structure(tf.add, total, part)
        return total

    def _batch_gradients(self, x, y, weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = self._batch_loss(x, y, weights)
        zero = tf.UnconnectedGradients.ZERO
        return loss, tape.gradient(loss, weights, unconnected_gradients=zero)

    def _batch_products(self, x, y, weights, vectors):
        def loss(values):
            return self._batch_loss(x, y, values)

        return hessian_vector_product(loss, weights, vectors)

    def _batch_loss(self, x, y, weights):
        mapping = list(zip(self._model.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            y_pred = self._model(x, training=False)
            if self._loss is not None:
                return tf.reduce_mean(self._loss(y, y_pred))
            return self._model.compute_loss(x, y, y_pred, training=False)
