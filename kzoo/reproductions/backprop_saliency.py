"""Reproductions of what gradients of inner layers and biases say."""

import keras
import numpy as np

from kzoo import plots
from kzoo.data.loading import load
from kzoo.explain.combined_layers import CombinedLayers
from kzoo.explain.composition import base_config
from kzoo.explain.faithfulness.class_sensitivity import class_sensitivity
from kzoo.explain.full_grad import FullGrad
from kzoo.explain.full_gradients import PAPER as FULL_GRAD_PAPER
from kzoo.explain.grad_cam import GradCAM
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.explain.meta_saliency import MetaSaliency
from kzoo.explain.norm_grad import PAPER, LinearApproximation, NormGrad
from kzoo.explain.saliency import Saliency
from kzoo.reproductions.registry import reproduction

_FRACTIONS = (0.1, 0.2, 0.3, 0.5)
_LAYERS = ("first", "second", "third", "last")
_MAPS = {
    "NormGrad": NormGrad,
    "selective NormGrad": lambda model, layer: NormGrad(model, layer, selective=True),
    "linear approximation": LinearApproximation,
    "Grad-CAM": GradCAM,
}
_STEP_SIZES = (0.0, 0.0001, 0.001, 0.01)


@reproduction(
    FULL_GRAD_PAPER,
    claim="Taking away the pixels that FullGrad ranks lowest changes the output less than taking "
    "away random ones, or those that other methods rank lowest.",
)
def full_grad_pixel_perturbation(seed):
    """Scikit-learn's digits (1437 for training, 360 for the test), CNN of three convolutions with
    batch normalization, Adam, 20 epochs. The least salient pixels of the top class become the mean
    pixel (the digits' ground is black already); the number is the mean of |change| / |logit| over
    the test images, for random pixels over five draws. The paper has ImageNet and black pixels."""
    train, test = (load("digits", split) for split in ("train", "test"))
    rng = np.random.default_rng(seed)
    model = _train_digits(train.features, train.labels, seed)
    x, mean = test.features, train.features.mean()
    draws = [rng.random(x.shape[:3]) for _ in range(5)]
    rankings = {
        "FullGrad": [_saliency(FullGrad(model), x)],
        "FullGrad, rescaled by layer": [_saliency(FullGrad(model, rescale="layer"), x)],
        "gradient": [_saliency(Saliency(model), x)],
        "input x gradient": [_saliency(InputXGradient(model), x)],
        "Grad-CAM": [_saliency(GradCAM(model), x)],
        "random": draws,
    }
    numbers = {"test accuracy": float(np.mean(_top(model, x) == test.labels))}
    lines = {}
    for name, saliencies in rankings.items():
        changes = [
            [_change(model, x, saliency, fraction, mean) for saliency in saliencies]
            for fraction in _FRACTIONS
        ]
        lines[name] = np.mean(changes, axis=1)
        for fraction, value in zip(_FRACTIONS, lines[name], strict=True):
            numbers[f"change without the lowest {fraction:.0%}, {name}"] = float(value)
    figure = plots.curves(
        {"relative change of the logit": lines}, x=_FRACTIONS, xlabel="share of pixels taken away"
    )
    return numbers, figure


@reproduction(
    PAPER,
    claim="NormGrad locates objects at early layers as well, where Grad-CAM fails; layers combined "
    "do better than most single ones.",
)
def norm_grad_pointing_game(seed):
    """16 x 16 images of four different digits each, from scikit-learn's digits (4000 from 1437 for
    training, 300 from 360 for the test); CNN of four convolutions, max pooling after the second and
    third, that says which digits there are. Of the digits that it finds, the share for which the
    highest place of the map is in their quarter (chance: 0.25). The paper has VOC and COCO."""
    model, images, labels = _grid_model(seed)
    present = np.eye(10)[labels].sum(axis=1)
    found = np.asarray(model(images)) > 0
    numbers = {"labels that are right": float(np.mean(found == present))}
    lines = {}
    for name, method in _MAPS.items():
        lines[name] = [_pointing(method(model, layer), images, labels, found) for layer in _LAYERS]
        for layer, value in zip(_LAYERS, lines[name], strict=True):
            numbers[f"{name}, {layer} convolution"] = value
        base = base_config(method(model, "last"))
        combined = CombinedLayers(model, _LAYERS, base=base)
        numbers[f"{name}, all combined"] = _pointing(combined, images, labels, found)
    sheet = {
        f"{name}, {layer}": np.asarray(
            _MAPS[name](model, layer)(images[:4], labels[:4, 0])["attributions"]
        )
        for name in ("NormGrad", "Grad-CAM")
        for layer in ("first", "last")
    }
    titles = [f"{row[0]} (top left)" for row in labels[:4]]
    return numbers, plots.explanation_sheet(images[:4], sheet, titles)


