"""Functions of several variables whose true attributions are known, for the symbolic ChaosMining.

    derivative_i(x)  = df/dx_i                                   what saliency should give
    integral_i(x)    = x_i * integral_0^1 df/dx_i (a x) da       what integrated gradients should
    ablation_i(x)    = f(x) - f(x with x_i = 0)                  what feature ablation should

The list is that of "ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low
SNR Environments", Shi, Kan, Smucny, Davidson, 2024, arXiv 2406.12150.

Deviations: the integral is a Gauss-Legendre rule of 20 nodes, where the authors sum ten differences
along the path; the sum of powers ends in g^7/7 + h^8/8, where the authors' file has f and g and so
counts a variable h that it never reads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

_NODES = 20


@dataclass(frozen=True)
class Formula:
    """A function f of `num_features` variables.

    Args:
        num_features: number of variables.
        text: the formula as it is written.
        function: takes as many float64 tensors [batch] and returns one.
    """

    num_features: int
    text: str
    function: Callable

    def __call__(self, x):
        """f at the rows of x [batch, num_features], float64 [batch]."""
        return self._values(self._columns(x)).numpy()

    def derivatives(self, x):
        """Partial derivatives, float64 [batch, num_features]."""
        columns = self._columns(x)
        with tf.GradientTape() as tape:
            tape.watch(columns)
            values = self._values(columns)
        zero = tf.UnconnectedGradients.ZERO
        return np.stack(tape.gradient(values, columns, unconnected_gradients=zero), axis=1)

    def integrals(self, x):
        """Integrated gradients from 0, float64 [batch, num_features]; a row sums to f(x) - f(0)."""
        x = np.asarray(x, np.float64)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        path = np.concatenate([x * (1 + node) / 2 for node in nodes])
        gradients = self.derivatives(path).reshape(_NODES, *x.shape)
        return x * np.tensordot(weights / 2, gradients, axes=1)

    def ablations(self, x):
        """How much f changes when one variable is set to 0, float64 [batch, num_features]."""
        x = np.asarray(x, np.float64)
        without = x * (1 - np.eye(self.num_features))[:, np.newaxis]
        values = self(without.reshape(-1, self.num_features)).reshape(self.num_features, -1)
        return (self(x) - values).T

    def _columns(self, x):
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"`x` must have the shape [batch, {self.num_features}]. Received: {list(x.shape)}"
            )
        return [tf.constant(column) for column in x.T]

    def _values(self, columns):
        return tf.convert_to_tensor(self.function(*columns))


def _sum_of_powers(*x):
    return tf.add_n([value ** float(n) / n for n, value in enumerate(x, 1)])


def _six(a, b, c, d, e, f):
    fraction = tf.math.log((c - d) ** 2 + 1) / ((e + f + 1) ** 2 + 1)
    return 0.5 * tf.cos(a) * tf.tan(b) - fraction


def _seven(a, b, c, d, e, f, g):
    first = 0.5 * (b - c) ** 2 / (a**2 + 1)
    return first + tf.tan(d) * tf.math.log(e**2 + 1) + 0.5 * tf.cos(f) * tf.sin(g)


def _nine(a, b, c, d, e, f, g, h, i):
    signs_and_powers = (
        (a - 1) / (b**2 + 1),
        -(c**3) / (d**2 + 1),
        e**5 / (f**2 + 1),
        -(g**7) / (h**2 + 1),
    )
    return 0.5 * (tf.add_n(signs_and_powers) + tf.tan(i) + 1)


def _ten(a, b, c, d, e, f, g, h, i, j):
    smooth = tf.sin(a) - b**3 + tf.sqrt((d + e) ** 2 + 1) - tf.cos(f) * g - 1
    return 0.5 * smooth - tf.math.log(c**2 + 1) + h * i**2 / ((1 - j) ** 2 + 1)


FORMULAS = (
    Formula(1, "a", lambda a: a),
    Formula(1, "a^2", lambda a: a**2),
    Formula(1, "2/(a^2 + 1) - 1", lambda a: 2 / (a**2 + 1) - 1),
    Formula(1, "sin(a)", tf.sin),
    Formula(1, "exp(a) - 1.5", lambda a: tf.exp(a) - 1.5),
    Formula(1, "2 log(a^2 + 1) - 1", lambda a: 2 * tf.math.log(a**2 + 1) - 1),
    Formula(2, "a^3/4 + 3b^2/4", lambda a, b: 0.25 * a**3 + 0.75 * b**2),
    Formula(3, "a^3/2 + 3b^2/4 + ac", lambda a, b, c: 0.5 * a**3 + 0.75 * b**2 + a * c),
    Formula(
        4,
        "exp(a) sin(b)/2 - cos(d)^5/(4(c^2 + 1))",
        lambda a, b, c, d: 0.5 * tf.exp(a) * tf.sin(b) - 0.25 * tf.cos(d) ** 5 / (c**2 + 1),
    ),
    Formula(
        5,
        "(a - b)^2/2 + (c + de)^3/5 - 1/2",
        lambda a, b, c, d, e: 0.5 * (a - b) ** 2 + 0.2 * (c + d * e) ** 3 - 0.5,
    ),
    Formula(6, "cos(a) tan(b)/2 - log((c - d)^2 + 1)/((e + f + 1)^2 + 1)", _six),
    Formula(7, "(b - c)^2/(2(a^2 + 1)) + tan(d) log(e^2 + 1) + cos(f) sin(g)/2", _seven),
    Formula(8, "a + b^2/2 + c^3/3 + d^4/4 + e^5/5 + f^6/6 + g^7/7 + h^8/8", _sum_of_powers),
    Formula(
        9,
        "((a - 1)/(b^2 + 1) - c^3/(d^2 + 1) + e^5/(f^2 + 1) - g^7/(h^2 + 1) + tan(i) + 1)/2",
        _nine,
    ),
    Formula(
        10,
        "(sin(a) - b^3 + sqrt((d + e)^2 + 1) - cos(f) g - 1)/2 - log(c^2 + 1) "
        "+ h i^2/((1 - j)^2 + 1)",
        _ten,
    ),
)
