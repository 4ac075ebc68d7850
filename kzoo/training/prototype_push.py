"""Prototypes made real: each is replaced by the nearest training patch of its own class.

    p_j <- argmin_{z in patches of class(j)} ||z - p_j||         (ProtoPNet, equation 3)

"This Looks Like That: Deep Learning for Interpretable Image Recognition", Chen et al., 2018, arXiv
1806.10574, section 2.2; taken over by "Learning Support and Trivial Prototypes for Interpretable
Image Classification", Wang et al., 2023, arXiv 2301.04011.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.layers.prototype_patches import PAPER, PROTOPNET_PAPER
from kzoo.models.protopnet import branches, feature_extractor
from kzoo.papers import component


@dataclass(frozen=True)
class Projection:
    """Where the prototypes of a branch come from, an int array [prototypes] each.

    Args:
        images: number of the training image, in the order of the data.
        rows, columns: position in the map of patches (the patch's upper left one).
        proximity: float [prototypes], minus the squared distance, or the cosine, of the prototype
            as it was learned and the patch that replaced it.
    """

    images: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    proximity: np.ndarray


@component(PROTOPNET_PAPER, PAPER)
def push_prototypes(model, data, batch_size=64):
    """Replaces each prototype by the nearest patch of the training images of its class.

    Args:
        model: a model of `ProtoPNet` or `STProtoPNet`; its prototypes are changed in place.
        data: (images, class numbers), or a `tf.data.Dataset` of batches of them in a fixed order.
            Take the images without augmentation.
        batch_size: for arrays. Defaults to 64.

    Returns:
        {name of the branch: `Projection`}; the name is "" for a ProtoPNet.

    Raises:
        ValueError: if a class has no image. The prototypes are then as they were.

    Reference:
        Chen et al. (2018), section 2.2, equation 3, arxiv.org/abs/1806.10574
    """
    if not isinstance(data, tf.data.Dataset):
        data = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(batch_size)
    extractor = feature_extractor(model)
    searches = [_NearestPatches(branch.prototypes) for branch in branches(model)]
    start = 0
    for images, labels in data:
        features = keras.tree.flatten(extractor(images, training=False))
        classes = searches[0].layer.classes
        labels = class_numbers(labels, classes).numpy()
        for search, each in zip(searches, features, strict=True):
            search.update(each, labels, start)
        start += len(labels)
    for search in searches:
        search.check()
    names = [branch.name for branch in branches(model)]
    return {name: search.assign() for name, search in zip(names, searches, strict=True)}


class _NearestPatches:
    """The nearest patch of its class that each prototype of a layer has met so far."""

    def __init__(self, layer):
        self.layer = layer
        count = layer.num_prototypes
        self._proximity = np.full(count, -np.inf)
        self._places = np.zeros([3, count], int)
        shape = layer.prototypes.shape
        self._patches = np.zeros([count, *shape[:3]], keras.backend.standardize_dtype(layer.dtype))

    def update(self, features, labels, start):
        proximity = self.layer.proximity_map(features).numpy().astype("float64")
        own = labels[:, np.newaxis] == self.layer.prototype_classes
        proximity = np.where(own[:, np.newaxis, np.newaxis], proximity, -np.inf)
        shape, count = proximity.shape[:3], proximity.shape[-1]
        flat = proximity.reshape(-1, count)
        places = np.stack(np.unravel_index(flat.argmax(axis=0), shape))
        features, size = np.asarray(tf.cast(features, self.layer.dtype)), self.layer.patch_size
        for j in np.flatnonzero(flat.max(axis=0) > self._proximity):
            image, row, column = places[:, j]
            self._proximity[j] = proximity[image, row, column, j]
            self._places[:, j] = start + image, row, column
            self._patches[j] = features[image, row : row + size, column : column + size]

    def check(self):
        missing = np.isneginf(self._proximity)
        if missing.any():
            classes = sorted({int(c) for c in self.layer.prototype_classes[missing]})
            raise ValueError(
                "`data` must have an image of every class, for its prototypes to be projected "
                f"onto. Received: none of the classes {classes}"
            )

    def assign(self):
        patches = self.layer.embeddings(self._patches)
        self.layer.prototypes.assign(tf.transpose(patches, [1, 2, 3, 0]))
        return Projection(*self._places, self._proximity)


@component(PROTOPNET_PAPER, PAPER)
class PushPrototypes(keras.callbacks.Callback):
    """Projects the prototypes onto training patches while a `PrototypeTrainer` runs.

    Args:
        data: see `push_prototypes`.
        first: number of the epoch, from 0, at whose end it first does so. Defaults to 10.
        every: epochs from one time to the next. Defaults to 10.

    Attributes:
        projections: what the newest `push_prototypes` returned; None before the first.

    Reference:
        Chen et al. (2018), section 2.2, arxiv.org/abs/1806.10574
    """

    def __init__(self, data, first=10, every=10):
        for name, value, least in (("first", first, 0), ("every", every, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"`{name}` must be an integer of at least {least}. Received: {value!r}"
                )
        super().__init__()
        self.data = data
        self.first = first
        self.every = every
        self.projections = None

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self.first and (epoch - self.first) % self.every == 0:
            model = getattr(self.model, "model", self.model)
            self.projections = push_prototypes(model, self.data)


def class_numbers(y, classes):
    """int [batch] from class numbers or one-hot rows."""
    y = tf.convert_to_tensor(y)
    if len(y.shape) == 2 and y.shape[-1] == classes:
        return tf.argmax(y, axis=-1, output_type=tf.int32)
    return tf.cast(tf.reshape(y, [-1]), tf.int32)
