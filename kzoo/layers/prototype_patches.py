"""Prototypical parts: how similar is the most similar patch of a feature map to each prototype.

    d(z, p) = ||z||^2 - 2 <z, p> + ||p||^2                      (squared L2, by convolutions)
    s_log(p) = max_z log((d(z, p) + 1) / (d(z, p) + epsilon))   (ProtoPNet)
    s_cos(p) = max_z relu(<z, p> / (||z|| ||p||))               (ST-ProtoPNet)

z runs over the patches of the feature map, p over the prototypes; each class has its own.

"Learning Support and Trivial Prototypes for Interpretable Image Classification", Wang, Liu, Chen,
Liu, Tian, McCarthy, Frazer, Carneiro, 2023, arXiv 2301.04011, and the network that it builds on:
"This Looks Like That: Deep Learning for Interpretable Image Recognition", Chen, Li, Tao, Barnett,
Su, Rudin, 2018, arXiv 1806.10574, section 2.1.

Open choices: negative cosines count as 0, as in the authors' code, and cosine prototypes are kept
at unit length, which the code does after each step; larger patches than 1 x 1, with which the
second paper has no experiment, are compared as one long vector. The authors' further similarity
for cropped images (the projection of TesNet) is left out.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Learning Support and Trivial Prototypes for Interpretable Image Classification",
    authors=(
        "Chong Wang",
        "Yuyuan Liu",
        "Yuanhong Chen",
        "Fengbei Liu",
        "Yu Tian",
        "Davis J. McCarthy",
        "Helen Frazer",
        "Gustavo Carneiro",
    ),
    year=2023,
    arxiv="2301.04011",
)
PROTOPNET_PAPER = Paper(
    title="This Looks Like That: Deep Learning for Interpretable Image Recognition",
    authors=(
        "Chaofan Chen",
        "Oscar Li",
        "Chaofan Tao",
        "Alina Jade Barnett",
        "Jonathan Su",
        "Cynthia Rudin",
    ),
    year=2018,
    arxiv="1806.10574",
)

_SIMILARITIES = ("log", "cosine")
# Below this squared length a patch has no direction: it is similar to nothing, without a gradient.
_LEAST_SQUARE = 1e-12


@component(
    PAPER,
    PROTOPNET_PAPER,
    example=Example(
        kwargs={"classes": 2, "prototypes_per_class": 2},
        inputs=lambda rng, batch: (rng.uniform(size=(batch, 3, 3, 4)).astype("float32"),),
    ),
)
class PrototypePatchSimilarity(keras.layers.Layer):
    """Similarity of each prototype to the patch of the feature map that is most similar to it.

    The prototypes of a class stand next to each other: prototype j belongs to class
    `j // prototypes_per_class`. Under a 16-bit policy it computes, and returns, float32: the terms
    of the squared distance nearly cancel where patch and prototype are alike.

    Args:
        classes: number of classes, at least 1.
        prototypes_per_class: number of prototypes of each class, at least 1.
        similarity: "log", of the squared L2 distance, in (0, log(1 / epsilon)]; or "cosine", in
            [0, 1], with prototypes of unit length. Defaults to "log".
        patch_size: height and width of a patch in positions of the feature map. Defaults to 1.
        epsilon: bounds the log similarity, in (0, 1). Defaults to 1e-4.
        prototypes_initializer: Defaults to a uniform distribution over [0, 1], the range of the
            sigmoid that precedes the layer in ProtoPNet.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, height, width, channels], floats.
    Output shape: [batch, classes * prototypes_per_class].

    Reference:
        Chen et al. (2018), section 2.1, arxiv.org/abs/1806.10574
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """

    def __init__(
        self,
        classes,
        prototypes_per_class,
        similarity="log",
        patch_size=1,
        epsilon=1e-4,
        prototypes_initializer=None,
        dtype=None,
        **kwargs,
    ):
        _check_count("classes", classes)
        _check_count("prototypes_per_class", prototypes_per_class)
        _check_count("patch_size", patch_size)
        if similarity not in _SIMILARITIES:
            raise ValueError(
                f"`similarity` must be one of {', '.join(_SIMILARITIES)}. Received: {similarity!r}"
            )
        if not (isinstance(epsilon, int | float) and 0 < epsilon < 1):
            raise ValueError(f"`epsilon` must be in (0, 1). Received: {epsilon!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.classes = classes
        self.prototypes_per_class = prototypes_per_class
        self.similarity = similarity
        self.patch_size = patch_size
        self.epsilon = epsilon
        self.prototypes_initializer = keras.initializers.get(
            prototypes_initializer or keras.initializers.RandomUniform(0.0, 1.0)
        )
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        channels = input_shape[-1]
        for size in input_shape[1:3]:
            if size is not None and size < self.patch_size:
                raise ValueError(
                    "The feature map must be at least as large as a patch, "
                    f"`patch_size`={self.patch_size}. Received: input shape {tuple(input_shape)}"
                )
        self.prototypes = self.add_weight(
            name="prototypes",
            # The layout of a convolution's kernel.
            shape=(self.patch_size, self.patch_size, channels, self.num_prototypes),
            initializer=self.prototypes_initializer,
            constraint=keras.constraints.UnitNorm([0, 1, 2]) if self._is_cosine else None,
            # The constraint is applied on each replica.
            aggregation="mean",
        )
        if self._is_cosine:
            self.prototypes.assign(self.prototypes.constraint(self.prototypes))
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})

    def call(self, inputs):
        return self.to_similarity(tf.reduce_max(self.proximity_map(inputs), axis=[1, 2]))

    @property
    def num_prototypes(self):
        return self.classes * self.prototypes_per_class

    @property
    def prototype_classes(self):
        """The class of each prototype, int [prototypes]."""
        return np.repeat(np.arange(self.classes), self.prototypes_per_class)

    def class_prototypes(self):
        """The prototypes as tensor [classes, prototypes_per_class, patch values]."""
        rows = tf.transpose(tf.reshape(self.prototypes, [-1, self.num_prototypes]))
        return tf.reshape(rows, [self.classes, self.prototypes_per_class, rows.shape[-1]])

    def proximity_map(self, features):
        """Minus the squared distance, or the cosine, of every patch and prototype.

        Args:
            features: as the layer's input.

        Returns:
            [batch, height', width', prototypes], one position for each whole patch.
        """
        features = tf.cast(features, self.compute_dtype)
        prototypes = tf.convert_to_tensor(self.prototypes)
        products = tf.nn.conv2d(features, prototypes, strides=1, padding="VALID")
        patch_squares = self._patch_squares(features)
        squares = tf.reduce_sum(tf.square(prototypes), axis=[0, 1, 2])
        if self._is_cosine:
            return products * _inverse_length(patch_squares) * _inverse_length(squares)
        return -tf.nn.relu(patch_squares - 2.0 * products + squares)

    def to_similarity(self, proximity):
        """The similarity that goes with a proximity; it never falls as the proximity grows."""
        if self._is_cosine:
            return tf.nn.relu(proximity)
        # log((d + 1) / (d + epsilon)), exact also where it is small.
        return tf.math.log1p((1.0 - self.epsilon) / (self.epsilon - proximity))

    def similarity_map(self, features):
        """Similarities at every position, [batch, height', width', prototypes]."""
        return self.to_similarity(self.proximity_map(features))

    def embeddings(self, patches):
        """What a prototype has to be to equal patches [n, patch_size, patch_size, channels]."""
        patches = tf.cast(patches, self.compute_dtype)
        if not self._is_cosine:
            return patches
        squares = tf.reduce_sum(tf.square(patches), axis=[1, 2, 3], keepdims=True)
        return patches * _inverse_length(squares)

    @property
    def _is_cosine(self):
        return self.similarity == "cosine"

    def _patch_squares(self, features):
        """The squared length of each patch, [batch, height', width', 1]."""
        squares = tf.reduce_sum(tf.square(features), axis=-1, keepdims=True)
        if self.patch_size == 1:
            return squares
        ones = tf.ones([self.patch_size, self.patch_size, 1, 1], squares.dtype)
        return tf.nn.conv2d(squares, ones, strides=1, padding="VALID")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_prototypes)

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "prototypes_per_class": self.prototypes_per_class,
            "similarity": self.similarity,
            "patch_size": self.patch_size,
            "epsilon": self.epsilon,
            "prototypes_initializer": keras.initializers.serialize(self.prototypes_initializer),
        }


def _inverse_length(squares):
    has_length = squares > _LEAST_SQUARE
    # The inner choice keeps the root's infinite slope at 0 out of the gradient.
    return tf.where(has_length, tf.math.rsqrt(tf.where(has_length, squares, 1.0)), 0.0)


def _check_count(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")
