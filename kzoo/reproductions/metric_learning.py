"""Metric learning: retrieval of classes that were held out, and what makes SupCon symmetric."""

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from kzoo.analysis.neural_collapse import neural_collapse_metrics
from kzoo.analysis.unconstrained_features import minimize_unconstrained_features
from kzoo.data.batch_binding import bound_batches
from kzoo.data.loading import load
from kzoo.layers.arcface import ArcFaceHead
from kzoo.layers.equiangular_head import PAPER as EQUIANGULAR
from kzoo.layers.equiangular_head import EquiangularBasisHead
from kzoo.losses.arcface import ArcFaceLoss
from kzoo.losses.circle import PAPER as CIRCLE
from kzoo.losses.circle import CircleLoss, UnifiedPairLoss
from kzoo.losses.sup_con import PAPER as SUP_CON
from kzoo.losses.sup_con import SupervisedContrastiveLoss
from kzoo.metrics.retrieval import clustering_nmi, map_at_r, recall_at_k
from kzoo.reproductions.registry import reproduction

_SEEN, _DIM = 6, 32


@reproduction(
    CIRCLE,
    claim="Circle loss, with class-level or with pair-wise labels, retrieves unseen classes on par "
    "with the best other losses.",
)
def retrieval_on_held_out_digits(seed, data_dir):
    """MNIST: embeddings are trained on 4000 images of 0 to 5 and tested on 2000 of 6 to 9.

    A CNN of two convolutions and 32 dimensions, 5 epochs of batches of 128 and Adam at 0.002 with
    cosine decay, the same for all; the heads have the scale 16, ArcFace the margin 0.3, Circle
    gamma = 64 and m = 0.25 with class-level labels, 80 and 0.4 (Keras's) with pair-wise ones,
    SupCon and the equiangular basis vectors a temperature of 0.1 and 0.07. "Pixels" are not
    trained. Cosine similarity; the picture has the first two principal components of the
    embeddings of the held-out digits. The papers have data sets with far more classes.
    """
    (x, y), (x_test, y_test) = _held_out(data_dir, seed)
    numbers, embedded = {}, {"pixels": x_test.reshape(len(x_test), -1)}
    for name, (head, loss) in _methods().items():
        embedded[name] = _train(head, loss, x, y, seed).predict(x_test, 500, verbose=0)
    for name, embeddings in embedded.items():
        numbers[f"{name}: recall@1"] = recall_at_k(embeddings, y_test)
        numbers[f"{name}: MAP@R"] = map_at_r(embeddings, y_test)
        numbers[f"{name}: NMI"] = clustering_nmi(embeddings, y_test, seed=seed)
    return numbers, _pictures(embedded, y_test)


@reproduction(
    EQUIANGULAR,
    claim="Fixed equiangular basis vectors classify as well as a trained dense layer with softmax.",
)
def equiangular_basis_vectors_on_mnist(seed, data_dir):
    """MNIST, 6000 images to train and 4000 to test, all ten digits: the CNN and training of
    `retrieval_on_held_out_digits`, with a dense layer or with 10 fixed vectors (in 32 dimensions,
    orthogonal; in 4, with cosines up to 0.5) after the embedding. The paper has ImageNet.
    """
    x, y = _images(data_dir, "train", 6000, seed)
    x_test, y_test = _images(data_dir, "test", 4000, seed)
    numbers = {}
    for name, head, dim in (
        ("dense", keras.layers.Dense(10), _DIM),
        ("EBV, 32 dimensions", EquiangularBasisHead(10), _DIM),
        ("EBV, 4 dimensions", EquiangularBasisHead(10), 4),
    ):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        body = _train(head, loss, x, y, seed, dim)
        predicted = head(body.predict(x_test, 500, verbose=0)).numpy().argmax(-1)
        numbers[f"{name}: accuracy"] = float(np.mean(predicted == y_test))
        numbers[f"{name}: trainable weights of the head"] = sum(
            int(np.prod(w.shape)) for w in head.trainable_weights
        )
    return numbers


