"""Generalised divisive normalisation, its inverse, and the log-determinant of its Jacobian.

    d_i = beta_i + sum_j gamma_ji |z_j|^alpha_ji                    (pooled activity)
    GDN:    y_i = z_i / d_i(z)^epsilon_i
    IGDN:   z_i = y_i d_i(y)^epsilon_i                              (approximate, with own weights)
    dy_i/dz_k = d_i^-epsilon_i (delta_ik - epsilon_i z_i / d_i s_ik),
         s_ik = gamma_ki alpha_ki |z_k|^(alpha_ki - 1) sign z_k

"Density Modeling of Images using a Generalized Normalization Transformation", Balle, Laparra,
Simoncelli, 2015, arXiv 1511.06281; sections 2 and 3. IGDN is from "End-to-end Optimized Image
Compression", 2016, arXiv 1611.01704. Indices are those of Keras's kernels, gamma[input, output].

beta, gamma and the exponents are kept above their bounds as in tensorflow-compression (which stands
on tf.keras and is not used here): value = max(root, sqrt(minimum + 2^-36))^2 - 2^-36, where the
gradient passes the maximum wherever it points back inside.

The inverse. The paper iterates z_i <- y_i d_i(z)^epsilon_i. In u = log |z| that is the fixed point
of G_i(u) = log |y_i| + epsilon_i log d_i, each a convex function whose derivatives P are not
negative and sum to at most epsilon_i max_j alpha_ji. Where that is at most 1 the fixed point is
unique, and Newton's method on u - G(u) from below climbs to it without overshooting, in about five
steps where the iteration itself takes hundreds.

Deviations: `inverse` solves the paper's fixed-point equation by Newton's method. Trained exponents
keep alpha_ji epsilon_i <= `max_growth` <= 1, as above it y is not monotone in z, and GDN no
bijection.
Open choices: the initial values, gamma = 0.1 I and beta = 1, are tensorflow-compression's.
"""

import keras
import tensorflow as tf
from keras import ops

from kzoo.ops.log_abs_det import log_abs_det
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Density Modeling of Images using a Generalized Normalization Transformation",
    authors=("Johannes Ballé", "Valero Laparra", "Eero P. Simoncelli"),
    year=2015,
    arxiv="1511.06281",
)

_PEDESTAL = 2.0**-36
_EXAMPLE = Example(
    kwargs={},
    inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 4, 3)).astype("float32"),),
)


class _DivisiveNormalization(keras.layers.Layer):
    """The pooled activity and its weights, for inputs [batch, ..., channels]."""

    def __init__(
        self,
        alpha=2.0,
        epsilon=0.5,
        train_exponents=False,
        max_growth=1.0,
        beta_minimum=1e-6,
        beta_initializer="ones",
        gamma_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.alpha_init = _checked("alpha", alpha, "at least 1", alpha >= 1)
        self.epsilon_init = _checked("epsilon", epsilon, "above 0", epsilon > 0)
        self.max_growth = _checked("max_growth", max_growth, "in (0, 1]", 0 < max_growth <= 1)
        self.beta_minimum = _checked("beta_minimum", beta_minimum, "above 0", beta_minimum > 0)
        if train_exponents and alpha * epsilon > max_growth * (1 + 1e-6):
            raise ValueError(
                "`alpha` times `epsilon` must be at most `max_growth` where exponents are trained. "
                f"Received: {alpha} x {epsilon} > {max_growth}"
            )
        self.train_exponents = bool(train_exponents)
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(
            keras.initializers.Identity(0.1) if gamma_initializer is None else gamma_initializer
        )

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"The last axis must be known. Received: input_shape={input_shape}")
        self.beta_root = self._add_root("beta", [channels], self.beta_initializer)
        self.gamma_root = self._add_root("gamma", [channels, channels], self.gamma_initializer)
        if self.train_exponents:
            constant = keras.initializers.Constant
            self.alpha_root = self._add_root(
                "alpha", [channels, channels], constant(self.alpha_init)
            )
            self.growth_root = self._add_root(
                "growth", [channels], constant(self.alpha_init * self.epsilon_init)
            )

    def _add_root(self, name, shape, initializer):
        def root(shape, dtype=None):
            value = ops.convert_to_tensor(initializer(shape, dtype=dtype))
            return ops.sqrt(ops.maximum(value, 0) + _PEDESTAL)

        return self.add_weight(name=f"{name}_root", shape=shape, initializer=root, autocast=False)

    @property
    def beta(self):
        """Floating [channels], at least `beta_minimum`."""
        return _from_root(self.beta_root, self.beta_minimum)

    @property
    def gamma(self):
        """Floating [channels in, channels out], at least 0."""
        return _from_root(self.gamma_root, 0.0)

    @property
    def alpha(self):
        """A number, or floating [channels in, channels out] if exponents are trained."""
        return _from_root(self.alpha_root, 1.0) if self.train_exponents else self.alpha_init

    @property
    def epsilon(self):
        """A number, or floating [channels] if exponents are trained."""
        if not self.train_exponents:
            return self.epsilon_init
        growth = _from_root(self.growth_root, 1e-6, self.max_growth)
        return growth / ops.max(self.alpha, axis=0)

    def _wide(self, values):
        """The values in the type of the weights, which in mixed precision is the wider one."""
        return ops.cast(values, self.beta_root.dtype)

    def _log_pooled(self, log_magnitude):
        """(log d, its derivatives by log |z|, [..., out, in])"""
        log_gamma = ops.log(self.gamma + _tiny(self.beta_root.dtype))
        terms = log_gamma + self.alpha * log_magnitude[..., None]
        log_pooled = ops.logaddexp(ops.log(self.beta), ops.logsumexp(terms, axis=-2))
        shares = ops.exp(terms - log_pooled[..., None, :]) * self.alpha
        return log_pooled, ops.swapaxes(shares, -1, -2)

    def _pooled(self, z):
        magnitude = ops.abs(z)
        if not self.train_exponents:
            powers = magnitude if self.alpha == 1 else _power(magnitude, self.alpha)
            return self.beta + ops.matmul(powers, self.gamma)
        return self.beta + ops.sum(self.gamma * _power(magnitude[..., None], self.alpha), axis=-2)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha_init,
            "epsilon": self.epsilon_init,
            "train_exponents": self.train_exponents,
            "max_growth": self.max_growth,
            "beta_minimum": self.beta_minimum,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
        }


