"""The abc-parametrizations of a deep perceptron: how it behaves as its width n grows.

    W^l = n^-a_l w^l,   w^l_ij ~ N(0, n^-2b_l),   learning rate n^-c          l = 1 ... L + 1
    r = min(a_{L+1} + b_{L+1}, 2 a_{L+1} + c) + c - 1 + min_{l <= L} (2 a_l + [l = 1])

L is the number of hidden layers; with SGD, the coordinates of the last hidden layer move by n^-r.

"Feature Learning in Infinite-Width Neural Networks", Yang, Hu, 2020, arXiv 2011.14522 (section 3
and table 1).

Deviations: a network has its widths and deviations relative to a base width, so that all
parametrizations agree there. Not included are the infinite-width limits themselves.
"""

import math
from dataclasses import dataclass

import keras

from kzoo.layers.scaled_dense import ScaledDense
from kzoo.papers import Paper, component

PAPER = Paper(
    title="Feature Learning in Infinite-Width Neural Networks",
    authors=("Greg Yang", "Edward J. Hu"),
    year=2020,
    arxiv="2011.14522",
)

_TOLERANCE = 1e-9


@component(PAPER)
@dataclass(frozen=True)
class ABCParametrization:
    """Exponents of the width, and what follows from them for training by SGD.

    Args:
        a: (a_1, ..., a_{L+1}), of the multipliers; L is at least 1.
        b: (b_1, ..., b_{L+1}), of the initial standard deviations.
        c: of the learning rate.

    Example:

    >>> ABCParametrization.neural_tangent(2).r
    0.5
    >>> ABCParametrization.maximal_update(2).learns_features
    True

    Reference:
        Yang, Hu (2020), arxiv.org/abs/2011.14522
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    c: float

    def __post_init__(self):
        if len(self.a) < 2 or len(self.a) != len(self.b):
            raise ValueError(
                "`a` and `b` must have one exponent for each of at least two layers. Received: "
                f"{self.a!r} and {self.b!r}"
            )
        if not all(math.isfinite(exponent) for exponent in (*self.a, *self.b, self.c)):
            raise ValueError(f"The exponents must be finite. Received: {self}")

    @classmethod
    def standard(cls, hidden_layers, c=1.0):
        """SP. Its learning rate has to shrink with the width, c = 1, or it diverges (c = 0)."""
        return cls(*_layers(hidden_layers, (0.0, 0.0, 0.0), (0.0, 0.5, 0.5)), float(c))

    @classmethod
    def neural_tangent(cls, hidden_layers):
        """NTP: its limit is the training of a kernel."""
        return cls(*_layers(hidden_layers, (0.0, 0.5, 0.5), (0.0, 0.0, 0.0)), 0.0)

    @classmethod
    def mean_field(cls):
        """MFP, of one hidden layer; the same as muP."""
        return cls((0.0, 1.0), (0.0, 0.0), -1.0)

    @classmethod
    def maximal_update(cls, hidden_layers):
        """muP: every layer learns features as fast as it can."""
        return cls(*_layers(hidden_layers, (-0.5, 0.0, 0.5), (0.5, 0.5, 0.5)), 0.0)

    @property
    def r(self):
        """Exponent of the change of features: they move by n^-r in each coordinate."""
        *hidden, a = self.a
        b = self.b[-1]
        slowest = min(2 * each + (layer == 0) for layer, each in enumerate(hidden))
        return min(a + b, 2 * a + self.c) + self.c - 1 + slowest

    @property
    def is_stable(self):
        """Whether neither activations nor outputs blow up, at initialization and in training."""
        first, *others, last = (x + y for x, y in zip(self.a, self.b, strict=True))
        initial = _equal(first, 0.0) and all(_equal(each, 0.5) for each in others)
        return (
            initial
            and last >= 0.5 - _TOLERANCE
            and self.r >= -_TOLERANCE
            and 2 * self.a[-1] + self.c >= 1 - _TOLERANCE
            and last + self.r >= 1 - _TOLERANCE
        )

    @property
    def is_nontrivial(self):
        """Whether a stable parametrization learns anything: its output moves from the start."""
        return _equal(self.a[-1] + self.b[-1] + self.r, 1.0) or _equal(2 * self.a[-1] + self.c, 1.0)

    @property
    def learns_features(self):
        """Whether it is stable and its features move in the limit; the alternative to a kernel."""
        return self.is_stable and self.is_nontrivial and _equal(self.r, 0.0)

    @property
    def is_kernel_regime(self):
        """Whether it is stable and its limit is gradient descent with a fixed kernel."""
        return self.is_stable and self.is_nontrivial and self.r > _TOLERANCE

    def shifted(self, theta):
        """a + theta, b - theta, c - 2 theta: the same function and the same training."""
        a, b = tuple(x + theta for x in self.a), tuple(x - theta for x in self.b)
        return ABCParametrization(a, b, self.c - 2 * theta)

    def learning_rate(self, base_rate, width, base_width=1):
        """The learning rate of SGD at a width, from that at the base width."""
        return base_rate * (width / base_width) ** -self.c

    def perceptron(
        self, width, inputs, outputs, base_width=1, activation="tanh", gain=1.0, seed=None
    ):
        """The network, without biases, as the definition has it.

        Args:
            width: number n of units of each of the L hidden layers.
            inputs: number of features that come in.
            outputs: number of outputs.
            base_width: width at which all parametrizations are the same network: w^l is drawn with
                the deviation gain / sqrt(fan-in of the base) (n / base_width)^-b_l. Defaults to
                1, the definition.
            activation: of the hidden layers. Defaults to "tanh".
            gain: factor of the deviation in the hidden layers. Defaults to 1.
            seed: integer; None draws one.

        Returns:
            `keras.Sequential` of `ScaledDense` layers named layer_1, ..., layer_{L+1}.
        """
        ratio = width / base_width
        sizes = [inputs, *[base_width] * (len(self.a) - 1)]
        seeds = keras.random.SeedGenerator(seed)
        network = keras.Sequential([keras.Input([inputs])])
        for layer, (a, b, fan_in) in enumerate(zip(self.a, self.b, sizes, strict=True), 1):
            is_last = layer == len(self.a)
            deviation = (1.0 if is_last else gain) / math.sqrt(fan_in) * ratio**-b
            network.add(
                ScaledDense(
                    outputs if is_last else width,
                    multiplier=ratio**-a,
                    activation=None if is_last else activation,
                    use_bias=False,
                    kernel_initializer=keras.initializers.RandomNormal(
                        stddev=deviation, seed=int(seeds.next()[-1])
                    ),
                    name=f"layer_{layer}",
                )
            )
        return network


def _layers(hidden_layers, a, b):
    """(first, hidden, last) exponents, one for each layer."""
    if not isinstance(hidden_layers, int) or hidden_layers < 1:
        raise ValueError(f"`hidden_layers` must be a positive integer. Received: {hidden_layers!r}")
    return [(x[0], *[x[1]] * (hidden_layers - 1), x[2]) for x in (a, b)]


def _equal(x, y):
    return abs(x - y) < _TOLERANCE
