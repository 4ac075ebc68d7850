"""What feature visualisation by optimisation claims, measured on digits and photographs."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.data.builtin import digits
from kzoo.explain.saliency import PAPER as SALIENCY
from kzoo.explain.saliency import Saliency
from kzoo.explain.saliency_cut import saliency_cut
from kzoo.explain.visualization import (
    activation_maximization,
    channel,
    class_logit,
    maco,
    multifaceted_visualization,
    natural_spectrum,
    neuron,
    visualization_sheet,
)
from kzoo.explain.visualization.maco import PAPER as MACO
from kzoo.explain.visualization.multifaceted import PAPER as MULTIFACETED
from kzoo.plots import explanation_sheet
from kzoo.reproductions.registry import reproduction


@reproduction(
    MACO,
    claim="Optimising the Fourier phase alone is enough to drive a unit, and the images keep the "
    "spectrum of natural images, which those of pixel optimisation do not.",
)
def maco_keeps_the_spectrum_of_photographs(seed):
    """A network of three convolutions and an average learns which of 16 textures, 16x16 colour
    patches of the two photographs of scikit-learn cut into 4x2 fields each, it sees. Eight random
    channels of its last feature map, of those that are ever active, are visualised at 64x64: by
    MACO on the whole image without noise, 128 steps, and by activation maximisation on pixels
    without regularisers, 128 steps of Adam. A unit is the one in the middle, a channel the mean.
    High frequencies are those above a quarter of a cycle per pixel, their energy relative to that
    of the whole spectrum without the mean. The figure: MACO with its defaults, crops of 5 to 25 %
    of a canvas of 128x128, of the channels. The paper's networks are ResNet-50, ViT and others on
    ImageNet."""
    photographs = _photographs()
    model = _texture_network(photographs, seed)
    channels = _active_channels(model, photographs, 8, seed)
    goal = channel(model, "features", channels)
    units = neuron(model, "features", [(16, 16, index) for index in channels])
    crops = _crops(photographs, 200, 64, seed)[0]
    options = {"spectrum": natural_spectrum(crops), "steps": 128, "crops": 0, "noise": 0.0}
    whole = maco(goal, shape=(64, 64, 3), seed=seed, **options)
    single = maco(units, shape=(64, 64, 3), seed=seed, **options)
    pixels = activation_maximization(
        goal, shape=(64, 64, 3), bounds=(0, 1), mean=0.5, noise=0.05, steps=128, seed=seed
    )
    spectrum = natural_spectrum(_crops(photographs, 200, 128, seed)[0])
    result = maco(goal, spectrum, shape=(16, 16, 3), seed=seed)
    natural, ours, theirs = (_high(x) for x in (crops, whole["images"], pixels["images"]))
    figure = visualization_sheet(
        np.concatenate(
            [result["images"], tf.image.resize(pixels["images"], [128, 128], "nearest")]
        ),
        [*(f"MACO, {index}" for index in channels), *(f"pixels, {index}" for index in channels)],
        np.concatenate([result["transparency"], np.ones([8, 128, 128, 3])]),
        columns=8,
    )
    return {
        "activation after / before, units": _gain(single),
        "activation after / before, channels": _gain(whole),
        "activation after / before, channels, crops of a larger canvas": _gain(result),
        "activation after / before, channels, pixels": _gain(pixels),
        "share of high frequencies, photographs": natural["share"],
        "share of high frequencies, MACO": ours["share"],
        "share of high frequencies, pixels": theirs["share"],
        "energy of high frequencies, pixels / MACO": theirs["energy"] / ours["energy"],
        "energy of high to low frequencies, pixels / MACO": theirs["odds"] / ours["odds"],
    }, figure


@reproduction(
    MULTIFACETED,
    claim="A neuron that fires for several types of images has a visualisation of each, where a "
    "single one mixes them.",
)
def facets_of_a_neuron_of_two_digits(seed):
    """A small network learns five classes of digits, each of two: {0, 1}, {2, 3}, {4, 5}, {6, 7},
    {8, 9}. For each of the five logits the training images of the class are parted into four
    facets by the codes of the last hidden layer, and a picture is made of each in 30 steps.
    Purity: part of the images in a facet that are of its commoner digit. A second network, which
    learned the ten digits, says what the pictures show; for comparison, the pictures of the same
    steps from the mean of all images of the class."""
    train = digits("train", seed=seed)
    images, labels = train.features, train.labels
    model = _digit_network(images, labels // 2, 5, seed)
    judge = _digit_network(images, labels, 10, seed + 1)
    options = {"steps": 30, "optimizer": keras.optimizers.SGD(0.01), "jitter": 0, "blur": 0.0}
    purities, right, both, single, pictures, captions = [], [], [], [], [], []
    for pair in range(5):
        chosen = labels // 2 == pair
        goal = class_logit(model, pair)
        result = multifaceted_visualization(
            goal, images[chosen], "codes", facets=4, seed=seed, **options
        )
        one = multifaceted_visualization(
            goal,
            images[chosen],
            "codes",
            facets=1,
            seed=seed,
            neighbors=int(chosen.sum()),
            **options,
        )
        digit = labels[chosen][result["selected"]] - 2 * pair
        members = result["facets"].labels
        groups = np.stack([np.bincount(digit[members == i], minlength=2) for i in range(4)])
        purities.append(groups.max(1).sum() / len(digit))
        odds = judge.predict(result["images"], verbose=0)
        right += list(odds.argmax(-1) == 2 * pair + groups.argmax(1))
        both.append({2 * pair, 2 * pair + 1} <= set(odds.argmax(-1)))
        single.append(_certainty(judge, one["images"], pair))
        pictures += [*result["images"].numpy(), one["images"][0].numpy()]
        captions += [f"{2 * pair}|{2 * pair + 1}: {seen}" for seen in odds.argmax(-1)] + ["of all"]
    facets = [_certainty(judge, pictures[5 * i : 5 * i + 4], i) for i in range(5)]
    return {
        "purity of the facets, mean of 5 logits": np.mean(purities),
        "purity, least": np.min(purities),
        "pictures seen as the digit of their facet, of 20": np.sum(right),
        "logits whose pictures show both of their digits, of 5": np.sum(both),
        "probability of the likelier of the two digits, facets": np.mean(facets),
        "probability of the likelier of the two digits, from the mean of all": np.mean(single),
    }, visualization_sheet(np.stack(pictures), captions, columns=5, stretch=False)


@reproduction(
    SALIENCY,
    claim="The saliency of a classifier that was never shown a mask is enough to segment the "
    "object, with the colours of its most and least salient pixels and a graph cut.",
)
def saliency_cut_finds_digits(seed):
    """Digits enlarged to 16x16, each in a random light colour, lie at random places on 32x32
    images of noise around a random dark one; a small network learns which digit it is. On 100 test
    images the intersection over union of the digit's pixels with the cut, and, for comparison,
    with as many of the most salient pixels as the digit has. The paper measures boxes on
    ImageNet."""
    images, masks, labels = _pasted(digits("train", seed=seed), 6000, seed)
    model = _digit_network(images, labels, 10, seed, epochs=12)
    images, masks, labels = _pasted(digits("test", seed=seed), 100, seed + 1)
    accuracy = np.mean(model.predict(images, verbose=0).argmax(-1) == labels)
    saliency = Saliency(model, max_channels=True)(images)["attributions"].numpy()
    cuts = saliency_cut(images, saliency, seed=seed)
    thresholded = np.stack(
        [
            values >= np.sort(values.ravel())[-mask.sum()]
            for values, mask in zip(saliency, masks, strict=True)
        ]
    )
    figure = explanation_sheet(
        images[:6],
        {"saliency": saliency[:6], "cut": cuts[:6].astype(float), "digit": masks[:6].astype(float)},
    )
    return {
        "test accuracy": accuracy,
        "intersection over union, cut": _overlap(cuts, masks).mean(),
        "intersection over union, most salient pixels": _overlap(thresholded, masks).mean(),
        "cuts above one half": np.mean(_overlap(cuts, masks) > 0.5),
    }, figure


def _photographs():
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images).astype("float32") / 255


def _crops(photographs, count, size, seed):
    """Random square crops, and the field of the photographs, 4x2 each, that their centre is in."""
    rng = np.random.default_rng(seed)
    height, width = photographs.shape[1:3]
    which = rng.integers(len(photographs), size=count)
    top, left = rng.integers(height - size, size=count), rng.integers(width - size, size=count)
    crops = [
        photographs[i, y : y + size, x : x + size] for i, y, x in zip(which, top, left, strict=True)
    ]
    row, column = 2 * (top + size // 2) // height, 4 * (left + size // 2) // width
    return np.stack(crops), 8 * which + 4 * row + column


def _texture_network(photographs, seed):
    keras.utils.set_random_seed(seed)
    images, labels = _crops(photographs, 6000, 16, seed)
    model = keras.Sequential(
        [
            keras.Input([None, None, 3]),
            keras.layers.Rescaling(2.0, -1.0),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="features"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(16, "softmax"),
        ]
    )
    return _trained(model, images, labels, epochs=6, learning_rate=3e-3)


def _digit_network(images, labels, classes, seed, epochs=15):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            *_convolution(16),
            keras.layers.MaxPooling2D(),
            *_convolution(32),
            keras.layers.MaxPooling2D(),
            *_convolution(32),
            keras.layers.Flatten(),
            keras.layers.Dense(32, "relu", name="codes"),
            keras.layers.Dense(classes, "softmax"),
        ]
    )
    return _trained(model, images, labels, epochs, learning_rate=1e-3)


def _convolution(filters):
    return [
        keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
    ]


def _trained(model, images, labels, epochs, learning_rate):
    model.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        steps_per_execution=16,
    )
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def _pasted(source, count, seed):
    """Coloured digits on noise of another colour: images, masks, labels."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(source.labels), size=count)
    large = tf.image.resize(source.features[chosen], [16, 16]).numpy()
    coverage = np.zeros([count, 32, 32, 1], "float32")
    for row, (top, left) in enumerate(rng.integers(17, size=(count, 2))):
        coverage[row, top : top + 16, left : left + 16] = large[row]
    back, fore = rng.uniform(0.1, 0.4, (count, 1, 1, 3)), rng.uniform(0.6, 0.9, (count, 1, 1, 3))
    images = (
        (1 - coverage) * back + coverage * fore + rng.normal(scale=0.08, size=(count, 32, 32, 3))
    )
    images = np.clip(images, 0, 1).astype("float32")
    return images, coverage[..., 0] > 0.3, source.labels[chosen]


