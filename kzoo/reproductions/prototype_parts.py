"""Prototypical parts on coloured shapes: support and trivial prototypes, and what they look at."""

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.svm import LinearSVC

from kzoo.explain.prototype_characteristics import (
    CHARACTERISTICS,
    ImageCharacteristicPerturbations,
    describe_prototype,
    explain_prototypes,
)
from kzoo.explain.prototype_characteristics import PAPER as CHARACTERISTICS_PAPER
from kzoo.layers.prototype_patches import PAPER
from kzoo.models.protopnet import (
    ProtoPNet,
    STProtoPNet,
    branches,
    feature_extractor,
    similarity_maps,
)
from kzoo.reproductions.registry import reproduction
from kzoo.training.protopnet import PrototypeTrainer
from kzoo.training.prototype_push import push_prototypes

_SIZE = 32
_SHAPES = ("disc", "square", "cross")
_COLORS = np.array([[0.85, 0.25, 0.2], [0.8, 0.6, 0.2]])


@reproduction(
    PAPER,
    claim="Support prototypes lie near the boundary between the classes and trivial ones far from "
    "it; together they classify better than either.",
)
def support_and_trivial_prototypes(seed):
    """Six classes of coloured shapes of 32 x 32 pixels, whose colours overlap, 1200 for training
    and 600 for testing; an STProtoPNet with 3 + 3 prototypes a class over four convolutions, 3
    epochs warm, 15 joint, push, 20 for the last layer. With 6 classes for the paper's 200, what is
    summed over them weighs more: 0.03 for orthonormality, 0.01 for the last layer's penalty. The
    boundary is that of a linear SVM (one against the rest) on each training image's patch nearest
    to a prototype of its class; a prototype's distance is to the nearest boundary between its class
    and another, in the branch's space of unit vectors. Where colours do not overlap and training
    goes on, the patches of a class become one point: then there are none near the boundary that
    support prototypes could be projected onto, and the claim does not hold.
    """
    rng = np.random.default_rng(seed)
    train, test = _shapes(rng, 1200, jitter=0.12), _shapes(rng, 600, jitter=0.12)
    model = STProtoPNet(_backbone(), 6, prototypes_per_class=3, prototype_size=16)
    _fit(model, "warm", *train, epochs=3, rate=3e-3, orthonormality=0.03)
    _fit(model, "joint", *train, epochs=15, rate=2e-3, orthonormality=0.03)
    sources = push_prototypes(model, train)
    pushed = _accuracies(model, *test)
    strength = _other_class_weight(model)
    _fit(model, "last_layer", *train, epochs=20, rate=1e-2, l1=1e-2)
    final = _accuracies(model, *test)
    distances = _boundary_distances(model, *train)
    numbers = {
        "support prototypes' distance to the boundary": distances["support"],
        "trivial prototypes' distance to the boundary": distances["trivial"],
        "accuracy of both branches": final["both"],
        "accuracy of the support branch": final["support"],
        "accuracy of the trivial branch": final["trivial"],
        "accuracy after push, before the last stage": pushed["both"],
        "mean |weight| to other classes before the last stage": strength,
        "mean |weight| to other classes after it": _other_class_weight(model),
    }
    return numbers, _prototype_figure(model, train[0], sources)


