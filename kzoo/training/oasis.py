"""OASIS: steps scaled by the diagonal of the Hessian, of a length that it finds by itself.

    D_t = b2 D_{t-1} + (1 - b2) z * (H_t z),   z of random signs       (Hutchinson's estimate)
    Dhat_t = max(|D_t|, alpha)
    eta_t = min( sqrt(1 + theta_{t-1}) eta_{t-1},
                 ||w_t - w_{t-1}||_Dhat / (2 ||g_t(w_t) - g_t(w_{t-1})||_Dhat^-1) )
    theta_t = eta_t / eta_{t-1}
    w_{t+1} = w_t - eta_t Dhat_t^-1 g_t(w_t)

where ||x||_A = sqrt(x^T A x), theta_0 is infinite, and H_t and g_t are those of the batch of step
t: both gradients of the second term are of the same batch, at the weights of this step and of the
last.

"Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information", Jahani,
Rusakov, Shi, Richtarik, Mahoney, Takac, 2021, arXiv 2109.05198, algorithm 1.

Open choices, on what the paper leaves to its input or was not at hand when this was written: D_0 is
the estimate of the first step unless `warm_start` has averaged several; H_t and g_t come from one
batch, where the paper also allows two independent ones; eta stays where it is as long as the
weights have not moved (micro-batches) or it would be infinite (a linear loss); momentum is the
average of the gradients, divided by 1 - b1^t, before the scaling; weight decay is that of the base
optimizer; a step with gradients or products that are not finite leaves all of this as it was.
"""

import math

import keras
import tensorflow as tf

from kzoo.ops.distribute import num_replicas
from kzoo.ops.hessian import rademacher_like
from kzoo.optimizers.moments import bias_corrected, moving_average
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, Paper, component
from kzoo.training.several_passes import Batch, SeveralPasses

PAPER = Paper(
    title="Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    authors=(
        "Majid Jahani",
        "Sergey Rusakov",
        "Zheng Shi",
        "Peter Richtárik",
        "Michael W. Mahoney",
        "Martin Takáč",
    ),
    year=2021,
    arxiv="2109.05198",
)


