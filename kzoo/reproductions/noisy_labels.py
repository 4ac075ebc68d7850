"""What sub-centers make of wrong labels, measured on digits."""

import keras
import numpy as np

from kzoo.data.builtin import digits
from kzoo.layers.arcface import PAPER, ArcFaceHead, purify
from kzoo.losses.arcface import ArcFaceLoss
from kzoo.reproductions.registry import reproduction

_NOISE, _CLASSES, _SCALE, _MARGIN = 0.2, 10, 16.0, 0.5


@reproduction(
    PAPER,
    claim="Sub-centers isolate wrongly labelled examples; training again without those that are "
    "far from the dominant sub-center is better than training on the noisy labels.",
)
def sub_centers_of_noisy_digits(seed):
    """scikit-learn's digits: 898 images to train, a fifth of them with one of the nine wrong
    labels, and 899 with their own to test.

    A CNN of two convolutions with the paper's BN-Dropout-FC-BN embedding, of 32 dimensions, and an
    ArcFace head (s = 16, m = 0.5) with one and with three sub-centers per class; 40 epochs of Adam
    at 0.002 with cosine decay. Purified: examples at more than 75 degrees from the dominant
    sub-center are dropped, and a network with K = 1 is trained from scratch. The paper has faces of
    thousands of persons, of which a half or so are mislabelled.
    """
    train, test = (digits(split, 0.5, seed) for split in ("train", "test"))
    labels, wrong = _with_noise(train.labels, seed)
    numbers, trained = {}, {}
    for name, subcenters in (("K = 1", 1), ("K = 3", 3)):
        trained[name] = _train(train.features, labels, subcenters, seed)
        body, head = trained[name].layers
        embeddings = body.predict(train.features, 500, verbose=0)
        kept = purify(embeddings, labels, head)
        numbers[f"{name}: accuracy"] = _accuracy(trained[name], test)
        numbers[f"{name}: wrong labels beyond 75 degrees"] = float(np.mean(~kept[wrong]))
        numbers[f"{name}: right labels beyond 75 degrees"] = float(np.mean(~kept[~wrong]))
        aside = _not_dominant(embeddings, labels, head)
        numbers[f"{name}: wrong labels at other sub-centers"] = float(np.mean(aside[wrong]))
        numbers[f"{name}: right labels at other sub-centers"] = float(np.mean(aside[~wrong]))
        again = _train(train.features[kept], labels[kept], 1, seed)
        numbers[f"{name}, purified, K = 1: accuracy"] = _accuracy(again, test)
        numbers[f"{name}, purified: share of wrong labels"] = float(np.mean(wrong[kept]))
    clean = _train(train.features[~wrong], labels[~wrong], 1, seed)
    numbers["right labels only, K = 1: accuracy"] = _accuracy(clean, test)
    return numbers


def _with_noise(labels, seed):
    """Labels of which a share is replaced by another class, and where."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[rng.permutation(len(labels))[: round(_NOISE * len(labels))]] = True
    other = (labels + rng.integers(1, _CLASSES, len(labels))) % _CLASSES
    return np.where(wrong, other, labels), wrong


def _train(images, labels, subcenters, seed, epochs=40):
    keras.utils.set_random_seed(seed)
    body = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dropout(0.4),
            keras.layers.Flatten(),
            keras.layers.Dense(32),
            keras.layers.BatchNormalization(momentum=0.9, scale=False),
        ]
    )
    model = keras.Sequential([body, ArcFaceHead(_CLASSES, subcenters, _SCALE)])
    steps = epochs * -(-len(images) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(0.002, steps)
    loss = ArcFaceLoss(_SCALE, angular_margin=_MARGIN)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=15)
    model.fit(images, labels, 64, epochs, verbose=0)
    return model


def _accuracy(model, test):
    predicted = model.predict(test.features, 500, verbose=0).argmax(-1)
    return float(np.mean(predicted == test.labels))


def _not_dominant(embeddings, labels, head):
    """Whether an example is nearest to another sub-center of its class than most of it are."""
    nearest = np.einsum("nd,nkd->nk", embeddings, head.centers.numpy()[labels]).argmax(-1)
    counts = np.zeros((head.classes, head.subcenters), int)
    np.add.at(counts, (labels, nearest), 1)
    return nearest != counts.argmax(-1)[labels]
