"""Spectral risk of the losses of a batch: the worst reweighting within a polytope, at a cost.

    R(l) = max_{q in P(sigma)} q^T l - nu D(q || 1/n)            (equation 2)
    P(sigma) = convex hull of the permutations of sigma_1 <= ... <= sigma_n, sum 1
    D = n ||q - 1/n||^2 (chi-square)   or   sum q_i log(n q_i) (Kullback-Leibler)
    grad R = the q of the maximum                                (equation 3, Danskin)

The maximum over q is an isotonic regression on the sorted losses, solved exactly by
`kzoo.ops.permutahedron`.

"Distributionally Robust Optimization with Bias and Variance Reduction", Mehta, Roulet, Pillutla,
Harchaoui, 2023, arXiv 2310.13863.

Deviations: the authors' code has half of this chi-square divergence. With nu = 0, where the
maximum need not be unique, equal losses are ranked by their place.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.ops.permutahedron import chi_square_weights, kl_weights
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Distributionally Robust Optimization with Bias and Variance Reduction",
    authors=("Ronak Mehta", "Vincent Roulet", "Krishna Pillutla", "Zaid Harchaoui"),
    year=2023,
    arxiv="2310.13863",
)

# name: (the integral of the spectrum from 0 to t, allowed parameters, what to call them)
_SPECTRA = {
    "cvar": (lambda t, alpha: tf.nn.relu(t - alpha) / (1 - alpha), (0.0, 1.0), "in [0, 1)"),
    "extremile": (lambda t, r: t**r, (1.0, np.inf), "at least 1"),
    "esrm": (
        lambda t, rho: tf.math.expm1(rho * t) / np.expm1(rho),
        (np.finfo(float).tiny, 500.0),
        "in (0, 500)",
    ),
}
_DIVERGENCES = ("chi2", "kl")


@component(PAPER)
def risk_spectrum(name, parameter, size, dtype="float64"):
    """sigma: how much the worst, second worst ... of `size` losses count.

    Args:
        name: "cvar", the mean of the worst share 1 - alpha of the losses; "extremile", the
            expected maximum of r losses; "esrm", with weights that grow like exp(rho t).
        parameter: alpha in [0, 1), r of at least 1, or rho in (0, 500). With alpha = 0 or r = 1
            the risk is the mean.
        size: n, an integer or a scalar tensor.
        dtype: of the result. Defaults to "float64".

    Returns:
        [n], rising, with the sum 1.

    Example:

    >>> risk_spectrum("cvar", 0.5, 4)
    [0.0, 0.0, 0.5, 0.5]

    Reference:
        Mehta et al. (2023), appendix B, arxiv.org/abs/2310.13863
    """
    integral = _integral(name, parameter)
    size = tf.cast(size, "int32")
    ends = tf.cast(tf.range(size + 1), "float64") / tf.cast(size, "float64")
    total = integral(ends, float(parameter))
    return tf.cast(total[1:] - total[:-1], dtype)


@component(PAPER)
def spectral_weights(losses, spectrum, shift_cost, divergence="chi2", ranks=None):
    """The q of the maximum, by which each loss counts; the gradient of the spectral risk.

    Args:
        losses: l, floats [n].
        spectrum: sigma, rising, [n], as from `risk_spectrum`.
        shift_cost: nu, a number of at least 0.
        divergence: D, "chi2" or "kl". Defaults to "chi2".
        ranks: int32 [n], the place of each loss among them, from 0, if it is known. Defaults to
            sorting.

    Returns:
        [n], at least 0 but for rounding, with the sum 1; float32, or float64 where `losses` is.
        No gradient flows through it.

    Reference:
        Mehta et al. (2023), proposition 3, arxiv.org/abs/2310.13863
    """
    _check_penalty(shift_cost, divergence)
    losses = tf.convert_to_tensor(losses)
    losses = tf.stop_gradient(tf.cast(losses, keras.backend.result_type(losses.dtype, "float32")))
    spectrum = tf.cast(spectrum, losses.dtype)
    ranks = loss_ranks(losses) if ranks is None else ranks
    if shift_cost == 0:
        return tf.gather(spectrum, ranks)
    solve = chi_square_weights if divergence == "chi2" else kl_weights
    rising = tf.scatter_nd(ranks[:, tf.newaxis], losses, tf.shape(losses))
    return tf.gather(solve(rising, spectrum, shift_cost), ranks)


def loss_ranks(losses):
    """int32 [n], the place of each loss among them, from 0; of equal ones the first is before."""
    places = tf.range(tf.size(losses))
    order = tf.argsort(losses, stable=True)
    return tf.scatter_nd(order[:, tf.newaxis], places, tf.shape(losses))


@component(PAPER)
def spectral_risk_value(losses, spectrum, shift_cost, divergence="chi2"):
    """R(l), whose gradient with respect to the losses is `spectral_weights`.

    Args:
        losses, spectrum, shift_cost, divergence: see `spectral_weights`.

    Returns:
        Scalar.

    Example:

    >>> spectral_risk_value([1.0, 2.0, 3.0, 6.0], risk_spectrum("cvar", 0.5, 4), shift_cost=0.0)
    4.5
    """
    weights = spectral_weights(losses, spectrum, shift_cost, divergence)
    return tf.reduce_mean(_terms(tf.cast(losses, weights.dtype), weights, shift_cost, divergence))


@component(
    PAPER,
    example=Example(
        kwargs={"loss": "mean_squared_error", "parameter": 0.4, "shift_cost": 0.1},
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, 2)).astype("float32"),
            rng.normal(size=(batch, 2)).astype("float32"),
        ),
    ),
)
class SpectralRisk(keras.losses.Loss):
    """Any loss, with the examples of the batch weighted against the model.

    The risk of a batch is not an unbiased estimate of that of all data, and less so the smaller
    the batch: use it for the full batch, for large batches, or `kzoo.solvers.Prospect`, which
    removes the bias for small models. Under `tf.distribute` each replica weights its own rows.

    Args:
        loss: what is weighted: a Keras loss or its name, with one value for each example.
        spectrum: "cvar", "extremile" or "esrm", see `risk_spectrum`. Defaults to "cvar".
        parameter: of the spectrum. Defaults to 0.5.
        shift_cost: nu, at least 0. Defaults to 1. The larger it is, the closer to the mean.
        divergence: "chi2" or "kl". Defaults to "chi2".
        reduction, name: see `keras.losses.Loss`. Without reduction each example has
            n q_i l_i less its share of the cost, whose mean is the risk.

    Call arguments:
        y_true, y_pred: what `loss` takes. Sample weights multiply the terms, they do not enter
            the choice of q.

    Example:

    >>> loss = SpectralRisk("mean_squared_error", parameter=0.5, shift_cost=0.0)
    >>> loss([[0.0], [0.0], [0.0], [0.0]], [[1.0], [0.0], [2.0], [3.0]])
    6.5

    Reference:
        Mehta et al. (2023), arxiv.org/abs/2310.13863
    """

    def __init__(
        self,
        loss,
        spectrum="cvar",
        parameter=0.5,
        shift_cost=1.0,
        divergence="chi2",
        reduction="sum_over_batch_size",
        name="spectral_risk",
    ):
        super().__init__(name=name, reduction=reduction)
        _integral(spectrum, parameter)
        _check_penalty(shift_cost, divergence)
        self.loss = keras.losses.get(loss)
        self.spectrum, self.parameter = spectrum, parameter
        self.shift_cost, self.divergence = shift_cost, divergence

    def call(self, y_true, y_pred):
        losses = per_example(self.loss, y_true, y_pred)
        losses = tf.cast(losses, keras.backend.result_type(losses.dtype, "float32"))
        spectrum = risk_spectrum(self.spectrum, self.parameter, tf.size(losses), losses.dtype)
        weights = spectral_weights(losses, spectrum, self.shift_cost, self.divergence)
        return _terms(losses, weights, self.shift_cost, self.divergence)

    def get_config(self):
        return {
            **super().get_config(),
            "loss": keras.losses.serialize(self.loss),
            "spectrum": self.spectrum,
            "parameter": self.parameter,
            "shift_cost": self.shift_cost,
            "divergence": self.divergence,
        }


def per_example(loss, y_true, y_pred):
    """The values of a Keras loss or loss function, one for each example: [batch]."""
    call = loss.call if isinstance(loss, keras.losses.Loss) else loss
    losses = tf.convert_to_tensor(call(y_true, y_pred))
    if losses.shape.rank != 1:
        raise ValueError(
            "`loss` must give one value for each example, [batch]. "
            f"Received: values of shape {losses.shape}"
        )
    return losses


def _terms(losses, weights, shift_cost, divergence):
    """n q_i l_i - nu f(n q_i): the mean is q^T l - nu D."""
    scaled = weights * tf.cast(tf.size(losses), losses.dtype)
    cost = tf.square(scaled - 1) if divergence == "chi2" else tf.math.xlogy(scaled, scaled)
    return scaled * losses - shift_cost * cost


def _integral(name, parameter):
    if name not in _SPECTRA:
        raise ValueError(f"The spectrum must be one of {', '.join(_SPECTRA)}. Received: {name!r}")
    integral, (low, high), allowed = _SPECTRA[name]
    if not low <= parameter < high:
        raise ValueError(f"The `parameter` of {name!r} must be {allowed}. Received: {parameter!r}")
    return integral


def _check_penalty(shift_cost, divergence):
    if not 0 <= shift_cost < np.inf:
        raise ValueError(f"`shift_cost` must be at least 0. Received: {shift_cost!r}")
    if divergence not in _DIVERGENCES:
        raise ValueError(
            f"`divergence` must be one of {', '.join(_DIVERGENCES)}. Received: {divergence!r}"
        )
