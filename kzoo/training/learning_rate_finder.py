"""The learning-rate range test: train for some steps while the rate grows, and look at the loss.

    rate_t = low (high / low)^(t / (T - 1))
    average_t = b average_{t-1} + (1 - b) loss_t,  divided by 1 - b^t

"Cyclical Learning Rates for Training Neural Networks", Smith, 2015, arXiv 1506.01186, section 3.3;
the growth by a factor, the average and the rule for stopping are those of fastai's finder.
"""

import math
from dataclasses import dataclass

import keras
import numpy as np

from kzoo.training.loop import Loop

_SMOOTHING = 0.9
# The loss has diverged when its average is this many times its lowest.
_DIVERGED = 4.0


@dataclass(frozen=True)
class LearningRates:
    """What `find_learning_rate` has seen.

    Args:
        rates: float array [steps], growing.
        losses: float array [steps], of the batch that was trained with this rate.
        averages: float array [steps], the losses smoothed.
    """

    rates: np.ndarray
    losses: np.ndarray
    averages: np.ndarray

    @property
    def steepest(self):
        """The rate at which the average fell fastest: a rate to begin with."""
        until = int(np.nanargmin(self.averages)) + 1
        if until < 3:
            return float(self.rates[0])
        return float(self.rates[np.argmin(np.gradient(self.averages[:until]))])

    @property
    def tenth_of_lowest(self):
        """A tenth of the rate with the lowest average: the usual rule for Adam and its kin."""
        return float(self.rates[np.nanargmin(self.averages)]) / 10

    def figure(self):
        """The loss over the learning rate, as a `matplotlib.figure.Figure`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.rates, self.losses, color="0.8", label="loss of the batch")
        axis.plot(self.rates, self.averages, color="C0", label="average")
        for rate, color, label in (
            (self.steepest, "C2", "steepest"), (self.tenth_of_lowest, "C1", "a tenth of the lowest")
        ):  # fmt: skip
            axis.axvline(rate, color=color, linestyle="--", label=f"{label}: {rate:.2g}")
        low, high = (
            np.nanmin(self.averages),
            np.nanmax(self.averages[: max(len(self.rates) // 4, 2)]),
        )
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axis.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
        axis.legend()
        return figure


def find_learning_rate(model, data, low=1e-6, high=10.0, steps=100, strategy=None, callbacks=()):
    """Trains a copy of the optimizer with a growing rate; the model is left as it was.

    Args:
        model: a compiled `keras.Model`, also a `TrainingMethod`. A schedule of its optimizer is
            not followed.
        data: as for `kzoo.training.Loop`; gone through more than once if it is short.
        low, high: the first and the last rate, 0 < low < high.
        steps: number of steps, at least 10. It ends before where the loss diverges.
        strategy: `tf.distribute.Strategy` that the model was made under. None for none.
        callbacks: Keras callbacks, such as `kzoo.callbacks.Progress`.

    Returns:
        `LearningRates`

    Raises:
        ValueError: for rates or a number of steps out of their range.

    Example:

    >>> found = find_learning_rate(model, dataset)
    >>> found.figure().savefig("learning_rates.png")
    >>> model.optimizer.learning_rate = found.steepest
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"`low` and `high` must be 0 < low < high. Received: {low!r}, {high!r}")
    if not isinstance(steps, int) or steps < 10:
        raise ValueError(f"`steps` must be an integer of at least 10. Received: {steps!r}")
    original, before = model.optimizer, [variable.numpy() for variable in model.variables]
    test = _RangeTest(np.geomspace(low, high, steps))
    try:
        with strategy.scope() if strategy is not None else keras.name_scope("range_test"):
            model.optimizer = _with_rate(original, low)
            model.optimizer.build(model.trainable_variables)
        Loop(
            model,
            data,
            epochs=steps,
            callbacks=[test, *callbacks],
            strategy=strategy,
            steps_per_call=1,
            on_nonfinite="continue",
        ).run()
    finally:
        model.optimizer, model.stop_training = original, False
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
    return LearningRates(test.rates[: len(test.losses)], np.array(test.losses), test.averages())


class _RangeTest(keras.callbacks.Callback):
    """Sets the rate of every step, and notes its loss."""

    def __init__(self, rates):
        super().__init__()
        self.rates = rates
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        # The loss that is reported is the mean since the last reset.
        self.model.reset_metrics()
        self.model.optimizer.learning_rate = self.rates[len(self.losses)]

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])
        averages = self.averages()
        diverged = not np.isfinite(averages[-1]) or averages[-1] > _DIVERGED * averages.min()
        self.model.stop_training |= diverged or len(self.losses) == len(self.rates)

    def averages(self):
        average, averages = 0.0, []
        for step, loss in enumerate(self.losses, 1):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            averages.append(average / (1 - _SMOOTHING**step))
        return np.array(averages)


def _with_rate(optimizer, rate):
    """An optimizer with the same configuration but a constant learning rate."""
    config = keras.optimizers.serialize(optimizer)
    inner = config
    while "inner_optimizer" in inner["config"]:
        inner = inner["config"]["inner_optimizer"]
    inner["config"]["learning_rate"] = rate
    return keras.optimizers.deserialize(config)
