"""Tversky similarity: what two objects have in common, less what only one of them has.

    A = {k : a . f_k > 0}                                   (an object is a set of features)
    S(a, b) = theta f(A & B) - alpha f(A - B) - beta f(B - A)
    f(A & B) = sum_k Psi(a . f_k, b . f_k) [a . f_k > 0 and b . f_k > 0]            (equation 3)
    f(A - B) = sum_k a . f_k [a . f_k > 0 and b . f_k <= 0]          ("ignorematch", equation 4)
    f(A - B) = sum_k (a . f_k - b . f_k) [a . f_k > b . f_k > 0]   ("subtractmatch", equation 5)

Psi is the product, min, max, mean, geometric mean or softmin = -log(exp(-a) + exp(-b)). The bank of
features f_k, the weights alpha, beta, theta and, in a projection, the prototypes b are learned.

"Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky
Similarity", Doumbouya, Jurafsky, Manning, 2025, arXiv 2506.11035.

Open choices: sets are compared feature by feature, as the equations say; the authors' library
applies Psi (but for product and mean) and the comparison of "subtractmatch" (spelled
"substractmatch" there) to sums over the features, and adds equation 4 to equation 5. Its initial
values are taken: uniform in [0, 1) for features and prototypes, alpha = beta = 0.5, theta = 1. Its
ratio model is left out. Membership is a step function: no gradient goes through it. The geometric
mean treats a measure below 1e-12 as absent, which bounds its slope.
"""

import keras
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable "
    "Tversky Similarity",
    authors=("Moussa Koulako Bala Doumbouya", "Dan Jurafsky", "Christopher D. Manning"),
    year=2025,
    arxiv="2506.11035",
)

_LEAST = 1e-12


def _present(x):
    return ops.cast(x > 0, x.dtype)


def _absent(x):
    return ops.cast(x <= 0, x.dtype)


def _half(x):
    return 0.5 * ops.relu(x)


def _root(x):
    is_large = x > _LEAST
    return ops.where(is_large, ops.sqrt(ops.where(is_large, x, 1.0)), 0.0)


def _if_both(a, b, value):
    return ops.where(ops.logical_and(a > 0, b > 0), value, 0.0)


# Sums over pairs (u, v) of u(a) v(b): over all features they are matrix products.
_FACTORED = {
    "product": ((ops.relu, ops.relu),),
    "mean": ((_half, _present), (_present, _half)),
    "gmean": ((_root, _root),),
    "ignorematch": ((ops.relu, _absent),),
}
_PAIRWISE = {
    "min": lambda a, b: ops.minimum(ops.relu(a), ops.relu(b)),
    "max": lambda a, b: _if_both(a, b, ops.maximum(a, b)),
    # -log(exp(-a) + exp(-b)), stable and with the right slopes at a = b.
    "softmin": lambda a, b: _if_both(a, b, a - ops.softplus(a - b)),
    "subtractmatch": lambda a, b: _if_both(a, b, ops.relu(a - b)),
}
INTERSECTIONS = ("product", "min", "max", "mean", "gmean", "softmin")
DIFFERENCES = ("ignorematch", "subtractmatch")


def _compare(kind, a, b):
    """The terms of f for each feature, from measures that broadcast to [..., features]."""
    if kind in _PAIRWISE:
        return _PAIRWISE[kind](a, b)
    return sum(u(a) * v(b) for u, v in _FACTORED[kind])


def _compare_all(kind, a, b):
    """f of each of a [..., features] and each of b [units, features]: [..., units]."""
    if kind in _PAIRWISE:
        return ops.sum(_PAIRWISE[kind](ops.expand_dims(a, -2), b), axis=-1)
    return sum(ops.matmul(u(a), ops.transpose(v(b))) for u, v in _FACTORED[kind])


def _compare_all_reversed(kind, a, b):
    """As `_compare_all`, but f of b and a."""
    if kind in _PAIRWISE:
        return ops.sum(_PAIRWISE[kind](b, ops.expand_dims(a, -2)), axis=-1)
    return sum(ops.matmul(v(a), ops.transpose(u(b))) for u, v in _FACTORED[kind])


def full_precision(dtype):
    """The policy of `dtype`, or float32 in place of 16 bits, which blur what is a member."""
    policy = keras.dtype_policies.get(dtype)
    return "float32" if policy.compute_dtype in ("float16", "bfloat16") else policy


