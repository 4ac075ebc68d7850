"""Random changes of images, each a pure function of the image and its seed."""

import keras
import tensorflow as tf

from kzoo.ops.map_fn import map_fn

# Mix the examples of a batch, so that they are no function of one image and its seed.
_MIXERS = (keras.layers.MixUp, keras.layers.CutMix)
_PARALLEL_IMAGES = 16


class Augmentation:
    """Base class: `__call__(images, seeds)` changes each image by its own seed.

    What comes out for an image depends on nothing else, so it is the same however a run is cut
    into batches, replicas and workers, and wherever it was resumed.
    """

    def __call__(self, images, seeds):
        """Returns the changed images.

        Args:
            images: float or uint8 tensor [batch, height, width, channels]; the batch may be empty.
            seeds: int32 tensor [batch, 2] of random bits.
        """
        raise NotImplementedError


class RandomCropFlip(Augmentation):
    """Pads with zeros, crops to the old size at a random place, and flips half of the images.

    The usual augmentation of CIFAR. The shift is uniform in -padding..padding on both axes.

    Args:
        padding: number of pixels added on each side, at least 0. Defaults to 4.
        flip: whether to flip left and right, with probability 1/2. Defaults to True.

    Example:

    >>> pipeline = Pipeline(source, 128, preprocess="standardize", augment=[RandomCropFlip(4)])

    Reference:
        He et al. (2015), Deep Residual Learning, section 4.2, arxiv.org/abs/1512.03385
    """

    def __init__(self, padding=4, flip=True):
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"`padding` must be an integer of at least 0. Received: {padding!r}")
        self.padding = padding
        self.flip = flip

    def __call__(self, images, seeds):
        height, width = images.shape[1:3]
        pad = [self.padding, self.padding]
        padded = tf.pad(images, [[0, 0], pad, pad, [0, 0]])
        shift = tf.math.floormod(seeds, 2 * self.padding + 1)
        rows = shift[:, :1] + tf.range(height)
        columns = tf.range(width)
        if self.flip:
            # The sign is independent of the remainder that the shift is taken from.
            columns = tf.where(seeds[:, :1] < 0, columns[::-1], columns)
        columns = shift[:, 1:] + columns
        return tf.gather(tf.gather(padded, rows, batch_dims=1), columns, axis=2, batch_dims=1)


class PerImage(Augmentation):
    """Applies a function of one image and its seed to every image.

    Args:
        function: `function(image, seed)` takes an image [height, width, channels] and a seed,
            int32 [2], and returns an image of one fixed shape; `tf.image.stateless_random_*`
            are such functions.

    Raises:
        ValueError: at the first call, where the function draws random numbers without the seed.

    Example:

    >>> hue = PerImage(lambda image, seed: tf.image.stateless_random_hue(image, 0.1, seed))
    """

    def __init__(self, function):
        if not callable(function):
            raise TypeError(f"`function` must be callable. Received: {function!r}")
        self.function = function

    def __call__(self, images, seeds):
        function = stateless(
            self.function,
            tf.TensorSpec(images.shape[1:], images.dtype),
            tf.TensorSpec([2], tf.int32),
            name=_name(self.function),
        )
        output = function.structured_outputs
        return map_fn(
            lambda image_and_seed: function(*image_and_seed),
            (images, seeds),
            fn_output_signature=tf.TensorSpec(output.shape, output.dtype),
            parallel_iterations=_PARALLEL_IMAGES,
        )