@component(PAPER, example=_EXAMPLE)
class GDN(_DivisiveNormalization):
    """Divides each channel by the pooled activity of all channels at the same place.

    A normalisation that Gaussianises, or an activation between the convolutions of an image
    compressor. With beta = 1 and gamma = 0 it is the identity. Places never mix, so that dense
    features [batch, channels], sequences, images and volumes are all taken.

    A matrix product with gamma is all it costs where exponents are fixed; trained ones need
    channels^2 values per place in memory, as do `inverse` and `log_det_jacobian`.

    Args:
        alpha: the exponents inside, at least 1. Defaults to 2.
        epsilon: the exponents outside, above 0. Defaults to 0.5.
        train_exponents: whether `alpha` [channels, channels] and `epsilon` [channels] are trained,
            from these values on. Defaults to False.
        max_growth: bound of alpha x epsilon where they are trained, in (0, 1]. At 1, outputs are
            bounded, |y_i| < gamma_ii^-1/alpha; below they take every value. Defaults to 1.
        beta_minimum: least value of beta. Defaults to 1e-6.
        beta_initializer: of beta's values. Defaults to "ones".
        gamma_initializer: of gamma's values, which are clipped at 0. Defaults to
            `keras.initializers.Identity(0.1)`.

    Input shape: [batch, ..., channels]. Output shape: the same.

    Example:

    >>> layer = GDN()
    >>> y = layer(features)
    >>> layer.inverse(y)  # features

    Reference:
        Balle et al. (2015), equation 5, arxiv.org/abs/1511.06281
    """

    def call(self, inputs):
        z = self._wide(inputs)
        return ops.cast(z * _power(self._pooled(z), -self.epsilon), self.compute_dtype)

    def inverse(self, outputs, max_steps=50):
        """The z for which the layer gives `outputs`; differentiable in them and in the weights.

        Args:
            outputs: floating [batch, ..., channels].
            max_steps: bound on the number of Newton steps. Defaults to 50.

        Returns:
            The same shape, in the type of the weights. What no z leads to, which only exists where
            alpha x epsilon is 1, comes back as NaN.

        Raises:
            ValueError: for fixed exponents with alpha x epsilon above 1.
        """
        if not self.train_exponents and self.alpha * self.epsilon > 1 + 1e-6:
            raise ValueError(
                "Only exponents with `alpha` x `epsilon` of at most 1 make GDN invertible. "
                f"Received: {self.alpha} x {self.epsilon}"
            )
        y = self._wide(outputs)
        log_y = ops.log(ops.maximum(ops.abs(y), _tiny(y.dtype)))
        start = log_y + self.epsilon * ops.log(self.beta)
        found, step = _iterate(lambda u: self._newton_step(u, log_y), start, max_steps)
        # One more step carries the derivatives of the solution, by the implicit function theorem.
        solved = found + self._newton_step(tf.stop_gradient(found), log_y)
        valid = ops.logical_and(ops.isfinite(solved), step < 1e-2)
        valid = ops.all(valid, axis=-1, keepdims=True)
        return ops.where(valid, ops.exp(solved - log_y), _NAN) * y

    def _newton_step(self, log_z, log_y):
        log_pooled, shares = self._log_pooled(log_z)
        residual = log_y + self.epsilon * log_pooled - log_z
        epsilon = ops.convert_to_tensor(self.epsilon, dtype=log_z.dtype)[..., None]
        slopes = tf.stop_gradient(epsilon * shares)
        # A little more than the identity: where `outputs` are out of reach, I - P has no inverse.
        ridge = 1 + (1e-4 if log_z.dtype == tf.float32 else 1e-11)
        return _solve(ridge * ops.eye(slopes.shape[-1], dtype=slopes.dtype) - slopes, residual)

    def log_det_jacobian(self, inputs):
        """log |det dy/dz| of each place.

        Args:
            inputs: floating z [batch, ..., channels].

        Returns:
            [batch, ...], in the type of the weights.
        """
        z = self._wide(inputs)
        pooled = self._pooled(z)
        magnitude = ops.abs(z[..., None])
        slopes = self.gamma * self.alpha * _power(magnitude, self.alpha - 1)
        slopes = (
            ops.swapaxes(slopes * ops.sign(z[..., None]), -1, -2)
            * (self.epsilon * z / pooled)[..., None]
        )
        matrix = ops.eye(slopes.shape[-1], dtype=slopes.dtype) - slopes
        return log_abs_det(matrix) - ops.sum(self.epsilon * ops.log(pooled), axis=-1)


