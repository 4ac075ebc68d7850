"""The Grassmann class representation: a class is a subspace, its logit the length of a projection.

    logit_i = ||S_i^T x||,   S_i^T S_i = I,   ||x|| scaled to gamma

S_i [n, k] is an orthonormal basis of the subspace of class i. The logit depends on the subspace
only, a point of the Grassmannian Gr(k, n), and lets features vary within it. With k = 1 it is
|<w, x>| for a unit vector w, with k = n the length of x for every class.

"Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
Representation", Wang, Li, Zhang, 2023, arXiv 2308.01547; section 3, equation 2.

Train it with `kzoo.optimizers.GrassmannSGD`, which moves the subspaces along geodesics. With any
other optimizer give it `kernel_constraint=Orthonormal()`.

Open choices: the initial subspaces are those of normal matrices, as in the authors' code, uniform
on the Grassmannian; gamma defaults to their 25 for ImageNet.
"""

import math

import keras
import tensorflow as tf

from kzoo.ops.grassmann import orthonormalized
from kzoo.optimizers.grassmann import PAPER
from kzoo.papers import Example, component


@component(PAPER)
class Orthonormal(keras.constraints.Constraint):
    """Makes the columns of matrices [..., n, k] orthonormal, with the same span.

    They become those of the orthonormal matrix of the same span that is nearest to the given one.
    The columns must be independent.

    Reference:
        Wang et al. (2023), algorithm 1, arxiv.org/abs/2308.01547
    """

    def __call__(self, w):
        return orthonormalized(tf.convert_to_tensor(w))


@component(
    PAPER,
    example=Example(
        kwargs={"classes": 3, "subspace_dim": 2, "gamma": 5.0},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class GrassmannClassifier(keras.layers.Layer):
    """Logits that are lengths of projections onto a subspace for each class.

    Under a 16-bit policy it computes, and returns, float32.

    Args:
        classes: number of classes, at least 1.
        subspace_dim: k, the dimension of the subspaces, at least 1 and at most the number of
            features. Defaults to 8, as for most of the paper's networks.
        gamma: length that the features are scaled to, above 0. Defaults to 25. Take 1 / T of the
            temperature T that suits a cosine classifier.
        kernel_initializer: of [classes, n, k] matrices, which are then made orthonormal. Defaults
            to the standard normal distribution.
        kernel_constraint: for optimizers that leave the manifold: `Orthonormal()`.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, n], floats; they need not be normalised. A zero vector gives zero logits.
    Output shape: [batch, classes], in [0, gamma].

    Raises:
        ValueError: for arguments out of range, at building for a `subspace_dim` above n.

    Example:

    >>> head = GrassmannClassifier(classes=10, subspace_dim=4)
    >>> model = keras.Sequential([backbone, head])
    >>> optimizer = GrassmannSGD(keras.optimizers.SGD(0.1, momentum=0.9))

    Reference:
        Wang et al. (2023), equation 2, arxiv.org/abs/2308.01547
    """

    def __init__(
        self,
        classes,
        subspace_dim=8,
        gamma=25.0,
        kernel_initializer=None,
        kernel_constraint=None,
        dtype=None,
        **kwargs,
    ):
        for name, value in (("classes", classes), ("subspace_dim", subspace_dim)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")
        if not (isinstance(gamma, int | float) and 0 < gamma < math.inf):
            raise ValueError(f"`gamma` must be a finite number above 0. Received: {gamma!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.classes = classes
        self.subspace_dim = subspace_dim
        self.gamma = float(gamma)
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=1.0)
        )
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape):
        size = input_shape[-1]
        if self.subspace_dim > size:
            raise ValueError(
                f"`subspace_dim` must be at most the number of features, {size}. "
                f"Received: {self.subspace_dim}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.classes, size, self.subspace_dim),
            initializer=lambda shape, dtype: tf.linalg.qr(self.kernel_initializer(shape, dtype))[0],
            constraint=self.kernel_constraint,
        )
        # What `GrassmannSGD` knows them by.
        self.kernel.geometry = "grassmann"
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: size})

    def call(self, inputs):
        features = self.gamma * tf.math.l2_normalize(inputs, axis=-1, epsilon=1e-30)
        coordinates = tf.einsum("bn,cnk->bck", features, tf.convert_to_tensor(self.kernel))
        squares = tf.reduce_sum(tf.square(coordinates), axis=-1)
        # The length has no slope where it is 0.
        return tf.where(squares > 0, tf.sqrt(tf.maximum(squares, 1e-30)), 0.0)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.classes)

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "subspace_dim": self.subspace_dim,
            "gamma": self.gamma,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }
