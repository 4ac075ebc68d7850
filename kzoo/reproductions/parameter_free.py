"""Max-pooling in the place of a convolution, on CIFAR-10."""

import keras
import numpy as np

from kzoo.data import load
from kzoo.models.builder import bn_relu, conv
from kzoo.models.pf_resnet import PAPER, efficient_bottleneck
from kzoo.reproductions.registry import reproduction

_KINDS = {
    "max-pooling": "max",
    "depthwise convolution": "depthwise",
    "identity": "identity",
}
_EPOCHS = 5


@reproduction(
    PAPER,
    claim="A bottleneck with max-pooling does about as well as one with a depthwise convolution, "
    "with fewer parameters; without any spatial operation it does much worse.",
)
def max_pool_bottleneck(seed, data_dir):
    """5000 images of CIFAR-10 for training, 5000 of its test images; 5 epochs of AdamW, batches of
    100, a learning rate that falls from 0.004 to 0 as a cosine. Nets of a 3x3 convolution of stride
    2 and six bottlenecks (widths 16, 32 and 64, each twice), which differ in their spatial
    operation alone; batch norm and ReLU follow it in all three. The identity subsamples where a map
    is halved, so that the first convolution is all that sees neighbours. The paper trains ResNet-50
    on ImageNet.
    """
    train, test = (_images(split, data_dir) for split in ("train", "test"))
    order = np.random.default_rng(seed).permutation(len(train[1]))[:5000]
    held_out = [part[:5000] for part in test]
    numbers = {}
    for name, spatial in _KINDS.items():
        keras.utils.set_random_seed(seed)
        model = _network(spatial)
        _fit(model, *(part[order] for part in train))
        numbers[f"{name}: test accuracy"] = model.evaluate(*held_out, batch_size=500, verbose=0)[1]
        numbers[f"{name}: trainable parameters"] = _count(model)
    return numbers


def _images(split, data_dir):
    source = load("tfds:cifar10", split, data_dir=data_dir)
    return np.asarray(source.features, "float32") / 127.5 - 1, np.asarray(source.labels)


def _network(spatial):
    images = keras.Input((32, 32, 3))
    x = bn_relu(conv(32, 3, "stem_conv", strides=2)(images), "stem_")
    for stage, filters in enumerate((16, 32, 64), 1):
        for block in (1, 2):
            strides = 2 if stage > 1 and block == 1 else 1
            x = efficient_bottleneck(x, filters, f"stage{stage}_block{block}", strides, spatial)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10)(x))


def _fit(model, images, labels):
    steps = _EPOCHS * len(labels) // 100
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.004, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=100, epochs=_EPOCHS, verbose=0)


def _count(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
