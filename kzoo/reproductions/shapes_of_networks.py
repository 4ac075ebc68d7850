"""Reproductions of what the shape of a network matters: wide or narrow, deep or shallow."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from kzoo.layers.fused_parallel_conv import PAPER as SHALLOW
from kzoo.layers.hourglass_mlp import PAPER as HOURGLASS
from kzoo.models.hourglass_mlp import HourglassMLP, ResidualMLP
from kzoo.models.residual_conv_net import ResidualConvNet
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction

_TRAIN = 1200
_NOISE = 0.5
_PIXELS = 64


@reproduction(
    HOURGLASS,
    claim="Hourglass MLPs denoise images better than conventional residual MLPs of as many "
    "trainable parameters, and their lift need not be trained.",
)
def hourglass_denoises_digits(seed):
    """scikit-learn's digits, 8 x 8 pixels in [0, 1], 1200 for training and 597 for testing, with
    normal noise of deviation 0.5, drawn anew in training. Conventional MLPs of 64 wide skip
    connections with 1 and 3 blocks, hourglass MLPs of 512 wide ones with blocks of 33 and 16 hidden
    units, 2 and 4 of them, all of about 102 400 trainable weights; the hourglass of 4 blocks also
    with a trained lift (32 768 more). Adam with a cosine decay from 2e-3, 30 epochs of batches of
    64. PSNR in dB. The paper has MNIST and ImageNet-32, and searches over shapes."""
    images = _digits(seed)[0].reshape(-1, _PIXELS)
    noise = np.random.default_rng(seed + 1).normal(0, _NOISE, images[_TRAIN:].shape)
    test, noisy = images[_TRAIN:], images[_TRAIN:] + noise
    numbers = {"PSNR, noisy images": _psnr(noisy, test)}
    for name, make in _mlps(seed).items():
        keras.utils.set_random_seed(seed)
        model = make()
        numbers[f"PSNR, {name}"] = _psnr(_denoiser(model, images[:_TRAIN])(noisy), test)
        numbers[f"trainable weights, {name}"] = _count(model)
    return numbers


def _mlps(seed):
    def hourglass(hidden, depth, **kwargs):
        return lambda: HourglassMLP(_PIXELS, _PIXELS, 512, hidden, depth, seed=seed, **kwargs)

    return {
        "conventional, 1 block": lambda: ResidualMLP(_PIXELS, _PIXELS, 768, 1),
        "conventional, 3 blocks": lambda: ResidualMLP(_PIXELS, _PIXELS, 256, 3),
        "hourglass, 2 blocks": hourglass(33, 2),
        "hourglass, 4 blocks": hourglass(16, 4),
        "hourglass, 4 blocks, trained lift": hourglass(16, 4, trainable_lift=True),
    }


def _denoiser(model, images, epochs=30, batch_size=64):
    """Trains `model` to take the noise away."""
    noisy = keras.Sequential(
        [keras.Input([_PIXELS]), keras.layers.GaussianNoise(_NOISE, seed=0), model]
    )
    steps = epochs * -(-len(images) // batch_size)
    noisy.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), "mse")
    noisy.fit(images, images, batch_size, epochs, verbose=0)
    return model


def _psnr(images, clean):
    """Peak signal-to-noise ratio of all images in dB; their peak is 1."""
    return float(-10 * np.log10(np.mean(np.square(images - clean))))


@reproduction(
    SHALLOW,
    claim="A deep residual stack and the shallow layer of the same branches in parallel reach "
    "similar training and validation losses.",
)
def deep_and_parallel_on_digits(seed):
    """scikit-learn's digits, 8 x 8 pixels in [0, 1], 1200 for training and 597 for validation. Nets
    of 8 branches of 16 filters, 3 x 3, one after the other or beside each other, and of a single
    branch, an eighth of the stack. The dense layer at the end sees either all positions or their
    mean, where a shallow net has no other way to see more than 5 x 5 pixels. Adam with 1e-3, 20
    epochs of batches of 64; cross-entropy at the end, of the training set without updates. The
    paper has MNIST and CIFAR-10 and 6912 settings of its hyper-parameters."""
    images, labels = _digits(seed)
    data = images[:_TRAIN, ..., None], labels[:_TRAIN]
    validation = images[_TRAIN:, ..., None], labels[_TRAIN:]
    shapes = {"deep": (8, "sequential"), "parallel": (8, "parallel"), "1 branch": (1, "parallel")}
    numbers, lines = {}, {}
    for head in ("all positions", "mean"):
        for name, (depth, layout) in shapes.items():
            keras.utils.set_random_seed(seed)
            model = _conv_net(depth, layout, head)
            history = model.fit(
                *data, 64, 20, verbose=0, validation_data=validation, validation_batch_size=597
            ).history
            lines.setdefault(f"validation loss, {head}", {})[name] = history["val_loss"]
            net = f"{name}, {head}"
            numbers[f"weights, {net}"] = _count(model)
            numbers[f"training loss, {net}"] = model.evaluate(*data, _TRAIN, verbose=0)[0]
            numbers[f"validation loss, {net}"] = history["val_loss"][-1]
            numbers[f"validation accuracy, {net}"] = history["val_accuracy"][-1]
    return numbers, curves(lines, xlabel="epoch", log=tuple(lines))


def _conv_net(depth, layout, head):
    body = ResidualConvNet(depth, 16, layout=layout, input_shape=(8, 8, 1), include_top=False)
    pool = {"all positions": keras.layers.Flatten, "mean": keras.layers.GlobalAveragePooling2D}
    model = keras.Sequential([body, pool[head](), keras.layers.Dense(10, "softmax")])
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def _digits(seed):
    """([1797, 8, 8] in [0, 1], labels), shuffled."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    return (digits.images[order] / 16).astype("float32"), digits.target[order]


def _count(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
