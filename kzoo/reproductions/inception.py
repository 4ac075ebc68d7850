"""Inception nets with and without residual connections: how fast they learn."""

import functools

import keras
import numpy as np

from kzoo.data import load
from kzoo.layers.scaled_residual import PAPER
from kzoo.models.inception_resnet import InceptionResNetV2
from kzoo.models.inception_v4 import InceptionV4
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction

_IMAGES, _EPOCHS, _BATCH, _WINDOW = 4000, 4, 32, 60
_RATE = 0.045


@reproduction(
    PAPER,
    claim="Residual connections make Inception nets train faster: Inception-ResNet-v2 reaches the "
    "final loss of Inception-v4, which has about the same cost, in fewer steps.",
)
def residual_inception_learns_faster(seed, data_dir):
    """4000 images of CIFAR-10, enlarged to 75 x 75 pixels, 4 epochs of batches of 32. Inception-v4
    with an eighth of its filters and (2, 3, 2) blocks, and the paper's Inception-ResNet-v2 with
    (3, 4, 3) blocks and the same stem, of about the same number of parameters; both with the
    paper's RMSProp (decay 0.9, epsilon 1, rate 0.045). The loss is the mean of the last 60 training
    batches. Measured: after which share of the steps the residual net has the loss with which the
    plain one ends (inf if never).
    """
    images, labels = _cifar(data_dir)
    builds = {
        "plain": functools.partial(InceptionV4, width=1 / 8, blocks=(2, 3, 2)),
        "residual": functools.partial(
            InceptionResNetV2,
            layout="paper",
            batch_norm_scale=True,
            width=0.142,
            blocks=(3, 4, 3),
        ),
    }
    numbers, losses = {}, {}
    for name, build in builds.items():
        keras.utils.set_random_seed(seed)
        enlarged = keras.layers.Resizing(75, 75)(keras.Input((32, 32, 3)))
        model = build(input_tensor=enlarged, classes=10)
        numbers[f"parameters, {name}"] = model.count_params()
        losses[name] = _train(model, images, labels, np.random.default_rng(seed))
        numbers[f"final loss, {name}"] = losses[name][-1]
    reached = np.flatnonzero(losses["residual"] <= losses["plain"][-1])
    steps = (reached[0] + _WINDOW) if len(reached) else np.inf
    numbers["share of the steps"] = steps / (len(losses["plain"]) + _WINDOW - 1)
    return numbers, curves({"training loss": losses})


def _cifar(data_dir):
    source = load("tfds:cifar10", "train", data_dir=data_dir).take(_IMAGES)
    return np.asarray(source.features, "float32") / 127.5 - 1, np.asarray(source.labels)


def _train(model, images, labels, rng):
    """The training loss, a moving average over steps."""
    optimizer = keras.optimizers.RMSprop(_RATE, rho=0.9, epsilon=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    losses = []
    for _ in range(_EPOCHS):
        for batch in rng.permutation(len(images)).reshape(-1, _BATCH):
            losses.append(float(model.train_on_batch(images[batch], labels[batch])))
            model.reset_metrics()
    return np.convolve(losses, np.full(_WINDOW, 1 / _WINDOW), "valid")
