"""A planted subgroup in a DendroMap, and a surrogate of a network on 2000 features."""

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import adjusted_rand_score

from kzoo.data.loading import load
from kzoo.explain import surrogate
from kzoo.explain.surrogate import SurrogatePipeline
from kzoo.explain.visualization import dendromap
from kzoo.explain.visualization.dendromap import DendroMap, underperforming_subgroups
from kzoo.explain.visualization.dendromap_figure import dendromap_figure
from kzoo.reproductions.registry import reproduction

_PLANTED, _MISLABELLED = 20, 16
_FEATURES, _INFORMATIVE, _ROWS = 2000, 10, 1000


@reproduction(
    dendromap.PAPER,
    claim="DendroMap organizes images by clusters and reveals under-performing subgroups.",
)
def planted_subgroup_in_a_dendromap(seed):
    """scikit-learn's digits (1437 for training, 360 for the test), a small CNN, Adam, 12 epochs;
    half of the training images are inverted, so that the CNN knows inverted digits. In the test,
    20 images of one class are inverted and 16 of them have another label: the CNN's accuracy on
    them is about 0.2. Ward's clusters of the last hidden layer. Planted images in the first group
    of `underperforming_subgroups`, as shares of the group (precision) and of the 20 (recall)."""
    rng = np.random.default_rng(seed)
    (x, y), (x_test, y_test) = (_digits(split) for split in ("train", "test"))
    flipped = rng.random(len(x)) < 0.5
    x[flipped] = 1 - x[flipped]
    classes = y_test.copy()
    planted = rng.choice(np.flatnonzero(y_test == seed % 10), _PLANTED, replace=False)
    x_test[planted] = 1 - x_test[planted]
    wrong = planted[:_MISLABELLED]
    y_test[wrong] = (y_test[wrong] + rng.integers(1, 10, _MISLABELLED)) % 10

    model = _digit_classifier(x, y, seed)
    shown = DendroMap.from_model(model, x_test, y_test, layer="hidden")
    groups = underperforming_subgroups(shown)
    found = shown.tree.members(groups[0]["node"])
    hits = np.isin(planted, found).sum()
    clusters = np.empty(len(classes), int)
    for number, node in enumerate(shown.tree.cut(10)):
        clusters[shown.tree.members(node)] = number
    numbers = {
        "test accuracy without the planted": float(np.delete(~shown.errors, planted).mean()),
        "accuracy on the planted": float(1 - shown.errors[planted].mean()),
        "accuracy in the first subgroup": groups[0]["accuracy"],
        "images in the first subgroup": groups[0]["size"],
        "precision of the first subgroup": float(hits / len(found)),
        "recall of the first subgroup": float(hits / _PLANTED),
        "adjusted Rand index of 10 clusters with the classes": adjusted_rand_score(
            classes, clusters
        ),
    }
    return numbers, dendromap_figure(shown, num_clusters=12)


@reproduction(
    surrogate.PAPER,
    claim="Probing finds the top-k features of a black box on thousands, and an interpretable "
    "surrogate on those approximates it.",
)
def surrogate_on_2000_features(seed):
    """1000 rows of 2000 standard normal features, of which 10 decide: the sign of their sum and
    three products of pairs. Black box: MLP 2000-32-2 with an l1 penalty of 0.1 on the first layer,
    Adam, 80 epochs. Top 20 by permutation importance and gradients together; trees of depth 6 and
    boosting (300 trees of depth 3), each fitted to the black box's decisions on the 1000 rows and
    on 10000 rows without labels; fidelity on 1000 fresh rows. Control: the labels in random order,
    with a penalty of 0.01, since with 0.1 that network learns nothing and says one class for all.
    The paper has real data sets of 50 to 20000 features."""
    rng = np.random.default_rng(seed)
    (x, y), (x_test, y_test) = _table(rng, _ROWS), _table(rng, _ROWS)
    unlabelled, _ = _table(rng, 10 * _ROWS)
    model = _black_box(x, y, seed)
    numbers = {"black box, test accuracy": _accuracy(model.predict(x_test, verbose=0), y_test)}
    ranked = _ranking(model, x, y)
    numbers["recall of the informative features in the top 20"] = _recall(ranked)
    for name, rows in {"1000 rows": x, "10000 rows": unlabelled}.items():
        for kind, options in _SURROGATES.items():
            fitted = _surrogate(model, ranked, kind, options).fit(rows)
            fidelity = fitted.fidelity(x_test)
            numbers[f"{kind}, {name}: agreement"] = fidelity["agreement"]
            numbers[f"{kind}, {name}: R2"] = fidelity["r2"]
            numbers[f"{kind}, {name}: test accuracy"] = float(
                np.mean(fitted.predict(x_test) == y_test)
            )
            numbers[f"{kind}, {name}: rules that differ from it"] = float(
                np.mean(fitted.rules_.predict(x_test[:200]) != fitted.predict(x_test[:200]))
            )
    shuffled = rng.permutation(y)
    control = _ranking(_black_box(x, shuffled, seed, penalty=0.01), x, shuffled)
    numbers["recall in the top 20, random labels"] = _recall(control)
    return numbers, _importance_figure(ranked)


_SURROGATES = {
    "tree": {"max_depth": 6},
    "boosting": {"max_depth": 3, "n_estimators": 300},
}


def _digits(split):
    source = load("digits", split)
    return np.array(source.features, "float32"), np.array(source.labels)


def _digit_classifier(x, y, seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu", name="hidden"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, steps_per_execution=16)
    model.fit(x, y, batch_size=32, epochs=12, verbose=0)
    return model


def _table(rng, rows):
    x = rng.normal(size=(rows, _FEATURES)).astype("float32")
    z = x[:, :_INFORMATIVE]
    score = z.sum(axis=1) + z[:, 0] * z[:, 1] + z[:, 2] * z[:, 3] + z[:, 4] * z[:, 5]
    return x, (score > 0).astype(int)


def _black_box(x, y, seed, penalty=0.1):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input([_FEATURES]),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(32, "relu", kernel_regularizer=keras.regularizers.L1(penalty)),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, steps_per_execution=16)
    model.fit(x, y, batch_size=32, epochs=80, verbose=0)
    return model


def _accuracy(outputs, y):
    return float(np.mean(outputs.argmax(axis=1) == y))


def _ranking(model, x, y):
    """The pipeline that ranked the features with both probes."""
    return SurrogatePipeline(model, 20, probes=["permutation", "gradient"]).fit(x, y)


def _recall(ranked):
    return float(np.isin(np.arange(_INFORMATIVE), ranked.features_).mean())


def _surrogate(model, ranked, kind, options):
    """A pipeline that takes the features of another, without probing again."""

    def same(*_):
        importance = np.zeros(_FEATURES)
        importance[ranked.features_] = np.arange(len(ranked.features_), 0, -1)
        return importance

    return SurrogatePipeline(model, 20, probes=same, surrogate=kind, **options)


def _importance_figure(ranked):
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, values) in zip(
        figure.subplots(1, 2), ranked.importances_.items(), strict=True
    ):
        axes.plot(np.arange(_INFORMATIVE, _FEATURES), values[_INFORMATIVE:], ".", color="#999999")
        axes.plot(np.arange(_INFORMATIVE), values[:_INFORMATIVE], "o", color="#d55e00")
        axes.set(xlabel="feature", ylabel=f"{name} importance", xscale="symlog")
    return figure