@component(PAPER, example=_EXAMPLE)
class IGDN(_DivisiveNormalization):
    """Multiplies each channel by the pooled activity: the counterpart of `GDN` in a decoder.

    One step of the fixed-point iteration that inverts a GDN of the same weights; its weights are
    trained by themselves. For the inverse of a given layer see `GDN.inverse`.

    Args:
        alpha, epsilon, train_exponents, max_growth, beta_minimum: see `GDN`, as are
            `beta_initializer` and `gamma_initializer`.

    Input shape: [batch, ..., channels]. Output shape: the same.

    Reference:
        Balle et al. (2016), End-to-end Optimized Image Compression, arxiv.org/abs/1611.01704
    """

    def call(self, inputs):
        z = self._wide(inputs)
        return ops.cast(z * _power(self._pooled(z), self.epsilon), self.compute_dtype)


_NAN = float("nan")


def _checked(name, value, allowed, valid):
    if not valid:
        raise ValueError(f"`{name}` must be {allowed}. Received: {value!r}")
    return float(value)


def _tiny(dtype):
    """Far below all values, and far enough from 0 that its powers and logarithm are finite."""
    return 1e-30 if keras.backend.standardize_dtype(dtype) == "float32" else 1e-200


def _from_root(root, minimum, maximum=None):
    lower = (minimum + _PEDESTAL) ** 0.5
    root = _lower_bound(tf.identity(ops.convert_to_tensor(root)), lower)
    if maximum is not None:
        root = -_lower_bound(-root, -((maximum + _PEDESTAL) ** 0.5))
    return root**2 - _PEDESTAL


def _lower_bound(x, bound):
    """max(x, bound), whose gradient also passes where a step against it leads back inside."""

    @tf.custom_gradient
    def bounded(x):
        def gradient(upstream):
            return tf.where((x >= bound) | (upstream < 0), upstream, tf.zeros_like(upstream))

        return tf.maximum(x, tf.cast(bound, x.dtype)), gradient

    return bounded(x)


def _power(base, exponent):
    """base^exponent for base >= 0, with finite derivatives by both at 0."""
    if isinstance(exponent, float):
        if exponent == 2:
            return ops.square(base)
        if exponent == -0.5:
            return ops.rsqrt(base)
    positive = base > 0
    safe = ops.where(positive, base, 1)
    powers = ops.exp(exponent * ops.log(safe))
    at_zero = ops.cast(ops.equal(exponent, 0), base.dtype)
    return ops.where(positive, powers, at_zero)


def _iterate(step, start, max_steps):
    """(u, the size of the last step of each row) after u <- u + step(u) until all are small."""
    # Nothing is as large as e^80 but what has no solution.
    tolerance = 1e-5 if start.dtype == tf.float32 else 1e-10

    def body(u, _):
        delta = step(u)
        return [tf.minimum(u + delta, 80.0), tf.reduce_max(tf.abs(delta), axis=-1, keepdims=True)]

    start = tf.stop_gradient(start)
    u, size = tf.while_loop(
        lambda u, size: tf.reduce_any(size > tolerance),
        body,
        [start, tf.fill(tf.shape(start[..., :1]), tf.constant(float("inf"), start.dtype))],
        maximum_iterations=max_steps,
    )
    return tf.stop_gradient(u), tf.stop_gradient(size)


def _solve(matrix, vector):
    return tf.linalg.solve(matrix, vector[..., None])[..., 0]
