"""Why a prototype finds a patch similar: hue, saturation, contrast, texture or shape.

    importance_i(k, j) = g(k, j) - g(k modified in characteristic i, j)    (local, image k)
    importance_i(j)    = sum_k g(k, j) importance_i(k, j) / sum_k g(k, j)  (global)

g(k, j) is the similarity of prototype j to its nearest patch of image k; that of the modified image
is read at the *same* place, whatever place would be nearest then. A positive importance says that
the similarity falls without the characteristic.

"This Looks Like That, Because ... Explaining Prototypes for Interpretable Image Recognition",
Nauta, Jutte, Provoost, Seifert, 2020, arXiv 2011.02863; section 4. The modifications and their
strengths are those of the authors' code:

    hue         moved by a tenth of the colour circle
    saturation  0.7 x + 0.3 grey(x)
    contrast    0.45 x + 0.55 mean(grey(x))
    shape       rows, then columns, rolled by int(4 sin(0.05 pi number)) pixels
    texture     non-local means, 7x7 templates in 21x21 windows, of strength h = 4 / 255

Deviations: non-local means weighs by exp(-mean squared difference of the templates / h^2) over the
three RGB channels together, and leaves places beyond the border out; the authors take OpenCV's,
which works on brightness and colour (CIELAB) apart and mirrors the border. Nothing is rounded to 8
bits. Their code's sixth modification, brightness, is not in the paper.

A set of prototypes is explained, not a class, so this is a function on tensors and no `Explainer`;
`characteristic_importance` is traceable and holds no Python over images.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Paper, component

PAPER = Paper(
    title="This Looks Like That, Because ... Explaining Prototypes for Interpretable Image "
    "Recognition",
    authors=("Meike Nauta", "Annemarie Jutte", "Jesper Provoost", "Christin Seifert"),
    year=2020,
    arxiv="2011.02863",
)

CHARACTERISTICS = ("hue", "saturation", "contrast", "texture", "shape")
# Sums to 1 exactly: a grey image has to stay as it is.
_LUMA = (0.299, 0.587, 0.114)


@component(PAPER, not_served="it changes images on their way to one prototype")
class ImageCharacteristicPerturbations:
    """Copies of RGB images, each with one visual characteristic changed.

    Args:
        hue: share of the colour circle by which the hue moves, in [-0.5, 0.5]. Defaults to 0.1.
        saturation: share of the colour that stays, in [0, 1]. Defaults to 0.7.
        contrast: share of the contrast that stays, in [0, 1]. Defaults to 0.45.
        texture: strength h of the denoising for pixels in [0, 1], above 0. Defaults to 4 / 255.
        shape_amplitude: greatest shift in pixels, at least 0. Defaults to 4, meant for images of
            some hundred pixels; take less for small ones.
        shape_frequency: half waves per pixel, at least 0. Defaults to 0.05.
        template, window: sizes of the templates and the search window of the denoising in pixels,
            odd. Default to 7 and 21.

    Reference:
        Nauta et al. (2020), section 4, arxiv.org/abs/2011.02863
    """

    def __init__(
        self,
        hue=0.1,
        saturation=0.7,
        contrast=0.45,
        texture=4 / 255,
        shape_amplitude=4.0,
        shape_frequency=0.05,
        template=7,
        window=21,
    ):
        _check("hue", hue, -0.5 <= hue <= 0.5, "in [-0.5, 0.5]")
        _check("saturation", saturation, 0 <= saturation <= 1, "in [0, 1]")
        _check("contrast", contrast, 0 <= contrast <= 1, "in [0, 1]")
        _check("texture", texture, texture > 0, "above 0")
        _check("shape_amplitude", shape_amplitude, shape_amplitude >= 0, "of at least 0")
        _check("shape_frequency", shape_frequency, shape_frequency >= 0, "of at least 0")
        _check("template", template, template > 0 and template % 2 == 1, "above 0 and odd")
        _check("window", window, window > 0 and window % 2 == 1, "above 0 and odd")
        self._modify = {
            "hue": lambda x: tf.image.adjust_hue(x, hue),
            "saturation": lambda x: saturation * x + (1.0 - saturation) * _grey(x),
            "contrast": lambda x: contrast * x + (1.0 - contrast) * _mean(_grey(x)),
            "texture": lambda x: non_local_means(x, texture, template, window),
            "shape": lambda x: sine_warp(x, shape_amplitude, shape_frequency),
        }

    def __call__(self, images):
        """Returns {name of the characteristic: images}, in the order of `CHARACTERISTICS`.

        Args:
            images: float [batch, height, width, 3] in [0, 1].
        """
        images = tf.convert_to_tensor(images)
        if not images.dtype.is_floating or len(images.shape) != 4 or images.shape[-1] != 3:
            raise ValueError(
                "`images` must be RGB floats in [0, 1], [batch, height, width, 3]. "
                f"Received: {images.dtype.name} of shape {tuple(images.shape)}"
            )
        return {name: self._modify[name](images) for name in CHARACTERISTICS}


def non_local_means(images, strength, template=7, window=21):
    """Each pixel becomes a mean over its window, weighted by how alike the surroundings are.

    Args:
        images: float [batch, height, width, channels].
        strength: h, the difference of surroundings at which the weight is 1 / e.
        template: size of the surroundings in pixels, odd.
        window: size of the window in pixels, odd.

    Returns:
        Tensor like `images`.
    """
    reach = window // 2
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    rows = tf.range(height)[tf.newaxis, :, tf.newaxis, tf.newaxis]
    columns = tf.range(width)[tf.newaxis, tf.newaxis, :, tf.newaxis]

    def add(number, total, weights):
        down, right = number // window - reach, number % window - reach
        moved = tf.roll(images, [down, right], axis=[1, 2])
        # The pixel that arrives at a place comes from (row - down, column - right).
        inside = (rows >= down) & (rows < height + down)
        inside &= (columns >= right) & (columns < width + right)
        inside = tf.cast(inside, images.dtype)
        squares = tf.reduce_mean(tf.square(images - moved), axis=-1, keepdims=True) * inside
        difference = tf.math.divide_no_nan(_box(squares, template), _box(inside, template))
        weight = tf.exp(-difference / strength**2) * inside
        return number + 1, total + weight * moved, weights + weight

    start = (tf.constant(0), tf.zeros_like(images), tf.zeros_like(images[..., :1]))
    _, total, weights = tf.while_loop(lambda number, *_: number < window**2, add, start)
    return total / weights


def sine_warp(images, amplitude, frequency):
    """Rolls each row, then each column, by int(amplitude sin(pi frequency number)) pixels."""
    images = _roll_rows(images, amplitude, frequency)
    turned = _roll_rows(tf.transpose(images, [0, 2, 1, 3]), amplitude, frequency)
    return tf.transpose(turned, [0, 2, 1, 3])


def _roll_rows(images, amplitude, frequency):
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    number = tf.cast(tf.range(height), tf.float32)
    shift = tf.cast(amplitude * tf.sin(math.pi * frequency * number), tf.int32)
    source = (tf.range(width)[tf.newaxis] - shift[:, tf.newaxis]) % width
    # [row, column, batch, channel], so that each row picks from its own columns.
    by_row = tf.transpose(images, [1, 2, 0, 3])
    return tf.transpose(tf.gather(by_row, source, batch_dims=1), [2, 0, 1, 3])


def _grey(images):
    return tf.reduce_sum(images * tf.constant(_LUMA, images.dtype), axis=-1, keepdims=True)


def _mean(grey):
    return tf.reduce_mean(grey, axis=[1, 2], keepdims=True)


def _box(values, size):
    return tf.nn.avg_pool2d(values, size, strides=1, padding="SAME")


@component(PAPER, not_served="it changes images on their way to one prototype")
def characteristic_importance(similarity_maps, images, perturbations=None):
    """Local explanations: how much of each similarity is due to each characteristic.

    Args:
        similarity_maps: function of images that returns similarities [batch, height', width',
            prototypes], for example `kzoo.models.similarity_maps(model)`. What turns pixels in
            [0, 1] into the model's inputs belongs into it.
        images: float [batch, height, width, 3] in [0, 1].
        perturbations: `ImageCharacteristicPerturbations`; None for the paper's.

    Returns:
        dict of tensors: `importance` [batch, prototypes, 5], in the order of `CHARACTERISTICS`;
        `similarity` [batch, prototypes]; `position` int32 [batch, prototypes, 2], the row and the
        column of the nearest patch.

    Reference:
        Nauta et al. (2020), section 4, arxiv.org/abs/2011.02863
    """
    images = tf.convert_to_tensor(images)
    modified = (perturbations or ImageCharacteristicPerturbations())(images)
    maps = tf.convert_to_tensor(similarity_maps(images))
    width = tf.shape(maps)[2]
    flat = _flat(maps)
    place = tf.argmax(flat, axis=-1, output_type=tf.int32)

    def at_place(flat):
        return tf.gather(flat, place, axis=-1, batch_dims=2)

    similarity = at_place(flat)
    each = [
        similarity - at_place(_flat(tf.convert_to_tensor(similarity_maps(modified[name]))))
        for name in CHARACTERISTICS
    ]
    return {
        "importance": tf.stack(each, axis=-1),
        "similarity": similarity,
        "position": tf.stack([place // width, place % width], axis=-1),
    }


def _flat(maps):
    """[batch, height, width, prototypes] -> [batch, prototypes, positions]."""
    shape = tf.shape(maps)
    return tf.transpose(tf.reshape(maps, [shape[0], -1, shape[3]]), [0, 2, 1])


@component(PAPER, not_served="it changes images on their way to one prototype")
def explain_prototypes(similarity_maps, images, perturbations=None, batch_size=32):
    """Global explanations: what each prototype looks at, over a whole training set.

    Args:
        similarity_maps: see `characteristic_importance`.
        images: float [n, height, width, 3] in [0, 1].
        perturbations: `ImageCharacteristicPerturbations`; None for the paper's.
        batch_size: images at a time. Defaults to 32.

    Returns:
        dict of NumPy arrays: `global_importance` [prototypes, 5], the mean of the local ones
        weighted by the similarities, and what `characteristic_importance` returns for all images.

    Reference:
        Nauta et al. (2020), section 4.2, arxiv.org/abs/2011.02863
    """
    images = np.asarray(images, keras.config.floatx())
    local = tf.function(
        lambda batch: characteristic_importance(similarity_maps, batch, perturbations),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype)],
        autograph=False,
    ).get_concrete_function()
    starts = range(0, len(images), batch_size)
    parts = [local(tf.constant(images[start : start + batch_size])) for start in starts]
    result = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights = result["similarity"][..., np.newaxis]
    total = weights.sum(0)
    mean = np.divide((weights * result["importance"]).sum(0), total, where=total > 0,
                     out=np.zeros_like(result["importance"][0]))  # fmt: skip
    return {"global_importance": mean, **result}


@component(PAPER, not_served="it turns answers into pictures or words")
def describe_prototype(importance, digits=2):
    """The explanation of one prototype in words, the most important characteristic first.

    Args:
        importance: [5] numbers in the order of `CHARACTERISTICS`, local or global.
        digits: digits after the point. Defaults to 2.

    Returns:
        str such as "Hue 2.25, shape 1.01, texture 0.75, saturation 0.59, contrast 0.06".

    Reference:
        Nauta et al. (2020), figure 1, arxiv.org/abs/2011.02863
    """
    importance = np.asarray(importance, float)
    if importance.shape != (len(CHARACTERISTICS),):
        raise ValueError(
            f"`importance` must have one number for each of {', '.join(CHARACTERISTICS)}. "
            f"Received: shape {importance.shape}"
        )
    order = np.argsort(-importance, kind="stable")
    text = ", ".join(f"{CHARACTERISTICS[i]} {importance[i]:.{digits}f}" for i in order)
    return text[0].upper() + text[1:]


@component(PAPER, not_served="it changes images on their way to one prototype")
def prototype_redundancy(prototypes, importance, max_distance, max_difference):
    """Pairs of prototypes that are alike and alike for the same reasons: one of them would do.

    Prototypes that look alike but differ in their explanations are not redundant.

    Args:
        prototypes: [prototypes, d] floats, for example one class's `class_prototypes`.
        importance: [prototypes, 5] global importances.
        max_distance: greatest Euclidean distance of two prototypes that count as alike.
        max_difference: greatest difference of any of their importances.

    Returns:
        List of (i, j, distance, difference) with i < j, the nearest pair first.

    Reference:
        Nauta et al. (2020), section 5.4, arxiv.org/abs/2011.02863
    """
    prototypes, importance = np.asarray(prototypes, float), np.asarray(importance, float)
    if len(prototypes) != len(importance):
        raise ValueError(
            "`importance` must have one row for each prototype. "
            f"Received: {len(importance)} rows for {len(prototypes)} prototypes"
        )
    distance = np.linalg.norm(prototypes[:, np.newaxis] - prototypes, axis=-1)
    difference = np.abs(importance[:, np.newaxis] - importance).max(-1)
    alike = np.triu((distance <= max_distance) & (difference <= max_difference), k=1)
    pairs = [(int(i), int(j), distance[i, j], difference[i, j]) for i, j in np.argwhere(alike)]
    return sorted(pairs, key=lambda pair: pair[2])


def _check(name, value, allowed, range_text):
    if not allowed or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number {range_text}. Received: {value!r}")
