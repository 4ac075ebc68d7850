"""Multifaceted feature visualisation: one picture for each kind of image that a neuron responds to.

    top images -> codes of a deep layer -> PCA 50 -> t-SNE 2 -> k-means
    x_j = ascent from the mean of the images nearest to centroid j

"Multifaceted Feature Visualization: Uncovering the Different Types of Features Learned By Each
Neuron in Deep Neural Networks", Nguyen, Yosinski, Clune, 2016, arXiv 1602.03616; algorithm 1 and
the centre-biased regularisation.

Open choices: the authors remove total variation by a denoiser (split Bregman) after each step;
here its gradient is taken with each step. Their ascent runs in phases, the last but one with a
fixed margin around the image; here the window grows from the centre to the whole image, and the
blur goes to zero. Steps are relative to the mean of the absolute gradient, as in their code.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import find_layer
from kzoo.explain.visualization.activation_maximization import activation_maximization
from kzoo.explain.visualization.objectives import layer_output
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Multifaceted Feature Visualization: Uncovering the Different Types of Features Learned "
    "By Each Neuron in Deep Neural Networks",
    authors=("Anh Nguyen", "Jason Yosinski", "Jeff Clune"),
    year=2016,
    arxiv="1602.03616",
)
_COMPONENTS = 50
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Facets:
    """The kinds of images found by `find_facets`.

    Args:
        embedding: [n, 2], the codes in the plane of t-SNE.
        labels: int [n], the facet of each image.
        members: int [facets, m], the images nearest to the centroid of each facet, nearest first.
            Rows of small facets are filled up with -1.
    """

    embedding: np.ndarray
    labels: np.ndarray
    members: np.ndarray

    def means(self, images):
        """The mean of the members of each facet, [facets, ...]."""
        return np.stack([images[row[row >= 0]].mean(0) for row in self.members])


@component(PAPER, not_served="it explains the model or a set, not one request")
def multifaceted_visualization(
    objective, images, layer, *, facets=10, top=None, neighbors=15, seed=0, **options
):
    """Makes a picture of each facet of what an objective responds to.

    Args:
        objective: `Objective` with one target, see `kzoo.explain.visualization.objectives`.
        images: [n, ...], images of the training set, for a class those of the class.
        layer: layer whose output is the code of an image, the last but one in the paper; see
            `neuron`.
        facets: number of facets. Defaults to 10.
        top: how many images, those with the highest activations, to look at. Defaults to all.
        neighbors: from how many images the mean of a facet is taken. Defaults to 15.
        seed: int, of t-SNE, k-means and the ascent.
        options: for `activation_maximization`, in place of: 200 steps of SGD of 0.02, normalised
            gradients, total_variation=0.2, jitter=1, blur from 0.5 to 0 pixels, window from half
            of the image to all of it, bounds (0, 1).

    Returns:
        dict of `images` [facets, ...] and `activations` [steps + 1, facets], see
        `activation_maximization`; `start`, the means; `selected` int [top], the positions of the
        images looked at; and `facets`, a `Facets` over those. The facets are ordered by their
        number of images, largest first.

    Raises:
        ValueError: for an objective with several targets, or fewer images than facets.

    Reference:
        Nguyen et al. (2016), algorithm 1, arxiv.org/abs/1602.03616
    """
    if len(objective) != 1:
        raise ValueError(f"`objective` must have one target. Received: {len(objective)}")
    images = np.asarray(images, objective.dtype.as_numpy_dtype)
    if top is not None and not (isinstance(top, int) and 1 <= top <= len(images)):
        raise ValueError(f"`top` must be from 1 to {len(images)}, the images. Received: {top!r}")
    layer = find_layer(objective.model, layer)
    activations = _in_batches(lambda x: objective(x, tf.zeros(tf.shape(x)[0], tf.int32)), images)
    selected = np.argsort(-activations, kind="stable")[:top]
    codes = _in_batches(lambda x: layer_output(objective.model, layer, x), images[selected])
    found = find_facets(codes, facets, neighbors, seed)
    start = found.means(images[selected])
    result = activation_maximization(
        objective, start, **{**_defaults(), "seed": seed, "noise": 0.0, **options}
    )
    return {**result, "start": start, "selected": selected, "facets": found}


def find_facets(codes, facets=10, neighbors=15, seed=0):
    """Groups codes: PCA to 50 dimensions, t-SNE to the plane, k-means.

    Args:
        codes: float [n, ...], flattened.
        facets: number of groups, from 1 to n.
        neighbors: number of members nearest to each centroid, at least 1.
        seed: int.

    Returns:
        `Facets`, ordered by the size of the groups.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    codes = np.reshape(codes, [len(codes), -1])
    if not (isinstance(facets, int) and 1 <= facets <= len(codes)) or len(codes) < 3:
        raise ValueError(
            f"`facets` must be from 1 to the number of images, which must be at least 3. "
            f"Received: {facets!r} for {len(codes)} images"
        )
    if not isinstance(neighbors, int) or neighbors < 1:
        raise ValueError(f"`neighbors` must be a positive integer. Received: {neighbors!r}")
    components = min(_COMPONENTS, *codes.shape)
    reduced = PCA(components, random_state=seed).fit_transform(codes)
    perplexity = min(30.0, (len(codes) - 1) / 3)
    embedding = TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(reduced)
    groups = KMeans(facets, n_init=10, random_state=seed).fit(embedding)
    order = np.argsort(-np.bincount(groups.labels_, minlength=facets), kind="stable")
    members = [_nearest(embedding, groups, group, neighbors) for group in order]
    return Facets(embedding, np.argsort(order)[groups.labels_], np.stack(members))


def _nearest(embedding, groups, group, count):
    """The members of a group nearest to its centroid, int [count], -1 where there are no more."""
    members = np.flatnonzero(groups.labels_ == group)
    distances = np.linalg.norm(embedding[members] - groups.cluster_centers_[group], axis=1)
    nearest = members[np.argsort(distances, kind="stable")[:count]]
    return np.pad(nearest, (0, count - len(nearest)), constant_values=-1)


def _in_batches(function, images):
    """function(images) as an array, a graph call for each batch."""
    spec = tf.TensorSpec([None, *images.shape[1:]], images.dtype)
    run = tf.function(function, autograph=False).get_concrete_function(spec)
    batches = range(0, len(images), _BATCH)
    return np.concatenate([run(tf.constant(images[i : i + _BATCH])).numpy() for i in batches])


def _defaults():
    return {
        "steps": 200,
        "optimizer": keras.optimizers.SGD(0.02),
        "normalize": True,
        "total_variation": 0.2,
        "jitter": 1,
        "blur": (0.5, 0.0),
        "window": (0.5, 1.0),
        "bounds": (0.0, 1.0),
    }
