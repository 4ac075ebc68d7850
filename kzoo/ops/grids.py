"""Sampling grids of spatial transformers, and the differentiable sampler.

A grid says, for every output pixel, where in the image it is taken from: float [batch, height,
width, 2] of (x, y), x to the right and y down, both from -1 to 1 over the image. With
`align_corners` (the default) -1 and 1 are the centres of the outermost pixels, without it their
outer edges; grid and sampler must agree. On a side of one pixel that is aligned there is only 0.

    affine:             (x, y) = theta (x', y', 1)'
    attention:          (x, y) = s (x', y') + (t_x, t_y)
    projective:         (x, y) = (u, v) / w,   (u, v, w) = theta (x', y', 1)'
    thin plate spline:  (x, y) = (x', y') + f(x', y'),  f the smoothest with f(c_k) = displacement k
    sampler:            V = sum_nm U[n, m] k(x - m) k(y - n)

"Spatial Transformer Networks", Jaderberg, Simonyan, Zisserman, Kavukcuoglu, 2015, arXiv 1506.02025;
equations 1, 2, 3 and 5, and appendix A for the other transformations.

Why not `keras.ops.image.map_coordinates`: it has no batch axis (indexing it by coordinates costs
16 gathers for what are 4), and its filling is not that of a sampler whose weights fade out.
"""

import numpy as np
import tensorflow as tf

_KERNELS = {
    # {name: function of where between two pixels -> [(offset from the first, weight)]}
    "nearest": lambda t: [(0, tf.ones_like(t))],
    "bilinear": lambda t: [(0, 1 - t), (1, t)],
    "bicubic": lambda t: [(m, _keys(tf.abs(t - m))) for m in (-1, 0, 1, 2)],
}
INTERPOLATIONS = tuple(_KERNELS)
FILL_MODES = ("constant", "nearest")


def affine_grid(theta, size, align_corners=True):
    """The grid of affine transformations.

    Args:
        theta: floating [batch, 2, 3]; [[1, 0, 0], [0, 1, 0]] is the identity.
        size: (height, width) of the output.
        align_corners: see the module.

    Returns:
        [batch, height, width, 2], in the type of `theta`.
    """
    theta = _checked(theta, "theta", (2, 3))
    return _transformed(theta, size, align_corners)


def attention_grid(parameters, size, align_corners=True):
    """The grid of isotropic scalings and translations, which look at a part of the image.

    Args:
        parameters: floating [batch, 3] of (s, t_x, t_y); (1, 0, 0) is the identity, s < 1 zooms in.
        size, align_corners: see `affine_grid`.

    Returns:
        [batch, height, width, 2], in the type of `parameters`.
    """
    parameters = _checked(parameters, "parameters", (3,))
    plane = _plane(size, align_corners, parameters.dtype)
    scale, shift = parameters[:, None, None, :1], parameters[:, None, None, 1:]
    return scale * plane + shift


def projective_grid(theta, size, align_corners=True):
    """The grid of plane projective transformations.

    Args:
        theta: floating [batch, 3, 3]; the identity matrix, and its multiples, are the identity.
        size, align_corners: see `affine_grid`.

    Returns:
        [batch, height, width, 2], in the type of `theta`. Infinite or NaN on the line at infinity.
    """
    theta = _checked(theta, "theta", (3, 3))
    homogeneous = _transformed(theta, size, align_corners)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def tps_grid(displacements, control_points, size, align_corners=True):
    """The grid of thin plate splines, which move control points and bend everything else least.

    Args:
        displacements: floating [batch, points, 2], what is added to (x, y) at the control points;
            0 is the identity.
        control_points: [points, 2] of fixed (x, y) in the output, at least 3 and not all on a line.
        size, align_corners: see `affine_grid`.

    Returns:
        [batch, height, width, 2], in the type of `displacements`.

    Raises:
        ValueError: for control points that are repeated or on one line.
    """
    control_points = np.asarray(control_points, "float64")
    if control_points.ndim != 2 or control_points.shape[1] != 2:
        raise ValueError(
            f"`control_points` must be [points, 2]. Received: {list(control_points.shape)}"
        )
    displacements = _checked(displacements, "displacements", control_points.shape)
    plane = _plane(size, align_corners, np.float64)
    influence = tf.constant(_tps_influence(control_points, plane), displacements.dtype)
    moved = tf.einsum("hwk,bkc->bhwc", influence, displacements)
    return tf.constant(plane, displacements.dtype) + moved


