"""What is the same at all widths in muP: the best learning rate, the sharpness, the features."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from kzoo.analysis.coordinate_check import coordinate_check
from kzoo.analysis.learning_rate_sweep import learning_rate_sweep
from kzoo.analysis.sharpness import SharpnessTrajectory
from kzoo.analysis.width_plots import (
    plot_coordinate_check,
    plot_learning_rate_sweep,
    plot_sharpness,
)
from kzoo.layers.scaled_dense import PAPER as TENSOR_PROGRAMS_IVB
from kzoo.models.abc_parametrization import PAPER as FEATURE_LEARNING
from kzoo.models.abc_parametrization import ABCParametrization
from kzoo.models.mup import DEPTH_PAPER as LEARNING_RATES_TRANSFER
from kzoo.models.mup import base_shapes, mup_parametrize
from kzoo.reproductions.registry import reproduction

_BASE = 64
_WIDTHS = (64, 256, 1024)
_RATES = tuple(2.0**exponent for exponent in range(-13, -3))
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@reproduction(
    TENSOR_PROGRAMS_IVB,
    claim="With Adam in muP the best learning rate of a narrow network is that of a wide one; in "
    "the standard parametrization it falls with the width.",
)
def learning_rate_transfer(seed):
    """A perceptron of two hidden layers on scikit-learn's 1797 digits, widths 64, 256 and 1024.

    Two epochs of Adam in batches of 64, ten learning rates that are powers of two; the loss is that
    of the training set at the end. muP has the network of width 64 as its base. The papers train
    transformers and residual networks.
    """
    data = _digits()
    sweeps = {
        name: learning_rate_sweep(make, _WIDTHS, _RATES, data, epochs=2, batch_size=64, seed=seed)
        for name, make in {"standard": _standard, "muP": _maximal_update}.items()
    }
    numbers = {}
    for name, sweep in sweeps.items():
        for width, rate, loss in zip(sweep.widths, sweep.best, sweep.loss, strict=True):
            numbers[f"{name}: log2 of the best rate, width {width}"] = float(np.log2(rate))
            numbers[f"{name}: its loss, width {width}"] = float(loss.min())
        # What it costs to take the rate that was tuned on the narrow network.
        wide = sweep.loss[-1]
        tuned = wide[np.argmin(sweep.loss[0])]
        numbers[f"{name}: loss of the widest at the narrowest's best rate"] = float(tuned)
    return numbers, plot_learning_rate_sweep(sweeps)


@reproduction(
    LEARNING_RATES_TRANSFER,
    claim="Along training, the largest eigenvalue of the Hessian hardly depends on the width in "
    "muP, and does in the neural tangent parametrization.",
)
def sharpness_across_widths(seed):
    """A perceptron of two hidden layers on scikit-learn's digits, widths 64 to 512.

    300 steps of gradient descent on 200 images at once, one learning rate for all; both
    parametrizations are the same network at width 64. The paper trains residual networks and
    transformers with SGD.
    """
    x, y = _digits()
    x, y = x[:200], y[:200]
    batches = tf.data.Dataset.from_tensors((x, y)).repeat()
    rate, steps = 0.25, 300
    numbers, lines = {}, {}
    for name, abc in _abc().items():
        lines[name] = {}
        for width in (64, 128, 256, 512):
            model = abc.perceptron(width, 64, 10, _BASE, activation="tanh", seed=seed)
            _compile(model, keras.optimizers.SGD(float(abc.learning_rate(rate, width, _BASE))))
            trajectory = SharpnessTrajectory((x, y), every=50)
            model.fit(
                batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[trajectory]
            )
            values = np.array(trajectory.values)[:, 0]
            lines[name][width] = (trajectory.steps, values)
        for step in (0, 100, steps):
            index = trajectory.steps.index(step)
            at_step = [values[index] for _, values in lines[name].values()]
            ratio = max(at_step) / min(at_step)
            numbers[f"{name}: largest over smallest, step {step}"] = float(ratio)
    return numbers, plot_sharpness(lines, rate)


@reproduction(
    FEATURE_LEARNING,
    claim="By SGD, features move by n^-r: as far at all widths n in muP (r = 0), less and less in "
    "the standard and the neural tangent parametrization (r = 1/2).",
)
def feature_learning(seed):
    """A perceptron of two hidden layers on 64 of scikit-learn's digits, widths 64 to 2048.

    Five steps of gradient descent; the slopes are those of the root mean square of the change of
    all coordinates. All parametrizations are the same network at width 64. Averages over five
    random networks.
    """
    x, y = _digits()
    x, y = x[:64], y[:64]
    widths = [64, 128, 256, 512, 1024, 2048]
    numbers, checks = {}, {}
    for name, abc in {"standard": ABCParametrization.standard(2), **_abc()}.items():

        def make(width, abc=abc):
            model = abc.perceptron(width, 64, 10, _BASE)
            rate = float(abc.learning_rate(0.25, width, _BASE))
            model.compile(keras.optimizers.SGD(rate), _LOSS, run_eagerly=True)
            return model

        seeds = range(5 * seed, 5 * seed + 5)
        checks[name] = coordinate_check(make, widths, (x, y), seeds=seeds)
        for layer, slope in checks[name].slopes().items():
            numbers[f"{name}: slope of {layer}"] = slope
    return numbers, plot_coordinate_check(checks)


def _digits():
    images, labels = load_digits(return_X_y=True)
    return images.astype("float32") / 8 - 1, labels


def _abc():
    return {
        "neural tangent": ABCParametrization.neural_tangent(2),
        "muP": ABCParametrization.maximal_update(2),
    }


def _network(width):
    dense = keras.layers.Dense
    return keras.Sequential(
        [keras.Input([64]), dense(width, "relu"), dense(width, "relu"), dense(10)]
    )


def _standard(width):
    return _compile(_network(width), keras.optimizers.Adam())


def _maximal_update(width):
    model = _network(width)
    mup = mup_parametrize(model, base_shapes(_network(_BASE)))
    return _compile(model, mup.optimizer(keras.optimizers.Adam()))


def _compile(model, optimizer):
    # Many steps in one call of one XLA program: there is no convolution in it.
    model.compile(optimizer, _LOSS, jit_compile=True, steps_per_execution=25)
    return model
