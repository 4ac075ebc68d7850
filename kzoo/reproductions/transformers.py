"""Explanations of small transformers: relevance of tokens and patches against attention rollout."""

import functools

import keras
import numpy as np
from sklearn.datasets import load_digits

from kzoo.explain.attention_rollout import AttentionRollout, RawAttention
from kzoo.explain.transformer_relevance import (
    PAPER,
    GradientAttentionRollout,
    TransformerRelevance,
)
from kzoo.plots import explanation_sheet
from kzoo.reproductions.registry import reproduction

_EXPLAINERS = {
    "relevance": TransformerRelevance,
    "gradient rollout": GradientAttentionRollout,
    "rollout": AttentionRollout,
    "raw attention": RawAttention,
}
_CLASSES, _WORDS = 6, 10
_PATCH = 2


@reproduction(
    PAPER,
    claim="Relevance of tokens is specific to the class that is asked for, which attention rollout "
    "cannot be.",
)
def relevance_finds_the_token_of_a_class(seed):
    """Sequences of a class token and 10 words, each of one of 6 classes, two of them marked and of
    different classes: the labels are the classes of the two. Transformers of 1 and of 2 blocks
    (dimension 32, 4 heads, no positions, for the order does not matter), 30 epochs of 4000
    sequences, Adam. Measured on 500 new sequences, for each of the two labels: how often the word
    of the highest value is the marked word of that class; and the total variation distance between
    the maps (made to sum to 1) for the one and the other label.
    """
    return {
        f"{blocks} block{'s' * (blocks > 1)}: {name}": value
        for blocks in (1, 2)
        for name, value in _words_found(seed, blocks).items()
    }


