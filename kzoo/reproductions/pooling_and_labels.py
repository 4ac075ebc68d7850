"""Pooling that leaves nuisance out, and predictions of labels that were never trained."""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from kzoo.layers.frechet_mean_head import PAPER as LOKI
from kzoo.layers.frechet_mean_head import FrechetMeanHead
from kzoo.layers.generalized_sum_pooling import PAPER as GSP
from kzoo.layers.generalized_sum_pooling import GeneralizedSumPooling
from kzoo.metrics.retrieval import recall_at_k
from kzoo.reproductions.registry import reproduction

_PATCHES, _PARTS, _CLASSES, _EMBEDDING = 16, 8, 20, 8


@reproduction(
    LOKI,
    claim="Swapping argmax for the Frechet mean predicts unobserved classes and lowers the "
    "expected squared distance, without training.",
)
def frechet_mean_of_even_digits(seed):
    """scikit-learn's digits: a logistic regression of the even digits is asked about all ten.

    The label space is the line 0 to 9 with d = |y - y'|; half of the 1797 images are for training,
    of which the even digits are used, and half for testing. Two temperatures. The paper has
    hierarchies of ImageNet and of other large label spaces; digits look no more alike where they
    are neighbours on the line, so this is the rule at its least favourable.
    """
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 16, y, test_size=0.5, random_state=seed, stratify=y)
    even = y % 2 == 0
    model = LogisticRegression(max_iter=1000).fit(x[even], y[even])
    probabilities = model.predict_proba(x_test)
    line = np.abs(np.subtract.outer(model.classes_, np.arange(10)))
    predictions = {"argmax": model.predict(x_test)}
    for temperature in (1.0, 2.0):
        head = FrechetMeanHead(10, line, temperature=temperature, output="label")
        predictions[f"Loki, T = {temperature:g}"] = head(probabilities).numpy()
    numbers = {}
    odd = y_test % 2 == 1
    for name, predicted in predictions.items():
        right = predicted == y_test
        numbers[f"{name}: mean squared distance"] = float(np.mean((predicted - y_test) ** 2))
        numbers[f"{name}: mean squared distance, odd digits"] = float(
            np.mean((predicted - y_test)[odd] ** 2)
        )
        numbers[f"{name}: accuracy, odd digits"] = float(right[odd].mean())
        numbers[f"{name}: accuracy, even digits"] = float(right[~odd].mean())
    return numbers


@reproduction(
    GSP,
    claim="Generalised sum pooling learns to ignore nuisance and retrieves unseen classes better "
    "than average pooling.",
)
def planted_nuisance_patches(seed):
    """Feature maps of 16 patches, half of them nuisance, in random places.

    A class is a random mixture of 8 directions, from which 8 of the patches are drawn; the other
    8 are drawn from 8 other directions, by a mixture that is new for every map; patches have noise
    of 0.1. "Crowded" are 16 random directions in 8 dimensions, which nothing linear can separate
    after an average; "orthogonal" are 16 dimensions, where the dense embedding can do so itself.
    Pooling, a dense embedding into 8 dimensions and a linear classifier are trained on 20 classes
    (100 maps each, Adam at 0.01, 20 epochs) and retrieve, by cosine similarity of the embedding,
    50 maps each of 20 further classes. Generalised sum pooling has 8 prototypes, mu = 0.5 and
    epsilon = 20. The paper trains CNNs on images.
    """
    numbers = {}
    for name, dim in (("crowded", 8), ("orthogonal", 16)):
        rng = np.random.default_rng(seed)
        directions = _directions(rng, dim)
        mixtures = rng.dirichlet(np.full(_PARTS, 0.5), size=2 * _CLASSES)
        x, y, _ = _maps(rng, directions, mixtures[:_CLASSES], 100)
        x_test, y_test, nuisance = _maps(rng, directions, mixtures[_CLASSES:], 50)
        average = _trained(keras.layers.GlobalAveragePooling1D, x, y, seed)
        numbers[f"{name}, average pooling: recall@1"] = _recall(average, x_test, y_test)
        model = _trained(_generalized, x, y, seed)
        numbers[f"{name}, generalised sum pooling: recall@1"] = _recall(model, x_test, y_test)
        weights = model.get_layer("pooling").weights_of(x_test).numpy()
        numbers[f"{name}, generalised sum pooling: weight of the nuisance"] = float(
            np.sum(weights * nuisance, axis=1).mean()
        )
    return numbers


def _generalized(name):
    return GeneralizedSumPooling(_PARTS, transport_ratio=0.5, epsilon=20.0, name=name)


def _recall(model, x, y):
    return recall_at_k(model.predict(x, 500, verbose=0), y)


def _directions(rng, dim):
    """[2 parts, dim], of length 1, orthogonal where there are as many dimensions."""
    drawn = rng.normal(size=(2 * _PARTS, dim))
    if dim == 2 * _PARTS:
        return np.linalg.qr(drawn)[0]
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _maps(rng, directions, mixtures, each):
    """(maps [count, patches, dim], labels, whether a patch is nuisance [count, patches])."""
    labels = np.repeat(np.arange(len(mixtures)), each)
    count = len(labels)
    changing = rng.dirichlet(np.full(_PARTS, 0.5), size=count)
    drawn = np.hstack([_draw(rng, mixtures[labels]), _PARTS + _draw(rng, changing)])
    drawn = rng.permuted(drawn, axis=1)
    maps = directions[drawn] + rng.normal(0, 0.1, (count, _PATCHES, directions.shape[1]))
    return maps.astype("float32"), labels, drawn >= _PARTS


def _draw(rng, mixtures):
    """Half a map's parts per row of `mixtures`, [count, patches / 2]."""
    below = mixtures.cumsum(1)[:, None] < rng.uniform(size=(len(mixtures), _PATCHES // 2, 1))
    return np.minimum(below.sum(-1), _PARTS - 1)


def _trained(pooling, x, y, seed):
    """The embedding, after training with a classifier behind it."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(x.shape[1:])
    embedding = keras.layers.Dense(_EMBEDDING)(pooling(name="pooling")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(_CLASSES)(embedding))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, 100, epochs=20, verbose=0)
    return keras.Model(inputs, embedding)