def grid_sample(images, grid, interpolation="bilinear", fill_mode="constant", align_corners=True):
    """Samples images at the places of a grid.

    Differentiable in the images and, but for "nearest", in the grid. Where the interpolation has a
    kink, on the pixels themselves, the derivative is the one to the right.

    Args:
        images: floating [batch, height, width, channels].
        grid: floating [batch, ..., 2] of (x, y), usually [batch, height', width', 2].
        interpolation: "bilinear", "nearest" or "bicubic" (Keys's kernel, a = -0.5, as in
            `tf.image.resize`). Defaults to "bilinear".
        fill_mode: what is outside of the image: "constant" for 0, "nearest" for its outermost
            pixels. Defaults to "constant".
        align_corners: as of the grid. Defaults to True.

    Returns:
        [batch, ..., channels], in the type of the images. 0 where the grid is not finite.
    """
    _check_choice("interpolation", interpolation, INTERPOLATIONS)
    _check_choice("fill_mode", fill_mode, FILL_MODES)
    images, grid = tf.convert_to_tensor(images), tf.convert_to_tensor(grid)
    if images.shape.rank != 4:
        raise ValueError(
            f"`images` must be [batch, height, width, channels]. Received: {images.shape}"
        )
    if grid.shape.rank is None or grid.shape.rank < 2 or grid.shape[-1] != 2:
        raise ValueError(f"`grid` must be [batch, ..., 2]. Received: {grid.shape}")
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    finite = tf.reduce_all(tf.math.is_finite(grid), axis=-1, keepdims=True)
    grid = tf.where(finite, grid, tf.zeros_like(grid))
    columns = _taps(grid[..., 0], width, interpolation, fill_mode, align_corners)
    rows = _taps(grid[..., 1], height, interpolation, fill_mode, align_corners)
    batch, _, _, channels = tf.unstack(tf.shape(images))
    pixels = tf.reshape(images, [batch, height * width, channels])
    terms = [
        tf.cast(vertical * horizontal, images.dtype)[..., None]
        * tf.gather(pixels, row * width + column, batch_dims=1)
        for row, vertical in rows
        for column, horizontal in columns
    ]
    outputs = tf.where(finite, tf.add_n(terms), tf.zeros([], images.dtype))
    return tf.ensure_shape(outputs, [*grid.shape[:-1], images.shape[-1]])


def _taps(positions, length, interpolation, fill_mode, align_corners):
    """[(indices int32, weights)] of the pixels along one axis that make up each sample."""
    span = tf.cast(length, positions.dtype)
    steps, edge = (span - 1, 0.0) if align_corners else (span, 0.5)
    pixels = (positions + 1) * steps / 2 - edge
    # Far outside is like just outside, and fits into an integer.
    pixels = tf.clip_by_value(pixels, -3.0, span + 2)
    first = tf.floor(pixels + 0.5 if interpolation == "nearest" else pixels)
    taps = []
    for offset, weights in _KERNELS[interpolation](pixels - first):
        index = tf.cast(first, tf.int32) + offset
        if fill_mode == "constant":
            weights = tf.where((index >= 0) & (index < length), weights, tf.zeros_like(weights))
        taps.append((tf.clip_by_value(index, 0, length - 1), weights))
    return taps


def _keys(distance):
    """Keys's cubic convolution kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    zero = tf.zeros_like(distance)
    return tf.where(distance <= 1, near, tf.where(distance < 2, far, zero))


def _plane(size, align_corners, dtype):
    """(x, y) of the output's pixels, [height, width, 2]: a constant."""
    height, width = _checked_size(size)
    x, y = np.meshgrid(_centres(width, align_corners), _centres(height, align_corners))
    plane = np.stack([x, y], axis=-1)
    return plane if dtype is np.float64 else tf.constant(plane, dtype)


def _centres(length, align_corners):
    if not align_corners:
        return (2 * np.arange(length) + 1) / length - 1
    return np.linspace(-1, 1, length) if length > 1 else np.zeros(1)


def _transformed(theta, size, align_corners):
    plane = _plane(size, align_corners, theta.dtype)
    linear, shift = theta[..., :2], theta[:, None, None, :, 2]
    # Written out: a matrix product may be rounded more than its factors.
    x, y = plane[..., :1], plane[..., 1:]
    return linear[:, None, None, :, 0] * x + linear[:, None, None, :, 1] * y + shift


def _tps_influence(control_points, plane):
    """What a unit at each control point adds at each place, [height, width, points]."""
    count = len(control_points)
    system = np.zeros([count + 3, count + 3])
    system[:count, :count] = _tps_kernel(control_points, control_points)
    system[:count, count:] = _linear_terms(control_points)
    system[count:, :count] = system[:count, count:].T
    if np.linalg.matrix_rank(system) < count + 3:
        raise ValueError(
            "`control_points` must be at least 3 different points that are not all on one line. "
            f"Received: {control_points.tolist()}"
        )
    values = np.concatenate([_tps_kernel(plane, control_points), _linear_terms(plane)], axis=-1)
    # The system is symmetric: values @ inverse = solve(system, values') '.
    influence = np.linalg.solve(system, values.reshape(-1, count + 3).T)[:count]
    return influence.T.reshape(*plane.shape[:2], count)


def _tps_kernel(places, control_points):
    """r^2 log r of the distances, [..., points]."""
    squared = np.sum((places[..., None, :] - control_points) ** 2, axis=-1)
    return 0.5 * squared * np.log(np.where(squared > 0, squared, 1))


def _linear_terms(places):
    return np.concatenate([np.ones_like(places[..., :1]), places], axis=-1)


def _checked(values, name, shape):
    values = tf.convert_to_tensor(values)
    if values.shape.rank != len(shape) + 1 or tuple(values.shape[1:]) != tuple(shape):
        wanted = ", ".join(str(side) for side in shape)
        raise ValueError(f"`{name}` must be [batch, {wanted}]. Received: {values.shape}")
    return values


def _checked_size(size):
    size = tuple(size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"`size` must be two positive integers. Received: {size}")
    return size


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}")