def check_count(name, value):
    """Refuses what is no integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")


@component(
    PAPER,
    example=Example(
        kwargs={"size": 5},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class TverskyFeatureBank(keras.layers.Layer):
    """A bank of learned features, and how much of each an object has: x . f_k.

    Give one bank to several layers to share its features, and count them once. A `.keras` file
    keeps them shared; `keras.models.clone_model` makes a bank for each layer.

    Args:
        size: number of features, at least 1.
        initializer, regularizer, constraint: of the features. Default to a uniform distribution
            over [0, 1), None and None.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`. Under a 16-bit
            policy the bank computes in float32.

    Input shape: [batch, ..., d]. Output shape: [batch, ..., size].

    Reference:
        Doumbouya et al. (2025), arxiv.org/abs/2506.11035
    """

    def __init__(
        self, size, initializer=None, regularizer=None, constraint=None, dtype=None, **kwargs
    ):
        check_count("size", size)
        super().__init__(dtype=full_precision(dtype), **kwargs)
        self.size = size
        self.initializer = _initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, input_shape):
        width = input_shape[-1]
        self.features = self.add_weight(
            name="features",
            shape=(self.size, width),
            initializer=self.initializer,
            regularizer=self.regularizer,
            constraint=self.constraint,
        )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: width})

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.features))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.size)

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


class TverskyContrast(keras.layers.Layer):
    """Base of the Tversky layers: alpha, beta and theta, and what they weigh.

    Args:
        intersection: Psi: "product", "min", "max", "mean", "gmean" or "softmin".
        difference: "ignorematch" or "subtractmatch".
        alpha_initializer, beta_initializer, theta_initializer: default to the constants 0.5, 0.5
            and 1.
        contrast_regularizer: of alpha, beta and theta. Defaults to None.
        contrast_constraint: of alpha, beta and theta; "non_neg" keeps them in the range that
            Tversky's theory gives them. Defaults to None, as in the paper.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`. Under a 16-bit
            policy the layer computes, and returns, float32.
    """

    def __init__(
        self,
        intersection="product",
        difference="ignorematch",
        alpha_initializer=None,
        beta_initializer=None,
        theta_initializer=None,
        contrast_regularizer=None,
        contrast_constraint=None,
        dtype=None,
        **kwargs,
    ):
        _check_choice("intersection", intersection, INTERSECTIONS)
        _check_choice("difference", difference, DIFFERENCES)
        super().__init__(dtype=full_precision(dtype), **kwargs)
        self.intersection = intersection
        self.difference = difference
        self.alpha_initializer = _initializer(alpha_initializer, 0.5)
        self.beta_initializer = _initializer(beta_initializer, 0.5)
        self.theta_initializer = _initializer(theta_initializer, 1.0)
        self.contrast_regularizer = keras.regularizers.get(contrast_regularizer)
        self.contrast_constraint = keras.constraints.get(contrast_constraint)

    def add_contrast_weights(self):
        """Creates alpha, beta and theta."""
        for name in ("alpha", "beta", "theta"):
            weight = self.add_weight(
                name=name,
                shape=(),
                initializer=getattr(self, f"{name}_initializer"),
                regularizer=self.contrast_regularizer,
                constraint=self.contrast_constraint,
            )
            setattr(self, name, weight)

    def terms(self, a, b):
        """What each feature adds to S(a, b), from the measures a . f_k and b . f_k.

        Args:
            a, b: tensors that broadcast to [..., features].

        Returns:
            (common, only_a, only_b), each [..., features]: theta Psi, and the terms of -alpha
            f(A - B) and of -beta f(B - A). S(a, b) is the sum of them all.
        """
        return (
            self.theta * _compare(self.intersection, a, b),
            -self.alpha * _compare(self.difference, a, b),
            -self.beta * _compare(self.difference, b, a),
        )

    def contrast(self, a, b):
        """S of each object and each prototype.

        Args:
            a: measures [..., features] of objects.
            b: measures [units, features] of prototypes.

        Returns:
            [..., units].
        """
        return (
            self.theta * _compare_all(self.intersection, a, b)
            - self.alpha * _compare_all(self.difference, a, b)
            - self.beta * _compare_all_reversed(self.difference, a, b)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "intersection": self.intersection,
            "difference": self.difference,
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer),
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "theta_initializer": keras.initializers.serialize(self.theta_initializer),
            "contrast_regularizer": keras.regularizers.serialize(self.contrast_regularizer),
            "contrast_constraint": keras.constraints.serialize(self.contrast_constraint),
        }


class _WithBank(TverskyContrast):
    """A Tversky layer whose features are vectors of the size of its inputs."""

    def __init__(self, features, normalize=False, **kwargs):
        if isinstance(features, dict):
            features = keras.saving.deserialize_keras_object(features)
        if not isinstance(features, TverskyFeatureBank):
            check_count("features", features)
        super().__init__(**kwargs)
        is_bank = isinstance(features, TverskyFeatureBank)
        self.features = features if is_bank else TverskyFeatureBank(features, dtype=self.dtype)
        self.normalize = normalize

    def build_bank(self, input_shape):
        if not self.features.built:
            self.features.build(input_shape)

    def measures(self, x):
        """a . f_k of objects [..., d]: [..., features]; with `normalize`, of their directions."""
        return self.features(_direction(x) if self.normalize else x)

    def salience(self, x):
        """f(A), the sum of the positive measures of objects [..., d]: [...]."""
        return ops.sum(ops.relu(self.measures(x)), axis=-1)

    def get_config(self):
        features = keras.saving.serialize_keras_object(self.features)
        # By this key of its format Keras finds one object for all that share it. It would add the
        # key itself, but loses it where a functional model copies the configurations of its layers.
        features["shared_object_id"] = id(self.features)
        return {**super().get_config(), "features": features, "normalize": self.normalize}


@component(
    PAPER,
    example=Example(
        kwargs={"features": 5, "difference": "subtractmatch"},
        inputs=lambda rng, batch: tuple(rng.normal(size=(2, batch, 4)).astype("float32")),
    ),
)
class TverskySimilarity(_WithBank):
    """The Tversky similarity S(a, b) of pairs of objects; unlike a dot product, not symmetric.

    Args:
        features: number of learned features, or a `TverskyFeatureBank` to share.
        intersection: how strong a common feature is: "product", "min", "max", "mean", "gmean" or
            "softmin". Defaults to "product".
        difference: "ignorematch", or "subtractmatch", which looks at features that both have.
            Defaults to "ignorematch".
        normalize: whether objects are scaled to unit length first. Defaults to False.
        kwargs: initializers, regularizer and constraint of alpha, beta and theta, see
            `TverskyContrast`; those of the features are the bank's.

    Input: two tensors [batch, ..., d]. Output shape: [batch, ...].

    Example:

    >>> similarity = TverskySimilarity(16)(son, father)

    Reference:
        Doumbouya et al. (2025), equation 6, arxiv.org/abs/2506.11035
    """

    def __init__(
        self,
        features,
        intersection="product",
        difference="ignorematch",
        normalize=False,
        **kwargs,
    ):
        super().__init__(
            features, normalize, intersection=intersection, difference=difference, **kwargs
        )

    def build(self, a_shape, b_shape):
        if a_shape[-1] != b_shape[-1]:
            raise ValueError(
                "Both objects must have vectors of one size. Received: shapes "
                f"{tuple(a_shape)} and {tuple(b_shape)}"
            )
        self.build_bank(a_shape)
        self.add_contrast_weights()

    def call(self, a, b):
        return ops.sum(sum(self.terms(self.measures(a), self.measures(b))), axis=-1)


@component(
    PAPER,
    example=Example(
        kwargs={"units": 3, "features": 5},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4)).astype("float32"),),
    ),
)
class TverskyProjection(_WithBank):
    """Tversky similarities to learned prototypes: in place of a `Dense` layer without bias.

    A single one can separate what is not linearly separable, such as XOR. With k features and d
    inputs it has units * d + k * d + 3 parameters. "min", "max", "softmin" and "subtractmatch"
    hold a tensor [batch, ..., units, features]; the others need matrix products only.

    Args:
        units: number of prototypes, and size of the output.
        features: number of learned features, or a `TverskyFeatureBank` to share.
        intersection, difference, normalize: see `TverskySimilarity`; `normalize` scales the
            prototypes as well.
        prototypes_initializer, prototypes_regularizer, prototypes_constraint: default to a uniform
            distribution over [0, 1), None and None.
        kwargs: initializers, regularizer and constraint of alpha, beta and theta, see
            `TverskyContrast`.

    Input shape: [batch, ..., d]. Output shape: [batch, ..., units].

    Example:

    >>> bank = TverskyFeatureBank(64)
    >>> hidden = TverskyProjection(32, bank)(x)
    >>> logits = TverskyProjection(10, 16)(hidden)

    Reference:
        Doumbouya et al. (2025), equation 7, arxiv.org/abs/2506.11035
    """

    def __init__(
        self,
        units,
        features,
        intersection="product",
        difference="ignorematch",
        normalize=False,
        prototypes_initializer=None,
        prototypes_regularizer=None,
        prototypes_constraint=None,
        **kwargs,
    ):
        check_count("units", units)
        super().__init__(
            features, normalize, intersection=intersection, difference=difference, **kwargs
        )
        self.units = units
        self.prototypes_initializer = _initializer(prototypes_initializer)
        self.prototypes_regularizer = keras.regularizers.get(prototypes_regularizer)
        self.prototypes_constraint = keras.constraints.get(prototypes_constraint)

    def build(self, input_shape):
        self.build_bank(input_shape)
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(self.units, input_shape[-1]),
            initializer=self.prototypes_initializer,
            regularizer=self.prototypes_regularizer,
            constraint=self.prototypes_constraint,
        )
        self.add_contrast_weights()
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs):
        return self.contrast(self.measures(inputs), self.prototype_measures())

    def prototype_measures(self):
        """The measures b . f_k of the prototypes, [units, features]."""
        return self.measures(ops.convert_to_tensor(self.prototypes))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "prototypes_initializer": keras.initializers.serialize(self.prototypes_initializer),
            "prototypes_regularizer": keras.regularizers.serialize(self.prototypes_regularizer),
            "prototypes_constraint": keras.constraints.serialize(self.prototypes_constraint),
        }


def _direction(x):
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    has_length = squares > _LEAST
    # The inner choice keeps the root's infinite slope at 0 out of the gradient.
    return x * ops.where(has_length, ops.rsqrt(ops.where(has_length, squares, 1.0)), 0.0)


def _initializer(initializer, constant=None):
    if initializer is None and constant is None:
        return keras.initializers.RandomUniform(0.0, 1.0)
    return keras.initializers.get(initializer or keras.initializers.Constant(constant))


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}")
