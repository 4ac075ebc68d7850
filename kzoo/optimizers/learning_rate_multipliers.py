"""Learning rates and weight decays of their own for groups of variables, over any optimizer.

    w_i <- w_i - (m_i lr) update_i(d_i g_i) - (m_i lr) (k_i weight_decay) w_i

with the multipliers m_i of the learning rate, k_i of the weight decay and d_i of the gradient.
"""

import math
import re
from collections.abc import Mapping

import keras
import tensorflow as tf

_KINDS = ("multipliers", "weight_decay_multipliers", "gradient_multipliers")


def _of_inner(name):
    """An attribute that lives in the inner optimizer."""

    def write(self, value):
        # Keras's constructor sets defaults before there is an inner optimizer.
        if hasattr(self, "inner_optimizer"):
            setattr(self.inner_optimizer, name, value)

    return property(lambda self: getattr(self.inner_optimizer, name), write)


@keras.saving.register_keras_serializable("kzoo")
class LearningRateMultipliers(keras.optimizers.Optimizer):
    """Any Keras optimizer with another learning rate and weight decay for some variables.

    Every variable is updated as if the optimizer had been made for it alone, with the learning
    rate times its multiplier and the weight decay times its own. All variables share one
    schedule, one global norm to clip by, one moving average; `learning_rate` is the one that is
    multiplied, so callbacks and schedules work as ever.

    Weight decay in Keras is decoupled from the gradient and not from the learning rate: a variable
    shrinks by (m lr) (k weight_decay) w. To keep a variable's decay where it is while its learning
    rate is multiplied by m, give it the weight decay multiplier 1 / m.

    Args:
        inner_optimizer: a `keras.optimizers.Optimizer`, of Keras or of kzoo, which this one takes
            over: it must not be used elsewhere. A `LossScaleOptimizer` goes around this
            optimizer, not inside it; Keras does so by itself.
        multipliers: of the learning rate, each a number of at least 0 (0 holds the variable
            still). One of
            * {regular expression: number}. The first that is found in the variable's path, such as
              "encoder/block_3/dense/kernel", decides; variables that none is found in have 1.
            * a function `f(variable)` -> number; register it with Keras if the model is saved.
            * a list with one number for each of the model's trainable variables, in their order.
            None for 1 everywhere.
        weight_decay_multipliers: in the same forms, of the optimizer's `weight_decay`.
            {"bias|gamma|beta": 0} excludes what usually is excluded, also after a model is loaded
            (Keras forgets `exclude_from_weight_decay`).
        gradient_multipliers: in the same forms, of the gradients, after clipping and before the
            optimizer sees them. For an optimizer that is indifferent to the gradient's scale, such
            as Adam, this is as if its epsilon were divided by the number.
        name: name of the optimizer.

    Raises:
        TypeError: for something other than an optimizer, or multipliers of another form.
        ValueError: for an optimizer without an update of its own, or a number out of range; when
            the optimizer is built, for an expression that is found in no path, or a list of
            another length than the variables.

    Example:

    >>> optimizer = LearningRateMultipliers(
    ...     keras.optimizers.AdamW(1e-3, weight_decay=0.1),
    ...     {"embedding/": 0.1, "head/": 2.0},
    ...     weight_decay_multipliers={"bias|gamma|beta": 0.0},
    ... )
    >>> model.compile(optimizer, "mse")
    """

    weight_decay = _of_inner("weight_decay")
    clipnorm = _of_inner("clipnorm")
    global_clipnorm = _of_inner("global_clipnorm")
    clipvalue = _of_inner("clipvalue")
    use_ema = _of_inner("use_ema")
    ema_momentum = _of_inner("ema_momentum")
    ema_overwrite_frequency = _of_inner("ema_overwrite_frequency")
    loss_scale_factor = _of_inner("loss_scale_factor")
    gradient_accumulation_steps = _of_inner("gradient_accumulation_steps")
    learning_rate = _of_inner("learning_rate")
    iterations = property(lambda self: self.inner_optimizer.iterations)
    variables = property(lambda self: self.inner_optimizer.variables)
    # Under this name Keras's SwapEMAWeights looks for it.
    _model_variables_moving_average = _of_inner("_model_variables_moving_average")

    def __init__(
        self,
        inner_optimizer,
        multipliers=None,
        weight_decay_multipliers=None,
        gradient_multipliers=None,
        name="learning_rate_multipliers",
    ):
        innermost = _innermost(inner_optimizer)
        if innermost.built:
            raise ValueError("`inner_optimizer` must not have been built or used before.")
        given = (multipliers, weight_decay_multipliers, gradient_multipliers)
        given = [_check_multipliers(kind, each) for kind, each in zip(_KINDS, given, strict=True)]
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        # Past Keras's attribute tracking, which would wrap dictionaries and lists.
        object.__setattr__(self, "_given", dict(zip(_KINDS, given, strict=True)))
        object.__setattr__(self, "_factors", None)
        self._scale_updates(innermost)

    def build(self, variables):
        if self.built:
            return
        factors = {kind: _resolve(kind, self._given[kind], variables) for kind in _KINDS}
        object.__setattr__(self, "_factors", factors)
        self.inner_optimizer.build(variables)
        self._trainable_variables = list(variables)
        self.built = True

    def apply(self, grads, trainable_variables=None):
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def save_own_variables(self, store):
        """Nothing: Keras saves the inner optimizer by itself."""

    def load_own_variables(self, store):
        """Nothing: Keras loads the inner optimizer by itself."""

    def set_weights(self, weights):
        self.inner_optimizer.set_weights(weights)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        given = {kind: serialize(each) if callable(each) else each for kind, each in
                 self._given.items()}  # fmt: skip
        return {"name": self.name, "inner_optimizer": serialize(self.inner_optimizer), **given}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("inner_optimizer", *_KINDS):
            value = config[key]
            if isinstance(value, Mapping) and "class_name" in value and "config" in value:
                config[key] = keras.saving.deserialize_keras_object(
                    value, custom_objects=custom_objects
                )
        return cls(**config)

    def __getattr__(self, name):
        # What the inner optimizer has beyond Keras's, such as `skipped_steps`.
        if name.startswith("_") or name == "inner_optimizer":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(self.inner_optimizer, name)

    def _scale_updates(self, optimizer):
        """Puts the multipliers where the optimizer updates and decays a single variable."""
        update, decay = optimizer.update_step, optimizer._apply_weight_decay
        current_rate = optimizer._get_current_learning_rate
        factor_of_decay = [1.0]

        def factors(variable):
            index = optimizer._get_variable_index(variable)
            return [self._factors[kind][index] for kind in _KINDS]

        def update_step(gradient, variable, learning_rate):
            rate, _, scale = factors(variable)
            return update(_times(gradient, scale), variable, _times(learning_rate, rate))

        def apply_weight_decay(variables):
            groups = {}
            for variable in variables:
                rate, decays, _ = factors(variable)
                groups.setdefault(rate * decays, []).append(variable)
            for factor, group in groups.items():
                # Set, not restored afterwards: replicas take turns at the merge inside `decay`.
                factor_of_decay[0] = factor
                decay(group)
            factor_of_decay[0] = 1.0

        patches = {
            "update_step": update_step,
            "_apply_weight_decay": apply_weight_decay,
            "_get_current_learning_rate": lambda: _times(current_rate(), factor_of_decay[0]),
        }
        if optimizer is self.inner_optimizer:
            # Whoever reduces gradients beforehand tells the outer optimizer, see
            # `reduce_before_apply`.
            reduce = optimizer._all_reduce_sum_gradients
            object.__setattr__(self, "_all_reduce_sum_gradients", reduce)
            patches["_all_reduce_sum_gradients"] = lambda pairs: self._all_reduce_sum_gradients(
                pairs
            )
        for name, function in patches.items():
            object.__setattr__(optimizer, name, function)