class KerasLayer(PerImage):
    """Applies a Keras image augmentation layer, with a transformation of its own for every image.

    The layer's own `seed` is not used: its random numbers come from the seeds of the call.

    Args:
        layer: a layer of `keras.layers` such as `RandomFlip`, `RandomRotation` or `RandomCrop`.

    Raises:
        ValueError: for a layer that is none of these, or that mixes the examples of a batch; at
            the first call for a layer that draws from a generator of its own (`RandAugment`).
    """

    def __init__(self, layer):
        if isinstance(layer, _MIXERS):
            raise ValueError(
                f"`augment` cannot hold {_name(layer)}: it mixes the examples of a batch, and "
                "their labels. Mix them in the training step instead."
            )
        if not hasattr(layer, "get_random_transformation"):
            raise ValueError(
                f"`augment` cannot hold the layer {_name(layer)}: it has no random transformation "
                "of images that a seed could determine. Use an image augmentation layer of "
                "keras.layers or a function f(images, seed)."
            )
        self.layer = layer
        super().__init__(self._transform)

    def _transform(self, image, seed):
        images = tf.cast(image, self.layer.compute_dtype)[None]
        transformation = self.layer.get_random_transformation(
            images, training=True, seed=_SeedSequence(seed)
        )
        return self.layer.transform_images(images, transformation, training=True)[0]


class WholeBatch(Augmentation):
    """Applies a function of a batch and one seed, that of its first example.

    The result depends on where the pieces of a batch begin, so it changes with the number of
    replicas; `PerImage` does not have this limit.

    Args:
        function: `function(features, seed)` with a seed int32 [2] returns the changed features.
    """

    def __init__(self, function):
        self.function = function

    def __call__(self, images, seeds):
        # An empty piece has no first example.
        seed = tf.concat([seeds, tf.zeros([1, 2], tf.int32)], 0)[0]
        specs = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), images
        )
        function = stateless(
            self.function, specs, tf.TensorSpec([2], tf.int32), name=_name(self.function)
        )
        return function(images, seed)


class _SeedSequence(keras.random.SeedGenerator):
    """Gives Keras's random functions the seeds that follow from one seed; holds no variable."""

    def __init__(self, seed):
        self._seed = seed
        self._count = 0

    def next(self, ordered=True):
        self._count += 1
        return tf.random.fold_in(self._seed, self._count)


def as_augmentations(augment):
    """Returns the list of `Augmentation`s for what a user may write as `augment`.

    Args:
        augment: None, or one or a list of `Augmentation`s, Keras layers, and functions
            `f(features, seed)`.
    """
    if augment is None:
        return []
    if isinstance(augment, keras.layers.Pipeline):
        augment = augment.layers
    if not isinstance(augment, (list, tuple)):
        augment = [augment]
    return [_as_augmentation(item) for item in augment]


def _as_augmentation(item):
    if isinstance(item, Augmentation):
        return item
    if isinstance(item, keras.layers.Layer):
        return KerasLayer(item)
    if callable(item):
        return WholeBatch(item)
    raise TypeError(
        "`augment` must hold kzoo augmentations, Keras layers or functions f(features, seed). "
        f"Received: {item!r}"
    )


def stateless(function, *specs, name):
    """Returns the concrete function of `function`, which must draw nothing without its seed.

    Raises:
        ValueError: where its graph has an operation with state, such as a generator's variable.
    """
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    stateful = sorted(
        {
            operation.type
            for operation in concrete.graph.get_operations()
            if operation.op_def.is_stateful and operation.type != "Assert"
        }
    )
    if stateful:
        raise ValueError(
            f"`augment` cannot use {name}: its result is no function of the seed it is given, "
            f"because it holds state or draws from a generator of its own ({', '.join(stateful)})."
            " Use tf.random.stateless_* with the seed."
        )
    return concrete


def _name(item):
    item = getattr(item, "__self__", item)
    item = getattr(item, "layer", item)
    return getattr(item, "__name__", type(item).__name__)


def check_images(features, augmentations):
    """Refuses augmentations of images for a batch of features that is none."""
    of_images = [item for item in augmentations if not isinstance(item, WholeBatch)]
    if not of_images:
        return
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            f"`augment` {_name(of_images[0])} needs features that are images of one fixed shape "
            f"(height, width, channels). Received: a batch of {features}"
        )