@reproduction(
    SUP_CON,
    claim="With a final ReLU, the minima of SupCon are orthogonal frames however unequal the "
    "classes are; binding examples make that so for mini-batches.",
)
def symmetry_of_supervised_contrastive_features(seed):
    """The unconstrained features model with 10, 10, 2 and 2 examples in 8 dimensions, t = 1.

    Three settings of the batches: all in one; fixed batches of two classes each, 0 with 1 and 2
    with 3; the same with one bound example of each class. "Distance" is that of the class means
    from an orthogonal frame, "cosine" the largest in magnitude between two of them.
    """
    counts = [10, 10, 2, 2]
    labels = np.repeat(np.arange(4), counts)
    bound = np.concatenate([b[-4:] for b in bound_batches(labels, len(labels), seed=seed)])
    pairs = [np.flatnonzero(labels < 2), np.flatnonzero(labels >= 2)]
    settings = {
        "full batch": None,
        "pairs of classes": pairs,
        "pairs, bound": [np.union1d(pair, bound) for pair in pairs],
    }
    numbers = {}
    for nonnegative in (True, False):
        for name, batches in settings.items():
            found = minimize_unconstrained_features(
                counts, 8, nonnegative, batches=batches, seed=seed
            )
            metrics = neural_collapse_metrics(found.features, found.labels)
            key = f"{'ReLU' if nonnegative else 'no ReLU'}, {name}"
            numbers[f"{key}: loss"] = found.loss
            numbers[f"{key}: distance"] = metrics.orthogonal_frame
            numbers[f"{key}: cosine"] = metrics.largest_cosine
    return numbers


def _methods():
    """{name: (head or None, loss)}."""
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {
        "softmax": (keras.layers.Dense(_SEEN), cross_entropy),
        "EBV": (EquiangularBasisHead(_SEEN), cross_entropy),
        "ArcFace": (ArcFaceHead(_SEEN, scale=16.0), ArcFaceLoss(16.0, angular_margin=0.3)),
        "SupCon": (None, SupervisedContrastiveLoss(0.1)),
        "Circle, classes": (ArcFaceHead(_SEEN, scale=64.0), CircleLoss(64.0)),
        "Circle, pairs": (None, UnifiedPairLoss(80.0, 0.4, reweight=True)),
    }


def _train(head, loss, x, y, seed, dim=_DIM, epochs=5, batch_size=128):
    """Trains a CNN under a head, and returns it without."""
    keras.utils.set_random_seed(seed)
    body = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Conv2D(16, 5, 2, "same", activation="relu"),
            keras.layers.Conv2D(32, 3, 2, "same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(dim),
        ]
    )
    model = keras.Sequential([body, head]) if head is not None else body
    steps = epochs * -(-len(x) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(0.002, steps)
    model.compile(keras.optimizers.Adam(schedule), loss)
    model.fit(x, y, batch_size, epochs, verbose=0)
    return body


def _held_out(data_dir, seed):
    """The images of 0 to 5 to train, and those of 6 to 9 to test."""
    x, y = _images(data_dir, "train", 60_000, seed)
    x_test, y_test = _images(data_dir, "test", 10_000, seed)
    train, test = y < _SEEN, y_test >= _SEEN
    return (x[train][:4000], y[train][:4000]), (x_test[test][:2000], y_test[test][:2000])


def _images(data_dir, split, count, seed):
    source = load("tfds:mnist", split, data_dir=data_dir)
    order = np.random.default_rng(seed).permutation(source.num_examples)[:count]
    return np.asarray(source.features[order], "float32") / 255, np.asarray(source.labels)[order]


def _pictures(embedded, labels):
    figure = Figure(figsize=(3 * 4, 6), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for axis, (name, embeddings) in zip(axes, embedded.items(), strict=False):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        points = PCA(2, random_state=0).fit_transform(unit)
        for digit in np.unique(labels):
            axis.scatter(*points[labels == digit].T, s=3, linewidths=0, label=str(digit))
        axis.set(title=name, xticks=[], yticks=[])
        axis.set_aspect("equal", "datalim")
    handles, names = axes[0].get_legend_handles_labels()
    for axis in axes[len(embedded) :]:
        axis.axis("off")
    axes[-1].legend(handles, names, loc="center", markerscale=4, title="digit", frameon=False)
    return figure
