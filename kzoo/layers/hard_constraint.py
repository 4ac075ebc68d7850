"""Hard constraints: the coefficients of a learned basis that make an equation's residual least.

    u = u_0 + sum_n w_n b_n,    w* = argmin_w 1/2 sum_p R(u, u_x, ... at x_p)^2 + ridge/2 ||w||^2
    dw*/dtheta = -H^-1 d/dtheta grad_w,    H = grad_w^2 of that objective at w*

A network predicts the basis functions b_n; the solve is a layer, and gradients pass it by the
implicit function theorem, whatever the number of its iterations. A mixture of experts solves for
each cell of the domain on its own, with coefficients of its own.

"Scaling physics-informed hard constraints with mixture-of-experts", Chalapathi, Du, Krishnapriyan,
2024, arXiv 2402.13412, section 3.

Open choices: Levenberg-Marquardt with a damping times 1/3 for a step that is taken and times 2
for one that is not, each step by a QR factorisation; the Hessian is the full one, with the second
derivatives of R, and is inverted on the directions that the equation determines. The points of an
expert are drawn once, not anew for each call, and conditions at the boundary are met by the basis
(see `kzoo.models.PIHCMoE`), not by rows of the least squares. Second derivatives through the layer
are not those of w*.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Scaling physics-informed hard constraints with mixture-of-experts",
    authors=("Nithin Chalapathi", "Yiheng Du", "Aditi Krishnapriyan"),
    year=2024,
    arxiv="2402.13412",
)


@keras.saving.register_keras_serializable("kzoo")
def linear_residual(fields, data):
    """The sum of the fields minus the sum of the data: linear least squares."""
    residual = tf.reduce_sum(fields, -1)
    return residual if data is None else residual - tf.reduce_sum(data, -1)


@component(
    PAPER,
    example=Example(
        kwargs={},
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, 7, 2, 3)).astype("float32"),
            rng.normal(size=(batch, 7, 2)).astype("float32"),
            rng.normal(size=(batch, 7, 1)).astype("float32"),
        ),
    ),
)
class HardConstraintLeastSquares(keras.layers.Layer):
    """Solves for the coefficients that make a pointwise residual least, differentiably.

    Computes in float32 or float64. Gradients reach terms, offset and data, and weights that the
    residual uses. Each problem stops on its own; rows do not depend on their batch.

    Args:
        residual: `residual(fields, data)` takes fields [problems, points, fields] (a function's
            value and its derivatives, say) and data [problems, points, channels] or None, and
            returns [problems, points]. It must treat each point on its own, be twice
            differentiable, and be registered with `keras.saving.register_keras_serializable` for
            models to be saved. Defaults to `linear_residual`.
        ridge: penalty on the squared norm of the coefficients, at least 0. Defaults to 0.
        initial: first value of all coefficients. Defaults to 0.
        iterations: largest number of steps. Defaults to 50.
        tolerance: length of a step at which to end, relative to the coefficients. Defaults to 1e-6.

    Call arguments:
        terms: [problems, points, fields, basis], the fields of each basis function.
        offset: [problems, points, fields], the fields of a part u_0 without coefficient, or None.
        data: [problems, points, channels], what else the residual needs, or None.

    Returns:
        Coefficients, [problems, basis].

    Reference:
        Chalapathi et al. (2024), section 3, arxiv.org/abs/2402.13412
    """

    def __init__(
        self,
        residual=linear_residual,
        ridge=0.0,
        initial=0.0,
        iterations=50,
        tolerance=1e-6,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, **kwargs})
        if isinstance(residual, dict):
            residual = keras.saving.deserialize_keras_object(residual)
        if not callable(residual):
            raise ValueError(f"`residual` must be a function. Received: {residual!r}")
        for name, value in (("ridge", ridge), ("tolerance", tolerance)):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"`{name}` must be a finite number of at least 0. Received: {value!r}"
                )
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(
                f"`iterations` must be an integer of at least 1. Received: {iterations!r}"
            )
        self.residual = residual
        self.ridge = float(ridge)
        self.initial = float(initial)
        self.iterations = iterations
        self.tolerance = float(tolerance)

    def call(self, terms, offset=None, data=None):
        if terms.shape.rank != 4:
            raise ValueError(
                "`terms` must be [problems, points, fields, basis]. "
                f"Received the shape {terms.shape}"
            )
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        terms = tf.cast(terms, dtype)
        offset, data = (x if x is None else tf.cast(x, dtype) for x in (offset, data))
        given = (terms, offset, data)
        constants = [x if x is None else tf.stop_gradient(x) for x in given]
        solved = tf.stop_gradient(self._solve(*constants))
        return solved + self._implicit(solved, *given)

    def _solve(self, terms, offset, data):
        """Levenberg-Marquardt, all problems at once."""
        shape = tf.shape(terms)

        def objective(w):
            r = self.residual(_fields(w, terms, offset), data)
            return tf.reduce_sum(r**2, -1) + self.ridge * tf.reduce_sum(w**2, -1)

        def step(i, w, cost, damping, done):
            move = self._move(w, damping, terms, offset, data)
            moved = tf.where(done[:, None], w, w + move)
            moved_cost = objective(moved)
            # Also False for what is not finite.
            better = (moved_cost <= cost) & ~done
            small = _norm(move) <= self.tolerance * (_norm(w) + self.tolerance)
            w = tf.where(better[:, None], moved, w)
            cost = tf.where(better, moved_cost, cost)
            return i + 1, w, cost, tf.where(better, damping / 3, damping * 2), done | small

        w = tf.fill([shape[0], shape[3]], tf.constant(self.initial, terms.dtype))
        jacobian, _ = self._linearised(w, terms, offset, data)
        largest = tf.reduce_max(tf.reduce_sum(jacobian**2, 1), -1)
        start = (0, w, objective(w), 1e-3 * largest + 1e-12, tf.fill(shape[:1], False))
        state = tf.while_loop(
            lambda i, *state: ~tf.reduce_all(state[-1]),
            step,
            start,
            maximum_iterations=self.iterations,
        )
        return state[1]

    def _linearised(self, w, terms, offset, data):
        """The Jacobian [problems, points, basis] and the residual [problems, points]."""
        fields = _fields(w, terms, offset)
        with tf.GradientTape() as tape:
            tape.watch(fields)
            residual = self.residual(fields, data)
        # Of each point on its own, so that one backward pass gives the whole Jacobian.
        slopes = tape.gradient(residual, fields)
        return tf.einsum("bpf,bpfn->bpn", slopes, terms), residual

    def _move(self, w, damping, terms, offset, data):
        """argmin_s ||J s + r||^2 + ridge ||w + s||^2 + damping ||s||^2."""
        jacobian, residual = self._linearised(w, terms, offset, data)
        identity = tf.eye(tf.shape(w)[1], batch_shape=tf.shape(w)[:1], dtype=w.dtype)
        # The rows of ridge and damping are one: c ||s + ridge / c w||^2 up to a constant.
        both = self.ridge + damping[:, None]
        rows = tf.concat([jacobian, tf.sqrt(both)[..., None] * identity], 1)
        right = tf.concat([-residual, -self.ridge / tf.sqrt(both) * w], 1)
        q, r = tf.linalg.qr(rows)
        right = tf.einsum("bpn,bp->bn", q, right)[..., None]
        return tf.linalg.triangular_solve(r, right, lower=False)[..., 0]

    def _implicit(self, w, terms, offset, data):
        """Zero, whose derivatives are those of the solution."""

        def slopes(fields):
            with tf.GradientTape() as tape:
                tape.watch(fields)
                half = tf.reduce_sum(self.residual(fields, data) ** 2) / 2
            return tape.gradient(half, fields)

        fields = _fields(w, terms, offset)
        gradient = tf.einsum("bpf,bpfn->bn", slopes(fields), terms) + self.ridge * w
        fixed = tf.stop_gradient(fields)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(fixed)
            parts = tf.unstack(slopes(fixed), axis=-1)
        zero = tf.UnconnectedGradients.ZERO
        # [problems, points, fields, fields], the Hessian of each point.
        local = tf.stack([tape.gradient(each, fixed, None, zero) for each in parts], -2)
        hessian = tf.einsum("bpfn,bpfm->bnm", tf.einsum("bpfg,bpgn->bpfn", local, terms), terms)
        identity = tf.eye(tf.shape(w)[1], dtype=w.dtype)
        inverse = tf.stop_gradient(_inverse(tf.stop_gradient(hessian) + self.ridge * identity))
        step = -tf.einsum("bnm,bm->bn", inverse, gradient)
        return step - tf.stop_gradient(step)

    def compute_output_shape(self, terms_shape, offset_shape=None, data_shape=None):
        return (terms_shape[0], terms_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "residual": keras.saving.serialize_keras_object(self.residual),
            "ridge": self.ridge,
            "initial": self.initial,
            "iterations": self.iterations,
            "tolerance": self.tolerance,
        }


def _fields(w, terms, offset):
    fields = tf.einsum("bpfn,bn->bpf", terms, w)
    return fields if offset is None else fields + offset


def _norm(x):
    return tf.sqrt(tf.reduce_sum(x**2, -1))


def _inverse(matrices):
    """Of symmetric matrices, zero on their null spaces."""
    values, vectors = tf.linalg.eigh((matrices + tf.linalg.matrix_transpose(matrices)) / 2)
    size = tf.reduce_max(tf.abs(values), -1, keepdims=True)
    determined = tf.abs(values) > size * matrices.shape[-1] * np.finfo(values.dtype.name).eps
    inverses = tf.where(determined, 1 / tf.where(determined, values, 1), 0)
    return tf.einsum("bni,bi,bmi->bnm", vectors, inverses, vectors)
