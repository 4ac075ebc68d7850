"""SLIC superpixels: k-means of pixels by colour and place, each centre within its neighbourhood.

    D^2 = |color - color_k|^2 + (compactness / S)^2 |place - place_k|^2       (equation 3)

with S the distance of the centres at the beginning, a grid.

"SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", Achanta, Shaji, Smith, Lucchi,
Fua, Suesstrunk, 2012, IEEE TPAMI 34 (11).

Deviations: colours are the image's own channels, scaled to the range of the image, not CIELAB; a
pixel looks at the 3 x 3 cells of the grid around its own, which reach as far as the paper's window;
stray pixels are not joined to their neighbours afterwards.
"""

import tensorflow as tf


def slic(images, grid, compactness=0.1, iterations=10):
    """Divides images into superpixels.

    Args:
        images: float [batch, height, width, channels].
        grid: number of superpixels in each direction, at most height and width.
        compactness: weight of the place against the colour: a distance of one cell counts as much
            as this fraction of the range of the colours. Defaults to 0.1.
        iterations: rounds of k-means. Defaults to 10.

    Returns:
        int32 [batch, height, width], labels below `grid` squared. Some may not occur.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    rows, columns = (
        tf.minimum(tf.range(size) * grid // size, grid - 1) for size in (height, width)
    )
    features = _features(images, grid, compactness)
    first = tf.tile((rows[:, tf.newaxis] * grid + columns)[tf.newaxis], [batch, 1, 1])
    neighbours = _neighbours(rows, columns, grid)

    def step(i, labels):
        centers = _centers(features, labels, grid)
        near = tf.gather(centers, neighbours, axis=1)
        distance = tf.reduce_sum(tf.square(features[..., tf.newaxis, :] - near), -1)
        # Cells beyond the border repeat the nearest one, which changes no minimum.
        best = tf.argmin(distance, -1, output_type=tf.int32)
        spread = tf.broadcast_to(neighbours, tf.shape(distance))
        return i + 1, tf.gather(spread, best, batch_dims=3)

    _, labels = tf.while_loop(
        lambda i, _: i < iterations, step, (0, first), maximum_iterations=iterations
    )
    return labels


def _features(images, grid, compactness):
    """[batch, height, width, channels + 2]: colours in [0, 1] and weighted places."""
    low = tf.reduce_min(images, [1, 2, 3], keepdims=True)
    high = tf.reduce_max(images, [1, 2, 3], keepdims=True)
    colors = tf.math.divide_no_nan(images - low, high - low)
    height, width = tf.unstack(tf.shape(images)[1:3])
    y, x = (
        compactness * grid * tf.cast(tf.range(size) / size, images.dtype)
        for size in (height, width)
    )
    places = tf.stack(tf.meshgrid(y, x, indexing="ij"), -1)
    shape = tf.concat([tf.shape(images)[:3], [2]], 0)
    return tf.concat([colors, tf.broadcast_to(places, shape)], -1)


def _neighbours(rows, columns, grid):
    """Labels of the 3 x 3 cells around each pixel's, int32 [height, width, 9]."""
    shift = tf.constant([-1, 0, 1])
    y = tf.clip_by_value(rows[:, tf.newaxis] + shift, 0, grid - 1)
    x = tf.clip_by_value(columns[:, tf.newaxis] + shift, 0, grid - 1)
    labels = y[:, tf.newaxis, :, tf.newaxis] * grid + x[tf.newaxis, :, tf.newaxis, :]
    return tf.reshape(labels, [tf.size(rows), tf.size(columns), 9])


def _centers(features, labels, grid):
    """Mean features of each label, [batch, grid^2, channels + 2]."""
    batch, count = tf.shape(features)[0], grid * grid
    flat = labels + count * tf.range(batch)[:, tf.newaxis, tf.newaxis]
    width = tf.shape(features)[-1]
    means = tf.math.unsorted_segment_mean(
        tf.reshape(features, [-1, width]), tf.reshape(flat, [-1]), batch * count
    )
    return tf.reshape(means, [batch, count, width])
