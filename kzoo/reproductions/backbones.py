"""Claims about backbones and their first layer, on small sets."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from kzoo.analysis import multiply_adds
from kzoo.data import load
from kzoo.layers import TrActConv2D
from kzoo.layers.tract import PAPER as TRACT
from kzoo.models import DenseNetBC, PreActResNetCIFAR
from kzoo.models.densenet import PAPER as DENSENET
from kzoo.reproductions.registry import reproduction


@reproduction(
    DENSENET,
    claim="At equal parameters a DenseNet-BC is more accurate than a pre-activation ResNet.",
)
def densenet_against_preact_resnet(seed):
    """DenseNet-BC of depth 22 and growth rate 12 against a pre-activation ResNet of 8 layers, on
    scikit-learn's 8x8 digits: 450 images of training, 1347 of test, drawn by the seed. 20 epochs of
    SGD with Nesterov momentum 0.9 in batches of 50, the rate falls from 0.1 to 0 along a cosine,
    weight decay 1e-4. The paper has nets of 0.8 to 27 million parameters on CIFAR and SVHN."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = digits.images[order, ..., None].astype("float32") / 16.0
    labels = digits.target[order]
    options = {"input_shape": (8, 8, 1), "classifier_activation": None}
    networks = {
        "DenseNet-BC": lambda: DenseNetBC(22, 12, **options),
        "pre-activation ResNet": lambda: PreActResNetCIFAR(8, bottleneck=False, **options),
    }
    numbers = {}
    for name, make in networks.items():
        keras.utils.set_random_seed(seed)
        model = make()
        rate = keras.optimizers.schedules.CosineDecay(0.1, 20 * 9)
        _compile(model, keras.optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=1e-4))
        model.fit(images[:450], labels[:450], batch_size=50, epochs=20, verbose=0)
        held_out = images[450:], labels[450:]
        accuracy = model.evaluate(*held_out, batch_size=500, verbose=0)[1]
        numbers[f"{name}: test accuracy"] = accuracy
        numbers[f"{name}: trainable parameters"] = sum(
            int(np.prod(weight.shape)) for weight in model.trainable_weights
        )
        numbers[f"{name}: million multiply-adds"] = multiply_adds(model) / 1e6
    return numbers


@reproduction(
    TRACT,
    claim="TrAct in the first layer reaches the accuracy of plain training in a half or less of "
    "the epochs.",
)
def tract_starts_faster(seed, data_dir):
    """5000 images of CIFAR-10 for training, 5000 of its test images, pixels from 0 to 1 and not
    standardized; a network of four 3x3 convolutions (32, 64, 64, 128 maps, all but the first of
    stride 2) with batch norm but after the first, whose layer is `Conv2D` or `TrActConv2D`; SGD
    with momentum 0.9 at a constant 0.02, batches of 100, 12 epochs. The share is of the plain run's
    epochs that TrAct takes to its last test accuracy; none if it does not get there. The paper
    trains ResNet-18 and vision transformers for 100 epochs and more."""
    (x, y), held_out = (_cifar(split, data_dir) for split in ("train", "test"))
    runs = {}
    for name, first in (("plain", keras.layers.Conv2D), ("TrAct", TrActConv2D)):
        keras.utils.set_random_seed(seed)
        model = _compile(_network(first), keras.optimizers.SGD(0.02, momentum=0.9))
        history = model.fit(
            x, y, batch_size=100, epochs=12, validation_data=held_out, validation_batch_size=500,
            verbose=0,
        ).history  # fmt: skip
        runs[name] = history["val_accuracy"]
    reached = np.flatnonzero(np.array(runs["TrAct"]) >= runs["plain"][-1])
    numbers = {
        f"{name}: test accuracy after {epoch} epochs": accuracy[epoch - 1]
        for name, accuracy in runs.items()
        for epoch in (1, 3, 6, 12)
    }
    numbers["share of the epochs"] = (reached[0] + 1) / 12 if len(reached) else np.nan
    return numbers, _curves(runs)


def _cifar(split, data_dir):
    source = load("tfds:cifar10", split, data_dir=data_dir).take(5000)
    return np.asarray(source.features, "float32") / 255, np.asarray(source.labels)


def _network(first):
    layers = [keras.Input((32, 32, 3)), first(32, 3, padding="same"), keras.layers.ReLU()]
    for filters in (64, 64, 128):
        layers += [
            keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def _compile(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def _curves(runs):
    """The test accuracy over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, accuracy in runs.items():
        axes.plot(range(1, len(accuracy) + 1), accuracy, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="test accuracy")
    axes.legend()
    return figure
