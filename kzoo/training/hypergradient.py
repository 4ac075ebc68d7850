"""Hyper-parameters by gradient descent on the validation loss, through the implicit function.

    w*(h) = argmin_w T(w, h)                         T: training loss, V: validation loss
    dV/dh = V_h - V_w H^-1 T_wh,   H = T_ww          (the implicit function theorem)
    H^-1 v ~ a sum_{j<K} (I - a H)^j v               (Neumann), or by conjugate gradients

at the weights where some steps of an inner optimizer have led; then an outer optimizer moves h, and
so on in turn. With K = 1 the inverse is the identity times a (T1-T2).

"Optimizing Millions of Hyperparameters by Implicit Differentiation", Lorraine, Vicol, Duvenaud,
2019, arXiv 1911.02590, algorithms 1 to 3.

Open choices: a is the inner optimizer's learning rate unless given, as in the authors' code; the
inverse is taken on a training batch of its own; all passes of an outer step are stateless, so that
they see one dropout mask and leave the moving statistics as they are.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.distribute import num_replicas
from kzoo.ops.implicit import cg_inverse_hvp, hypergradients, neumann_inverse_hvp
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Optimizing Millions of Hyperparameters by Implicit Differentiation",
    authors=("Jonathan Lorraine", "Paul Vicol", "David Duvenaud"),
    year=2019,
    arxiv="1911.02590",
)


@component(PAPER)
class HypergradientTrainer:
    """Trains a model and, every few steps, improves hyper-parameters of its training loss.

    Any floating variables are hyper-parameters that the training loss is differentiable in: decays
    of single weights (`decay_variables`, `l2_decay`), weights of terms of the loss or of examples,
    the examples themselves, the weights of an augmenting network. An outer step costs about `terms`
    gradients, and its memory does not depend on `terms`.

    Weights and hyper-parameters go on from where they are in every call of `fit`. To save a run,
    give `tf.train.Checkpoint` the model, both optimizers and the hyper-parameters. It works on one
    replica.

    Args:
        model: a built `keras.Model`; its trainable variables are the weights.
        hyperparameters: list of `keras.Variable`, none of them a trainable variable of the model.
        training_loss, validation_loss: `loss(model, hyperparameters, batch)` returns a scalar
            tensor; it calls the model, in training mode or not, and reads the hyper-parameters as
            the variables that they are.
        optimizer, hyper_optimizer: `keras.optimizers.Optimizer` of the weights and of the
            hyper-parameters.
        inner_steps: steps of the weights before each one of the hyper-parameters. Defaults to 1.
        inverse_hvp: "neumann", "cg", or a function, see `kzoo.ops.implicit.hypergradients`.
            Defaults to "neumann".
        terms: K, terms of the series or most iterations of the conjugate gradients. Defaults to 20.
        learning_rate: a of the series, above 0 and below 2 over the largest curvature. None for
            the current one of `optimizer`; give it where that optimizer is not plain SGD.

    Example:

    >>> decays = decay_variables(model.trainable_variables, per="weight", initial=1e-3)
    >>> cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> def loss(model, decays, batch):
    ...     return cross_entropy(batch[1], model(batch[0], training=True))
    >>> def decayed(model, decays, batch):
    ...     return loss(model, decays, batch) + l2_decay(model.trainable_variables, decays)
    >>> trainer = HypergradientTrainer(
    ...     model, decays, decayed, loss, keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.1)
    ... )
    >>> history = trainer.fit(train, validation, epochs=20, steps_per_epoch=50)

    Reference:
        Lorraine, Vicol, Duvenaud (2019), arxiv.org/abs/1911.02590
    """

    def __init__(
        self,
        model,
        hyperparameters,
        training_loss,
        validation_loss,
        optimizer,
        hyper_optimizer,
        inner_steps=1,
        inverse_hvp="neumann",
        terms=20,
        learning_rate=None,
    ):
        if not isinstance(model, keras.Model) or not model.built:
            raise TypeError(f"`model` must be a built keras.Model. Received: {model!r}")
        if num_replicas() > 1:
            raise ValueError("HypergradientTrainer works on one replica, not under this strategy.")
        _check_count("inner_steps", inner_steps)
        _check_count("terms", terms)
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0. Received: {learning_rate!r}")
        self.model = model
        self.hyperparameters = _check_hyperparameters(hyperparameters, model)
        self.training_loss = training_loss
        self.validation_loss = validation_loss
        self.optimizer = optimizer
        self.hyper_optimizer = hyper_optimizer
        self.inner_steps = inner_steps
        self.terms = terms
        self.learning_rate = learning_rate
        self._inverse_hvp = self._find_inverse(inverse_hvp)
        optimizer.build(model.trainable_variables)
        hyper_optimizer.build(self.hyperparameters)
        self._steps = tf.function(self._inner_and_outer_steps)

    def _find_inverse(self, inverse_hvp):
        if callable(inverse_hvp):
            return inverse_hvp
        if inverse_hvp == "cg":
            return functools.partial(cg_inverse_hvp, iterations=self.terms)
        if inverse_hvp == "neumann":
            return self._neumann
        raise ValueError(
            f'`inverse_hvp` must be "neumann", "cg" or a function. Received: {inverse_hvp!r}'
        )

    def _neumann(self, product, vectors):
        rate = self.learning_rate
        if rate is None:
            rate = tf.convert_to_tensor(self.optimizer.learning_rate)
        return neumann_inverse_hvp(product, vectors, self.terms, rate)

    def fit(self, training_data, validation_data, epochs=1, steps_per_epoch=100, callbacks=()):
        """Takes `inner_steps` steps of the weights and one of the hyper-parameters, in turn.

        Args:
            training_data, validation_data: `tf.data.Dataset` of batches, repeated as often as
                needed; a batch is whatever the losses take.
            epochs: number of rounds of the history and the callbacks. Defaults to 1.
            steps_per_epoch: outer steps in each. Defaults to 100.
            callbacks: Keras callbacks; `kzoo.callbacks.Progress` shows how far it is.

        Returns:
            `keras.callbacks.History` with `loss` (training) and `val_loss`, both at the outer
            steps, and `hypergradient_norm`: means over each epoch.

        Raises:
            FloatingPointError: if a loss or a hypergradient is not finite; weights and
                hyper-parameters are then those of the step after it.
        """
        _check_count("epochs", epochs)
        _check_count("steps_per_epoch", steps_per_epoch)
        training, validation = (iter(data.repeat()) for data in (training_data, validation_data))
        history = keras.callbacks.History()
        run = keras.callbacks.CallbackList(
            [*callbacks, history], model=self.model, epochs=epochs, steps=steps_per_epoch
        )
        self.model.stop_training = False
        run.on_train_begin()
        for epoch in range(epochs):
            run.on_epoch_begin(epoch)
            logs = self._epoch(epoch, training, validation, steps_per_epoch, run)
            run.on_epoch_end(epoch, logs)
            if self.model.stop_training:
                break
        run.on_train_end()
        return history

    def _epoch(self, epoch, training, validation, steps, run):
        totals, means = {}, {}
        for step in range(steps):
            run.on_train_batch_begin(step)
            logs = {name: float(x) for name, x in self._steps(training, validation).items()}
            if not np.isfinite(list(logs.values())).all():
                raise FloatingPointError(
                    f"Not finite at outer step {step + 1} of epoch {epoch + 1}: {logs}. Lower "
                    "`learning_rate` (the series diverges), or the learning rate of an optimizer."
                )
            totals = {name: totals.get(name, 0.0) + x for name, x in logs.items()}
            means = {name: total / (step + 1) for name, total in totals.items()}
            run.on_train_batch_end(step, means)
        return means

    def _inner_and_outer_steps(self, training, validation):
        for _ in tf.range(self.inner_steps):
            self._inner_step(next(training))
        gradients, (loss, val_loss) = self.hypergradients(next(training), next(validation))
        self.hyper_optimizer.apply(gradients, self.hyperparameters)
        norm = tf.linalg.global_norm(gradients)
        return {"loss": loss, "val_loss": val_loss, "hypergradient_norm": norm}

    def _inner_step(self, batch):
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.training_loss(self.model, self.hyperparameters, batch)
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        self.optimizer.apply(gradients, weights)

    def hypergradients(self, training_batch, validation_batch):
        """(dV/dh, (training loss, validation loss)) at the present weights; changes nothing."""
        variables = [*self.model.trainable_variables, *self.hyperparameters]
        others = [(v, v.value) for v in self.model.non_trainable_variables]

        def at(loss, batch):
            def function(weights, hyperparameters):
                mapping = zip(variables, [*weights, *hyperparameters], strict=True)
                with keras.StatelessScope(state_mapping=[*others, *mapping]):
                    return loss(self.model, self.hyperparameters, batch)

            return function

        return hypergradients(
            at(self.training_loss, training_batch),
            at(self.validation_loss, validation_batch),
            [weight.value for weight in self.model.trainable_variables],
            [each.value for each in self.hyperparameters],
            self._inverse_hvp,
        )


def decay_variables(weights, per="weight", initial=1e-3, largest=1.0):
    """Hyper-parameters for `l2_decay`: the logarithms of the decays.

    Args:
        weights: list of `keras.Variable`.
        per: "weight" for a decay of each single weight, "variable" for one of each variable.
        initial: the decays to begin with, above 0. Defaults to 0.001.
        largest: the decays stay at most this, at least `initial`: with a decay beyond 2 over the
            inner learning rate gradient descent diverges. Defaults to 1.
    """
    if per not in ("weight", "variable"):
        raise ValueError(f'`per` must be "weight" or "variable". Received: {per!r}')
    if not 0 < initial <= largest:
        raise ValueError(
            "`initial` must be above 0 and at most `largest`. "
            f"Received: {initial!r} and {largest!r}"
        )
    start, end = math.log(initial), math.log(largest)
    decays = []
    for weight in weights:
        shape = weight.shape if per == "weight" else ()
        decays.append(keras.Variable(np.full(shape, start), dtype=weight.dtype))
        # Keras's optimizers apply it after their update.
        decays[-1].constraint = lambda log_decay: tf.minimum(log_decay, end)
    return decays


def l2_decay(weights, log_decays):
    """sum over all weights of exp(h) w^2 / 2, whose gradient is decay times weight.

    Args:
        weights: list of tensors or variables.
        log_decays: list of as many, each a scalar or of its weight's shape.
    """
    pairs = zip(weights, log_decays, strict=True)
    return tf.add_n([0.5 * tf.reduce_sum(tf.exp(h) * tf.square(w)) for w, h in pairs])


def _check_count(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")


def _check_hyperparameters(hyperparameters, model):
    hyperparameters = list(hyperparameters)
    if not hyperparameters or not all(isinstance(h, keras.Variable) for h in hyperparameters):
        raise TypeError(
            f"`hyperparameters` must be a list of keras.Variable. Received: {hyperparameters!r}"
        )
    weights = {id(weight) for weight in model.trainable_variables}
    shared = [h.path for h in hyperparameters if id(h) in weights]
    if shared:
        raise ValueError(
            f"`hyperparameters` must not be trainable variables of the model. Received: {shared}"
        )
    return hyperparameters
