"""Optimizers side by side: one budget, one grid of learning rates for all of them."""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kzoo.callbacks import GradientNormRecorder
from kzoo.data import load
from kzoo.optimizers import (
    AdEMAMix,
    AMSGrad,
    CautiousAdamW,
    CautiousLion,
    DiffGrad,
    Grams,
    LinearDecay,
    RefinedSchedule,
    refine_from_gradient_norms,
)
from kzoo.optimizers.grams import PAPER as GRAMS
from kzoo.optimizers.schedules.linear_decay import PAPER as REFINEMENT
from kzoo.reproductions.registry import reproduction

_RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 1.0, 9))
_DECAY = 1e-4
_OPTIMIZERS = {
    "SGD with momentum": lambda: keras.optimizers.SGD(momentum=0.9, weight_decay=_DECAY),
    "Adam": lambda: keras.optimizers.Adam(),
    "AdamW": lambda: keras.optimizers.AdamW(weight_decay=_DECAY),
    "Lion": lambda: keras.optimizers.Lion(weight_decay=_DECAY),
    "AdEMAMix": lambda: AdEMAMix(weight_decay=_DECAY, alpha=5.0, beta_3=0.99),
    "Grams": lambda: Grams(weight_decay=_DECAY),
    "CautiousAdamW": lambda: CautiousAdamW(weight_decay=_DECAY),
    "CautiousLion": lambda: CautiousLion(weight_decay=_DECAY),
    "AMSGrad": lambda: AMSGrad(weight_decay=_DECAY),
    "DiffGrad": lambda: DiffGrad(weight_decay=_DECAY),
}


@reproduction(
    GRAMS,
    claim="Grams ends with a lower loss, and generalizes better, than AdamW, Lion and their "
    "cautious versions.",
)
def optimizers(seed):
    """A convolutional network of 6k weights on scikit-learn's digits, 1200 to train, 597 to test.

    Every optimizer gets 10 epochs of batches of 64, a learning rate that falls linearly to zero,
    and the same grid of nine peak rates from 1e-4 to 1; of these the one with the lowest loss on
    the training set counts. Other hyper-parameters are the defaults, with weight decay 1e-4 where
    it is decoupled; AdEMAMix's slow average is 0.99, since the run has 190 steps. The paper trains
    language models.
    """
    return _compare(_digits(seed), seed, epochs=10)


@reproduction(
    GRAMS,
    claim="Grams ends with a lower loss, and generalizes better, than AdamW, Lion and their "
    "cautious versions.",
)
def optimizers_on_mnist(seed, data_dir):
    """As `optimizers`, on 6000 images of MNIST, with 2000 of its test set, and 4 epochs."""
    return _compare(_images("tfds:mnist", data_dir), seed, epochs=4)


@reproduction(
    GRAMS,
    claim="Grams ends with a lower loss, and generalizes better, than AdamW, Lion and their "
    "cautious versions.",
)
def optimizers_on_cifar10(seed, data_dir):
    """As `optimizers`, on 6000 images of CIFAR-10, with 2000 of its test set, and 4 epochs."""
    return _compare(_images("tfds:cifar10", data_dir), seed, epochs=4)


def _images(name, data_dir):
    parts = []
    for split, count in (("train", 6000), ("test", 2000)):
        source = load(name, split, data_dir=data_dir).take(count)
        parts.append((np.asarray(source.features, "float32") / 255, np.asarray(source.labels)))
    (x, y), (x_test, y_test) = parts
    return x, x_test, y, y_test


def _compare(data, seed, epochs):
    runs = {name: _sweep(make(), data, seed, epochs) for name, make in _OPTIMIZERS.items()}
    numbers = {}
    for name, run in runs.items():
        numbers[f"{name}: loss"] = run["losses"][run["best"], -1]
        numbers[f"{name}: test accuracy"] = run["accuracy"][run["best"]]
        numbers[f"{name}: rate"] = _RATES[run["best"]]
    return numbers, _figure(runs)


@reproduction(
    REFINEMENT,
    claim="A schedule refined from the gradient norms of a run does as well as linear decay or "
    "better, and both do better than cosine decay and a constant rate.",
)
def schedules(seed):
    """The digits and network of `optimizers`, and logistic regression: 10 epochs, batches of 64.

    SGD with momentum. Each schedule gets the peak rates 0.1, 0.2, 0.4 and 0.8, of which the one
    with the lowest training loss counts. The norms are those of the linear run at its best rate,
    filtered with tau = 0.1. The figure has them and the multipliers that they give. The paper's own
    small problems are logistic regressions.
    """
    data = _digits(seed)
    numbers, seen = {}, {}
    for name, make in (("network", _network), ("logistic", _logistic)):
        found, *seen[name] = _compare_schedules(make, data, seed)
        numbers |= {f"{name}, {key}": value for key, value in found.items()}
    return numbers, _refinement_figure(seen)


