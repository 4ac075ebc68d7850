"""Zero-shot regularisation of generalised sum pooling: one half of the classes predicts the other.

    A_k       = argmin over A of   sum_{i in half k} ||A^T z_i - v_{y_i}||^2 + ridge ||A||_F^2
    logits_ic = scale <A_k'^T z_i, v_c>       for i in the other half than k'

for the histograms z_i of the examples of a batch over the prototypes of the pooling, and a learned
embedding v_c of each class. The cross-entropy of these logits is small only where what prototypes
mean for some classes carries over to others, as attributes do in zero-shot learning. The paper's
loss is (1 - lambda) times that of metric learning plus lambda = 0.1 times this one.

"Generalized Sum Pooling for Metric Learning", Gurbuz, Sener, Alatan, 2023, arXiv 2308.09228; the
zero-shot loss of section 4, and the authors' code, from which `ridge`, `scale` and the initial
embeddings are.

Open choices: the classes that are present in a batch, in the order of their numbers, go to the two
halves in turn, so that no class is in both, whatever the order of the examples; the authors' code
takes every other example of a sampler that arranges the batch. Both A_k are differentiated through,
as there. With several replicas, each predicts within its own part of the batch.
"""

import math

import keras
import tensorflow as tf

from kzoo.layers.generalized_sum_pooling import PAPER
from kzoo.papers import component


@component(PAPER)
class ZeroShotPrediction(keras.layers.Layer):
    """Logits of the classes of a batch, predicted from attributes by fits to other classes.

    A part of training: it needs the labels as an input, and the rows of a batch depend on each
    other. Give its output the cross-entropy, and serve a model that ends at the embedding. Under a
    16-bit policy it computes, and returns, float32.

    Args:
        classes: number of classes, at least 2.
        units: size of the embeddings v of the classes, at least 1.
        ridge: above 0. Defaults to 0.05.
        scale: of the logits, above 0. Defaults to 9.5.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint: default to
            "he_normal", None and None.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Call arguments:
        histograms: [batch, m] floats, attributes of the examples, such as those of
            `GeneralizedSumPooling(return_histogram=True)`.
        labels: [batch] or [batch, 1] integers in [0, classes). Examples of other labels (-1, say)
            belong to no half and get logits of 0.

    Output shape: [batch, classes]. Where all examples are of one class there is nothing to predict
    from: logits of 0, which have no gradient.

    Raises:
        ValueError: for arguments out of range, or inputs of other shapes or dtypes.

    Example:

    >>> image, label = keras.Input((32, 32, 3)), keras.Input((), dtype="int32")
    >>> features = keras.layers.Conv2D(64, 3)(image)
    >>> pooled, histogram = GeneralizedSumPooling(return_histogram=True)(features)
    >>> logits = ZeroShotPrediction(classes=10, units=16)(histogram, label)
    >>> model = keras.Model([image, label], [keras.layers.Dense(10)(pooled), logits])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", [loss, loss], loss_weights=[0.9, 0.1])
    >>> model.fit([x, y], [y, y])

    Reference:
        Gurbuz et al. (2023), section 4, arxiv.org/abs/2308.09228
    """

    def __init__(
        self,
        classes,
        units,
        ridge=0.05,
        scale=9.5,
        embeddings_initializer="he_normal",
        embeddings_regularizer=None,
        embeddings_constraint=None,
        dtype=None,
        **kwargs,
    ):
        _check_count("classes", classes, 2)
        _check_count("units", units, 1)
        for name, value in (("ridge", ridge), ("scale", scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0. Received: {value!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.classes = classes
        self.units = units
        self.ridge = ridge
        self.scale = scale
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = keras.constraints.get(embeddings_constraint)

    def build(self, histograms_shape, labels_shape):
        if len(histograms_shape) != 2 or histograms_shape[-1] is None:
            raise ValueError(
                f"`histograms` must be [batch, m]. Received: shape {tuple(histograms_shape)}"
            )
        if tuple(labels_shape[1:]) not in ((), (1,)):
            raise ValueError(
                f"`labels` must be [batch] or [batch, 1]. Received: shape {tuple(labels_shape)}"
            )
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.classes, self.units),
            initializer=self.embeddings_initializer,
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )

    def call(self, histograms, labels):
        dtype = keras.backend.standardize_dtype(labels.dtype)
        if "int" not in dtype:
            raise ValueError(f"`labels` must be integers. Received: dtype {dtype}")
        member = tf.one_hot(tf.reshape(labels, [-1]), self.classes, dtype=histograms.dtype)
        embeddings = tf.convert_to_tensor(self.embeddings)
        halves = tf.matmul(member, _halves_of_classes(member))
        fits = self._ridge(halves, histograms, tf.matmul(member, embeddings))
        # An example of the first half is predicted by the fit to the second, and the reverse.
        predicted = tf.einsum("bk,bm,kmd->bd", halves, histograms, tf.reverse(fits, [0]))
        return self.scale * tf.matmul(predicted, embeddings, transpose_b=True)

    def _ridge(self, halves, histograms, targets):
        """A of both halves, [2, m, units], from masks [batch, 2]."""
        gram = tf.einsum("bk,bm,bn->kmn", halves, histograms, histograms)
        moment = tf.einsum("bk,bm,bd->kmd", halves, histograms, targets)
        penalty = self.ridge * tf.eye(histograms.shape[-1], dtype=gram.dtype)
        return tf.linalg.cholesky_solve(tf.linalg.cholesky(gram + penalty), moment)

    def compute_output_shape(self, histograms_shape, labels_shape):
        return (histograms_shape[0], self.classes)

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "units": self.units,
            "ridge": self.ridge,
            "scale": self.scale,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
            "embeddings_constraint": keras.constraints.serialize(self.embeddings_constraint),
        }


def _halves_of_classes(member):
    """[classes, 2]: 1 where a class is present and in the half; classes take turns."""
    present = tf.reduce_max(member, axis=0)
    # A class is in the first half if it comes after an even number of others that are present.
    before = tf.cumsum(present, exclusive=True)
    second = present * tf.math.floormod(before, 2.0)
    return tf.stack([present - second, second], axis=1)


def _check_count(name, value, low):
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"`{name}` must be an integer of at least {low}. Received: {value!r}")