@reproduction(
    CHARACTERISTICS_PAPER,
    claim="Global explanations match the visible properties of prototypes: colour where classes "
    "differ in colour, shape where they differ in shape.",
)
def prototypes_of_colour_and_of_shape(seed):
    """Two ProtoPNets on coloured shapes of 32 x 32 pixels, one to tell the two colours and one to
    tell the three shapes; 800 images, 4 prototypes a class over four convolutions, 3 epochs warm,
    12 joint, push. Measured: the share of prototypes with the right order, by global importance:
    hue or saturation before shape where the class is the colour, shape before both where it is the
    shape.
    """
    rng = np.random.default_rng(seed)
    perturbations = ImageCharacteristicPerturbations(
        texture=0.1, shape_amplitude=3.0, shape_frequency=0.15, template=3, window=11
    )
    images, both = _shapes(rng, 800, jitter=0.06)
    tasks = {"colour": both // len(_SHAPES), "shape": both % len(_SHAPES)}
    rows, numbers = {}, {}
    for task, labels in tasks.items():
        model = ProtoPNet(
            _backbone(), labels.max().item() + 1, prototypes_per_class=4, prototype_size=16
        )
        _fit(model, "warm", images, labels, epochs=3, rate=3e-3)
        _fit(model, "joint", images, labels, epochs=12, rate=2e-3)
        push_prototypes(model, (images, labels))
        numbers[f"{task}: training accuracy"] = float(
            (model.predict(images, verbose=0).argmax(1) == labels).mean()
        )
        result = explain_prototypes(similarity_maps(model), images[:64], perturbations)
        rows[task] = result["global_importance"]
        hue, saturation, _, _, shape = rows[task].T
        colour_first = np.maximum(hue, saturation) > shape
        right = colour_first if task == "colour" else ~colour_first
        numbers[f"{task}: share of prototypes in the right order"] = right.mean()
        for name, value in zip(CHARACTERISTICS, rows[task].mean(0), strict=True):
            numbers[f"{task}: mean importance of {name}"] = value
    return numbers, _importance_figure(rows)


def _shapes(rng, count, jitter):
    """Images [count, 32, 32, 3] in [0, 1] and labels, 3 color + shape; `jitter` of the colours."""
    labels = rng.integers(0, len(_SHAPES) * len(_COLORS), count)
    images = rng.uniform(0.3, 0.7, (count, 1, 1, 1)) * np.ones([count, _SIZE, _SIZE, 3])
    grid = np.stack(np.meshgrid(*2 * [np.arange(_SIZE)], indexing="ij"), -1)
    for image, label in zip(images, labels, strict=True):
        center, radius = rng.uniform(10, 22, 2), rng.uniform(5, 8)
        away = np.abs(grid - center)
        inside = {
            "disc": (away**2).sum(-1) < radius**2,
            "square": away.max(-1) < 0.85 * radius,
            "cross": (away.min(-1) < 0.3 * radius) & (away.max(-1) < 1.2 * radius),
        }[_SHAPES[label % len(_SHAPES)]]
        image[inside] = _COLORS[label // len(_SHAPES)] + rng.normal(scale=jitter, size=3)
    images += rng.normal(scale=0.05, size=images.shape)
    return images.clip(0, 1).astype("float32"), labels.astype("int32")


def _backbone():
    layers = [keras.Input([_SIZE, _SIZE, 3])]
    for filters, strides in ((16, 1), (24, 2), (32, 2), (32, 1)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(layers, name="backbone")


def _fit(model, stage, images, labels, epochs, rate, **weights):
    trainer = PrototypeTrainer(model, stage, **weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(rate), loss)
    trainer.fit(images, labels, epochs=epochs, batch_size=32, verbose=0)


def _features(model, images):
    return [np.asarray(x) for x in feature_extractor(model).predict(images, verbose=0)]


def _accuracies(model, images, labels):
    """Of each branch, and of "both"."""
    logits = {
        branch.name: np.asarray(branch.classifier(branch.prototypes(features)))
        for branch, features in zip(branches(model), _features(model, images), strict=True)
    }
    logits["both"] = sum(logits.values())
    return {name: (each.argmax(1) == labels).mean() for name, each in logits.items()}


def _other_class_weight(model):
    """Mean |w| from prototypes to classes that they are not of."""
    weights = []
    for branch in branches(model):
        own = np.arange(6) == branch.prototypes.prototype_classes[:, np.newaxis]
        weights.append(np.abs(branch.classifier.kernel.numpy())[~own])
    return np.mean(weights)


def _boundary_distances(model, images, labels):
    """{branch: mean distance of its prototypes to the nearest boundary of their class}."""
    distances = {}
    for branch, features in zip(branches(model), _features(model, images), strict=True):
        layer = branch.prototypes
        cosines = np.asarray(layer.proximity_map(features))
        own = labels[:, np.newaxis] == layer.prototype_classes
        cosines = np.where(own[:, np.newaxis, np.newaxis], cosines, -2.0).max(-1)
        places = cosines.reshape(len(images), -1).argmax(1)
        patches = features.reshape(len(images), -1, features.shape[-1])
        patches = patches[np.arange(len(images)), places]
        patches /= np.linalg.norm(patches, axis=1, keepdims=True)
        svm = LinearSVC(C=10.0, max_iter=20000, random_state=0).fit(patches, labels)
        prototypes = layer.class_prototypes().numpy()
        distances[branch.name] = np.mean(
            [_to_boundary(svm, p, c) for c, each in enumerate(prototypes) for p in each]
        )
    return distances


def _to_boundary(svm, prototype, label):
    values = svm.decision_function(prototype[np.newaxis])[0]
    others = np.arange(len(values)) != label
    lengths = np.linalg.norm(svm.coef_[label] - svm.coef_[others], axis=1)
    return np.min(np.abs(values[label] - values[others]) / lengths)


def _prototype_figure(model, images, sources):
    """One row per branch: the image that each class's first prototype is from, and its place."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(len(sources), 6, squeeze=False)
    for row, branch in zip(axes, branches(model), strict=True):
        source = sources[branch.name]
        cell = _SIZE // branch.prototypes.input.shape[1]
        for axis, j in zip(row, np.arange(6) * branch.prototypes.prototypes_per_class, strict=True):
            axis.imshow(images[source.images[j]])
            corner = (cell * source.columns[j] - 0.5, cell * source.rows[j] - 0.5)
            axis.add_patch(Rectangle(corner, cell, cell, fill=False, color="cyan", linewidth=2))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(branch.name)
    return figure


def _importance_figure(rows):
    """Global importances of all prototypes, a panel for each task."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, (task, importance) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        limit = np.abs(importance).max()
        picture = axis.imshow(importance, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_title(f"{task}: {describe_prototype(importance.mean(0))}", fontsize=7)
        axis.set_xticks(range(len(CHARACTERISTICS)), CHARACTERISTICS, fontsize=8)
        axis.set_ylabel("prototype")
        figure.colorbar(picture, ax=axis)
    return figure
