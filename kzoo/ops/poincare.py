"""Hyperbolic geometry in the Poincaré ball of curvature -c: the points with c |x|^2 < 1.

    x + y      ((1 + 2c<x, y> + c|y|^2) x + (1 - c|x|^2) y) / (1 + 2c<x, y> + c^2 |x|^2 |y|^2)
    exp_0(v)   tanh(s|v|) v / (s|v|)              log_0(y)  artanh(s|y|) y / (s|y|)
    exp_x(v)   x + exp_0(lambda_x v / 2)          log_x(y)  2 / lambda_x log_0(-x + y)
    d(x, y)    2/s arsinh(s|x - y| / sqrt((1 - c|x|^2)(1 - c|y|^2)))

with s = sqrt(c), lambda_x = 2 / (1 - c|x|^2) and + the Möbius addition. c is a positive number and
vectors lie along the last axis everywhere. As c goes to 0 these become x + y, v, y, x + v, y - x
and 2 |x - y|: the metric at the origin is 4 times the Euclidean one.

The distance is the arcosh form and 2/s artanh(s|-x + y|), rewritten so that small and large ones
are exact. The maps along a radius, the Möbius addition and the scores have backward rules by hand,
which make the graph smaller, as "Poincaré ResNet", van Spengler, Berkhout, Mettes,
2023, arXiv 2303.14027, section 3.4, proposes; those of the maps also stay exact near the origin,
where the quotients that automatic differentiation makes of tanh(s|v|) / (s|v|) round to noise.

Use float32 or float64. In float16 and bfloat16 the numbers below 1 are too coarse: a point rounds
onto the boundary, where distances are infinite.
"""

import math

import numpy as np
import tensorflow as tf


def check_curvature(c, name="c"):
    """Returns `c` as a float; a ValueError unless it is a finite number above 0."""
    if not isinstance(c, int | float) or isinstance(c, bool) or not 0 < c < math.inf:
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {c!r}")
    return float(c)


def squared_norm(x):
    """|x|^2 along the last axis, which stays with size 1."""
    return tf.reduce_sum(tf.square(x), axis=-1, keepdims=True)


def safe_sqrt(x):
    """The square root, with the slope 0 where `x` is 0 or, by rounding, below."""
    return tf.sqrt(tf.maximum(x, 1e-30))


def boundary(dtype):
    """How far inside of the unit ball points are kept, as a fraction: 4e-3 or, in float64, 1e-5."""
    return 1e-5 if tf.as_dtype(dtype) == tf.float64 else 4e-3


def _radial(height, slope, curl):
    """A map along the radius, v -> h(u) / u v with u = sqrt(c)|v|.

    Args:
        height: h, of u.
        slope: h' as a function of (u, h).
        curl: (h' - h / u) / u^2 at u = 0, which is two thirds of the third coefficient of h.
    """

    def function(v, c):
        @tf.custom_gradient
        def along(v):
            t = c * squared_norm(v)
            u = safe_sqrt(t)
            h = height(u)
            ratio = h / u

            def backward(upstream):
                # Below the floor the quotient rounds off, but counts for t of the whole only.
                floor = 1e-6 if v.dtype == tf.float64 else 1e-3
                bend = tf.where(t > floor, (slope(u, h) - ratio) / tf.maximum(t, floor), curl)
                inner = tf.reduce_sum(upstream * v, -1, keepdims=True)
                return ratio * upstream + (c * bend * inner) * v

            return ratio * v, backward

        return along(v)

    return function


def _end(u):
    return 1.0 - boundary(u.dtype)


def _inside(u, h, slope):
    """The slope of a height that stops at the end of the ball."""
    return slope * tf.cast(h < _end(u), u.dtype)


def _root(t):
    return tf.sqrt(tf.maximum(t, 1e-12))


