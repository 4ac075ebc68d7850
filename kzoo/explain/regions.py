"""Regions: the parts of an input that are hidden or kept together."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.superpixels import slic


class Regions:
    """A division of each input into numbered regions.

    Args:
        regions: None for the natural one: each feature of [batch, features], each step of [batch,
            steps, channels], a grid of 7 x 7 patches of [batch, height, width, channels]. An int n
            for a grid of n x n patches. "slic" or ("slic", n) for superpixels of each image, about
            n x n of them (7 x 7). Or an integer array that broadcasts to one input without the
            channels, with the number of the region of each value, from 0.
    """

    def __init__(self, regions=None):
        self.regions = _checked(regions)

    def count(self, shape):
        """Number of regions of inputs of this static shape, the batch included."""
        if isinstance(self.regions, np.ndarray):
            return int(self.regions.max()) + 1
        return self._grid() ** 2 if len(shape) == 4 else shape[1]

    def ids(self, values):
        """The region of each value: int32 [batch, ...] without the channels; the batch may be 1.

        Raises:
            ValueError: for several inputs, or a shape that is not known or does not fit.
        """
        if keras.tree.is_nested(values):
            shapes = keras.tree.map_structure(lambda x: x.shape, values)
            raise ValueError(f"Regions are for a model of one input. Received: {shapes}")
        shape = values.shape[1:-1] if values.shape.rank > 2 else values.shape[1:]
        if None in shape:
            raise ValueError(f"Regions are for inputs of a known size. Received: {values.shape}")
        if isinstance(self.regions, np.ndarray):
            return tf.constant(_broadcast(self.regions, shape)[np.newaxis], tf.int32)
        if values.shape.rank == 4:
            return self._patches(values)
        if self.regions is not None:
            raise ValueError(
                f"`regions` {self.regions!r} is for images. Received inputs of {values.shape}"
            )
        ids = np.arange(shape[0]).reshape([-1] + [1] * (len(shape) - 1))
        return tf.constant(np.broadcast_to(ids, shape)[np.newaxis], tf.int32)

    def _patches(self, images):
        grid = self._grid()
        if grid > min(images.shape[1:3]):
            raise ValueError(
                f"`regions` asks for {grid} x {grid} regions of images of {images.shape[1:3]}."
            )
        if isinstance(self.regions, tuple):
            return slic(tf.cast(images, tf.float32), grid)
        rows, columns = (np.arange(size) * grid // size for size in images.shape[1:3])
        return tf.constant((rows[:, np.newaxis] * grid + columns)[np.newaxis], tf.int32)

    def _grid(self):
        if isinstance(self.regions, tuple):
            return self.regions[1]
        return 7 if self.regions is None else self.regions

    def to_config(self):
        if isinstance(self.regions, np.ndarray):
            return self.regions.tolist()
        return list(self.regions) if isinstance(self.regions, tuple) else self.regions


def _checked(regions):
    if regions == "slic" if isinstance(regions, str) else False:
        return ("slic", 7)
    if regions is None or (_is_count(regions)):
        return regions
    if isinstance(regions, list | tuple) and regions and regions[0] == "slic":
        if len(regions) == 2 and _is_count(regions[1]):
            return ("slic", regions[1])
    elif not isinstance(regions, str):
        array = np.asarray(regions)
        if array.dtype.kind in "iu" and array.ndim and array.min() == 0:
            return array
    raise ValueError(
        '`regions` must be None, a positive integer, "slic", ("slic", integer) or an integer array '
        f"whose least number is 0. Received: {regions!r}"
    )


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _broadcast(regions, shape):
    try:
        return np.broadcast_to(regions, shape)
    except ValueError:
        raise ValueError(
            f"`regions` must broadcast to {tuple(shape)}, an input without its channels. "
            f"Received: {regions.shape}"
        ) from None
