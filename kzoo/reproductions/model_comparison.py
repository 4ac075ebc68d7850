"""Models compared: votes of several CNNs on two digits at once, and inputs that a loss needs."""

import keras
import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn.datasets import load_digits

from kzoo.analysis.derivative_sensitivity import PAPER as SENSITIVITY_PAPER
from kzoo.analysis.derivative_sensitivity import (
    input_derivative_sensitivity,
    plot_report,
    spearman_report,
)
from kzoo.explain.activation_profiles import neuron_activation_profiles, plot_profile
from kzoo.models import DenseNetBC, PreActResNetCIFAR
from kzoo.models.majority_vote import PAPER, MajorityVoteEnsemble
from kzoo.models.resnet import basic_block
from kzoo.reproductions.registry import reproduction

_SHAPE = (8, 16, 1)
_RELEVANT = 3


@reproduction(
    PAPER,
    claim="A majority vote of five CNNs has a better micro-F1 (0.89) than the models alone (0.66 "
    "to 0.875).",
)
def majority_vote_of_five_cnns(seed):
    """Images of two digits side by side with noise (scikit-learn's digits, 8 x 16 pixels), ten
    labels, of which one or two are given; 1500 pairs of 900 digits for training, 1000 pairs of the
    others for testing. Five small CNNs (ResNets of basic blocks, with 3 and 6 blocks, a
    pre-activation ResNet-8, a DenseNet-BC-16 and a plain CNN) for the paper's five on X-rays; Adam,
    12 epochs, binary cross-entropy. The figure shows the neuron activation profiles of the first
    ResNet's second stage.
    """
    train, test = _digit_pairs(seed)
    models = _train_models(*train)
    scores = [_micro_f1(model.predict(test[0], verbose=0), test[1]) for model in models]
    ensemble = MajorityVoteEnsemble(models)
    votes = ensemble.predict(test[0], verbose=0)["votes"]
    layer = "conv2_block1_out"
    profile = neuron_activation_profiles(models[0], *test, [layer])[layer]
    numbers = {f"micro-F1 of {m.name}": s for m, s in zip(models, scores, strict=True)}
    numbers |= {
        "micro-F1 of the majority vote": _micro_f1(votes, test[1]),
        "mean micro-F1 of the single models": np.mean(scores),
        "share of dead feature maps in the figure's layer": profile.dead.mean(),
    }
    return numbers, plot_profile(profile, range(10))


@reproduction(
    SENSITIVITY_PAPER,
    claim="Derivatives of the loss show which inputs matter; those of second order look similar to "
    "Spearman's correlations.",
)
def derivatives_beside_spearman(seed):
    """Ten normal inputs, of which three matter, with weights 2, -1 and 1 and a bend, and some
    noise; 500 rows for training. Ten networks of 16 tanh units from other weights, full batches of
    Adam, 300 steps, MSE. Derivatives on the training rows. Measured over the retrainings: how
    often the three inputs have the highest mean absolute derivatives; and over the inputs, the
    correlation, linear and of ranks, of the mean absolute derivatives with |Spearman's
    correlation|. Seven of ten ranks are those of noise.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, 10)).astype("float32")
    y = 2 * x[:, 0] - np.tanh(x[:, 1]) + x[:, 2] + 0.3 * x[:, 2] ** 2 + 0.3 * rng.normal(size=500)
    y = (y - y.mean()) / y.std()
    sensitivity = input_derivative_sensitivity([_tanh_network(x, y) for _ in range(10)], x, y)
    report = spearman_report(sensitivity, x, y, [f"input {i}" for i in range(10)])
    correlations = np.abs([row["spearman"] for row in report])
    numbers = {}
    for order, name in enumerate(("first", "second", "third")):
        tops = np.argsort(-sensitivity.absolute[:, order], axis=1)[:, :_RELEVANT]
        found = (np.sort(tops, axis=1) == np.arange(_RELEVANT)).all(axis=1)
        numbers[f"retrainings with the three on top, {name} derivative"] = found.sum()
        mean = sensitivity.absolute[:, order].mean(axis=0)
        linear, ranks = stats.pearsonr(mean, correlations), stats.spearmanr(mean, correlations)
        numbers[f"correlation with Spearman's, {name} derivative"] = linear.statistic
        numbers[f"rank correlation with Spearman's, {name} derivative"] = ranks.statistic
    numbers["spread over the retrainings / mean, second derivative of the three"] = np.mean(
        sensitivity.spread[1, :_RELEVANT] / np.abs(sensitivity.mean[1, :_RELEVANT])
    )
    return numbers, plot_report(report)


def _digit_pairs(seed):
    """(images, labels [n, 10]) for training and for testing, of different digits."""
    rng, digits = np.random.default_rng(seed), load_digits()
    order = rng.permutation(len(digits.target))
    return [
        _pairs(digits.images[part] / 16, digits.target[part], count, rng)
        for part, count in ((order[:900], 1500), (order[900:], 1000))
    ]


def _pairs(images, labels, count, rng):
    left, right = rng.integers(len(labels), size=(2, count))
    pairs = np.concatenate([images[left], images[right]], axis=2)[..., np.newaxis]
    pairs = pairs + 0.4 * rng.normal(size=pairs.shape)
    shown = np.maximum(np.eye(10)[labels[left]], np.eye(10)[labels[right]])
    return pairs.astype("float32"), shown.astype("float32")


def _train_models(images, labels):
    options = {"input_shape": _SHAPE, "classifier_activation": "sigmoid"}
    models = [
        _resnet([1, 1, 1], "resnet_3_blocks"),
        _resnet([2, 2, 2], "resnet_6_blocks"),
        PreActResNetCIFAR(8, bottleneck=False, name="preact_resnet", **options),
        DenseNetBC(16, 8, name="densenet", **options),
        _plain_cnn(),
    ]
    for model in models:
        model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy")
        model.fit(images, labels, batch_size=50, epochs=12, verbose=0)
    return models


def _resnet(blocks, name):
    x = inputs = keras.Input(_SHAPE)
    for stage, (count, filters) in enumerate(zip(blocks, (8, 16, 32), strict=True), 1):
        for block in range(1, count + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = basic_block(x, filters, strides, f"conv{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, "sigmoid")(x), name=name)


def _plain_cnn():
    layers = [
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Dense(10, "sigmoid"),
    ]
    return keras.Sequential([keras.Input(_SHAPE), *layers], name="plain_cnn")


def _micro_f1(probabilities, labels):
    metric = keras.metrics.F1Score(average="micro", threshold=0.5)
    metric.update_state(labels, probabilities)
    return float(metric.result())


def _tanh_network(x, y):
    model = keras.Sequential(
        [keras.Input([x.shape[1]]), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.02), "mse", steps_per_execution=50)
    model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(300), verbose=0)
    return model
