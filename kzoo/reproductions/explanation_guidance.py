"""Training with explanations, on scikit-learn's digits: attribution priors and model guidance."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from kzoo.explain.expected_gradients import BatchExpectedGradients, ExpectedGradients
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.losses.guidance import PAPER as GUIDANCE_PAPER
from kzoo.losses.guidance import EnergyLoss
from kzoo.plots import explanation_sheet
from kzoo.regularizers.attribution_priors import (
    PAPER,
    AttributionGini,
    AttributionTotalVariation,
)
from kzoo.reproductions.registry import reproduction
from kzoo.training.explanation_guided import ExplanationGuided

_CANVAS = 12
_DIGIT = slice(2, 10)
_CONTRAST = 0.15


@reproduction(
    PAPER,
    claim="A prior on the total variation of expected gradients makes attributions of images "
    "smoother, at little cost in accuracy, and the classifier more robust to noise.",
)
def smooth_attribution_prior(seed):
    """Digits of 8 x 8 pixels, 1200 for training and 597 for testing; two convolutions and a dense
    layer, Adam, 40 epochs, with and without the pixel prior (weight 0.03, one reference for each
    row). Measured on the test images: the total variation of the expected gradients of the label
    (100 training images as background, 200 samples), the same divided by the sum of their
    magnitudes, and the accuracy, also under Gaussian noise of standard deviation 0.3.
    """
    train, test = _digits(seed)
    noise = np.random.default_rng(seed).normal(size=test[0].shape).astype("float32")
    measured, maps = {}, {}
    for name, weight in (("without", 0.0), ("with", 0.03)):
        model = _cnn(train[0].shape[1:])
        _fit(model, BatchExpectedGradients, AttributionTotalVariation(), weight, *train)
        maps[f"{name} the prior"] = attributions = _expected_gradients(model, train, test)
        variation = float(AttributionTotalVariation()(attributions))
        magnitude = np.abs(attributions).sum((1, 2, 3)).mean()
        measured[name] = {
            "total variation": variation,
            "total variation over magnitude": variation / magnitude,
            "accuracy": _accuracy(model, *test),
            "accuracy under noise": _accuracy(model, test[0] + 0.3 * noise, test[1]),
        }
    return _side_by_side(measured), explanation_sheet(
        test[0][:6], {name: each[:6] for name, each in maps.items()}, titles=test[1][:6]
    )


@reproduction(
    PAPER,
    claim="A prior on the Gini coefficient of the mean expected gradients makes a model rely on "
    "fewer features.",
)
def sparse_attribution_prior(seed):
    """Digits as 64 features, for the paper's health survey, 1200 for training and 597 for testing;
    a dense network with 64 hidden units, Adam, 40 epochs, with and without the sparse prior (weight
    0.5, one reference for each row). Measured on the test images: the Gini coefficient of the mean
    magnitudes of the expected gradients of the label, how many features hold nine tenths of them,
    and the accuracy.
    """
    train, test = _digits(seed)
    train, test = ((x.reshape(len(x), -1), y) for x, y in (train, test))
    measured = {}
    for name, weight in (("without", 0.0), ("with", 0.5)):
        layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input([64]), *layers])
        _fit(model, BatchExpectedGradients, AttributionGini(), weight, *train)
        attributions = _expected_gradients(model, train, test)
        share = np.sort(np.abs(attributions).mean(0))[::-1].cumsum()
        measured[name] = {
            "Gini coefficient": -0.5 * float(AttributionGini()(attributions)),
            "features with 90 % of the attribution": int((share < 0.9 * share[-1]).sum()) + 1,
            "accuracy": _accuracy(model, *test),
        }
    return _side_by_side(measured)


@reproduction(
    GUIDANCE_PAPER,
    claim="Guidance by the energy loss, with boxes on a small fraction of the images, focuses a "
    "model on the objects and improves its generalization under distribution shift.",
)
def guided_away_from_a_spurious_patch(seed):
    """Digits of 8 x 8 pixels in the middle of 12 x 12, at 0.15 of their contrast, with a patch of
    2 x 2 pixels in a corner that tells the label in training and a random class in testing; 1200
    and 597 images; two convolutions and a dense layer, Adam, 40 epochs. Guided: the energy loss of
    input x gradient (weight 4), with the box of the digit on one training image in ten. Measured on
    the test images: accuracy with random patches and with those of the label, and the share of the
    positive attribution of the label within the box (EPG) with random patches. The square root of
    the images is drawn, so that the digits can be seen.
    """
    rng = np.random.default_rng(seed)
    train, test = _digits(seed)
    shifted = _with_patch(*test, rng.permutation(test[1]))
    train, test = _with_patch(*train, train[1]), _with_patch(*test, test[1])
    box = np.zeros([_CANVAS, _CANVAS], "float32")
    box[_DIGIT, _DIGIT] = 1
    masks = np.where((rng.uniform(size=len(train[0])) < 0.1)[:, None, None], box, -1)
    measured, maps = {}, {}
    for name, weight in (("ERM", 0.0), ("guided", 4.0)):
        model = _cnn(train[0].shape[1:])
        _fit(model, InputXGradient, EnergyLoss(), weight, *train, masks)
        explained = InputXGradient(model)(shifted[0], target=shifted[1])
        maps[name] = explained["attributions"].numpy()
        positive = np.maximum(maps[name][..., 0], 0)
        measured[name] = {
            "accuracy with random patches": _accuracy(model, *shifted),
            "accuracy with the label's patches": _accuracy(model, *test),
            "EPG": (positive * box).sum() / positive.sum(),
        }
    visible = shifted[0][:6] ** 0.5
    return _side_by_side(measured), explanation_sheet(
        visible, {name: each[:6] for name, each in maps.items()}, titles=shifted[1][:6]
    )


def _digits(seed):
    """((images [1200, 8, 8, 1], labels), (images [597, 8, 8, 1], labels))"""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order] / 16).astype("float32")[..., np.newaxis]
    labels = digits.target[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def _with_patch(images, labels, told):
    """The images, fainter, on a larger canvas whose corner has the binary code of `told`."""
    canvas = np.zeros([len(images), _CANVAS, _CANVAS, 1], "float32")
    canvas[:, _DIGIT, _DIGIT] = _CONTRAST * images
    canvas[:, :2, :2, 0] = ((told[:, np.newaxis] + 1) >> np.arange(4) & 1).reshape(-1, 2, 2)
    return canvas, labels


def _cnn(shape):
    convolutions = [keras.layers.Conv2D(16, 3, activation="relu") for _ in range(2)]
    layers = [*convolutions, keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input(shape), *layers])


def _fit(model, explainer, penalty, weight, images, labels, masks=None):
    trainer = model
    if weight:
        trainer = ExplanationGuided(model, explainer(model), penalty, weight)
        labels = labels if masks is None else {"label": labels, "mask": masks}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(2e-3), loss)
    trainer.fit(images, labels, batch_size=50, epochs=40, verbose=0)


def _expected_gradients(model, train, test):
    explainer = ExpectedGradients(model, train[0][:100], rows=4000)
    return explainer(test[0], target=test[1])["attributions"].numpy()


def _accuracy(model, images, labels):
    return np.mean(np.argmax(model(images), -1) == labels)


def _side_by_side(measured):
    """{"name: what": number} from {name: {what: number}}"""
    return {
        f"{name}: {what}": number
        for name, numbers in measured.items()
        for what, number in numbers.items()
    }
