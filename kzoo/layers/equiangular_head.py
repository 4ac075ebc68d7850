"""Equiangular basis vectors: a classifier of fixed unit vectors, as orthogonal as they can be.

    |w_i . w_j| <= alpha for all i != j,       logits_j = cos(x, w_j) / tau

No w is trained: the network before the head learns to turn its inputs towards the vectors of their
classes. The loss, -log softmax(cos / tau)_y, is the cross-entropy of the logits, so
`keras.losses.SparseCategoricalCrossentropy(from_logits=True)` is all that training needs, and the
argmax of the logits is the class of the nearest vector.

"Equiangular Basis Vectors", Shen, Sun, Wei, 2023, arXiv 2303.11637; sections 3.2 and 3.3.

The vectors minimise sum_ij max(|w_i . w_j| - alpha, 0) by gradient steps on the sphere, as in
the paper, which stop when alpha is reached. Open choices: steps have the same mean length for all
vectors, falling linearly; up to `dim` vectors come from a QR decomposition, which is orthogonal to
rounding at once; without an alpha, the steps are those of the p-norm of the cosines, whose p grows
from 4 to 60, towards the largest one.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Equiangular Basis Vectors",
    authors=("Yang Shen", "Xuhao Sun", "Xiu-Shen Wei"),
    year=2023,
    arxiv="2303.11637",
)

_STEP = 0.05
_POWERS = 4.0, 60.0
_BLOCK = 1024


def coherence_bound(number, dim):
    """The least max |w_i . w_j| that `number` unit vectors in R^`dim` can have, or less.

    The larger one of the bounds of Welch and of Levenshtein; 0 for up to `dim` vectors.
    """
    if number <= dim:
        return 0.0
    welch = (number - dim) / (dim * (number - 1))
    levenshtein = (3 * number - dim * dim - 2 * dim) / ((dim + 2) * (number - dim))
    return math.sqrt(max(welch, levenshtein))


@component(PAPER)
def equiangular_vectors(number, dim, alpha=None, seed=0, steps=1000):
    """Unit vectors whose cosines are small in magnitude.

    Cosines are computed 1024 rows at a time, so memory grows with `number` alone; a step takes
    4 number^2 dim operations. The same arguments give the same vectors, on one machine to the last
    bit, elsewhere up to rounding that grows with the steps: keep the vectors, not the seed.

    Args:
        number: of vectors, N, at least 1.
        dim: of the space, d, at least 1.
        alpha: bound of |w_i . w_j|, in (0, 1); the steps stop when it is reached. None for as small
            as the steps get it: 1.10 of `coherence_bound` for 200 in 100 dimensions, 1.42 for 1000.
        seed: of the random start, at least 0. Defaults to 0.
        steps: the most to be taken, at least 1. Defaults to 1000.

    Returns:
        float32 array [number, dim].

    Raises:
        ValueError: for arguments out of range, for an alpha below `coherence_bound`, or one that
            the steps do not reach; a larger alpha, `dim` or `steps` helps.

    Example:

    >>> vectors = equiangular_vectors(10, 5)
    >>> cosines = np.abs(vectors @ vectors.T - np.eye(10))
    >>> float(cosines.max())  # the bound is 1/3
    0.33335...

    Reference:
        Shen et al. (2023), section 3.2, arxiv.org/abs/2303.11637
    """
    for name, value in (("number", number), ("dim", dim), ("steps", steps)):
        _check_count(name, value, 1)
    _check_count("seed", seed, 0)
    bound = coherence_bound(number, dim)
    if alpha is not None and not max(bound, 1e-5) <= alpha < 1:
        raise ValueError(
            f"`alpha` must be in [{max(bound, 1e-5):.4g}, 1) for {number} vectors in {dim} "
            f"dimensions. Received: {alpha!r}"
        )
    if number <= dim:
        start = np.random.default_rng(seed).normal(size=(dim, number))
        return np.ascontiguousarray(np.linalg.qr(start)[0].T.astype("float32"))
    vectors, largest = _search(number, dim, alpha, seed, steps)
    if alpha is not None and largest > alpha:
        raise ValueError(
            f"`alpha` was not reached in `steps` = {steps}: the largest cosine of {number} vectors "
            f"in {dim} dimensions is {largest:.4f}. Received: {alpha!r}"
        )
    return vectors


def _search(number, dim, alpha, seed, steps):
    """The best vectors on the way, float32 [number, dim], and their largest |cosine|."""
    start = np.random.default_rng(seed).normal(size=(number, dim)).astype("float32")
    vectors, best, least, scale = _unit(start), None, math.inf, 1.0
    for step in range(steps):
        done = step / steps
        gradient, scale = _gradient(vectors, _weighting(alpha, done, scale))
        if scale < least:
            best, least = vectors, scale
        if alpha is not None and least <= alpha:
            break
        vectors = _unit(vectors - _STEP * (1 - done) * gradient)
    return best, least


def _weighting(alpha, done, scale):
    """How much a pair counts, as a function of its |cosine|.

    Args:
        alpha: None for the p-norm.
        done: the part of the steps that has been taken.
        scale: the largest |cosine| of the step before, which keeps the powers from vanishing.
    """
    if alpha is not None:
        return lambda size: (size > alpha).astype(size.dtype)
    low, high = _POWERS
    power = low * (high / low) ** done - 1
    # As exp(log), which is ten times faster; the floor keeps subnormal numbers from the products.
    return lambda size: np.exp(np.maximum(power * np.log(size / scale + 1e-30), -70))


def _gradient(vectors, weighting):
    """The direction along the sphere, of the mean length 1, and the largest |cosine|."""
    gradient, largest = np.empty_like(vectors), 0.0
    for begin in range(0, len(vectors), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        cosines = _product(vectors[rows], vectors, transpose_b=True)
        cosines[np.arange(len(cosines)), np.arange(begin, begin + len(cosines))] = 0
        size = np.abs(cosines)
        largest = max(largest, float(size.max()))
        gradient[rows] = _product(weighting(size) * np.sign(cosines), vectors)
    gradient -= np.sum(gradient * vectors, axis=-1, keepdims=True) * vectors
    length = np.sqrt(np.mean(np.sum(np.square(gradient), axis=-1)))
    return gradient / max(length, np.finfo("float32").tiny), largest


def _product(a, b, **options):
    """The matrix product by TensorFlow, as an array, also while a graph is built.

    On a busy machine the threads of NumPy's own wait for each other, a hundred times as long.
    """
    with tf.init_scope():
        return tf.matmul(a, b, **options).numpy()


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@component(
    PAPER,
    example=Example(
        kwargs={"classes": 5, "capacity": 6, "steps": 20},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 3)).astype("float32"),),
    ),
)
class EquiangularBasisHead(keras.layers.Layer):
    """Turns embeddings into logits cos / tau of the angles to fixed vectors, one per class.

    Train the network below it with `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`;
    that is the paper's loss. It has no trainable weight, so a network with a layer of d features
    before it has features * d trainable weights there whatever the number of classes, where a dense
    classifier has features * classes. The vectors are weights that are not trained, so they are in
    every file and export; making them takes time where there are many more than d, see
    `equiangular_vectors`. Under a 16-bit policy it computes, and returns, float32.

    To add classes, make a head with more `classes`, and the same `capacity` and weights: the
    vectors of the old classes stay.

    Args:
        classes: number of classes, at least 2.
        capacity: number of vectors that are made, at least `classes`; the spare ones are for later
            classes. Defaults to `classes`.
        temperature: tau, above 0. Defaults to 0.07.
        alpha, seed, steps: see `equiangular_vectors`. Default to None, 0 and 1000.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, d], floats; they need not be normalised. A zero vector gives zero logits.
    Output shape: [batch, classes], in [-1 / temperature, 1 / temperature].

    Attributes:
        vectors: the weight, [capacity, d].

    Raises:
        ValueError: for arguments out of range; when it is built, for an `alpha` that d dimensions
            do not allow.

    Example:

    >>> model = keras.Sequential([backbone, keras.layers.Dense(64), EquiangularBasisHead(100)])
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    Reference:
        Shen et al. (2023), section 3.3, arxiv.org/abs/2303.11637
    """

    def __init__(
        self,
        classes,
        capacity=None,
        temperature=0.07,
        alpha=None,
        seed=0,
        steps=1000,
        dtype=None,
        **kwargs,
    ):
        _check_count("classes", classes, 2)
        capacity = classes if capacity is None else capacity
        _check_count("capacity", capacity, classes)
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` must be a finite number above 0. Received: {temperature!r}"
            )
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.classes = classes
        self.capacity = capacity
        self.temperature = temperature
        self.alpha = alpha
        self.seed = seed
        self.steps = steps
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape):
        dim = input_shape[-1]
        vectors = equiangular_vectors(self.capacity, dim, self.alpha, self.seed, self.steps)
        self.vectors = self.add_weight(
            name="vectors",
            shape=vectors.shape,
            initializer=lambda shape, dtype: tf.cast(vectors, dtype),
            trainable=False,
        )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: dim})

    def call(self, inputs):
        vectors = tf.convert_to_tensor(self.vectors)[: self.classes]
        units = tf.math.l2_normalize(inputs, axis=-1)
        return tf.matmul(units, vectors, transpose_b=True) / self.temperature

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.classes)

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "capacity": self.capacity,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "seed": self.seed,
            "steps": self.steps,
        }


def _check_count(name, value, low):
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"`{name}` must be an integer of at least {low}. Received: {value!r}")
