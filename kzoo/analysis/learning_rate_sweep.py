"""The final loss over the learning rate, at several widths: where do good rates lie?

"Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning",
Noci, Meterez, Hofmann, Orvieto, 2024, arXiv 2402.17457, and "Tensor Programs V", Yang et al., 2022,
arXiv 2203.03466: in muP the best rate is the same at all widths.
"""

from dataclasses import dataclass

import keras
import numpy as np

from kzoo.analysis.coordinate_check import check_widths
from kzoo.models.mup import DEPTH_PAPER as PAPER
from kzoo.papers import component


@dataclass(frozen=True)
class LearningRateSweep:
    """Losses after training.

    Attributes:
        widths: int [W].
        rates: float [R], increasing.
        loss: float64 [W, R]; infinite where training has diverged.
    """

    widths: np.ndarray
    rates: np.ndarray
    loss: np.ndarray

    @property
    def best(self):
        """The rate with the lowest loss at each width, [W]."""
        return self.rates[np.argmin(self.loss, axis=1)]

    @property
    def drift(self):
        """By how many places of the grid the best rate moves from the first width to the last."""
        first, last = np.argmin(self.loss[[0, -1]], axis=1)
        return int(last - first)


@component(PAPER)
def learning_rate_sweep(make_model, widths, rates, data, epochs=1, batch_size=32, seed=0):
    """Trains a model of each width with each learning rate, always from the same initial weights.

    Args:
        make_model: `make_model(width)` -> a compiled `keras.Model` whose optimizer has a constant
            learning rate. It is traced once for each width: `steps_per_execution` and
            `jit_compile` help.
        widths: at least two increasing positive integers.
        rates: increasing positive numbers.
        data: (x, y) of arrays, to train on; the loss at the end is over all of it.
        epochs: number of passes.
        batch_size: number of rows in a batch.
        seed: integer, of the initial weights and of the order of the data.

    Returns:
        `LearningRateSweep`
    """
    widths, rates = check_widths(widths), np.asarray(rates, float)
    if rates.ndim != 1 or not len(rates) or rates[0] <= 0 or any(np.diff(rates) <= 0):
        raise ValueError(f"`rates` must be increasing positive numbers. Received: {rates}")
    loss = []
    for width in widths:
        keras.utils.set_random_seed(seed)
        model = make_model(int(width))
        model.optimizer.build(model.trainable_variables)
        start = [(v, v.numpy()) for v in (*model.variables, *model.optimizer.variables)]
        loss.append([_run(model, start, rate, data, epochs, batch_size, seed) for rate in rates])
    return LearningRateSweep(widths, rates, np.array(loss))


def _run(model, start, rate, data, epochs, batch_size, seed):
    for variable, value in start:
        variable.assign(value)
    model.optimizer.learning_rate = rate
    keras.utils.set_random_seed(seed)
    model.fit(*data, batch_size=batch_size, epochs=epochs, verbose=0)
    loss = model.evaluate(*data, batch_size=512, verbose=0, return_dict=True)["loss"]
    return loss if np.isfinite(loss) else np.inf
