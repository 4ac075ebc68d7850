"""Sensitivity of the loss to each input: mean derivatives of first, second and third order.

    D_k,i = mean over the rows (x, y), and over trained models f, of d^k L(y, f(x)) / dx_i^k

L is the loss of one row, by default the mean squared error. The derivatives are those along the
axis of one feature, the diagonals of the tensors of higher derivatives, by nested automatic
differentiation: not sums over a row of the Hessian, as the gradient of a summed gradient gives.

"Sensitivity Analysis On Loss Landscape", Faroz, 2024, arXiv 2403.01128. Its claim: second-order
gradients can look similar to Spearman's rank correlations of the features with the target, and each
retraining brings something new.

Open choices: the paper has a small network with tanh and MSE, and does not say in what way
derivatives are put together over rows and retrainings. Here they are averaged with their sign, as
a correlation has one, and as absolute values, in which features do not lose what is positive for
some rows and negative for others; rankings go by the latter. The signed mean of the first order is
near zero for every input of a model that is fitted well on these rows, whether it matters or not.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Sensitivity Analysis On Loss Landscape",
    authors=("Salman Faroz",),
    year=2024,
    arxiv="2403.01128",
)

_ORDERS = 3


@dataclass(frozen=True)
class DerivativeSensitivity:
    """Mean derivatives of the loss with respect to each feature.

    Attributes:
        signed: float64 [models, 3, features], means over the rows of the derivatives of first,
            second and third order, for each retraining.
        absolute: the same, of their absolute values.
    """

    signed: np.ndarray
    absolute: np.ndarray

    @property
    def mean(self):
        """D, float64 [3, features]: the signed derivatives averaged over the retrainings."""
        return self.signed.mean(axis=0)

    @property
    def spread(self):
        """Standard deviation of the signed means over the retrainings, float64 [3, features]."""
        return self.signed.std(axis=0)

    def ranking(self, order=1):
        """Features by the mean absolute derivative of an order, 1 to 3; the most sensitive first.

        Returns:
            int [features].
        """
        if order not in range(1, _ORDERS + 1):
            raise ValueError(f"`order` must be 1, 2 or 3. Received: {order!r}")
        return np.argsort(-self.absolute.mean(axis=0)[order - 1], kind="stable")


@component(PAPER)
def input_derivative_sensitivity(models, x, y, loss=None, batch_size=256):
    """Mean derivatives of the loss with respect to each input feature.

    Args:
        models: a Keras model, or several that were trained on the same data from other weights:
            [batch, features] -> [batch, outputs]. Their activations should be smooth: that of a
            ReLU has no derivative of second order.
        x: [n, features].
        y: [n] or [n, outputs] targets.
        loss: `loss(y_true, y_pred)` -> [batch], both [batch, outputs]. Defaults to the mean squared
            error.
        batch_size: rows at a time; each goes through the model once for each feature. Defaults to
            256.

    Returns:
        `DerivativeSensitivity`.

    Raises:
        ValueError: for shapes that do not fit.

    Example:

    >>> sensitivity = input_derivative_sensitivity(retrained_models, x, y)
    >>> sensitivity.ranking(order=2)
    array([2, 0, 1])

    Reference:
        Faroz (2024), arxiv.org/abs/2403.01128
    """
    models = list(models) if isinstance(models, list | tuple) else [models]
    x, y = np.asarray(x), np.asarray(y)
    if not models or not all(isinstance(model, keras.Model) for model in models):
        raise ValueError(f"`models` must be one or more Keras models. Received: {models!r}")
    if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            "`x` must be [n, features] and `y` [n] or [n, outputs]. Received: "
            f"{list(x.shape)} and {list(y.shape)}"
        )
    y = y[:, np.newaxis] if y.ndim == 1 else y
    loss = loss or keras.losses.mean_squared_error
    measured = [_mean_derivatives(model, x, y, loss, batch_size) for model in models]
    signed, absolute = np.swapaxes(measured, 0, 1)
    return DerivativeSensitivity(signed, absolute)


@component(PAPER)
def spearman_report(sensitivity, x, y, names=None):
    """The derivatives beside Spearman's rank correlation of each feature with the target.

    Args:
        sensitivity: a `DerivativeSensitivity`.
        x: [n, features].
        y: [n].
        names: [features]; defaults to "0", "1", ...

    Returns:
        List of dicts, one for each feature in its order: `feature`, `spearman`, `p_value`, and
        `first`, `second`, `third`, the signed mean derivatives. A constant feature has a
        correlation of NaN.

    Reference:
        Faroz (2024), arxiv.org/abs/2403.01128
    """
    from scipy import stats

    x, y = np.asarray(x), np.asarray(y)
    features = sensitivity.mean.shape[1]
    if x.ndim != 2 or x.shape[1] != features or y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` must be [n, {features}] and `y` [n]. Received: {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    names = [str(i) for i in range(features)] if names is None else list(names)
    if len(names) != features:
        raise ValueError(f"`names` must name {features} features. Received: {len(names)}")
    report = []
    for name, column, derivatives in zip(names, x.T, sensitivity.mean.T, strict=True):
        rho = stats.spearmanr(column, y) if np.ptp(column) else None
        first, second, third = derivatives.tolist()
        report.append(
            {
                "feature": name,
                "spearman": float(rho.statistic) if rho else np.nan,
                "p_value": float(rho.pvalue) if rho else np.nan,
                "first": first,
                "second": second,
                "third": third,
            }
        )
    return report


def plot_report(report):
    """Bars of the correlations and of each order of derivatives, over the features.

    Args:
        report: what `spearman_report` returns.

    Returns:
        `matplotlib.figure.Figure`
    """
    from matplotlib.figure import Figure

    panels = ("spearman", "first", "second", "third")
    names = [row["feature"] for row in report]
    size = (2.6 * len(panels), 0.8 + 0.25 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        values = [row[panel] for row in report]
        axis.barh(names, values, color=["#d1495b" if v > 0 else "#1f3b57" for v in values])
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_title(panel if panel == "spearman" else f"{panel} derivative", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
    axes[0].invert_yaxis()
    return figure


def _mean_derivatives(model, x, y, loss, batch_size):
    """Means over the rows of the derivatives and of their magnitudes, [2, 3, features]."""
    dtype = tf.as_dtype(model.compute_dtype)

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(x, y):
        derivatives = tf.cast(axis_derivatives(model, loss, x, y), tf.float64)
        return tf.stack(
            [tf.reduce_sum(derivatives, axis=-1), tf.reduce_sum(tf.abs(derivatives), axis=-1)]
        )

    total = 0.0
    for begin in range(0, len(x), batch_size):
        rows = slice(begin, begin + batch_size)
        batch = measure(tf.constant(x[rows], dtype), tf.constant(y[rows], dtype))
        total = total + batch.numpy()
    return total / len(x)


def axis_derivatives(model, loss, x, y):
    """The first three derivatives of each row's loss along the axis of each feature.

    Args:
        model: [batch, features] -> [batch, outputs], called with `training=False`.
        loss: `loss(y_true, y_pred)` -> [batch].
        x: tensor [batch, features].
        y: tensor [batch, outputs].

    Returns:
        Tensor [3, features, batch].
    """
    batch, features = tf.shape(x)[0], x.shape[1]
    axes = tf.repeat(tf.eye(features, dtype=x.dtype), batch, axis=0)
    points, targets = tf.tile(x, [features, 1]), tf.tile(y, [features, 1])
    step = tf.zeros([features * batch], x.dtype)

    def derivative(function):
        def differentiated(step):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(step)
                value = function(step)
            # What is constant, as the third derivative of a square, is not connected.
            return tape.gradient(value, step, unconnected_gradients="zero")

        return differentiated

    def losses(step):
        outputs = model(points + step[:, tf.newaxis] * axes, training=False)
        if outputs.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"`y` must have the model's outputs, [n, {outputs.shape[-1]}]. Received: "
                f"{list(targets.shape[1:])} for each row"
            )
        return loss(targets, outputs)

    orders, function = [], losses
    for _ in range(_ORDERS):
        function = derivative(function)
        orders.append(tf.reshape(function(step), [features, batch]))
    return tf.stack(orders)
