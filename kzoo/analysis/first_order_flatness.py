"""First-order flatness and the trace of the Hessian: how curved the loss is around the weights.

    R1(w)  = rho max_{||e|| <= rho} ||grad L(w + e)||                          first-order flatness
    tr H   = E z' H z,   z of random signs                                     (Hutchinson 1989)
    tr H   = 2 / n sum_i ||grad f(x_i)||^2    where f interpolates the data, L the squared error

At a minimum lambda_max(H) <= R1 / rho^2 for small rho, with equality for quadratics.

"Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization", Zhang,
Xu, Yu, Zou, Cui, 2023, arXiv 2303.03108, for the first; "Sharpness Minimization Algorithms Do Not
Only Minimize Sharpness To Achieve Better Generalization", Wen, Li, Ma, 2023, arXiv 2307.11007, for
the last.

Deviation: the maximum is sought in several steps, where GAM takes the first only. With u = grad of
||grad L|| at w + e, a step goes to e = rho u / ||u||, the maximum over the ball of the linearized
norm; for a quadratic that is power iteration. The largest norm met is returned, a lower bound.
"""

import numpy as np
import tensorflow as tf

from kzoo.analysis.loss_derivatives import LossDerivatives
from kzoo.models.memorizing_two_layer import PAPER as TRACE_PAPER
from kzoo.ops.gradient_norm import PAPER, combined, unit
from kzoo.ops.hessian import rademacher_like
from kzoo.papers import component


@component(PAPER)
def first_order_flatness(model, data, rho=0.05, loss=None, steps=20, seed=0, batch_size=256):
    """The largest gradient norm within a radius of the weights, times the radius.

    The search starts at the weights themselves and at a random point of the sphere, because the
    gradient shows no direction at a minimum. Its cost is that of 2 `steps` Hessian products and
    gradients over the data.

    Args:
        model: a built `keras.Model`; called in inference mode.
        data: (x, y) of arrays.
        rho: the radius, above 0. Defaults to 0.05.
        loss: `loss(y_true, y_pred)` -> scalar or [batch]. Defaults to what the model was compiled
            with, regularization included.
        steps: steps of each search. Defaults to 20.
        seed: of the random start. Defaults to 0.
        batch_size: rows per pass. Defaults to 256.

    Returns:
        R1, a float of at least rho ||grad L(w)||; a lower bound of the maximum.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> sharpness = first_order_flatness(model, (x, y), rho=0.05) / 0.05**2

    Reference:
        Zhang et al. (2023), definition of first-order flatness, arxiv.org/abs/2303.03108
    """
    if not isinstance(rho, int | float) or not rho > 0:
        raise ValueError(f"`rho` must be a number above 0. Received: {rho!r}")
    _check_positive("steps", steps)
    derivatives = LossDerivatives(model, data, loss, batch_size)
    weights = derivatives.weights
    random = unit([_normal_like(w, (seed, i)) for i, w in enumerate(weights)])
    starts = [tf.zeros_like(w) for w in weights], [rho * r for r in random]
    norms = [_largest_norm(derivatives, weights, start, rho, steps) for start in starts]
    return float(rho * max(norms))


def _largest_norm(derivatives, weights, offset, rho, steps):
    """The largest ||grad L|| on a way through the ball."""
    largest = 0.0
    for _ in range(steps):
        moved = combined(1, weights, 1, offset)
        _, gradients = derivatives.gradients(moved)
        largest = max(largest, float(tf.linalg.global_norm(gradients)))
        _, ascent = derivatives.hessian_vector_product(moved, unit(gradients))
        offset = [rho * a for a in unit(ascent)]
    _, gradients = derivatives.gradients(combined(1, weights, 1, offset))
    return max(largest, float(tf.linalg.global_norm(gradients)))


@component(TRACE_PAPER)
def hessian_trace(model, data, loss=None, probes=50, seed=0, batch_size=256):
    """Hutchinson's estimate of the trace of the Hessian of the mean loss.

    Args:
        model: a built `keras.Model`; called in inference mode.
        data: (x, y) of arrays.
        loss: `loss(y_true, y_pred)` -> scalar or [batch]. Defaults to what the model was compiled
            with, regularization included.
        probes: number of vectors of random signs, at least 2. Defaults to 50; each costs a Hessian
            product over the data.
        seed: of the signs. Defaults to 0.
        batch_size: rows per pass. Defaults to 256.

    Returns:
        (estimate, standard error), floats. Exact for a diagonal Hessian; the variance of one probe
        is 2 sum_{i != j} H_ij^2.

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Wen et al. (2023), who measure sharpness by the trace, arxiv.org/abs/2307.11007
    """
    if not isinstance(probes, int) or probes < 2:
        raise ValueError(f"`probes` must be an integer of at least 2. Received: {probes!r}")
    derivatives = LossDerivatives(model, data, loss, batch_size)
    weights = derivatives.weights
    traces = []
    for probe in range(probes):
        z = rademacher_like(weights, (seed, probe))
        _, products = derivatives.hessian_vector_product(weights, z)
        traces.append(sum(float(tf.reduce_sum(a * b)) for a, b in zip(z, products, strict=True)))
    return float(np.mean(traces)), float(np.std(traces, ddof=1) / np.sqrt(probes))


@component(TRACE_PAPER)
def interpolation_trace(model, x, batch_size=32):
    """The trace of the Hessian of the mean squared error, where the model interpolates its targets.

        2 / (n k) sum_i sum_j ||grad_w f_j(x_i)||^2

    for k outputs, over which Keras's "mse" is a mean as well. Elsewhere it is the trace of the
    Gauss-Newton matrix: what is missing is the sum of residuals times second derivatives of f. A
    unit whose input is exactly 0 counts as inactive.

    Args:
        model: a built `keras.Model` with outputs [batch] or [batch, k]; called in inference mode.
        x: array [n, ...].
        batch_size: rows per pass, whose Jacobian [batch, k, weights] is held in memory. Defaults to
            32.

    Returns:
        A float.

    Reference:
        Wen et al. (2023), section 2, arxiv.org/abs/2307.11007
    """
    _check_positive("batch_size", batch_size)
    x = np.asarray(x)
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)
    def squared_norm(rows):
        with tf.GradientTape() as tape:
            outputs = model(rows, training=False)
        jacobians = tape.jacobian(outputs, [v.value for v in variables])
        return tf.add_n([tf.reduce_sum(tf.square(j)) for j in jacobians if j is not None])

    starts = range(0, len(x), batch_size)
    total = sum(float(squared_norm(tf.constant(x[i : i + batch_size]))) for i in starts)
    return 2 * total / (len(x) * int(np.prod(model.output_shape[1:])))


def _normal_like(tensor, seed):
    return tf.random.stateless_normal(tf.shape(tensor), seed, dtype=tensor.dtype, alg="philox")


def _check_positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