def _words_found(seed, blocks):
    """The numbers of a transformer of so many blocks."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model = _word_transformer(blocks)
    words, _, labels = _marked_words(rng, 4000)
    _fit(model, keras.losses.BinaryCrossentropy, words, np.eye(_CLASSES)[labels].sum(1), epochs=30)
    words, places, labels = _marked_words(rng, 500)
    both = (np.sort(_top_two(model, words)) == np.sort(labels)).all(1)
    measured = {"both labels found": both.mean()}
    for name, explainer in _EXPLAINERS.items():
        explain = explainer(model)
        maps = [explain(words, target=labels[:, i])["attributions"][:, 1:] for i in (0, 1)]
        hits = [np.argmax(each, 1) == places[:, i] for i, each in enumerate(maps)]
        one, other = (each / np.sum(each, 1, keepdims=True) for each in map(np.asarray, maps))
        measured[f"word of the class on top, {name}"] = np.mean(hits)
        measured[f"change with the class, {name}"] = 0.5 * np.abs(one - other).sum(1).mean()
    return _floats(measured)


@reproduction(
    PAPER,
    claim="Patches masked in the order of their relevance take a vision transformer's accuracy "
    "sooner than in the order of attention rollout or at random (positive perturbation), and in "
    "the opposite order later (negative perturbation).",
)
def relevance_ranks_patches_by_what_the_model_needs(seed):
    """Digits of 8 x 8 pixels, 1200 for training and 597 for testing; a vision transformer of 16
    patches and a class token (2 blocks, dimension 32, 4 heads), 60 epochs, Adam. Measured on the
    test images, as in the paper: the area under the accuracy over the share of patches set to the
    mean of all pixels (to 0 after the paper's normalization), from none to nine tenths, those of
    the highest value for the predicted class first (positive, lower is better) or last (negative,
    higher is better).
    """
    keras.utils.set_random_seed(seed)
    train, (images, labels) = _digits(seed)
    model = _vision_transformer([8, 8, 1])
    _fit(model, keras.losses.SparseCategoricalCrossentropy, *train, epochs=60)

    def is_right(images):
        return np.argmax(model.predict(images, verbose=0), 1) == labels

    mean, measured, maps = train[0].mean(), {"accuracy": is_right(images).mean()}, {}
    for name, explainer in _EXPLAINERS.items():
        maps[name] = explainer(model, upsample=False)(images)["attributions"].numpy()
    random = np.random.default_rng(seed).uniform(size=maps["rollout"].shape)
    for name, ranking in {**maps, "random": random}.items():
        measured[f"positive, {name}"] = _perturbation_auc(is_right, images, ranking, mean)
        measured[f"negative, {name}"] = _perturbation_auc(is_right, images, -ranking, mean)
    shown = {name: _upsampled(each[:6]) for name, each in maps.items()}
    return _floats(measured), explanation_sheet(images[:6], shown, titles=labels[:6])


@reproduction(
    PAPER,
    claim="For an image with two objects, the relevance of one class is on the object of that "
    "class, and its patches are what the class needs; rollout is the same for both.",
)
def relevance_is_on_the_digit_asked_for(seed):
    """Two different digits side by side, 8 x 16 pixels, 4000 pairs of 1200 digits for training and
    300 pairs of 597 others for testing; a vision transformer as above (32 patches), 30 epochs of
    binary cross-entropy for each of ten labels. Measured on the test pairs whose two digits both
    are the model's top two, for the left and the right digit as target: the share of the map on the
    half of the digit, and the area under the share of pairs with the target still among the top two
    while patches are masked, as above (positive, lower is better).
    """
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    train, test = _digits(seed)
    pairs, labels = _pairs(rng, *train, 4000)
    model = _vision_transformer([8, 16, 1])
    _fit(model, keras.losses.BinaryCrossentropy, pairs, np.eye(10)[labels].sum(1), epochs=30)
    mean = pairs.mean()
    pairs, labels = _pairs(rng, *test, 300)
    both = (np.sort(_top_two(model, pairs)) == np.sort(labels)).all(1)
    measured, shown = {"both found": both.mean()}, {}
    pairs, labels = pairs[both], labels[both]
    for name, explainer in _EXPLAINERS.items():
        explain = explainer(model, upsample=False)
        shares, areas = [], []
        for side, target in enumerate(labels.T):
            maps = explain(pairs, target=target)["attributions"].numpy()
            halves = maps.reshape(len(maps), 4, 2, 4).sum((1, 3))
            shares.append(halves[:, side] / halves.sum(1))
            still = functools.partial(_is_in_top_two, model, target)
            areas.append(_perturbation_auc(still, pairs, maps, mean))
            shown[f"{name}, {('left', 'right')[side]}"] = _upsampled(maps[:6])
        measured[f"on the digit, {name}"] = np.mean(shares)
        measured[f"positive, {name}"] = np.mean(areas)
    titles = [f"{left} {right}" for left, right in labels[:6]]
    shown = {name: maps for name, maps in shown.items() if name.split(",")[0] != "raw attention"}
    return _floats(measured), explanation_sheet(pairs[:6], shown, titles=titles)


def _digits(seed):
    """((images [1200, 8, 8, 1], labels), (images [597, 8, 8, 1], labels))"""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order, ..., np.newaxis] / 16).astype("float32")
    labels = digits.target[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def _pairs(rng, images, labels, count):
    """Images [count, 8, 16, 1] of two different digits, and their labels [count, 2]."""
    left, right = rng.integers(len(labels), size=[2, 2 * count])
    chosen = np.flatnonzero(labels[left] != labels[right])[:count]
    left, right = left[chosen], right[chosen]
    return np.concatenate([images[left], images[right]], 2), np.stack(
        [labels[left], labels[right]], 1
    )


def _fit(model, loss, inputs, labels, epochs):
    model.compile(keras.optimizers.Adam(2e-3), loss(from_logits=True), steps_per_execution=16)
    model.fit(inputs, labels, 64, epochs=epochs, verbose=0)


def _top_two(model, inputs):
    return np.argsort(-model.predict(inputs, verbose=0))[:, :2]


def _is_in_top_two(model, target, inputs):
    return (_top_two(model, inputs) == target[:, np.newaxis]).any(1)


def _floats(measured):
    return {name: float(value) for name, value in measured.items()}


def _marked_words(rng, count):
    """Sequences, where the two marked words are, and their classes, [count, 2] each."""
    classes = rng.integers(_CLASSES, size=[count, _WORDS])
    places = rng.permuted(np.tile(np.arange(_WORDS), [count, 1]), axis=1)[:, :2]
    labels = rng.permuted(np.tile(np.arange(_CLASSES), [count, 1]), axis=1)[:, :2]
    np.put_along_axis(classes, places, labels + _CLASSES, axis=1)
    return np.pad(classes, [(0, 0), (1, 0)], constant_values=2 * _CLASSES), places, labels


def _perturbation_auc(is_right, images, ranking, mean):
    """Mean accuracy while patches are set to the mean, those of the highest `ranking` first."""
    rows = ranking.reshape(len(ranking), -1)
    position = np.argsort(np.argsort(-rows, axis=1, kind="stable"), axis=1).reshape(ranking.shape)
    position = _upsampled(position)[..., np.newaxis]
    shares = np.linspace(0, 0.9, 10)
    accuracies = [
        is_right(np.where(position >= round(share * rows.shape[1]), images, mean)).mean()
        for share in shares
    ]
    return np.trapezoid(accuracies, shares) / shares[-1]


def _upsampled(maps):
    return maps.repeat(_PATCH, 1).repeat(_PATCH, 2)


def _word_transformer(blocks):
    inputs = keras.Input([_WORDS + 1], dtype="int32")
    x = _blocks(keras.layers.Embedding(2 * _CLASSES + 1, 32)(inputs), blocks)
    return keras.Model(inputs, keras.layers.Dense(_CLASSES)(x[:, 0]))


def _vision_transformer(shape):
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(32, _PATCH, _PATCH)(inputs)
    x = _blocks(_ClassTokenAndPositions()(keras.layers.Reshape([-1, 32])(x)), 2)
    return keras.Model(inputs, keras.layers.Dense(10)(x[:, 0]))


def _blocks(x, count, dim=32, heads=4):
    for _ in range(count):
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(heads, dim // heads)(normed, normed)
        hidden = keras.layers.LayerNormalization()(x)
        hidden = keras.layers.Dense(2 * dim, "gelu")(hidden)
        x = x + keras.layers.Dense(dim)(hidden)
    return keras.layers.LayerNormalization()(x)


class _ClassTokenAndPositions(keras.layers.Layer):
    """[batch, patches, dim] -> [batch, 1 + patches, dim]"""

    def build(self, shape):
        self.token = self.add_weight(shape=[1, 1, shape[-1]], initializer="random_normal")
        self.table = self.add_weight(shape=[shape[1] + 1, shape[-1]], initializer="random_normal")

    def call(self, x):
        token = keras.ops.repeat(self.token, keras.ops.shape(x)[0], axis=0)
        return keras.ops.concatenate([token, x], axis=1) + self.table

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])