def _compare_schedules(make, data, seed, epochs=10, rates=(0.1, 0.2, 0.4, 0.8)):
    """({"schedule: what": number}, norms, multipliers)"""
    steps = epochs * -(-len(data[0]) // 64)

    def best(make_schedule):
        runs = [_scheduled(make(seed), make_schedule(rate), data, epochs) for rate in rates]
        return min(runs, key=lambda run: np.nan_to_num(run["loss"], nan=np.inf))

    linear = best(lambda rate: LinearDecay(rate, steps))
    multipliers = refine_from_gradient_norms(linear["norms"])
    runs = {
        "constant": best(lambda rate: rate),
        "cosine": best(lambda rate: keras.optimizers.schedules.CosineDecay(rate, steps)),
        "linear": linear,
        "refined": best(lambda rate: RefinedSchedule(rate, multipliers)),
    }
    numbers = {
        f"{name}: {what}": run[what] for name, run in runs.items() for what in ("loss", "accuracy")
    }
    return numbers, linear["norms"], multipliers


def _digits(seed):
    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    return train_test_split(x, labels, train_size=1200, random_state=seed)


def _network(seed, shape=(8, 8, 1)):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )


def _logistic(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def _sweep(optimizer, data, seed, epochs):
    """One run for each rate; the model is traced once and begins each from the same weights."""
    x, x_test, y, y_test = data
    model = _network(seed, x.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(model.trainable_variables)
    start = [(v, v.numpy()) for v in (*model.variables, *optimizer.variables)]
    losses, accuracy = np.empty([len(_RATES), epochs]), []
    for row, rate in enumerate(_RATES):
        for variable, value in start:
            variable.assign(value)
        schedule = keras.callbacks.LearningRateScheduler(
            lambda e, _, rate=rate: rate * (1 - e / epochs)
        )
        keras.utils.set_random_seed(seed)
        history = model.fit(x, y, 64, epochs, verbose=0, callbacks=[schedule]).history["loss"]
        losses[row] = history
        losses[row, -1] = model.evaluate(x, y, 512, verbose=0)[0]
        accuracy.append(model.evaluate(x_test, y_test, 512, verbose=0)[1])
    best = int(np.argmin(np.nan_to_num(losses[:, -1], nan=np.inf)))
    return {"losses": losses, "accuracy": accuracy, "best": best}


def _scheduled(model, rate, data, epochs):
    """{"loss": of the training set, "accuracy": of the test set, "norms"} of one run."""
    x, x_test, y, y_test = data
    recorder = GradientNormRecorder()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(x, y, 64, epochs, verbose=0, callbacks=[recorder])
    return {
        "loss": model.evaluate(x, y, 512, verbose=0)[0],
        "accuracy": model.evaluate(x_test, y_test, 512, verbose=0)[1],
        "norms": recorder.norms,
    }


def _refinement_figure(seen):
    """seen: {name: (norms, multipliers)}"""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    of_norms, of_rates = figure.subplots(1, 2)
    for name, (norms, multipliers) in seen.items():
        of_norms.plot(norms, linewidth=0.8, label=name)
        of_rates.plot(multipliers, label=f"refined, {name}")
    of_norms.set(xlabel="step", ylabel="norm of the gradient")
    of_norms.legend()
    of_rates.plot(np.linspace(1, 0, len(multipliers)), "k--", label="linear")
    of_rates.set(xlabel="step", ylabel="multiplier of the peak rate")
    of_rates.legend()
    return figure


def _figure(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    over_epochs, over_rates = figure.subplots(1, 2)
    for name, run in runs.items():
        losses = run["losses"]
        over_epochs.plot(np.arange(1, losses.shape[1] + 1), losses[run["best"]], label=name)
        over_rates.plot(_RATES, losses[:, -1], marker=".", label=name)
    over_epochs.set(yscale="log", xlabel="epoch", ylabel="training loss", title="at the best rate")
    over_rates.set(xscale="log", yscale="log", xlabel="peak learning rate", title="after the run")
    over_rates.legend(fontsize=8)
    return figure