def _active_channels(model, photographs, count, seed):
    """Random channels, of those that are active somewhere on patches of the photographs."""
    features = keras.Model(model.inputs, model.get_layer("features").output)
    output = features.predict(_crops(photographs, 500, 16, seed)[0], verbose=0)
    alive = np.flatnonzero(output.max((0, 1, 2)) > 0)
    return np.random.default_rng(seed).choice(alive, count, replace=False)


def _gain(result):
    """The mean over the targets of the last activation over that of the first."""
    return result["activations"][-1].numpy().mean() / result["activations"][0].numpy().mean()


def _certainty(judge, images, pair):
    """The mean probability that the judge gives to the likelier digit of a pair."""
    odds = judge.predict(np.asarray(images), verbose=0)
    return odds[:, 2 * pair : 2 * pair + 2].max(-1).mean()


def _high(images):
    """Energy above a quarter of a cycle per pixel: itself, its share, its ratio to the rest."""
    energy = np.abs(np.fft.fft2(np.asarray(images), axes=(1, 2))) ** 2
    rows, columns = (np.fft.fftfreq(size) for size in energy.shape[1:3])
    radius = np.hypot(rows[:, None], columns[None])
    high, rest = energy[:, radius > 0.25].sum(), energy[:, (radius > 0) & (radius <= 0.25)].sum()
    return {"energy": high / len(energy), "share": high / (high + rest), "odds": high / rest}


def _overlap(masks, truth):
    return (masks & truth).sum((1, 2)) / np.maximum((masks | truth).sum((1, 2)), 1)