_project = _radial(lambda u: tf.minimum(u, _end(u)), lambda u, h: _inside(u, h, 1.0), curl=0.0)
_tanh = _radial(tf.tanh, lambda u, h: 1.0 - tf.square(h), curl=-2 / 3)
_tanh_inside = _radial(
    lambda u: tf.minimum(tf.tanh(u), _end(u)),
    lambda u, h: _inside(u, h, 1.0 - tf.square(h)),
    curl=-2 / 3,
)
_artanh = _radial(
    lambda u: tf.atanh(tf.minimum(u, _last(u))),
    lambda u, h: 1.0 / (1.0 - tf.square(tf.minimum(u, _last(u)))),
    curl=2 / 3,
)
_half = _radial(
    lambda u: u / (1.0 + _root(1.0 - tf.square(u))),
    lambda u, h: h / (u * _root(1.0 - tf.square(u))),
    curl=1 / 4,
)
# tanh of half of what arsinh is.
_half_tanh = _radial(
    lambda u: tf.minimum(u / (1.0 + tf.sqrt(1.0 + tf.square(u))), _end(u)),
    lambda u, h: _inside(u, h, h / (u * tf.sqrt(1.0 + tf.square(u)))),
    curl=-1 / 4,
)


def _last(u):
    """The last number before 1 at which artanh and its slope are safe."""
    return 1.0 - 2.0 * float(np.finfo(u.dtype.as_numpy_dtype).eps)


def project(x, c=1.0):
    """`x`, or where it is outside of the ball (or too close to its end) the nearest point inside.

    Inside means |x| <= (1 - `boundary`) / sqrt(c).
    """
    return _project(x, check_curvature(c))


def clip_norm(x, radius):
    """x min(1, radius / |x|): vectors no longer than `radius`, of the same directions."""
    squares = squared_norm(x)
    return tf.where(squares > radius**2, x * (radius / safe_sqrt(squares)), x)


def conformal_factor(x, c=1.0):
    """lambda_x = 2 / (1 - c|x|^2), [..., 1]: how much longer a step at `x` is than it looks."""
    return 2.0 / _gap(squared_norm(x), check_curvature(c))


def _gap(squares, c):
    """1 - c|x|^2, positive also where rounding has put a point on the boundary."""
    return tf.maximum(1.0 - c * squares, float(np.finfo(squares.dtype.as_numpy_dtype).eps))


def mobius_add(x, y, c=1.0):
    """The Möbius sum x + y, which is neither commutative nor associative.

    Args:
        x, y: points of the ball, [..., d] of shapes that broadcast.
        c: the curvature is -c.

    Returns:
        Points of the ball, which rounding may put on its boundary: `project` what goes on as one.
    """
    c = check_curvature(c)
    if x.shape != y.shape or None in x.shape:
        x, y = x + tf.zeros_like(y), y + tf.zeros_like(x)

    @tf.custom_gradient
    def add(x, y):
        xx, yy, xy = squared_norm(x), squared_norm(y), tf.reduce_sum(x * y, -1, keepdims=True)
        twice = 1.0 + 2.0 * c * xy
        of_x, of_y = twice + c * yy, 1.0 - c * xx
        # At least (1 - c|x||y|)^2, which is positive in the ball.
        whole = tf.maximum(twice + c**2 * xx * yy, 1e-15)

        def backward(upstream):
            g = upstream / whole
            gx, gy = (tf.reduce_sum(g * each, -1, keepdims=True) for each in (x, y))
            down = (of_x * gx + of_y * gy) / whole
            mixed = 2.0 * c * (gx - down)
            to_x = of_x * g + mixed * y - (2.0 * c * (gy + c * yy * down)) * x
            to_y = of_y * g + mixed * x + (2.0 * c * (gx - c * xx * down)) * y
            return to_x, to_y

        return (of_x * x + of_y * y) / whole, backward

    return add(x, y)


def expmap0(v, c=1.0):
    """The point that the tangent vector `v` at the origin leads to, [..., d]."""
    return _tanh_inside(v, check_curvature(c))


def logmap0(y, c=1.0):
    """The tangent vector at the origin that leads to the point `y`, [..., d]."""
    return _artanh(y, check_curvature(c))


