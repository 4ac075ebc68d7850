"""Reproductions of what attributions are worth where the truth is known."""

import keras
import numpy as np
from matplotlib.figure import Figure

from kzoo import plots
from kzoo.data.block_mnist import block_mnist
from kzoo.data.chaosmining import chaosmining_symbolic
from kzoo.data.formulas import Formula
from kzoo.data.loading import load
from kzoo.explain.faithfulness import ground_truth, impossibility, retraining
from kzoo.explain.feature_elimination import RFEwNA
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.saliency import Saliency
from kzoo.reproductions.registry import reproduction
from kzoo.training.adversarial import AdversarialTraining

_FRACTIONS = (0.1, 0.25, 0.5)
_RADIUS = 1.0
_COLORS = ("#d55e00", "#e69f00", "#b3d4ea", "#56a0d3", "#0072b2")
_THREE_TERMS = Formula(
    3,
    "2 sin(a) + b^2 - exp(c/2)",
    lambda a, b, c: 2 * keras.ops.sin(a) + b**2 - keras.ops.exp(c / 2),
)


def saliency(model, x, y):
    """Magnitudes of the gradients of the logits of the labels."""
    return Saliency(model)(x, y)["attributions"]


@reproduction(
    retraining.PAPER,
    claim="Input gradients of standard models leak into blocks that hold no signal; those of "
    "adversarially trained models do so less.",
)
def leakage_on_block_digits(seed):
    """BlockMNIST of scikit-learn's digits (1437 for training, 360 for the test), the null block a
    hollow square, random order; MLP 128-256-256-10, Adam, 40 epochs; robust: PGD in the l2 ball of
    radius 1, 7 steps. Leakage is the share of the magnitude of the gradient of the label's logit
    that lies in the null block, on test images. The paper has MNIST and CNNs as well."""
    (train, _), (test, signal) = (_block_digits(split, seed) for split in ("train", "test"))
    numbers, maps = {}, {}
    for name, radius in (("standard", 0.0), ("robust", _RADIUS)):
        model = _train_digits(train.features, train.labels, seed, radius)
        maps[name] = np.asarray(saliency(model, test.features, test.labels))
        numbers[f"test accuracy, {name}"] = retraining.accuracy(model, test.features, test.labels)
        leakage = retraining.attribution_leakage(maps[name], ~signal).mean()
        numbers[f"leakage into the null block, {name}"] = leakage
    sheet = {name: each[:4] for name, each in maps.items()}
    return numbers, plots.explanation_sheet(test.features[:4], sheet)


