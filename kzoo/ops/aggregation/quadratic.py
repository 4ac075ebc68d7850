"""Exact solutions of the small quadratic programs behind aggregators, batched and compilable.

    argmin_{w >= 0}  1/2 w^T G w + c^T w,    G = J J^T

by the active-set method of Lawson and Hanson (1974, "Solving Least Squares Problems", chapter 23),
carried out by principal pivots (Keller 1973) of the tableau [G | c]. In the tableau of a set P of
positive weights the last column holds, for j in P, the weights that minimise over P, and elsewhere
the derivatives; a pivot moves one index into P or out of it, at O(m^2) operations.
"""

import tensorflow as tf

# Relative to a Gramian with a diagonal of ones, and to the largest entry of c.
_DEPENDENT = 1e-13
_TOLERANCE = 1e-12


def nonnegative_quadratic(gramian, linear):
    """argmin over w >= 0 of 1/2 w^T G w + c^T w, for several c.

    The solution is that of exact arithmetic up to rounding, whatever the norms of the rows of J,
    and also where G is singular, provided the minimum is finite; if it is not, what comes back is
    finite and leaves a negative derivative.

    Args:
        gramian: float64 [m, m], positive semidefinite.
        linear: float64 [k, m], one c a row.

    Returns:
        float64 [k, m]
    """
    diagonal = tf.linalg.diag_part(gramian)
    scale = tf.where(diagonal > 0, tf.math.rsqrt(tf.where(diagonal > 0, diagonal, 1.0)), 1.0)
    unit = scale[:, tf.newaxis] * gramian * scale
    linear = linear * scale
    size = tf.reduce_max(tf.abs(linear), axis=-1, keepdims=True)
    return scale * size * _solve(unit, tf.math.divide_no_nan(linear, size))


def project_onto_dual_cone(gramian, weights):
    """Weights of the projections of J^T u onto the dual cone {x: J x >= 0}, for several u.

    By proposition 1 of Quinton and Rey (2024) the projection is J^T v for the v >= u of the least
    v^T G v. Where J^T u does not conflict with any row, v is u.

    Args:
        gramian: float64 [m, m].
        weights: float64 [k, m], one u a row.

    Returns:
        float64 [k, m], one v a row.
    """
    return weights + nonnegative_quadratic(gramian, tf.matmul(weights, gramian))


def _solve(gramian, linear):
    count, size = tf.unstack(tf.shape(linear))
    tableau = tf.concat(
        [tf.broadcast_to(gramian, [count, size, size]), linear[..., tf.newaxis]], axis=-1
    )
    state = (
        0,
        tableau,
        tf.zeros_like(linear, tf.bool),
        tf.zeros_like(linear),
        tf.fill([count], size > 0),
    )
    # In exact arithmetic every pivot lowers the objective; the limit is for rounding and NaN.
    _, tableau, positive, found, _ = tf.while_loop(
        lambda step, tableau, positive, found, active: tf.reduce_any(active),
        _pivot,
        state,
        shape_invariants=tuple(tf.convert_to_tensor(part).shape for part in state),
        maximum_iterations=10 * size + 10,
    )
    return _refined(gramian, linear, tableau, positive, found)


def _pivot(step, tableau, positive, found, active):
    """One index moves in or out of the positive ones, in each problem that is not yet solved."""
    target = tf.where(positive, tableau[..., -1], 0.0)
    blocking = positive & (target <= 0)
    leaves = tf.reduce_any(blocking, axis=-1)
    ratio = tf.where(blocking, found / tf.where(blocking, found - target, 1.0), 1.0)
    # A weight that is zero already, and stays, has no ratio.
    ratio = tf.where(tf.math.is_finite(ratio), ratio, 0.0)
    length = tf.reduce_min(ratio, axis=-1, keepdims=True)
    moved = tf.maximum(found + length * (target - found), 0.0)
    found = tf.where(active[:, tf.newaxis], moved, found)
    may_enter = ~positive & (tf.linalg.diag_part(tableau[..., :-1]) > _DEPENDENT)
    derivative = tf.where(may_enter, tableau[..., -1], 0.0)
    enters = tf.reduce_min(derivative, axis=-1) < -_TOLERANCE
    index = tf.where(
        leaves,
        tf.argmin(tf.where(blocking, ratio, 2.0), axis=-1, output_type=tf.int32),
        tf.argmin(derivative, axis=-1, output_type=tf.int32),
    )
    active = active & (leaves | enters)
    chosen = tf.one_hot(index, tf.shape(found)[-1], True, False, dtype=tf.bool)
    chosen = chosen & active[:, tf.newaxis]
    found = tf.where(chosen, tf.zeros_like(found), found)
    tableau = tf.where(active[:, tf.newaxis, tf.newaxis], _exchanged(tableau, index), tableau)
    return step + 1, tableau, positive ^ chosen, found, active


def _exchanged(tableau, index):
    """The tableau after the variable and the derivative of one index have changed places."""
    row = tf.gather(tableau, index, axis=1, batch_dims=1)
    column = tf.gather(tableau, index, axis=2, batch_dims=1)
    pivot = tf.gather(row, index, axis=1, batch_dims=1)[:, tf.newaxis]
    size = tf.shape(tableau)
    in_row = tf.one_hot(index, size[1], True, False, dtype=tf.bool)[..., tf.newaxis]
    in_column = tf.one_hot(index, size[2], True, False, dtype=tf.bool)[:, tf.newaxis]
    scaled = row / pivot
    rest = tableau - column[..., tf.newaxis] * scaled[:, tf.newaxis]
    crossed = tf.where(in_column, (1.0 / pivot)[..., tf.newaxis], -scaled[:, tf.newaxis])
    others = tf.where(in_column, (column / pivot)[..., tf.newaxis], rest)
    return tf.where(in_row, crossed, others)


def _refined(gramian, linear, tableau, positive, found):
    """One step of iterative refinement: the tableau holds the inverse of G over the positive."""
    residual = tf.where(positive, tf.matmul(found, gramian) + linear, 0.0)
    correction = tf.linalg.matvec(tableau[..., :-1], residual)
    return tf.maximum(found - tf.where(positive, correction, 0.0), 0.0)
