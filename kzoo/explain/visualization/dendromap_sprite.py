"""Thumbnails, and the one picture that holds them all."""

import base64
import math

import numpy as np
import tensorflow as tf

_PREFIX = "data:image/png;base64,"


def thumbnails_of(images, size):
    """Small copies of images.

    Args:
        images: [n, height, width] or [n, height, width, 1 or 3]; integers are in [0, 255], floats
            in [0, 1], and those beyond it are scaled from the minimum and maximum of all.
        size: the longer side at most, in pixels. Smaller images stay as they are.

    Returns:
        uint8 [n, height, width, 1 or 3]
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must be of shape [n, height, width] or [n, height, width, 1 or 3]. Received: "
            f"{images.shape}"
        )
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"`thumbnail_size` must be a positive integer. Received: {size!r}")
    images = _in_bytes(images)
    longest = max(images.shape[1:3])
    if longest <= size:
        return images
    small = [max(1, round(side * size / longest)) for side in images.shape[1:3]]
    return np.rint(tf.image.resize(images, small, "area").numpy()).astype("uint8")


def pack_sprite(thumbnails):
    """One PNG of all thumbnails, row by row, as a dict that JSON can hold.

    Args:
        thumbnails: uint8 [n, height, width, 1 or 3].
    """
    count, height, width, channels = thumbnails.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    padded = np.zeros([rows * columns, height, width, channels], "uint8")
    padded[:count] = thumbnails
    sheet = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    png = tf.io.encode_png(sheet.reshape(rows * height, columns * width, channels)).numpy()
    return {
        "count": count,
        "height": height,
        "width": width,
        "columns": columns,
        "sprite": _PREFIX + base64.b64encode(png).decode(),
    }


def unpack_sprite(packed):
    """The thumbnails that `pack_sprite` packed."""
    png = base64.b64decode(packed["sprite"].removeprefix(_PREFIX))
    sheet = tf.io.decode_png(png).numpy()
    height, width, columns = packed["height"], packed["width"], packed["columns"]
    tiles = sheet.reshape(-1, height, columns, width, sheet.shape[-1]).swapaxes(1, 2)
    return tiles.reshape(-1, height, width, sheet.shape[-1])[: packed["count"]]


def _in_bytes(images):
    if np.issubdtype(images.dtype, np.integer):
        if images.min() < 0 or images.max() > 255:
            raise ValueError("`images` of integers must be in [0, 255].")
        return images.astype("uint8")
    if not np.isfinite(images).all():
        raise ValueError("`images` must be finite.")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        images = (images - low) / (high - low)
    return np.rint(images * 255).astype("uint8")
