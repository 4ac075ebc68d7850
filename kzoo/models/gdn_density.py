"""A density made of generalised divisive normalisations: data are what makes their outputs normal.

    y = g_L(H_L ... g_1(H_1 x)),       g: GDN
    log p(x) = log N(y; 0, I) + sum_l log |det H_l| + log |det dg_l|

Maximum likelihood minimises E[|y|^2 / 2 - log |det dy/dx|], which is the negentropy of y up to a
constant, its divergence from the standard normal distribution.

"Density Modeling of Images using a Generalized Normalization Transformation", Balle, Laparra,
Simoncelli, 2015, arXiv 1511.06281; equations 1 to 5. The transform is `kzoo.layers.GDN`.

Deviations: alpha_ji epsilon_i is at most `max_growth`, see `kzoo.layers.gdn`. An offset of each
linear stage is an addition, off by default: the paper removes means beforehand. The stages of a
cascade are trained together; the paper trains one after the other.
"""

import math

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from kzoo.layers.gdn import GDN, PAPER
from kzoo.ops.log_abs_det import log_abs_det
from kzoo.papers import Example, component


@component(
    PAPER,
    example=Example(
        kwargs={"features": 3, "depth": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 3)).astype("float32"),),
    ),
)
class GDNDensity(keras.Model):
    """Linear stages and GDNs in turn, trained so that their outputs are standard normal.

    Calling the model gives log p of each row; its loss is built in, so that `compile` wants an
    optimizer only. Remove the mean and the scale of the data first, and clip gradients
    (`clipnorm=1`) where the data have heavy tails.

    Args:
        features: number of features, or pixels of a flattened patch.
        depth: number of stages. Defaults to 1.
        alpha: initial exponents inside, at least 1. Defaults to 2.
        growth: initial alpha x epsilon, at most `max_growth`. Defaults to 0.9.
        max_growth: bound of alpha x epsilon, below 1, so that y takes every value and p integrates
            to 1. The nearer to 1, the heavier the tails that can be made normal. Defaults to 0.95.
        use_bias: whether linear stages have an offset. Defaults to False.
        kernel_initializer: of the square matrices H. Defaults to "identity".
        dtype: type of the layers, at least float32.

    Input: floating [batch, features]. Output: log p(x), [batch].

    Example:

    >>> model = GDNDensity(64)
    >>> model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0))
    >>> model.fit(patches, epochs=10)
    >>> samples = model.sample(16, seed=0)

    Reference:
        Balle et al. (2015), arxiv.org/abs/1511.06281
    """

    def __init__(
        self,
        features,
        depth=1,
        alpha=2.0,
        growth=0.9,
        max_growth=0.95,
        use_bias=False,
        kernel_initializer="identity",
        dtype=None,
        **kwargs,
    ):
        for name, value in (("features", features), ("depth", depth)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        if not 0 < growth <= max_growth < 1:
            raise ValueError(
                "`growth` and `max_growth` must be in order between 0 and 1. Received: "
                f"{growth!r} and {max_growth!r}"
            )
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=keras.backend.result_type(policy.compute_dtype, "float32"), **kwargs)
        self.features = features
        self.config = {
            "features": features,
            "depth": depth,
            "alpha": alpha,
            "growth": growth,
            "max_growth": max_growth,
            "use_bias": use_bias,
            "kernel_initializer": keras.initializers.serialize(
                keras.initializers.get(kernel_initializer)
            ),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }
        self.linear = [
            keras.layers.Dense(
                features,
                use_bias=use_bias,
                kernel_initializer=keras.initializers.get(kernel_initializer),
                dtype=self.dtype_policy,
                name=f"linear_{i}",
            )
            for i in range(depth)
        ]
        self.normalizations = [
            GDN(
                alpha,
                growth / alpha,
                train_exponents=True,
                max_growth=max_growth,
                dtype=self.dtype_policy,
                name=f"gdn_{i}",
            )
            for i in range(depth)
        ]
        self.build((None, features))

    def build(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] != self.features:
            raise ValueError(f"Inputs must be [batch, {self.features}]. Received: {input_shape}")
        for layer in (*self.linear, *self.normalizations):
            layer.build(input_shape)
        self.built = True

    def call(self, inputs):
        log_prob = self.log_prob(inputs)
        self.add_loss(-tf.reduce_mean(log_prob))
        return log_prob

    def compute_output_shape(self, input_shape):
        return (input_shape[0],)

    def log_prob(self, inputs):
        """log p of each row of floating [batch, features]: [batch]."""
        y, log_det = self._forward(inputs)
        normal = -0.5 * (tf.reduce_sum(y**2, axis=-1) + self.features * math.log(2 * math.pi))
        return normal + log_det

    def gaussianize(self, inputs):
        """y, as normal as training has made it; [batch, features] to the same shape."""
        return self._forward(inputs)[0]

    def inverse(self, outputs):
        """x of floating y [batch, features]."""
        x = tf.cast(outputs, self.compute_dtype)
        for linear, normalization in zip(self.linear[::-1], self.normalizations[::-1], strict=True):
            x = normalization.inverse(x)
            if linear.use_bias:
                x = x - linear.bias
            x = tf.transpose(tf.linalg.solve(tf.transpose(linear.kernel.value), tf.transpose(x)))
        return x

    def sample(self, count, seed=None):
        """Draws from the density.

        Args:
            count: how many.
            seed: an integer, or None for other samples each time.

        Returns:
            [count, features]
        """
        noise = keras.random.normal([count, self.features], seed=seed, dtype=self.compute_dtype)
        return self.inverse(noise)

    def denoise(self, noisy, noise_std, method="bayes", max_steps=200):
        """Removes white Gaussian noise.

        Args:
            noisy: array [batch, features].
            noise_std: its standard deviation, above 0.
            method: "bayes" for E[x | noisy] = noisy + noise_std^2 grad log p(noisy) (Miyasawa), of
                a model that was trained on noisy data, which needs no clean ones; "map" for the
                mode of p(x | noisy), of a model that was trained on clean data, by SciPy's L-BFGS.
            max_steps: bound on the steps for "map". Defaults to 200.

        Returns:
            array [batch, features]
        """
        if method not in ("bayes", "map"):
            raise ValueError(f"`method` must be 'bayes' or 'map'. Received: {method!r}")
        if not 0 < noise_std < math.inf:
            raise ValueError(f"`noise_std` must be finite and above 0. Received: {noise_std!r}")
        noisy = np.asarray(noisy, self.compute_dtype)
        if method == "bayes":
            return noisy + noise_std**2 * self._log_prob_and_score(noisy)[1]

        def energy(flat):
            x = flat.reshape(noisy.shape)
            log_prob, score = self._log_prob_and_score(x)
            residual = (x - noisy) / noise_std**2
            value = 0.5 * np.sum((x - noisy) * residual) - np.sum(log_prob, dtype="float64")
            return value, np.ravel(residual - score).astype("float64")

        found = minimize(
            energy, np.ravel(noisy), method="L-BFGS-B", jac=True, options={"maxiter": max_steps}
        )
        return found.x.reshape(noisy.shape).astype(noisy.dtype)

    def _forward(self, inputs):
        """(y, log |det dy/dx|)"""
        y = tf.cast(inputs, self.compute_dtype)
        log_det = tf.zeros(tf.shape(y)[:1], y.dtype)
        for linear, normalization in zip(self.linear, self.normalizations, strict=True):
            z = linear(y)
            log_det += log_abs_det(tf.identity(linear.kernel.value))
            log_det += normalization.log_det_jacobian(z)
            y = normalization(z)
        return y, log_det

    def _log_prob_and_score(self, x):
        """(log p, its gradient by x), arrays."""
        x = tf.constant(x, self.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            log_prob = self.log_prob(x)
        return log_prob.numpy(), tape.gradient(log_prob, x).numpy()

    def get_config(self):
        return {"name": self.name, **self.config}
