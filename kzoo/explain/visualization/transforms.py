"""What keeps optimised images smooth and centred: jitter, blur and a centred window."""

import numpy as np
import tensorflow as tf


def random_shift(images, jitter, seed):
    """Shifts all images by the same random whole number of pixels, around the border.

    Args:
        images: [n, height, width, channels].
        jitter: the largest shift in each direction, an int.
        seed: int32 [2]; the shift depends on it alone.
    """
    shift = tf.random.stateless_uniform(
        [2], seed, -jitter, jitter + 1, dtype=tf.int32, alg="philox"
    )
    return tf.roll(images, shift, axis=[1, 2])


def gaussian_blur(images, sigma, largest):
    """Blurs with a Gaussian of standard deviation `sigma` pixels; the border is mirrored.

    Args:
        images: [n, height, width, channels].
        sigma: scalar tensor or float, at least 0; 0 leaves the images as they are.
        largest: float, an upper bound of `sigma`, from which the size of the kernel is known.
    """
    height, width, channels = images.shape[1:]
    radius = min(int(np.ceil(3 * largest)), height, width)
    distance = tf.range(-radius, radius + 1, dtype=images.dtype)
    # At a small sigma all but the middle underflow to zero: the identity.
    kernel = tf.exp(
        -(distance**2) / (2 * tf.maximum(tf.convert_to_tensor(sigma, images.dtype), 1e-3) ** 2)
    )
    kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, channels, 1])
    padded = tf.pad(images, [[0, 0], [radius] * 2, [radius] * 2, [0, 0]], "SYMMETRIC")
    blurred = tf.nn.depthwise_conv2d(padded, kernel, [1] * 4, "VALID")
    return tf.nn.depthwise_conv2d(blurred, tf.transpose(kernel, [1, 0, 2, 3]), [1] * 4, "VALID")


def center_biased_mask(height, width, extent, dtype=tf.float32):
    """1 inside of a centred box, 0 outside.

    Args:
        height, width: of the image, ints.
        extent: scalar in (0, 1], the side of the box relative to the image's.

    Returns:
        [height, width, 1]
    """
    inside = [
        tf.abs((tf.range(size, dtype=dtype) + 0.5) / size - 0.5)
        <= tf.convert_to_tensor(extent, dtype) / 2
        for size in (height, width)
    ]
    return tf.cast(inside[0][:, None] & inside[1][None, :], dtype)[..., None]


def between(ends, step, steps, dtype=tf.float32):
    """The value at `step`, from ends[0] at the first to ends[1] at the last of the steps."""
    share = tf.cast(step, dtype) / max(steps - 1, 1)
    return ends[0] + (ends[1] - ends[0]) * share
