"""Heat maps over pictures inside of a graph: what `kzoo.plots.overlay` draws, without Python."""

import numpy as np
import tensorflow as tf

from kzoo.ops.map_fn import map_fn

_ALPHA = 0.5
_PERCENTILE = 99.0


def overlay_png(image_bytes, attributions):
    """Lays heat maps over pictures in grey, at the pictures' own size.

    The colours are those of `kzoo.plots.heat_map`, signed where the map of the row has negative
    values; the map is resized bilinearly.

    Args:
        image_bytes: string [batch], JPEG or PNG.
        attributions: [batch, height, width] or [batch, height, width, channels].

    Returns:
        string [batch], PNG of 8-bit RGB.
    """
    # matplotlib is needed where the graph is made, not where it runs.
    from kzoo.plots import color_table

    if attributions.shape.rank not in (3, 4):
        raise ValueError(
            "An overlay needs attributions [batch, height, width] or [batch, height, width, "
            f"channels]. Received: {attributions.shape}"
        )
    tables = tf.constant(np.stack([color_table(False), color_table(True)]), tf.float32)

    def draw(row):
        encoded, attribution = row
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        grey = tf.reduce_mean(tf.cast(image, tf.float32) / 255, axis=-1, keepdims=True)
        plane, signed = _plane(attribution)
        plane = tf.image.resize(plane[..., tf.newaxis], tf.shape(image)[:2])[..., 0]
        table = tables[tf.cast(signed, tf.int32)]
        size = tf.shape(table)[0]
        index = tf.cast(plane * tf.cast(size, tf.float32), tf.int32)
        colors = tf.gather(table, tf.clip_by_value(index, 0, size - 1))
        mixed = (1 - _ALPHA) * grey + _ALPHA * colors
        return tf.io.encode_png(tf.image.convert_image_dtype(mixed, tf.uint8, saturate=True))

    pictures = (image_bytes, tf.cast(attributions, tf.float32))
    return map_fn(draw, pictures, fn_output_signature=tf.TensorSpec([], tf.string))


def _plane(attribution):
    """Positions in the colour table, [height, width], and whether the attribution is signed."""
    signed = tf.reduce_any(attribution < 0)
    if attribution.shape.rank == 3:
        added, largest = tf.reduce_sum(attribution, -1), tf.reduce_max(attribution, -1)
        attribution = tf.where(signed, added, largest)
    level = _level(tf.abs(attribution))
    return tf.where(signed, 0.5 + 0.5 * attribution / level, attribution / level), signed


def _level(magnitude):
    """The magnitude with the strongest colour; a map of zeros has any."""
    ordered = tf.sort(tf.reshape(magnitude, [-1]))
    place = _PERCENTILE / 100 * tf.cast(tf.size(ordered) - 1, tf.float32)
    low = tf.cast(place, tf.int32)
    high = tf.minimum(low + 1, tf.size(ordered) - 1)
    fraction = place - tf.floor(place)
    level = ordered[low] + fraction * (ordered[high] - ordered[low])
    level = tf.where(level > 0, level, ordered[-1])
    return tf.where(level > 0, level, 1.0)
