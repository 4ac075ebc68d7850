"""Generalised sum pooling: an average over the part of a feature map that resembles prototypes.

    minimize   sum_ij c_ij pi_ij + (1/epsilon) (sum_ij pi_ij log pi_ij + sum_j rho_j log rho_j)
    such that  rho_j + sum_i pi_ij = 1/n,   sum_ij pi_ij = mu,   rho, pi >= 0
    pooled     sum_j w_j f_j,   w_j = (1/n - rho_j) / mu
    with       c_ij = ||p~_i - f~_j||,   u~ = u / max(1, ||u||)

for n features f_j, m learned prototypes p_i and the share mu of the features' mass that has to be
transported; rho is what is left behind. mu = 1 is global average pooling.

"Generalized Sum Pooling for Metric Learning", Gurbuz, Sener, Alatan, 2023, arXiv 2308.09228;
section 4, and the authors' code.

The optimality conditions leave one unknown per example, the level s:

    n rho_j = 1 - sigmoid(s + k_j),   n pi_ij = sigmoid(s + k_j) exp(-epsilon c_ij - k_j)
    k_j = log sum_i exp(-epsilon c_ij),   sum_j sigmoid(s + k_j) = n mu

It is found by bisection, to the last digits, in place of the authors' fixed-point iterations, and
differentiated by the implicit function theorem, ds/dk_j = -sigmoid'_j / sum sigmoid': the paper's
closed-form gradient.

Deviations and open choices: the 1x1 convolution before the pooling is the caller's; prototypes
begin Glorot-uniform, where the authors, after some steps of average pooling, pick them from the
features (greedy k-centre: assign to `prototypes`). Defaults are those of the authors' benchmark
configuration for small data sets.
"""

import math

import keras
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Generalized Sum Pooling for Metric Learning",
    authors=("Yeti Z. Gurbuz", "Ozan Sener", "A. Aydin Alatan"),
    year=2023,
    arxiv="2308.09228",
)


@component(
    PAPER,
    example=Example(
        kwargs={"prototypes": 3, "transport_ratio": 0.4},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 3, 2, 4)).astype("float32"),),
    ),
)
class GeneralizedSumPooling(keras.layers.Layer):
    """Pools a feature map to a weighted mean of its features, nuisance left out.

    In place of `keras.layers.GlobalAveragePooling2D`, which it equals at `transport_ratio=1`. It
    costs a product with the prototypes and 40 (in float64: 64) sigmoids per feature. Under a
    16-bit policy it computes, and returns, float32.

    Args:
        prototypes: number m of prototypes, at least 1. Defaults to 64.
        transport_ratio: mu in (0, 1], the share of the features that the mean is over; no feature
            weighs more than 1 / (n mu). Defaults to 0.3.
        epsilon: above 0; the larger, the sharper is the choice of features. Defaults to 5.
        return_histogram: whether to return, next to the pooled features, the share of the
            transported mass that each prototype received. Defaults to False.
        prototypes_initializer, prototypes_regularizer, prototypes_constraint: default to
            "glorot_uniform", None and None.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, height, width, d], or any other number of axes between batch and features.
    Output shape: [batch, d], or with `return_histogram` ([batch, d], [batch, m]), whose rows sum
    to 1.

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Gurbuz et al. (2023), section 4, arxiv.org/abs/2308.09228
    """

    def __init__(
        self,
        prototypes=64,
        transport_ratio=0.3,
        epsilon=5.0,
        return_histogram=False,
        prototypes_initializer="glorot_uniform",
        prototypes_regularizer=None,
        prototypes_constraint=None,
        dtype=None,
        **kwargs,
    ):
        if not isinstance(prototypes, int) or isinstance(prototypes, bool) or prototypes < 1:
            raise ValueError(
                f"`prototypes` must be an integer of at least 1. Received: {prototypes!r}"
            )
        if not 0 < transport_ratio <= 1:
            raise ValueError(f"`transport_ratio` must be in (0, 1]. Received: {transport_ratio!r}")
        if not 0 < epsilon < math.inf:
            raise ValueError(f"`epsilon` must be finite and above 0. Received: {epsilon!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.number = prototypes
        self.transport_ratio = transport_ratio
        self.epsilon = epsilon
        self.return_histogram = return_histogram
        self.prototypes_initializer = keras.initializers.get(prototypes_initializer)
        self.prototypes_regularizer = keras.regularizers.get(prototypes_regularizer)
        self.prototypes_constraint = keras.constraints.get(prototypes_constraint)

    def build(self, input_shape):
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(self.number, input_shape[-1]),
            initializer=self.prototypes_initializer,
            regularizer=self.prototypes_regularizer,
            constraint=self.prototypes_constraint,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=3, axes={-1: input_shape[-1]})

    def call(self, inputs):
        features = ops.reshape(inputs, (ops.shape(inputs)[0], -1, inputs.shape[-1]))
        plan = self._plan(features)
        pooled = ops.einsum("bn,bnd->bd", ops.sum(plan, axis=-1), features)
        if self.transport_ratio == 1:
            pooled = ops.mean(features, axis=1)
        return (pooled, ops.sum(plan, axis=1)) if self.return_histogram else pooled

    def weights_of(self, inputs):
        """The weights w of the features in the pooled mean.

        Args:
            inputs: as in a call, [batch, ..., d].

        Returns:
            [batch, ...], from 0 to 1 / (n mu); the sum over an example is 1.
        """
        inputs = ops.cast(inputs, self.compute_dtype)
        features = ops.reshape(inputs, (ops.shape(inputs)[0], -1, inputs.shape[-1]))
        return ops.reshape(ops.sum(self._plan(features), axis=-1), ops.shape(inputs)[:-1])

    def _plan(self, features):
        """pi / mu, [batch, n, m]."""
        scores = -self.epsilon * _distances(features, ops.convert_to_tensor(self.prototypes))
        to_each = _softmax(scores)
        count = ops.cast(ops.shape(features)[1], features.dtype)
        if self.transport_ratio == 1:
            return to_each / count
        attraction = ops.logsumexp(scores, axis=-1)
        transported = _share(attraction, self.transport_ratio)
        return to_each * (transported / (count * self.transport_ratio))[..., None]

    def compute_output_shape(self, input_shape):
        pooled = (input_shape[0], input_shape[-1])
        return (pooled, (input_shape[0], self.number)) if self.return_histogram else pooled

    def get_config(self):
        return {
            **super().get_config(),
            "prototypes": self.number,
            "transport_ratio": self.transport_ratio,
            "epsilon": self.epsilon,
            "return_histogram": self.return_histogram,
            "prototypes_initializer": keras.initializers.serialize(self.prototypes_initializer),
            "prototypes_regularizer": keras.regularizers.serialize(self.prototypes_regularizer),
            "prototypes_constraint": keras.constraints.serialize(self.prototypes_constraint),
        }


