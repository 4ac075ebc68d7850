"""Prospect: stochastic gradients of a spectral risk, without bias and variance in the limit.

    min_w R_sigma(l(w)) + mu / 2 ||w||^2                          (equation 6)
    v = n q_i (grad l_i(w) + mu w) - n rho_i g_i + sum_j rho_j g_j
    w <- w - eta v,  l_j <- l_j(w),  q <- argmax_q q^T l - nu D(q || 1/n),
    g_i <- grad l_i(w) + mu w,  rho_i <- q_i

with tables of the losses l, the weights q and rho and the gradients g of all n examples. With
uniform sigma it is SAGA.

"Distributionally Robust Optimization with Bias and Variance Reduction", Mehta, Roulet, Pillutla,
Harchaoui, 2023, arXiv 2310.13863; algorithm 1.

Open choices: i = j as in the paper's experiments, unless `independent` is set; the losses and
gradients of a step are those at w before the step, as in the authors' code, so that an example
costs one evaluation; rho_i takes the q that was just updated, as the text has it, where the code
takes the one before. The code treats mu ||w||^2 by its proximal map.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from kzoo.losses.spectral_risk import (
    PAPER,
    loss_ranks,
    per_example,
    risk_spectrum,
    spectral_risk_value,
    spectral_weights,
)
from kzoo.ops.map_fn import map_fn
from kzoo.papers import component


@component(PAPER)
class Prospect:
    """Fits a small Keras model to a spectral risk, one example at a time.

    The table of gradients holds a number for each example and weight, so it is meant for linear
    and other small models. An epoch is one compiled loop of as many steps as there are examples.

    Args:
        model: a built `keras.Model` of one input; it is called in inference mode.
        loss: a Keras loss or its name, with one value for each example.
        spectrum, parameter: see `kzoo.losses.risk_spectrum`. Default to "cvar" and 0.5.
        shift_cost: nu, at least 0. Defaults to 1.
        divergence: "chi2" or "kl". Defaults to "chi2".
        learning_rate: eta, above 0. Defaults to 0.01.
        l2: mu, at least 0. Defaults to 0.
        independent: whether the loss that is refreshed is that of another random example than the
            gradient. Defaults to False.
        seed: of the order of the examples. Defaults to 0.
        jit_compile: whether XLA compiles the loop. Defaults to True.

    Example:

    >>> solver = Prospect(model, "mean_squared_error", learning_rate=0.05, l2=0.1)
    >>> history = solver.fit(x, y, epochs=100)
    >>> history[-1]

    Reference:
        Mehta et al. (2023), algorithm 1, arxiv.org/abs/2310.13863
    """

    def __init__(
        self,
        model,
        loss,
        spectrum="cvar",
        parameter=0.5,
        shift_cost=1.0,
        divergence="chi2",
        learning_rate=0.01,
        l2=0.0,
        independent=False,
        seed=0,
        jit_compile=True,
    ):
        if not model.built:
            raise ValueError("`model` must be built.")
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0. Received: {learning_rate!r}")
        if not l2 >= 0:
            raise ValueError(f"`l2` must be at least 0. Received: {l2!r}")
        self.model, self.loss = model, keras.losses.get(loss)
        self.make_spectrum = functools.partial(risk_spectrum, spectrum, parameter)
        self.risk = {"shift_cost": shift_cost, "divergence": divergence}
        spectral_weights(np.zeros(2), self.make_spectrum(2), **self.risk)
        self.learning_rate, self.l2 = learning_rate, l2
        self.independent, self.seed = independent, seed
        self._tables = tf.function(self._first_tables, jit_compile=jit_compile)
        self._epoch = tf.function(self._run_epoch, jit_compile=jit_compile)
        self._evaluate = tf.function(self._objective_of, jit_compile=jit_compile)

    def fit(self, x, y, epochs):
        """Runs `epochs` times n steps from the model's weights, and leaves them in the model.

        The tables start from the losses and gradients at these weights, an epoch of evaluations.

        Args:
            x: [n, ...], in memory.
            y: [n, ...].
            epochs: at least 1.

        Returns:
            float64 [epochs + 1], the objective before the first and after each epoch.
        """
        x, y = self._tensors(x, y)
        size = x.shape[0]
        rng = np.random.default_rng(self.seed)
        weights = self._flat([variable.value for variable in self.model.trainable_variables])
        spectrum = self.make_spectrum(size, weights.dtype)
        tables = self._tables(weights, x, y, spectrum)
        history = [self._evaluate(weights, x, y, spectrum)]
        for _ in range(epochs):
            i = rng.integers(size, size=size, dtype="int32")
            j = rng.integers(size, size=size, dtype="int32") if self.independent else i
            weights, tables = self._epoch(weights, tables, x, y, spectrum, i, j)
            history.append(self._evaluate(weights, x, y, spectrum))
        for variable, value in zip(
            self.model.trainable_variables, self._split(weights), strict=True
        ):
            variable.assign(value)
        return np.array(history, "float64")

    def objective(self, x, y):
        """R_sigma(l(w)) + mu / 2 ||w||^2 at the model's weights, over all examples."""
        x, y = self._tensors(x, y)
        weights = self._flat([variable.value for variable in self.model.trainable_variables])
        spectrum = self.make_spectrum(x.shape[0], weights.dtype)
        return float(self._evaluate(weights, x, y, spectrum))

    def _run_epoch(self, weights, tables, x, y, spectrum, i, j):
        # XLA compiles strided slices anew for other indices, gathers it does not.
        def step(number, weights, tables):
            rows = tf.gather(i, number), tf.gather(j, number)
            return (number + 1, *self._step(weights, tables, x, y, spectrum, *rows))

        state = (tf.constant(0), weights, tables)
        return tf.while_loop(lambda number, *_: number < tf.size(i), step, state)[1:]

    def _step(self, weights, tables, x, y, spectrum, i, j):
        losses, ranks, q, rho, gradients, mean = tables
        size = tf.cast(tf.size(losses), weights.dtype)
        loss_i, gradient = self._loss_and_gradient(weights, tf.gather(x, i), tf.gather(y, i))
        old = tf.gather(rho, i) * tf.gather(gradients, i)
        estimate = size * (tf.gather(q, i) * gradient - old) + mean
        loss_j = loss_i
        if self.independent:
            loss_j = self._loss_and_gradient(weights, tf.gather(x, j), tf.gather(y, j))[0]
        losses = tf.tensor_scatter_nd_update(losses, [[j]], [loss_j])
        ranks = _moved(ranks, losses, j)
        q = spectral_weights(losses, spectrum, ranks=ranks, **self.risk)
        weight = tf.gather(q, i)
        mean += weight * gradient - old
        rho = tf.tensor_scatter_nd_update(rho, [[i]], [weight])
        gradients = tf.tensor_scatter_nd_update(gradients, [[i]], [gradient])
        return weights - self.learning_rate * estimate, (losses, ranks, q, rho, gradients, mean)

    def _first_tables(self, weights, x, y, spectrum):
        """The losses, their ranks, q, rho, the gradients and their mean under rho."""
        losses, gradients = map_fn(
            lambda row: self._loss_and_gradient(weights, *row),
            (x, y),
            fn_output_signature=(weights.dtype, weights.dtype),
        )
        q = spectral_weights(losses, spectrum, **self.risk)
        mean = tf.linalg.matvec(gradients, q, transpose_a=True)
        return losses, loss_ranks(losses), q, q, gradients, mean

    def _loss_and_gradient(self, weights, x, y):
        """l_i, and the gradient of l_i + mu / 2 ||w||^2, [d]."""
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = self._losses(weights, x[tf.newaxis], y[tf.newaxis])[0]
        return loss, tape.gradient(loss, weights) + self.l2 * weights

    def _objective_of(self, weights, x, y, spectrum):
        risk = spectral_risk_value(self._losses(weights, x, y), spectrum, **self.risk)
        return risk + 0.5 * self.l2 * tf.reduce_sum(tf.square(weights))

    def _losses(self, weights, x, y):
        others = [variable.value for variable in self.model.non_trainable_variables]
        outputs, _ = self.model.stateless_call(self._split(weights), others, x, training=False)
        return per_example(self.loss, y, outputs)

    def _split(self, weights):
        shapes = [variable.shape for variable in self.model.trainable_variables]
        parts = tf.split(weights, [int(np.prod(shape)) for shape in shapes])
        return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _flat(self, values):
        return tf.concat([tf.reshape(value, [-1]) for value in values], 0)

    def _tensors(self, x, y):
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        if x.shape[0] != y.shape[0]:
            raise ValueError(
                f"`x` and `y` must have the same length. Received: {x.shape[0]} and {y.shape[0]}"
            )
        return tf.cast(x, self.model.inputs[0].dtype), y


def _moved(ranks, losses, j):
    """`loss_ranks` after only loss j has changed, without sorting."""
    places = tf.range(tf.size(ranks))
    before = (losses < tf.gather(losses, j)) | ((losses == tf.gather(losses, j)) & (places < j))
    rank = tf.reduce_sum(tf.cast(before, "int32"))
    ranks -= tf.cast(ranks > tf.gather(ranks, j), "int32")
    ranks += tf.cast(ranks >= rank, "int32")
    return tf.tensor_scatter_nd_update(ranks, [[j]], [rank])
