"""Separable terms h(x) = sum_i h_i(x_i) beside a smooth f: none, bounds, L1.

Each has

    each(x)                 h_i(x_i), [n]; infinite outside bounds
    prox(z, step)           argmin_x h(x) + ||x - z||^2 / (2 step)
    free(x)                 bool, where h is smooth at x: between the bounds, or not 0
    slope(x)                h'(x) where it is free, 0 elsewhere
    stays(z, x)             whether z is on the same smooth piece of h as x
    gap(x, z, s)            h_i(x_i) - h_i(z_i) - s_i (x_i - z_i) for a subgradient s of h at z,
                            [n], at least 0, and exactly 0 on the smooth piece of z
    slack(x, gradient)      at a minimum of f + h, [n]: by how much a derivative of f could change
                            before x_i leaves its kink or bound; infinite where x_i is free

and takes an index to be restricted to a block: `penalty[block]`.
"""

import numpy as np


class NoPenalty:
    """h = 0."""

    def __getitem__(self, block):
        return self

    def each(self, x):
        return np.zeros(np.shape(x))

    def prox(self, z, step):
        return z

    def free(self, x):
        return np.ones(np.shape(x), bool)

    def slope(self, x):
        return np.zeros(np.shape(x))

    def stays(self, z, x):
        return np.ones(np.shape(x), bool)

    def gap(self, x, z, s):
        return np.zeros(np.shape(x))

    def slack(self, x, gradient):
        return np.full(np.shape(x), np.inf)


class L1:
    """h(x) = strength ||x||_1.

    Args:
        strength: a number, or one for each variable, at least 0.
    """

    def __init__(self, strength):
        self.strength = np.asarray(strength, float)
        if not (np.isfinite(self.strength).all() and (self.strength >= 0).all()):
            raise ValueError(f"`strength` must be finite and at least 0. Received: {strength}")

    def __getitem__(self, block):
        return self if self.strength.ndim == 0 else L1(self.strength[block])

    def each(self, x):
        return self.strength * np.abs(x)

    def prox(self, z, step):
        return np.sign(z) * np.maximum(np.abs(z) - step * self.strength, 0.0)

    def free(self, x):
        return x != 0

    def slope(self, x):
        return self.strength * np.sign(x)

    def stays(self, z, x):
        return np.sign(z) == np.sign(x)

    def gap(self, x, z, s):
        s = np.where(self.free(z), self.slope(z), s)
        return np.maximum(self.strength * np.abs(x) - s * x, 0.0)

    def slack(self, x, gradient):
        return np.where(self.free(x), np.inf, self.strength - np.abs(gradient))


class Bounds:
    """lower <= x <= upper.

    Args:
        lower, upper: numbers, or one for each variable. Default to 0 and infinity.
    """

    def __init__(self, lower=0.0, upper=np.inf):
        self.lower, self.upper = np.broadcast_arrays(
            np.asarray(lower, float), np.asarray(upper, float)
        )
        if not (self.lower < self.upper).all():
            raise ValueError(f"`lower` must be below `upper`. Received: {lower} and {upper}")

    def __getitem__(self, block):
        return self if self.lower.ndim == 0 else Bounds(self.lower[block], self.upper[block])

    def each(self, x):
        return np.where((x >= self.lower) & (x <= self.upper), 0.0, np.inf)

    def prox(self, z, step):
        return np.clip(z, self.lower, self.upper)

    def free(self, x):
        return (x > self.lower) & (x < self.upper)

    def slope(self, x):
        return np.zeros(np.shape(x))

    def stays(self, z, x):
        return self.free(z) == self.free(x)

    def gap(self, x, z, s):
        return np.where(self.free(z), 0.0, np.maximum(s * (z - x), 0.0))

    def slack(self, x, gradient):
        pushed = np.where(x <= self.lower, gradient, -gradient)
        return np.where(self.free(x), np.inf, pushed)


def violation(x, gradient, penalty):
    """max_i |x - prox(x - gradient)|_i: how far x is from a minimum, 0 at one.

    Without a penalty it is the largest absolute derivative.
    """
    return float(np.max(np.abs(x - penalty.prox(x - gradient, 1.0)), initial=0.0))


def minimize_model(hessian, gradient, x, penalty, tolerance=1e-13, max_sweeps=1000):
    """argmin_z g^T (z - x) + (z - x)^T H (z - x) / 2 + h(z), for a small dense H.

    Sweeps of exact coordinate minimization find the smooth piece of h that the minimum is on; a
    linear solve on it gives the minimum to rounding.

    Args:
        hessian: H, positive semidefinite, [k, k]; definite without a penalty.
        gradient: g, [k].
        x: [k].
        penalty: h.
        tolerance: of the optimality condition, relative to the size of the gradients.
        max_sweeps: after which the best point so far is returned.

    Returns:
        z, [k].
    """
    if isinstance(penalty, NoPenalty):
        return x + newton_direction(hessian, gradient)
    diagonal = np.maximum(np.diag(hessian), np.finfo(float).tiny)
    scale = tolerance * max(1.0, np.abs(gradient).max(initial=0.0))
    parts = [penalty[i] for i in range(len(x))]
    z = x.astype(float)
    slope = gradient.astype(float)
    for _ in range(max_sweeps):
        for i, part in enumerate(parts):
            moved = part.prox(z[i] - slope[i] / diagonal[i], 1 / diagonal[i]) - z[i]
            z[i] += moved
            slope += hessian[:, i] * moved
        z, slope = _solve_on_piece(hessian, slope, z, penalty)
        if violation(z, slope, penalty) <= scale:
            break
    return z


def newton_direction(hessian, gradient):
    """-H^-1 g; the shortest least-squares solution where H is singular."""
    try:
        return -np.linalg.solve(hessian, gradient)
    except np.linalg.LinAlgError:
        return -np.linalg.lstsq(hessian, gradient, rcond=None)[0]


def _solve_on_piece(hessian, slope, z, penalty):
    """The minimum over the free variables, if it stays on the piece of h that z is on."""
    free = penalty.free(z)
    if not free.any():
        return z, slope
    target = z.copy()
    steepness = (slope + penalty.slope(z))[free]
    target[free] += newton_direction(hessian[np.ix_(free, free)], steepness)
    if not penalty.stays(target, z).all():
        return z, slope
    return target, slope + hessian @ (target - z)
