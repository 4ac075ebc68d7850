"""Images that a recogniser draws of the classes it knows, with and without its own statistics."""

import keras
import numpy as np
from matplotlib.figure import Figure

from kzoo.analysis.batch_norm_inversion import batch_norm_inversion
from kzoo.data.builtin import digits
from kzoo.layers.arcface import PAPER, ArcFaceHead
from kzoo.losses.arcface import ArcFaceLoss
from kzoo.plots import picture
from kzoo.reproductions.registry import reproduction

_CLASSES, _EACH, _SCALE = 10, 8, 16.0


@reproduction(
    PAPER,
    claim="A trained recogniser generates identity-preserved images, of classes and of embeddings, "
    "and it is the statistics of its batch normalisations that make them plausible.",
)
def digits_from_a_recogniser(seed):
    """scikit-learn's digits: a CNN of three convolutions with batch normalisation and an ArcFace
    head (s = 16, m = 0.5) draws 8 images of each class, and one for the direction of the embedding
    of 8 test images of each class, in 500 steps of Adam at 0.05, with the paper's weights of the
    terms and with lambda = 0. A second network, of another seed, is the judge: its accuracy; the
    cosine between its embedding and its center of the class (for embeddings: its embedding of the
    test image). Pixel statistics: root mean square distance of the means and standard deviations
    of the pixels from those of the training images. The paper has faces, 20 000 steps
    at 0.25, and FID.
    """
    train, test = digits("train", seed=seed), digits("test", seed=seed)
    body, model = _recogniser(train, seed)
    judge_body, judge = _recogniser(train, seed + 1)
    direction = keras.Sequential([body, keras.layers.UnitNormalization()])
    classes = np.repeat(np.arange(_CLASSES), _EACH)
    centers = judge.layers[-1].centers.numpy()[classes, 0]
    real = _first_of_each(test, _EACH)
    goals = direction.predict(real, verbose=0)
    numbers, of_classes, of_embeddings = {}, {}, {}
    for prior, weight in (("prior", 0.05), ("no prior", 0.0)):
        options = {"statistics_weight": weight, "steps": 500, "learning_rate": 0.05, "seed": seed}
        closed = batch_norm_inversion(model, classes, **options).images
        opened = batch_norm_inversion(direction, goals, **options).images
        predicted = judge.predict(closed, verbose=0).argmax(-1)
        numbers[f"classes, {prior}: accuracy"] = float(np.mean(predicted == classes))
        numbers[f"classes, {prior}: cosine"] = _cosine(judge_body, closed, centers)
        numbers[f"classes, {prior}: distance of pixel statistics"] = _distance(closed, train)
        numbers[f"embeddings, {prior}: cosine"] = _cosine(
            judge_body, opened, judge_body.predict(real, verbose=0)
        )
        of_classes[f"class,\n{prior}"] = closed[::_EACH]
        of_embeddings[f"embedding,\n{prior}"] = opened[::_EACH]
    training = {"a training\nimage": _first_of_each(train, 1)}
    return numbers, _pictures(
        {**training, **of_classes, "a test\nimage": real[::_EACH], **of_embeddings}
    )


def _recogniser(train, seed):
    """(embedding, embedding and head), trained."""
    keras.utils.set_random_seed(seed)
    body = keras.Sequential([keras.Input(train.features.shape[1:])])
    for filters, strides in ((32, 1), (32, 1), (64, 2)):
        body.add(keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False))
        body.add(keras.layers.BatchNormalization(momentum=0.9))
        body.add(keras.layers.ReLU())
    body.add(keras.layers.Flatten())
    body.add(keras.layers.Dense(32))
    body.add(keras.layers.BatchNormalization(momentum=0.9, scale=False))
    model = keras.Sequential([body, ArcFaceHead(_CLASSES, scale=_SCALE)])
    model.compile(keras.optimizers.Adam(0.003), ArcFaceLoss(_SCALE))
    model.fit(train.features, train.labels, 64, epochs=12, verbose=0)
    return body, model


def _first_of_each(source, count):
    """The first images of each class, those of class 0 first."""
    return np.concatenate(
        [source.features[source.labels == digit][:count] for digit in range(_CLASSES)]
    )


def _cosine(body, images, goals):
    embedded = body.predict(images, verbose=0)
    lengths = np.linalg.norm(embedded, axis=1) * np.linalg.norm(goals, axis=1)
    return float(np.mean(np.sum(embedded * goals, axis=1) / lengths))


def _distance(images, train):
    """Root mean square, over the pixels, of the differences of both statistics."""
    changes = [f(images, axis=0) - f(train.features, axis=0) for f in (np.mean, np.std)]
    return float(np.sqrt(np.mean(np.square(changes))))


def _pictures(rows):
    figure = Figure(figsize=(_CLASSES + 1.2, len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), _CLASSES)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=True):
            axis.imshow(picture(np.clip(image, 0, 1)), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    return figure