def _example():
    layers = [keras.Input([6]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    return {"model": keras.Sequential(layers), "momentum": 0.5}


@component(PAPER, example=Example(kwargs=_example))
class OASIS(SeveralPasses):
    """Trains a model with gradients scaled by its curvature, without a learning rate to tune.

    What the base optimizer gets in place of the gradient is eta_t Dhat_t^-1 g_t. The paper's method
    is `keras.optimizers.SGD(1.0)`: its learning rate, or schedule, multiplies eta. With `adaptive`
    off it is the learning rate, the paper's variant with a fixed one, which wants one of the order
    of 0.1. Its `weight_decay` is decoupled: w <- w - learning_rate * weight_decay * w, beside eta.
    Optimizers that normalize gradients (Adam) undo the scaling and are of no use here.

    A step takes a gradient, a product with the Hessian and, if adaptive, another gradient, which is
    about 3.5 plain steps. The trainer keeps two values per weight, three with momentum. With ReLU
    the estimate sees the curvature of the loss alone; smooth activations have their own. On CPUs
    leave `jit_compile` off: XLA draws the signs anew wherever they are used, which takes 2.5 times
    as long. Products with the Hessian are not loss-scaled: prefer bfloat16 to float16.

    Args:
        model: the `keras.Model` to train, built.
        adaptive: whether eta follows the rule above, or is 1. Defaults to True.
        initial_step_size: eta_0, above 0. After the first step it plays no part, as long as the
            step is so short that the gradient changes little. Defaults to 0.001.
        beta_2: b2, the decay of the averaged diagonal, in [0, 1). Defaults to 0.99.
        alpha: least curvature, above 0, in the units of the loss over squared weights. Defaults
            to 0.001.
        momentum: b1, the decay of the averaged gradients, in [0, 1). Defaults to 0, none.
        seed: of the random signs, which depend on the step besides. Defaults to 0.

    Attributes:
        step_size: eta_t, a variable.

    Example:

    >>> trainer = OASIS(model)
    >>> trainer.compile(keras.optimizers.SGD(1.0), "mse")
    >>> trainer.warm_start(dataset)
    >>> history = trainer.fit(dataset, epochs=10)

    Reference:
        Jahani et al. (2021), algorithm 1, arxiv.org/abs/2109.05198
    """

    def __init__(
        self,
        model,
        adaptive=True,
        initial_step_size=0.001,
        beta_2=0.99,
        alpha=0.001,
        momentum=0.0,
        seed=0,
        **kwargs,
    ):
        check_range("initial_step_size", initial_step_size, 0, math.inf, low_open=True)
        check_range("beta_2", beta_2, 0, 1)
        check_range("alpha", alpha, 0, math.inf, low_open=True)
        check_range("momentum", momentum, 0, 1)
        super().__init__(model, **kwargs)
        if not model.built:
            raise ValueError("`model` must be built: call it, or give it a `keras.Input`.")
        self.adaptive = adaptive
        self.initial_step_size = initial_step_size
        self.beta_2 = beta_2
        self.alpha = alpha
        self.momentum = momentum
        self.seed = seed
        weights = model.trainable_variables
        self._diagonals = self._slots("diagonal", weights)
        self._previous = self._slots("previous", weights) if self.adaptive else []
        self._averages = self._slots("average", weights) if self.momentum else []
        first = self.initial_step_size if self.adaptive else 1.0
        self.step_size = self._scalar("step_size", first)
        self._growth = self._scalar("growth", math.inf)
        self._steps = self._scalar("steps", 0, "int32")
        self._estimates = self._scalar("estimates", 0, "int32")

    def _slots(self, name, weights):
        return [
            self._state(f"{name}_{i}", w.shape, "zeros", w.dtype) for i, w in enumerate(weights)
        ]

    def _scalar(self, name, value, dtype=None):
        # Keras's Constant goes through float32.
        def constant(shape, dtype):
            return tf.constant(value, dtype, shape)

        return self._state(name, [], constant, dtype or keras.config.floatx())

    def _state(self, name, shape, initializer, dtype):
        # The replicas compute the same values, from sums over all of them.
        return self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )

    def step_gradients(self, batch):
        weights = [tf.convert_to_tensor(weight) for weight in batch.weights]
        if len(weights) != len(self._diagonals):
            raise ValueError(
                f"The trainable weights must be the {len(self._diagonals)} of when the trainer was "
                f"built. Received: {len(weights)}"
            )
        previous = self._previous_weights(weights)
        gradients, estimates, before, kept = self._passes(batch, weights, previous)
        finite = _all_finite([*gradients, *estimates, *before])

        diagonals = self._averaged_diagonals(estimates)
        scales = [tf.maximum(tf.abs(diagonal), self.alpha) for diagonal in diagonals]
        updates = [*zip(self._diagonals, diagonals, strict=True)]
        updates += [(self._steps, self._steps + 1), (self._estimates, self._estimates + 1)]
        step_size = self.step_size.value
        if self.adaptive:
            moves = _differences(weights, previous)
            changes = _differences(gradients, before)
            step_size, growth = self._next_step_size(moves, changes, scales)
            updates += [(self.step_size, step_size), (self._growth, growth)]
            updates += zip(self._previous, weights, strict=True)
        if self.momentum:
            pairs = zip(self._averages, gradients, strict=True)
            averages = [moving_average(slot, g, self.momentum) for slot, g in pairs]
            updates += zip(self._averages, averages, strict=True)
            gradients = [bias_corrected(m, self.momentum, self._steps.value) for m in averages]

        for variable, value in updates:
            kept.scope.add_update((variable, tf.where(finite, value, variable.value)))
        # The optimizer sums over the replicas, of which each has the whole.
        factor = step_size / num_replicas()
        directions = zip(gradients, scales, strict=True)
        return [tf.cast(factor, g.dtype) * g / scale for g, scale in directions], kept

    def _previous_weights(self, weights):
        """w_{t-1}; in the first step, which has none, the weights themselves."""
        if not self.adaptive:
            return []
        began = self._steps > 0
        pairs = zip(self._previous, weights, strict=True)
        return [tf.where(began, slot, weight) for slot, weight in pairs]

    def _passes(self, batch, weights, previous):
        """The whole batch's gradients, z * (H z), gradients at `previous`; and the first pass."""
        gradients, kept = batch.gradients(weights)
        probes = rademacher_like(weights, tf.stack([self.seed, self._steps.value]))
        _, products = batch.hessian_vector_product(probes)
        before = batch.gradients(previous)[0] if self.adaptive else []
        parts = [_zeros_for_none(each, weights) for each in (gradients, products, before)]
        sums = iter(batch.sum_over_replicas([tensor for part in parts for tensor in part]))
        gradients, products, before = ([next(sums) for _ in part] for part in parts)
        return gradients, [z * p for z, p in zip(probes, products, strict=True)], before, kept

    def _averaged_diagonals(self, estimates):
        return [
            tf.where(self._estimates > 0, moving_average(slot, estimate, self.beta_2), estimate)
            for slot, estimate in zip(self._diagonals, estimates, strict=True)
        ]

    def _next_step_size(self, moves, changes, scales):
        """(eta_t, theta_t)."""
        step_size, growth = self.step_size.value, self._growth.value
        dtype = step_size.dtype
        moved = _norm([tf.sqrt(s) * move for s, move in zip(scales, moves, strict=True)], dtype)
        changed = _norm([c * tf.math.rsqrt(s) for s, c in zip(scales, changes, strict=True)], dtype)
        found = tf.minimum(tf.sqrt(1 + growth) * step_size, moved / (2 * changed))
        known = (moved > 0) & (found > 0) & tf.math.is_finite(found)
        found = tf.where(known, found, step_size)
        return found, tf.where(known, found / step_size, growth)

    def warm_start(self, data, samples=100):
        """Makes D_0 the mean of several estimates, each with signs and a batch of its own.

        Call it after `compile` and before `fit`, outside of strategies with several replicas.

        Args:
            data: a `tf.data.Dataset` of batches, repeated as often as needed.
            samples: number of estimates, at least 1. Defaults to 100.
        """
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        if not self.compiled:
            raise ValueError("`warm_start` needs the loss: call `compile` first.")
        if num_replicas() > 1:
            raise ValueError("`warm_start` works on one replica. Call it outside of the strategy.")
        estimate = tf.function(self._estimate)
        totals = [tf.zeros_like(diagonal) for diagonal in self._diagonals]
        for number, batch in enumerate(data.repeat().take(samples)):
            # The seeds of the steps begin at 0.
            found = estimate(batch, tf.constant([self.seed, -1 - number]))
            totals = [total + each for total, each in zip(totals, found, strict=True)]
        for diagonal, total in zip(self._diagonals, totals, strict=True):
            diagonal.assign(total / samples)
        self._estimates.assign(samples)

    def _estimate(self, data, seed):
        batch = Batch(self, data)
        probes = rademacher_like(batch.weights, seed)
        _, products = batch.hessian_vector_product(probes)
        return [z * product for z, product in zip(probes, products, strict=True)]

    def get_config(self):
        return {
            **super().get_config(),
            "adaptive": self.adaptive,
            "initial_step_size": self.initial_step_size,
            "beta_2": self.beta_2,
            "alpha": self.alpha,
            "momentum": self.momentum,
            "seed": self.seed,
        }


def _zeros_for_none(gradients, weights):
    """The gradients, with zeros where the loss does not depend on a weight."""
    if not gradients:
        return []
    pairs = zip(gradients, weights, strict=True)
    return [tf.zeros_like(weight) if g is None else g for g, weight in pairs]


def _differences(ours, theirs):
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _norm(tensors, dtype):
    return tf.linalg.global_norm([tf.cast(tensor, dtype) for tensor in tensors])


def _all_finite(tensors):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
