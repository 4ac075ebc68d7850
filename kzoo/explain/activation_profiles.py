"""Neuron activation profiles: what a layer does for one group of inputs and not for the others.

    A_g  = mean over the inputs x of group g of a(x)        (average activations)
    P_g  = A_g - 1/G sum_h A_h                              (the profile, a contrast)

a(x) are the feature maps of a layer. Each group counts the same in the mean, however many inputs it
has; groups may overlap, as those of several labels do. Feature maps are ranked by the mean of |P|
over groups and positions; those that are dead, constant in space for every single input, have no
place in the ranking.

Used in "Exploration of Interpretability Techniques for Deep COVID-19 Classification using Chest
X-ray Images", Chatterjee et al., 2020, arXiv 2006.02570; section on neuron activation profiles,
in which the groups are COVID-19, pneumonia with and without it, and healthy. The method is from
Krug, Knaebel, Stober, "Neuron Activation Profiles for Interpreting Convolutional Speech Recognition
Models", 2018, which aligns inputs in time first; images need no alignment here, as in the paper.

A set of images is explained, not a prediction, so this is a function and no `Explainer`. The means
are accumulated in one pass, so that the memory does not grow with the number of images.
"""

import contextlib
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.graph import find_layer, on_output, replace_call
from kzoo.models.majority_vote import PAPER
from kzoo.papers import component

# The authors' code: a map of this range or less over its positions does not say anything.
_DEAD_RANGE = 1e-30


@dataclass(frozen=True)
class LayerProfile:
    """The profile of one layer.

    Attributes:
        averages: float64 [groups, ..., channels], A_g.
        dead: bool [channels], feature maps that are constant in space for every input.
    """

    averages: np.ndarray
    dead: np.ndarray

    @property
    def contrasts(self):
        """P_g, float64 [groups, ..., channels]; they add up to 0 over the groups."""
        return self.averages - self.averages.mean(axis=0)

    @property
    def ranking(self):
        """The channels that are not dead, those of the strongest contrasts first, int [alive]."""
        others = tuple(range(self.averages.ndim - 1))
        strength = np.abs(self.contrasts).mean(axis=others)
        order = np.argsort(-strength, kind="stable")
        return order[~self.dead[order]]


@component(PAPER, not_served="it looks at a whole set of inputs")
def neuron_activation_profiles(model, images, groups, layers, batch_size=64):
    """Class-mean activation contrasts of the layers of a model.

    Args:
        model: a Keras model of any build, with one input.
        images: the model's inputs, [n, ...].
        groups: bool (or 0 and 1) [n, groups], which input belongs to which group; for example the
            labels of a multi-label set. No group may be empty.
        layers: names of the layers to look at, each with an output [batch, ..., channels] with
            positions.
        batch_size: inputs per forward pass. Defaults to 64.

    Returns:
        {name of the layer: `LayerProfile`}, in the order of `layers`.

    Raises:
        ValueError: for groups that do not fit, unknown layers, or those without positions.

    Example:

    >>> profiles = neuron_activation_profiles(model, images, labels, ["conv2_block1_out"])
    >>> profiles["conv2_block1_out"].contrasts.shape
    (4, 8, 8, 64)

    Reference:
        Chatterjee et al. (2020), arxiv.org/abs/2006.02570
    """
    images, groups = np.asarray(images), np.asarray(groups)
    _check_groups(groups, len(images))
    found = {name: find_layer(model, name) for name in layers}
    if not found:
        raise ValueError("`layers` must name at least one layer. Received: none")

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(images, groups):
        return {
            name: _sums_and_ranges(name, maps, groups)
            for name, maps in _activations(model, found, images).items()
        }

    total = None
    for begin in range(0, len(images), batch_size):
        rows = slice(begin, begin + batch_size)
        batch = measure(tf.constant(images[rows]), tf.constant(groups[rows], tf.float64))
        batch = keras.tree.map_structure(np.asarray, batch)
        total = batch if total is None else {n: _merged(total[n], batch[n]) for n in found}
    counts = groups.sum(axis=0)
    return {name: _profile(*total[name], counts) for name in found}


def plot_profile(profile, group_names, channels=10):
    """A sheet of the feature maps with the strongest contrasts, a row for each group.

    Red places are more active for the group than on average over the groups, blue ones less; all
    have the same scale.

    Args:
        profile: a `LayerProfile` of a layer [batch, height, width, channels].
        group_names: [groups].
        channels: most feature maps to show. Defaults to 10, as in the paper.

    Returns:
        `matplotlib.figure.Figure`
    """
    from matplotlib.figure import Figure

    contrasts, shown = profile.contrasts, profile.ranking[:channels]
    if contrasts.ndim != 4 or len(shown) == 0:
        raise ValueError(
            "`profile` must be that of maps [batch, height, width, channels], not all of them "
            f"dead. Received: averages of shape {contrasts.shape}, {len(shown)} of them alive"
        )
    if len(group_names) != len(contrasts):
        raise ValueError(
            f"`group_names` must have {len(contrasts)} names. Received: {len(group_names)}"
        )
    level = np.abs(contrasts[..., shown]).max() or 1.0
    _, height, width, _ = contrasts.shape
    size = (0.9 + 0.9 * len(shown), 0.4 + len(contrasts) * (0.05 + 0.9 * height / width))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(contrasts), len(shown), squeeze=False)
    for row, maps, name in zip(axes, contrasts, group_names, strict=True):
        for axis, channel in zip(row, shown, strict=True):
            picture = axis.imshow(maps[..., channel], cmap="RdBu_r", vmin=-level, vmax=level)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(str(name), fontsize=9, rotation=0, ha="right", va="center")
    for axis, channel in zip(axes[0], shown, strict=True):
        axis.set_title(str(channel), fontsize=8)
    figure.colorbar(picture, ax=axes, fraction=0.02)
    return figure


def _activations(model, layers, images):
    """{name: output of the layer} of one forward pass; of a layer's last call, if it has more."""
    seen = {}

    def record(name):
        def keep(output):
            seen[name] = output
            return output

        return on_output(keep)

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(replace_call(layer, record(name)))
        model(images, training=False)
    missing = layers.keys() - seen.keys()
    if missing:
        raise ValueError(f"The model does not call the layers {', '.join(sorted(missing))}.")
    return seen


def _sums_and_ranges(name, maps, groups):
    """Sums over the members of each group, and each channel's widest range over the positions."""
    if maps.shape.rank < 3:
        raise ValueError(
            "`layers` must have outputs [batch, ..., channels] with positions. Received: "
            f"{name!r} with {maps.shape}"
        )
    maps = tf.cast(maps, tf.float64)
    places = range(1, maps.shape.rank - 1)
    ranges = tf.reduce_max(maps, places) - tf.reduce_min(maps, places)
    return tf.einsum("bg,b...->g...", groups, maps), tf.reduce_max(ranges, 0)


def _merged(first, second):
    return first[0] + second[0], np.maximum(first[1], second[1])


def _profile(sums, ranges, counts):
    counts = counts.reshape([-1] + [1] * (sums.ndim - 1))
    return LayerProfile(sums / counts, ranges <= _DEAD_RANGE)


def _check_groups(groups, count):
    if groups.ndim != 2 or len(groups) != count or not np.isin(groups, (0, 1)).all():
        raise ValueError(
            f"`groups` must be 0 and 1, [{count}, groups]. Received: {groups.dtype} of shape "
            f"{list(groups.shape)}"
        )
    empty = np.flatnonzero(groups.sum(axis=0) == 0)
    if empty.size:
        raise ValueError(f"`groups` must each have a member. Received: {empty.tolist()} without")