def _distances(features, prototypes):
    """Euclidean distances, [batch, n, m], after vectors are shortened to length 1 at most."""
    features, prototypes = _shortened(features), _shortened(prototypes)
    squares = ops.sum(ops.square(features), axis=-1, keepdims=True)
    squares = squares + ops.sum(ops.square(prototypes), axis=-1)
    squares = squares - 2.0 * ops.matmul(features, ops.transpose(prototypes))
    # Below rounding there is no direction: the floor keeps the root's gradient finite.
    return ops.sqrt(ops.maximum(squares, 1e-10))


def _shortened(vectors):
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1.0))


def _share(attraction, ratio):
    """sigmoid(s + attraction), with the s for which its mean over the features is `ratio`."""
    fixed = ops.stop_gradient(attraction)
    shifted = _level(fixed, ratio) + fixed
    # Gradients of s by the implicit function theorem; the softmax of log sigmoid' is
    # sigmoid' / sum sigmoid' also where every sigmoid is flat.
    slopes = _softmax(ops.log_sigmoid(shifted) + ops.log_sigmoid(-shifted))
    change = attraction - fixed
    return ops.sigmoid(shifted + change - ops.sum(slopes * change, axis=-1, keepdims=True))


def _level(attraction, ratio):
    """s, [batch, 1], by bisection."""
    logit = math.log(ratio) - math.log1p(-ratio)
    low = logit - ops.max(attraction, axis=-1, keepdims=True)
    high = logit - ops.min(attraction, axis=-1, keepdims=True)
    steps = 64 if attraction.dtype == "float64" else 40

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = ops.mean(ops.sigmoid(middle + attraction), axis=-1, keepdims=True) >= ratio
        return ops.where(enough, low, middle), ops.where(enough, middle, high)

    low, high = ops.fori_loop(0, steps, halve, (low, high))
    return ops.stop_gradient(0.5 * (low + high))


def _softmax(scores):
    """Also of one score, of which Keras's warns."""
    return ops.exp(scores - ops.logsumexp(scores, axis=-1, keepdims=True))