@reproduction(
    PAPER,
    claim="A step of training on the image makes maps more sensitive to the class explained.",
)
def meta_saliency_class_sensitivity(seed):
    """The images and the model of norm_grad_pointing_game, 50 test images; mean correlation of the
    maps of the most and the least probable class for several sizes of the step, 0 for none; maps
    at the third convolution. The paper has ImageNet and VGG-16, ResNet-50."""
    model, images, _ = _grid_model(seed)
    images = images[:50]
    bases = {name: method(model, "third") for name, method in _MAPS.items()}
    bases["gradient"] = Saliency(model)
    numbers, lines = {}, {}
    for name, base in bases.items():
        lines[name] = [
            float(np.nanmean(class_sensitivity(MetaSaliency(model, base, step), images)))
            for step in _STEP_SIZES
        ]
        for step, value in zip(_STEP_SIZES, lines[name], strict=True):
            numbers[f"correlation, {name}, step {step:g}"] = value
    figure = plots.curves(
        {"correlation, top and bottom class": lines},
        x=range(len(_STEP_SIZES)),
        xlabel="step: " + ", ".join(f"{step:g}" for step in _STEP_SIZES),
    )
    return numbers, figure


def _saliency(explainer, x):
    """Magnitudes of the map of the top class, [batch, height, width]."""
    attributions = np.abs(explainer(x)["attributions"])
    return attributions if attributions.ndim == 3 else attributions.sum(axis=-1)


def _top(model, x):
    return np.argmax(model(x), axis=-1)


def _change(model, x, saliency, fraction, fill):
    """Mean relative change of the top logit when the lowest of each saliency are filled."""
    flat = saliency.reshape(len(x), -1)
    rank = np.argsort(np.argsort(flat, axis=1, kind="stable"), axis=1)
    lowest = (rank < round(fraction * flat.shape[1])).reshape(saliency.shape)
    rows, top = np.arange(len(x)), _top(model, x)
    before, after = (
        np.asarray(model(each))[rows, top] for each in (x, np.where(lowest[..., None], fill, x))
    )
    return np.mean(np.abs(after - before) / np.abs(before))


def _pointing(explainer, images, labels, found):
    """Share of the digits found whose map is highest in their quarter."""
    hits = []
    for quarter in range(4):
        digits = labels[:, quarter]
        maps = np.asarray(explainer(images, digits)["attributions"])
        row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
        hit = (row // 8 * 2 + column // 8) == quarter
        hits.append(hit[found[np.arange(len(digits)), digits]])
    return float(np.concatenate(hits).mean())


def _block(filters, name=None):
    return [
        keras.layers.Conv2D(filters, 3, padding="same"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(name=name),
    ]


def _train_digits(x, y, seed):
    keras.utils.set_random_seed(seed)
    layers = [*_block(16), *_block(32), keras.layers.MaxPooling2D(), *_block(32)]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers, *head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, steps_per_execution=8)
    model.fit(x, y, batch_size=64, epochs=20, verbose=0)
    return model


def _grid_model(seed):
    """A trained model of grids of four digits, test images and their labels [n, 4]."""
    rng = np.random.default_rng(seed)
    (x, labels), (test, test_labels) = (
        _grids(load("digits", split), count, rng)
        for split, count in (("train", 4000), ("test", 300))
    )
    keras.utils.set_random_seed(seed)
    pool = keras.layers.MaxPooling2D
    model = keras.Sequential(
        [
            keras.Input([16, 16, 1]),
            *_block(16, "first"),
            *_block(32, "second"),
            pool(),
            *_block(32, "third"),
            pool(),
            *_block(64, "last"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, steps_per_execution=16)
    model.fit(x, np.eye(10)[labels].sum(axis=1), batch_size=125, epochs=8, verbose=0)
    return model, test, test_labels


def _grids(digits, count, rng):
    """Images [count, 16, 16, 1] of four digits of different classes, and those, row by row."""
    classes = np.stack([rng.permutation(10)[:4] for _ in range(count)])
    choose = np.vectorize(lambda label: rng.choice(np.flatnonzero(digits.labels == label)))
    parts = digits.features[choose(classes)]
    rows = [np.concatenate([parts[:, k], parts[:, k + 1]], axis=2) for k in (0, 2)]
    return np.concatenate(rows, axis=1).astype("float32"), classes
