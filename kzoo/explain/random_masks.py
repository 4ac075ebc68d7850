"""The random masks of RISE: coarse binary grids, enlarged smoothly and shifted."""

import tensorflow as tf


class RandomMasks:
    """Masks [height, width] in [0, 1] with the mean `probability`, made where they are needed.

    A grid of `grid` x `grid` cells, each 1 with the given probability, is enlarged bilinearly to
    one cell more than the image in both directions and cut at a random place (section 3.2 of
    RISE, arXiv 1806.07421). What is kept of a mask is its grid and its place, so any number of
    masks fits in memory.

    Args:
        count: number of masks.
        grid: number of cells in each direction.
        probability: of a cell to be kept, in (0, 1).
        seed: integer from which all masks come.
    """

    def __init__(self, count, grid, probability, seed):
        for name, value in (("samples", count), ("grid", grid)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        if not 0 < probability < 1:
            raise ValueError(f"`probability` must be in (0, 1). Received: {probability!r}")
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer. Received: {seed!r}")
        self.count, self.grid, self.probability, self.seed = count, grid, probability, seed

    def draw(self, height, width):
        """Returns a function that takes numbers of masks, int32 [k], to float32 [k, height, width].

        The grids and their places are drawn here, once, and not where the function is called.
        """
        uniform = tf.random.stateless_uniform(
            [self.count, self.grid, self.grid], [self.seed, 0], alg="philox"
        )
        grids = tf.cast(uniform < self.probability, tf.float32)
        shifts = tf.random.stateless_uniform([self.count, 2], [self.seed, 1], alg="philox")

        def masks(step):
            shift = tf.gather(shifts, step)
            rows = self._interpolation(shift[:, 0], height)
            columns = self._interpolation(shift[:, 1], width)
            return tf.einsum("kyi,kij,kxj->kyx", rows, tf.gather(grids, step), columns)

        return masks

    def _interpolation(self, shift, size):
        """Weights [k, size, grid] of the cells at each position; `shift` in [0, 1) of a cell."""
        cell = tf.cast((size + self.grid - 1) // self.grid, tf.float32)
        place = tf.range(size, dtype=tf.float32) + tf.floor(shift * cell)[:, tf.newaxis]
        center = (place + 0.5) * self.grid / ((self.grid + 1) * cell) - 0.5
        center = tf.clip_by_value(center, 0, self.grid - 1)
        distance = tf.abs(center[..., tf.newaxis] - tf.range(self.grid, dtype=tf.float32))
        return tf.nn.relu(1 - distance)
