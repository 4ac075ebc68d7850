"""The base of kzoo's optimizers: a Keras optimizer with a compiled, replica-safe update."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.distribute import num_replicas, sum_over_replicas


class Optimizer(keras.optimizers.Optimizer):
    """A `keras.optimizers.Optimizer` whose whole update is one XLA function.

    A subclass is written like any Keras optimizer: it creates its slots in `build`, updates one
    variable in `update_step` and names its hyper-parameters in `get_config`. The base adds two
    things that stock Keras 3 lacks:

    * Clipping, weight decay, the update and the moving average of *all* variables are compiled
      together, which takes about half the time of Keras's graph of small operations
      (`docs/benchmarks.md`).
    * Under `tf.distribute`, gradients are summed over the replicas before they are clipped.
      Keras clips what each replica has, which multiplies the threshold by their number.

    Args:
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable.
        jit_compile: whether to compile the update with XLA. "auto" compiles wherever XLA can:
            everywhere but under a strategy other than `OneDeviceStrategy`, whose mirrored
            variables XLA cannot update.
        skip_nonfinite: whether a step whose gradients have a NaN or an infinite value is left out:
            weights, slots and averages stay as they are, `skipped_steps` counts it, and the
            schedule goes on. While gradients are accumulated, the batch is left out of their
            sum instead. Defaults to False.
        kwargs: `weight_decay` (decoupled), `clipnorm`, `global_clipnorm`, `clipvalue`, `use_ema`,
            `ema_momentum`, `gradient_accumulation_steps`, `name` and the other arguments of
            `keras.optimizers.Optimizer`.
    """

    def __init__(self, learning_rate=0.001, jit_compile="auto", skip_nonfinite=False, **kwargs):
        if jit_compile not in ("auto", True, False):
            raise ValueError(
                f'`jit_compile` must be "auto", True or False. Received: {jit_compile!r}'
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        if self.weight_decay is not None:
            # Keras casts it with tf.cast, which takes a Python float through float32.
            self.weight_decay = np.float64(self.weight_decay)
        self.jit_compile = jit_compile
        self.skip_nonfinite = bool(skip_nonfinite)
        if self.skip_nonfinite:
            self._skipped_steps = self.add_variable(
                (), initializer="zeros", dtype="int32", name="skipped_steps"
            )
        # Compiled updates by the indices of the variables they update. Set past Keras's
        # attribute tracking: a tracked tf.function would be written into every SavedModel.
        object.__setattr__(self, "_compiled_updates", {})

    def _backend_apply_gradients(self, grads, trainable_variables):
        pairs = self._all_reduce_sum_gradients(list(zip(grads, trainable_variables, strict=True)))
        grads = [tf.convert_to_tensor(gradient) for gradient, _ in pairs]
        if self._compiles():
            self._compiled_update(trainable_variables)(grads)
        else:
            self._update(grads, trainable_variables)

    def _update(self, grads, variables):
        update = super()._backend_apply_gradients
        if not self.skip_nonfinite:
            update(grads, variables)
            return
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in grads])
        self._skipped_steps.assign_add(1 - tf.cast(finite, tf.int32))
        if self.gradient_accumulation_steps:
            update([tf.where(finite, g, tf.zeros_like(g)) for g in grads], variables)
            return

        def update_if(strategy, finite, grads):
            def finite_update():
                if tf.distribute.in_cross_replica_context():
                    strategy.extended.call_for_each_replica(update, args=(grads, variables))
                else:
                    update(grads, variables)
                return True

            tf.cond(strategy.experimental_local_results(finite)[0], finite_update, lambda: False)

        # Under replicas, whether to update at all is decided once, outside of them.
        merge_call = tf.__internal__.distribute.interim.maybe_merge_call
        merge_call(update_if, tf.distribute.get_strategy(), finite, grads)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # As in Keras, less the reduction, which has come before the clipping.
        variables = [getattr(variable, "value", variable) for variable in trainable_variables]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._distributed_tf_update_step,
            self._distribution_strategy,
            list(zip(grads, variables, strict=True)),
            learning_rate,
        )

    @property
    def skipped_steps(self):
        """Number of steps that were left out, see `skip_nonfinite`; an int32 variable."""
        if not self.skip_nonfinite:
            raise AttributeError("Steps are only counted with `skip_nonfinite=True`.")
        return self._skipped_steps

    def _compiles(self):
        if self.jit_compile == "auto":
            return not tf.distribute.has_strategy() or isinstance(
                tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy
            )
        return self.jit_compile

    def _compiled_update(self, variables):
        key = tuple(self._get_variable_index(variable) for variable in variables)
        if key not in self._compiled_updates:
            self._compiled_updates[key] = tf.function(
                lambda grads: self._update(grads, variables), jit_compile=True, autograph=False
            )
        return self._compiled_updates[key]

    def get_config(self):
        return {
            **super().get_config(),
            "jit_compile": self.jit_compile,
            "skip_nonfinite": self.skip_nonfinite,
        }


def check_range(name, value, low, high, low_open=False):
    """Raises a ValueError unless `value` is a number with low <= value < high.

    With `low_open` the lower end is excluded as well.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value if low_open else low <= value) or not value < high:
        bracket = "(" if low_open else "["
        raise ValueError(f"`{name}` must be in {bracket}{low}, {high}). Received: {value!r}")


def reduce_before_apply(optimizer):
    """Makes any Keras optimizer sum its gradients over the replicas before all else.

    Stock Keras 3 clips, and checks for overflow, what each replica has on its own, and reduces
    afterwards; both are then wrong under more than one replica. Safe to call more than once, and
    the optimizer stays right in `model.fit`.

    Args:
        optimizer: a `keras.optimizers.Optimizer`, also a `LossScaleOptimizer`; changed in place.

    Returns:
        The same optimizer.
    """
    if num_replicas() == 1 or getattr(optimizer, "reduces_before_apply", False):
        return optimizer
    innermost = getattr(optimizer, "inner_optimizer", optimizer)
    innermost._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    apply = optimizer.apply
    optimizer.apply = lambda grads, trainable_variables=None: apply(
        sum_over_replicas(grads), trainable_variables
    )
    optimizer.reduces_before_apply = True
    return optimizer
