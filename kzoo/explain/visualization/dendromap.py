"""DendroMap: a treemap of the clusters of an image data set.

    features = model up to a layer          z_i = f(x_i)
    tree     = Ward's agglomerative clustering of the features
    view     = the K clusters that are left when the last K - 1 merges are undone,
               each a rectangle with area in proportion to its number of images, nested as the tree
               is, filled with as many thumbnails as fit

"DendroMap: Visual Exploration of Large-Scale Image Datasets for Machine Learning with Treemaps",
Bertucci, Hamid, Anand, Ruangrotsakun, Tabatabai, Perez, Kahng, 2022, arXiv 2205.06935.

Deviations: areas are exact and thumbnails fill what they can, where the authors' page gives whole
rows and columns of thumbnails to a cluster. The cut is by distance, as `fcluster(maxclust)`; their
page opens the tree level by level.

Open choices: features with positions are averaged over them; the images that stand for a cluster
are at even distances in the order of the leaves; under-performing subgroups are ranked by the
hypergeometric probability of as many errors in as many images, for which the paper has a reader.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.black_box import class_probabilities, predict_in_batches
from kzoo.explain.graph import find_layer, on_output, replace_call
from kzoo.explain.visualization.cluster_tree import ClusterTree, cluster_tree
from kzoo.explain.visualization.dendromap_page import render_page
from kzoo.explain.visualization.dendromap_sprite import (
    pack_sprite,
    thumbnails_of,
    unpack_sprite,
)
from kzoo.files import atomic
from kzoo.papers import Paper, component

PAPER = Paper(
    title="DendroMap: Visual Exploration of Large-Scale Image Datasets for Machine Learning with "
    "Treemaps",
    authors=(
        "Donald Bertucci", "Md Montaser Hamid", "Yashwanthi Anand", "Anita Ruangrotsakun",
        "Delyar Tabatabai", "Melissa Perez", "Minsuk Kahng",
    ),
    year=2022,
    arxiv="2205.06935",
)  # fmt: skip

_FORMAT = "kzoo-dendromap-1"


@component(PAPER, not_served="it explains the model or a set, not one request")
class DendroMap:
    """The clusters of an image data set with what a classifier makes of them.

    Args:
        tree: a `ClusterTree` of the images; `cluster_tree(features)` makes one.
        thumbnails: uint8 [n, height, width, 1 or 3], see `from_features`.
        labels: int [n], the classes; None where they are not known.
        predictions: int [n], what a model says; None without a model.
        class_names: a text for each class. Defaults to "0", "1" and so on.
        names: a text for each image, its file perhaps. Defaults to the images' numbers.

    Example:

    >>> dendromap = DendroMap.from_model(model, images, labels, class_names=names)
    >>> dendromap.save_html("errors.html", title="Test set")
    >>> underperforming_subgroups(dendromap)[0]["class_mix"]

    Reference:
        Bertucci et al. (2022), arxiv.org/abs/2205.06935
    """

    def __init__(
        self, tree, thumbnails, labels=None, predictions=None, class_names=None, names=None
    ):
        self.tree = tree
        self.thumbnails = np.asarray(thumbnails)
        shape = self.thumbnails.shape
        if self.thumbnails.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
            raise ValueError(
                "`thumbnails` must be uint8 of shape [n, height, width, 1 or 3]. Received: "
                f"{self.thumbnails.dtype} of shape {shape}"
            )
        self._check_length("thumbnails", self.thumbnails)
        self.labels = self._classes("labels", labels)
        self.predictions = self._classes("predictions", predictions)
        self.class_names = self._named_classes(class_names)
        self.names = [*map(str, range(tree.num_examples) if names is None else names)]
        self._check_length("names", self.names)

    @classmethod
    def from_features(cls, features, images, thumbnail_size=32, **annotations):
        """Clusters images by their features.

        Args:
            features: float [n, channels].
            images: [n, height, width] or [n, height, width, 1 or 3]; integers are in [0, 255],
                floats in [0, 1], and those beyond it are scaled from their minimum and maximum.
            thumbnail_size: the longer side of a thumbnail at most, in pixels. Defaults to 32.
            annotations: `labels`, `predictions`, `class_names`, `names`.
        """
        thumbnails = thumbnails_of(images, thumbnail_size)
        if len(thumbnails) != len(features):
            raise ValueError(
                "`features` and `images` must be of the same examples. Received: "
                f"{len(features)} and {len(thumbnails)}"
            )
        return cls(cluster_tree(features), thumbnails, **annotations)

    @classmethod
    def from_model(
        cls, model, inputs, labels=None, layer=-2, images=None, batch_size=256, **options
    ):
        """Clusters images by what a classifier makes of them, and notes its predictions.

        Args:
            model: a Keras classifier.
            inputs: its inputs [n, ...].
            labels: int [n].
            layer: whose output are the features: name, index or layer. Defaults to -2, the last
                but one.
            images: what to show. Defaults to the inputs.
            batch_size: images at once. Defaults to 256.
            options: as of `from_features`.
        """
        features = embed(model, inputs, layer, batch_size)
        predictions = class_probabilities(model, inputs, batch_size).argmax(-1)
        images = inputs if images is None else images
        return cls.from_features(
            features, images, labels=labels, predictions=predictions, **options
        )

    @property
    def errors(self):
        """bool [n], where prediction and label differ; None where either is not known."""
        if self.labels is None or self.predictions is None:
            return None
        return self.labels != self.predictions

    def describe(self, node):
        """A node's annotations.

        Returns:
            dict of `node`; `size`, the number of images; `distance`, at which it was merged;
            `accuracy` and `error` in [0, 1], None where not known; and `class_mix`, {class name:
            number of images}, most frequent first, None without labels.
        """
        members = self.tree.members(node)
        error = None if self.errors is None else float(self.errors[members].mean())
        return {
            "node": int(node),
            "size": len(members),
            "distance": self.tree.distance(node),
            "accuracy": None if error is None else 1 - error,
            "error": error,
            "class_mix": None if self.labels is None else self._class_mix(members),
        }

    def to_json(self, num_clusters=12):
        """The map as a JSON text, with everything that `from_json` and the page need.

        Args:
            num_clusters: `clusters` in it are the annotations of so many. Defaults to 12.
        """
        return json.dumps(self._contents(num_clusters), allow_nan=False)

    @classmethod
    def from_json(cls, text):
        """The `DendroMap` of which `to_json` made the text."""
        contents = json.loads(text)
        if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
            raise ValueError(f'`text` must be JSON with the "format" {_FORMAT!r}.')
        kept = {name: contents[name] for name in ("labels", "predictions", "class_names", "names")}
        return cls(ClusterTree(contents["merges"]), unpack_sprite(contents["thumbnails"]), **kept)

    def save_html(self, path, title="DendroMap", num_clusters=12):
        """Writes one page that holds all it needs, for any browser, without a network.

        Clusters are zoomed into by mouse or keyboard. The file is there whole or not at all.

        Args:
            path: where; its folder must exist.
            title: a text for the page. Defaults to "DendroMap".
            num_clusters: how many clusters are seen at first, from 1 to 100. Defaults to 12.
        """
        if not 1 <= num_clusters <= 100:
            raise ValueError(f"`num_clusters` must be from 1 to 100. Received: {num_clusters!r}")
        contents = self._contents(num_clusters)
        contents["subgroups"] = [] if self.errors is None else underperforming_subgroups(self)
        with atomic(path) as file:
            file.write(render_page(contents, title, num_clusters).encode())

    def _contents(self, num_clusters):
        def listed(array):
            return None if array is None else array.tolist()

        return {
            "format": _FORMAT,
            "class_names": self.class_names,
            "names": self.names,
            "labels": listed(self.labels),
            "predictions": listed(self.predictions),
            "merges": self.tree.merges.tolist(),
            "thumbnails": pack_sprite(self.thumbnails),
            "clusters": [self.describe(node) for node in self.tree.cut(num_clusters)],
        }

    def _class_mix(self, members):
        counts = np.bincount(self.labels[members], minlength=len(self.class_names))
        ranked = np.argsort(-counts, kind="stable")
        return {self.class_names[i]: int(counts[i]) for i in ranked if counts[i]}

    def _classes(self, name, values):
        if values is None:
            return None
        values = np.asarray(values)
        self._check_length(name, values)
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
            raise ValueError(
                f"`{name}` must be class indices from 0, int [{self.tree.num_examples}]. "
                f"Received: {values.dtype} of shape {values.shape}"
            )
        return values

    def _named_classes(self, class_names):
        known = [x for x in (self.labels, self.predictions) if x is not None]
        count = max((int(x.max()) + 1 for x in known), default=0)
        if class_names is None:
            return [*map(str, range(count))]
        class_names = [*map(str, class_names)]
        if len(class_names) < count or len(set(class_names)) < len(class_names):
            raise ValueError(
                f"`class_names` must be {count} different texts or more. Received: {class_names}"
            )
        return class_names

    def _check_length(self, name, values):
        if len(values) != self.tree.num_examples:
            raise ValueError(
                f"`{name}` must have one entry for each of the {self.tree.num_examples} examples "
                f"of the tree. Received: {len(values)}"
            )


@component(PAPER, not_served="it explains the model or a set, not one request")
def underperforming_subgroups(dendromap, count=10, min_size=10):
    """The clusters, at any level, that hold more errors than chance would put there.

    They are ranked by the probability that as many images, drawn from all without replacement,
    have as many errors (hypergeometric, one-sided), so that neither small clusters with few errors
    nor large ones with little more than the usual are at the top. Of clusters that lie in each
    other, the one with the lowest probability is kept.

    Args:
        dendromap: a `DendroMap` with labels and predictions.
        count: how many at most. Defaults to 10.
        min_size: the fewest images of a cluster. Defaults to 10.

    Returns:
        list of the annotations of `DendroMap.describe` with `log_probability`, the lowest first;
        only those with more errors than the average.
    """
    from scipy.stats import hypergeom

    errors, tree = dendromap.errors, dendromap.tree
    if errors is None:
        raise ValueError("`dendromap` must have labels and predictions.")
    if count < 1 or min_size < 1:
        raise ValueError(
            f"`count` and `min_size` must be at least 1. Received: {count!r} and {min_size!r}"
        )
    summed = np.concatenate([[0], np.cumsum(errors[tree.order])])
    sizes, wrong = tree.stop - tree.start, summed[tree.stop] - summed[tree.start]
    nodes = np.flatnonzero((sizes >= min_size) & (wrong * len(errors) > sizes * errors.sum()))
    chance = hypergeom.logsf(wrong[nodes] - 1, len(errors), errors.sum(), sizes[nodes])
    found = []
    for index in np.argsort(chance, kind="stable"):
        node = nodes[index]
        if any(tree.start[node] < tree.stop[a] and tree.start[a] < tree.stop[node]
               for a, _ in found):  # fmt: skip
            continue
        found.append((node, float(chance[index])))
        if len(found) == count:
            break
    return [{**dendromap.describe(node), "log_probability": p} for node, p in found]


def embed(model, inputs, layer=-2, batch_size=256):
    """The output of an inner layer for a whole data set.

    Args:
        model: a Keras model of any build.
        inputs: its inputs [n, ...], or a structure of them.
        layer: name, index or layer, see `kzoo.explain.graph.find_layer`. Defaults to -2.
        batch_size: rows at once. Defaults to 256.

    Returns:
        float [n, channels]; the mean over the positions where the output has some.
    """
    layer, seen = find_layer(model, layer), []

    def features(batch):
        with replace_call(layer, on_output(lambda output: seen.append(output) or output)):
            model(batch, training=False)
        if not seen:
            raise ValueError(f"{model.name!r} does not call the layer {layer.name!r}.")
        output = seen.pop()
        if keras.tree.is_nested(output) or output.shape.rank < 2:
            raise ValueError(f"The layer {layer.name!r} has no single output [batch, channels].")
        return tf.reduce_mean(output, axis=[*range(1, output.shape.rank - 1)])

    return predict_in_batches(features, inputs, batch_size)