@reproduction(
    retraining.PAPER,
    claim="DiffROAR is positive for attributions that highlight discriminative features and "
    "negative for those that hide them; for input gradients it is higher if the model is robust.",
)
def diff_roar_on_block_digits(seed):
    """The images and models of leakage_on_block_digits with two classes, digits below 5 or not.
    Oracle: the mask of the signal block; inverted: that of the null block; magnitudes of the
    gradients of the difference of the two logits, which, unlike those of the label's logit, do not
    tell the class by where they are. Every model is retrained for 20 epochs, standard, on masked
    images. The paper has all classes, and convolutional networks on larger images."""
    (train, signal), (test, test_signal) = (
        _block_digits(split, seed) for split in ("train", "test")
    )
    data = (train.features, train.labels // 5), (test.features, test.labels // 5)
    attributions = {
        "oracle": [1.0 * signal, 1.0 * test_signal],
        "inverted oracle": [1.0 * ~signal, 1.0 * ~test_signal],
    }
    for name, radius in (("standard", 0.0), ("robust", _RADIUS)):
        model = _train_digits(*data[0], seed, radius)
        attributions[f"gradient, {name}"] = [
            retraining.attribute_in_batches(margin_saliency, model, x, y) for x, y in data
        ]
    numbers, lines = {}, {}
    for name, arrays in attributions.items():
        result = retraining.diff_roar(_retrain_digits, arrays, *data, _FRACTIONS, [seed])
        lines[name] = result["difference"][:, 0]
        for fraction, value in zip(_FRACTIONS, lines[name], strict=True):
            numbers[f"DiffROAR at {fraction:.0%}, {name}"] = value
    figure = plots.curves({"DiffROAR": lines}, x=_FRACTIONS, xlabel="share of the pixels left")
    return numbers, figure


@reproduction(
    ground_truth.PAPER,
    claim="Attributions find the features that matter, less often the more there are that do not.",
)
def chaosmining_precision(seed):
    """2 sin a + b^2 - exp(c/2) of three normal features among 7, 97, 397 irrelevant ones, noise
    0.1; 3000 examples for training, 1000 for validation; MLP of two layers of 64, AdamW, early
    stopping. Functional precision of saliency and integrated gradients on the validation set, by
    example and of the mean magnitude over all; that of the untrained model with 97. The paper has
    15 formulas, n = 10,000 and three hidden layers of 100."""
    numbers, lines = {}, {"saliency": [], "integrated gradients": []}
    counts = (7, 97, 397)
    for irrelevant in counts:
        train, validation, relevant = _three_terms(irrelevant, seed)
        model = _train_regression(*train, seed)
        numbers[f"R2, {irrelevant} irrelevant"] = _r2(model, *validation)
        for name, maps in _attributions(model, validation[0]).items():
            precision = ground_truth.functional_precision(maps, relevant)
            lines[name].append(precision)
            numbers[f"precision of {name}, {irrelevant} irrelevant"] = precision
            mean = np.abs(maps).mean(axis=0, keepdims=True)
            numbers[f"precision of the mean of {name}, {irrelevant} irrelevant"] = (
                ground_truth.functional_precision(mean, relevant[:1])
            )
    _, (x, _), relevant = _three_terms(97, seed)
    for name, maps in _attributions(_regressor(100, seed), x).items():
        precision = ground_truth.functional_precision(maps, relevant)
        numbers[f"precision of {name}, 97 irrelevant, untrained"] = precision
    figure = plots.curves({"functional precision": lines}, x=counts, xlabel="irrelevant features")
    return numbers, figure


@reproduction(
    ground_truth.PAPER,
    claim="Recursive feature elimination with neural attribution selects the features that matter "
    "and improves the prediction.",
)
def feature_elimination_on_chaosmining(seed):
    """The data and model of chaosmining_precision with 97 irrelevant features; saliency, a fifth of
    the features goes in each round, to the end; the set with the best R2 on the validation set."""
    train, validation, _ = _three_terms(97, seed)
    search = RFEwNA(_train_regression, saliency_of_output, score=_r2, patience=None)
    search.fit(train, validation, seed)
    chosen = np.flatnonzero(search.support_)
    scores = [score for _, score in search.history_]
    sizes = [len(features) for features, _ in search.history_]
    numbers = {
        "features chosen": len(chosen),
        "share of the chosen that matter": np.mean(chosen < 3),
        "share of what matters that is chosen": np.mean(search.support_[:3]),
        "R2, all features": scores[0],
        "R2, chosen features": max(scores),
    }
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axis = figure.subplots()
    axis.semilogx(sizes, scores, "o-", color="#0072b2", markersize=4)
    axis.axvline(3, color="0.6", linestyle=":")
    axis.set(xlabel="features left", ylabel="R2 on validation data", xticks=[1, 3, 10, 30, 100])
    axis.set_xticklabels(["1", "3", "10", "30", "100"])
    return numbers, figure


@reproduction(
    impossibility.PAPER,
    claim="Complete and linear attributions do no better than random guessing (sensitivity + "
    "specificity = 1) where a few evaluations of the model answer the question.",
)
def impossibility_of_end_tasks(seed):
    """500 pairs of additive piecewise-linear networks of four features for each task, integrated
    gradients exact on their kinks, the gradient, and direct evaluation; the best threshold and
    direction on the drawn models. The paper has trained models on tables and images as well."""
    methods = {
        "integrated gradients": lambda model, x, y: IntegratedGradients(
            model, steps=20, rule="middle"
        )(x, y)["attributions"],
        "gradient": lambda model, x, y: Saliency(model, absolute=False)(x, y)["attributions"],
    }
    report = impossibility.impossibility_benchmark(methods, queries=(1, 4, 16), seed=seed)
    numbers = {
        f"{task}, {name}": value for task, row in report.items() for name, value in row.items()
    }
    return numbers, _bars(report)


def _bars(report):
    """Groups of bars, one for each task, of the sums of sensitivity and specificity."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    names = list(next(iter(report.values())))
    for place, (name, color) in enumerate(zip(names, _COLORS, strict=True)):
        heights = [row[name] for row in report.values()]
        positions = np.arange(len(report)) + 0.16 * (place - 2)
        axis.bar(positions, heights, 0.14, color=color, label=name)
    axis.axhline(1, color="0.3", linewidth=1, linestyle=":")
    axis.set(ylabel="sensitivity + specificity", ylim=(0.9, 2.05))
    axis.set_xticks(range(len(report)), [task.replace(", ", ",\n") for task in report])
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def saliency_of_output(model, x, y):
    """Magnitudes of the gradients of a model of one output."""
    return Saliency(model)(x, 0)["attributions"]


def margin_saliency(model, x, y):
    """Magnitudes of the gradients of the difference of two logits."""

    def margin(outputs, target):
        return outputs[:, 1] - outputs[:, 0], target

    return Saliency(model, score=margin)(x, y)["attributions"]


def _block_digits(split, seed):
    digits = load("digits", split)
    return block_mnist(digits.features, digits.labels, seed=seed * 2 + (split == "test"))


def _train_digits(x, y, seed, radius=0.0, epochs=40):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(256, "relu"), keras.layers.Dense(256, "relu")]
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            *layers,
            keras.layers.Dense(int(y.max()) + 1),
        ]
    )
    trainer = AdversarialTraining(model, radius, "l2", bounds=(0, 1)) if radius else model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile("adam", loss, steps_per_execution=8)
    trainer.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


def _retrain_digits(x, y, seed):
    return _train_digits(x, y, seed, epochs=20)


def _three_terms(irrelevant, seed):
    options = {"scale": 1.0, "clip": None, "noise": 0.1, "seed": seed}
    source, relevant = chaosmining_symbolic(_THREE_TERMS, irrelevant, 4000, **options)
    x, y = source.features, source.labels
    return (x[:3000], y[:3000]), (x[3000:], y[3000:]), relevant[3000:]


def _regressor(features, seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu")]
    return keras.Sequential([keras.Input([features]), *layers, keras.layers.Dense(1)])


def _train_regression(x, y, seed):
    model = _regressor(x.shape[1], seed)
    model.compile(keras.optimizers.AdamW(2e-3, weight_decay=0.1), "mse", steps_per_execution=8)
    stop = keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True)
    model.fit(x, y, batch_size=64, epochs=40, validation_split=0.15, callbacks=[stop], verbose=0)
    return model


def _r2(model, x, y):
    error = np.mean((model.predict(x, verbose=0)[:, 0] - y) ** 2)
    return float(1 - error / np.var(y))


def _attributions(model, x):
    return {
        "saliency": np.asarray(saliency_of_output(model, x, None)),
        "integrated gradients": np.asarray(IntegratedGradients(model)(x, 0)["attributions"]),
    }