def expmap(x, v, c=1.0):
    """The point that the tangent vector `v` at the point `x` leads to, [..., d]."""
    return move(x, 0.5 * conformal_factor(x, c) * v, c)


def move(x, v, c=1.0):
    """x + exp_0(v): `expmap` for a tangent vector at the origin, carried over to `x`."""
    # Not projected in between, which would shorten steps from one side of the ball to the other.
    return project(mobius_add(x, _tanh(v, check_curvature(c)), c), c)


def logmap(x, y, c=1.0):
    """The tangent vector at the point `x` that leads to the point `y`, [..., d]."""
    return 2.0 / conformal_factor(x, c) * logmap0(mobius_add(-x, y, c), c)


def distance(x, y, c=1.0):
    """The hyperbolic distance of points [..., d] and [..., d], [...].

    Of equal points it is 0 up to 1e-14, with the slope 0.
    """
    c = check_curvature(c)
    gaps = _gap(squared_norm(x), c) * _gap(squared_norm(y), c)
    half = tf.asinh(safe_sqrt(c * squared_norm(x - y) / gaps))
    return 2.0 / math.sqrt(c) * tf.squeeze(half, -1)


def gyration(u, v, w, c=1.0):
    """gyr[u, v] w, the rotation that the missing associativity leaves: -(u + v) + (u + (v + w)).

    Args:
        u, v: points of the ball, [..., d].
        w: any vectors, [..., d]; all three broadcast.
    """
    c = check_curvature(c)
    uu, vv = squared_norm(u), squared_norm(v)
    uv, uw, vw = (tf.reduce_sum(a * b, -1, keepdims=True) for a, b in ((u, v), (u, w), (v, w)))
    of_u = c * vw * (1.0 + 2.0 * c * uv) - c**2 * uw * vv
    of_v = -c * uw - c**2 * vw * uu
    return w + 2.0 * (of_u * u + of_v * v) / tf.maximum(1.0 + 2.0 * c * uv + c**2 * uu * vv, 1e-15)


def gyration_matrix(u, v, c=1.0):
    """The matrix [d, d] of gyr[u, v] for two points [d], which rows w are multiplied by: w M."""
    return gyration(u, v, tf.eye(u.shape[-1], dtype=u.dtype), c)


def parallel_transport(x, y, v, c=1.0):
    """The tangent vector `v` at the point `x`, moved to `y` along the geodesic between them."""
    return gyration(y, -x, v, c) * conformal_factor(x, c) / conformal_factor(y, c)


def mobius_half(x, c=1.0):
    """The point half-way between the origin and `x`."""
    return _half(x, check_curvature(c))


def gyromidpoint(x, weights=None, axis=0, c=1.0):
    """The weighted gyromidpoint of points: half of sum w lambda x / sum |w| (lambda - 1).

    Of two points of the same weight it is the middle of the geodesic between them; of more it is
    close to the Fréchet mean, without a search. It follows the points when all are moved.

    Args:
        x: points, [..., d].
        weights: of the points, a tensor that broadcasts against [..., 1]; None for 1.
        axis: what to average over, an integer or several, not the last one.
        c: the curvature is -c.

    Returns:
        Points with the axes of `x` left out.
    """
    sums = midpoint_sums(x, weights, axis, c)
    return midpoint_of_sums(*sums, c)


def midpoint_sums(x, weights=None, axis=0, c=1.0):
    """The two sums of `gyromidpoint`, which may be added up over parts of the points."""
    factor = conformal_factor(x, c)
    weights = tf.ones_like(factor) if weights is None else weights
    up = tf.reduce_sum(weights * factor * x, axis)
    return up, tf.reduce_sum(tf.abs(weights) * (factor - 1.0), axis)


def midpoint_of_sums(up, down, c=1.0):
    """The `gyromidpoint` from its two sums."""
    return mobius_half(project(up / tf.maximum(down, 1e-15), c), c)