def layerwise_decay(patterns, decay):
    """Multipliers that fall from the head of a model to its input, for fine-tuning.

    Args:
        patterns: regular expressions on the paths of variables, from the input to the head.
        decay: the factor from one to the next below, in (0, 1].

    Returns:
        {pattern: decay^(number of patterns after it)}, for `LearningRateMultipliers`.

    Example:

    >>> layerwise_decay(["embedding/", "block_0/", "head/"], 0.5)
    {'embedding/': 0.25, 'block_0/': 0.5, 'head/': 1.0}
    """
    if isinstance(patterns, str) or len(set(patterns)) != len(patterns):
        raise ValueError(f"`patterns` must be a list without repetitions. Received: {patterns!r}")
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must be in (0, 1]. Received: {decay!r}")
    return {pattern: float(decay) ** (len(patterns) - i) for i, pattern in enumerate(patterns, 1)}


def _innermost(optimizer):
    """The optimizer in all wrappers, which updates variables one by one."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"`inner_optimizer` must be a keras.optimizers.Optimizer. Received: {optimizer!r}"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "A LossScaleOptimizer cannot be the `inner_optimizer`, it must be outermost: "
            "LossScaleOptimizer(LearningRateMultipliers(optimizer, ...))."
        )
    if hasattr(optimizer, "inner_optimizer"):
        return _innermost(optimizer.inner_optimizer)
    if type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
        raise ValueError(
            "`inner_optimizer` must update its variables in `update_step`, which "
            f"{type(optimizer).__name__} does not define."
        )
    return optimizer


def _check_multipliers(kind, given):
    if given is None or callable(given):
        return given
    if isinstance(given, Mapping):
        for pattern in given:
            re.compile(pattern)
        return {pattern: _number(kind, value) for pattern, value in given.items()}
    if isinstance(given, list | tuple):
        return [_number(kind, value) for value in given]
    raise TypeError(
        f"`{kind}` must be a dictionary of regular expressions, a function of a variable, a list "
        f"with one number per variable, or None. Received: {given!r}"
    )


def _resolve(kind, given, variables):
    """One number per variable."""
    if given is None:
        return [1.0] * len(variables)
    if callable(given):
        return [_number(kind, given(variable)) for variable in variables]
    if isinstance(given, Mapping):
        return _by_path(kind, given, [variable.path for variable in variables])
    if len(given) != len(variables):
        raise ValueError(
            f"`{kind}` must have one number for each of the {len(variables)} variables. "
            f"Received: {len(given)}"
        )
    return given


def _by_path(kind, given, paths):
    for pattern in given:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"`{kind}` has the expression {pattern!r}, which is found in no variable's path. "
                f"The paths: {', '.join(paths)}"
            )
    return [
        next((value for pattern, value in given.items() if re.search(pattern, path)), 1.0)
        for path in paths
    ]


def _number(kind, value):
    value = float(value)
    if not 0 <= value < math.inf:
        raise ValueError(f"`{kind}` must be finite numbers of at least 0. Received: {value!r}")
    return value


def _times(value, factor):
    """factor * value; the value itself where the factor is 1."""
    if factor == 1.0:
        return value
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(factor * value.values, value.indices, value.dense_shape)
    return factor * value
