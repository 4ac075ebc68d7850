"""The base of wrappers that change the gradients which any Keras optimizer gets."""

import keras

from kzoo.optimizers.optimizer import Optimizer

_TAKEN_OVER = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum",
    "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps",
)  # fmt: skip


class GradientTransform(Optimizer):
    """Any Keras optimizer, whose gradients pass through `transform` just before it sees them.

    One step is, in this order: the gradients are unscaled, summed over the replicas, accumulated
    (if so configured) and clipped; weights decay; the gradients are transformed; the base optimizer
    updates the weights; then moving averages and constraints. All of it but the constraints is one
    XLA function, also for Keras's own optimizers.

    This optimizer takes over: learning rate, schedule, clipping, moving average, accumulation and
    the counter of steps are its own from here on, and the base optimizer is left with its slots and
    its rule. Wrappers can be nested: the outer one transforms first. A `LossScaleOptimizer` goes
    around, `LearningRateMultipliers` as well.

    A subclass defines `transform`.

    Args:
        base_optimizer: a `keras.optimizers.Optimizer` that has not been used, of Keras or of kzoo.
            (Not called `inner_optimizer`: in Keras that is one whose own `apply` does the work.)
        kwargs: arguments of `kzoo.optimizers.Optimizer`, which replace those of the base optimizer.

    Raises:
        TypeError: for something other than an optimizer.
        ValueError: for an optimizer that is in use, or has no update of its own.
    """

    def __init__(self, base_optimizer, **kwargs):
        _check_base(base_optimizer)
        options = {name: getattr(base_optimizer, name) for name in _TAKEN_OVER}
        options["learning_rate"] = _learning_rate(base_optimizer)
        if isinstance(base_optimizer, Optimizer):
            options["jit_compile"] = base_optimizer.jit_compile
            options["skip_nonfinite"] = base_optimizer.skip_nonfinite
        # Past Keras's attribute tracking, which is not there yet: `weight_decay` is the base's.
        object.__setattr__(self, "base_optimizer", base_optimizer)
        super().__init__(**{**options, **kwargs})
        object.__delattr__(self, "base_optimizer")
        self.base_optimizer = base_optimizer
        base_optimizer.use_ema = False
        for name in ("clipnorm", "global_clipnorm", "clipvalue", "loss_scale_factor"):
            setattr(base_optimizer, name, None)
        self._lead(base_optimizer)

    def transform(self, gradients, variables):
        """The gradients as the base optimizer gets them.

        Args:
            gradients: list of tensors, summed over the replicas and clipped.
            variables: list of the variables that they belong to.

        Returns:
            List of tensors of the same shapes and dtypes; the same on every replica.
        """
        raise NotImplementedError

    @property
    def weight_decay(self):
        return self.base_optimizer.weight_decay

    @weight_decay.setter
    def weight_decay(self, value):
        self.base_optimizer.weight_decay = value

    @property
    def variables(self):
        return self._variables + self.base_optimizer.variables

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # Only this optimizer accumulates, but the base must count its steps alike.
        self.base_optimizer.gradient_accumulation_steps = None
        self.base_optimizer.build(variables)
        self.base_optimizer.gradient_accumulation_steps = self.gradient_accumulation_steps

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.base_optimizer.exclude_from_weight_decay(var_list, var_names)

    def update_step(self, gradient, variable, learning_rate):
        self._base_update_step(gradient, variable, learning_rate)

    def set_weights(self, weights):
        own = len(self._variables)
        super().set_weights(weights[:own])
        self.base_optimizer.set_weights(weights[own:])

    def save_own_variables(self, store):
        # Keras saves the base optimizer by itself.
        for index, variable in enumerate(self._variables):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store):
        if len(store.keys()) != len(self._variables):
            raise ValueError(
                f"{self.name} has {len(self._variables)} variables of its own, "
                f"{len(store.keys())} were saved."
            )
        for index, variable in enumerate(self._variables):
            variable.assign(store[str(index)])

    def get_config(self):
        config = super().get_config()
        base = keras.saving.serialize_keras_object(self.base_optimizer)
        base["config"]["learning_rate"] = config["learning_rate"]
        return {**config, "base_optimizer": base}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        base = keras.saving.deserialize_keras_object(
            config["base_optimizer"], custom_objects=custom_objects
        )
        return super().from_config({**config, "base_optimizer": base}, custom_objects)

    def _apply_weight_decay(self, variables):
        self.base_optimizer._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        self.base_optimizer._backend_update_step(
            self.transform(grads, trainable_variables), trainable_variables, learning_rate
        )

    def _lead(self, base):
        """Makes the base optimizer follow this one, which alone talks to the outside."""
        object.__setattr__(self, "_base_update_step", base.update_step)
        patches = {
            # Looked up at every call: whoever wraps this optimizer may have replaced them.
            "update_step": lambda *arguments: self.update_step(*arguments),
            "_get_current_learning_rate": lambda: self._get_current_learning_rate(),
            "_all_reduce_sum_gradients": lambda pairs: pairs,
        }
        for name, value in patches.items():
            object.__setattr__(base, name, value)
        while base is not None:
            object.__setattr__(base, "_iterations", self._iterations)
            base = getattr(base, "base_optimizer", None)


def _learning_rate(optimizer):
    rate = optimizer._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate


def _check_base(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"`base_optimizer` must be a keras.optimizers.Optimizer. Received: {optimizer!r}"
        )
    if optimizer.built:
        raise ValueError("`base_optimizer` must not have been built or used before.")
    if type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
        raise ValueError(
            "`base_optimizer` must update its variables in `update_step`, which "
            f"{type(optimizer).__name__} does not define. A wrapper such as LossScaleOptimizer "
            "goes around this optimizer."
        )