def gyroplane_scores(x, kernel, offset, c=1.0):
    """v_k(x), signed and scaled distances of points to the hyperplanes of a layer.

        v_k = 2|z|/s arsinh(lambda_x s<x, z/|z|> cosh(2 s r) - (lambda_x - 1) sinh(2 s r))

    Equation 6 of "Hyperbolic Neural Networks++", Shimizu et al., 2021, arXiv 2006.08210. For
    c -> 0 it is 4 (<x, z> - |z| r).

    Args:
        x: points, [..., d].
        kernel: z, the normals of the hyperplanes at the origin, [d, units].
        offset: r, how far they are from it, [units].
        c: the curvature is -c.

    Returns:
        [..., units].
    """
    c = check_curvature(c)
    factor = conformal_factor(x, c)
    return _scores(factor * tf.matmul(x, kernel), factor - 1.0, _norms(kernel), offset, c)


def tangent_gyroplane_scores(inner, squares, kernel, offset, c=1.0):
    """`gyroplane_scores` of the points exp_0(v), without the points.

    With u = s|v|: lambda <x, z> = sinh(2u)/u <v, z> and lambda - 1 = cosh(2u). So a convolution
    need not lay out its patches.

    Args:
        inner: <v, z>, [..., units].
        squares: |v|^2, [..., 1]; sqrt(c)|v| must be below 40.
        kernel: z, [..., units].
        offset: r, [units].
        c: the curvature is -c.

    Returns:
        [..., units].
    """
    c = check_curvature(c)

    @tf.custom_gradient
    def factors(squares):
        t = c * squares
        u = safe_sqrt(t)
        sine, cosine = tf.sinh(2.0 * u) / u, tf.cosh(2.0 * u)

        def backward(of_sine, of_cosine):
            floor = 1e-6 if t.dtype == tf.float64 else 1e-3
            bend = tf.where(t > floor, (cosine - 0.5 * sine) / tf.maximum(t, floor), 4 / 3)
            return c * (of_sine * bend + of_cosine * sine)

        return (sine, cosine), backward

    sine, cosine = factors(squares)
    return _scores(sine * inner, cosine, _norms(kernel), offset, c)


def _norms(kernel):
    kernel = tf.reshape(kernel, [-1, kernel.shape[-1]])
    return safe_sqrt(tf.reduce_sum(tf.square(kernel), axis=0))


def _scores(inner, factor, norms, offset, c):
    """The equation from lambda<x, z> and lambda - 1."""
    root = math.sqrt(c)

    @tf.custom_gradient
    def scores(inner, factor, norms, offset):
        sine, cosine = tf.sinh(2.0 * root * offset), tf.cosh(2.0 * root * offset)
        scaled = inner * (root / norms)
        turned = scaled * cosine - factor * sine
        distances = tf.asinh(turned)

        def backward(upstream):
            upstream *= 2.0 / root
            g = upstream * norms / tf.sqrt(1.0 + tf.square(turned))
            others = list(range(len(g.shape) - 1))
            to_norms = upstream * distances - g * scaled * (cosine / norms)
            return (
                g * (root * cosine / norms),
                -tf.reduce_sum(g * sine, -1, keepdims=True),
                tf.reduce_sum(to_norms, others),
                tf.reduce_sum(g * (scaled * sine - factor * cosine), others) * (2.0 * root),
            )

        return (2.0 / root) * norms * distances, backward

    return scores(inner, factor, norms, offset)


def from_scores(scores, c=1.0):
    """The point whose signed distances to the axes' hyperplanes through 0 are `scores`.

        y = w / (1 + sqrt(1 + c|w|^2)),  w = sinh(s v) / s

    Equation 7 of "Hyperbolic Neural Networks++"; with `gyroplane_scores` its fully connected layer.
    For c -> 0 it is v / 2.

    Args:
        scores: v, [..., units].
        c: the curvature is -c.

    Returns:
        Points, [..., units].
    """
    c = check_curvature(c)
    root = math.sqrt(c)
    # Beyond 20 the point is at the end of the ball anyway, and sinh would overflow.
    return _half_tanh(tf.sinh(tf.clip_by_value(root * scores, -20.0, 20.0)) / root, c)
