"""Sensor layouts: an image sensor whose pixels' sizes are learned with the task.

    out_cell = 1 / area(cell) * integral of the image over the cell

Rectangular: the sizes of rows and columns are free,

    width_i = softmax(logits)_i,   boundary_i = width_1 + ... + width_i

or, as in the paper, one number per axis crowds the cells at the centre of the image (s > 0) or at
its border (s < 0): in coordinates u from -1 to 1 the uniform boundaries move to

    u (1 - s) / (1 + s - 2 s |u|)

The high-resolution image is constant on each of its pixels, so that the integral over a rectangle
is exact: with A the matrix of the overlaps of the sensor's rows (columns) with the image's, each
row of it divided by its sum, out = A_rows image A_columns'.

Curvilinear: a point u = (x, y) of the uniform grid moves in the unit disk, with r = |u|, to

    x (1 - s) / (1 + s - 2 s r),   y (1 - t) / (1 + t - 2 t r)

and stays where it is outside. This is a smooth one-to-one map of the disk for all |s|, |t| < 1; the
integral over a cell is that over the uniform cell, weighted by the map's determinant.

"Differentiable Sensor Layouts for End-to-End Learning of Task-Specific Camera Parameters",
Sommerhoff, Agnihotri, Saleh, Moeller, Keuper, Kolb, 2023, arXiv 2304.14736. The formulas of both
maps, s = 0.6 tanh(weight), and images interpolated bilinearly are those of the authors' code.

Deviations: free rows and columns are not the paper's. The authors integrate by 16 random points in
each cell, and differentiate by as many on its border; here the rectangular layout is exact and the
curvilinear one has a regular grid of points, whose derivative is that of the same sum, so that an
image always has the same result.
Open choices: the softmax; no free width is below `min_width` of the uniform one, so that no cell is
empty in floating point. Where a boundary is on an edge of image pixels, the rectangular layout's
derivative is that to the side of the smaller coordinates.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Differentiable Sensor Layouts for End-to-End Learning of Task-Specific Camera "
    "Parameters",
    authors=(
        "Hendrik Sommerhoff", "Shashank Agnihotri", "Mohamed Saleh", "Michael Moeller",
        "Margret Keuper", "Andreas Kolb",
    ),
    year=2023,
    arxiv="2304.14736",
)  # fmt: skip


class _SensorLayout(keras.layers.Layer):
    """A grid of height x width cells; no side is shorter than `min_width` of the uniform one."""

    def __init__(self, height, width, min_width, **kwargs):
        # Not cast: boundaries need their precision.
        super().__init__(autocast=False, **kwargs)
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        if not 0 < min_width <= 1:
            raise ValueError(f"`min_width` must be in (0, 1]. Received: {min_width!r}")
        self.height = height
        self.width = width
        self.min_width = min_width

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                "`inputs` must be [batch, height, width, channels]. Received the shape "
                f"{tuple(input_shape)}"
            )

    def _add_foveation(self):
        self.foveation = self.add_weight([2], "zeros", name="foveation")

    def strengths(self):
        """How much cells crowd at the centre, horizontally and vertically: float [2], below 1.

        Below 0 they crowd at the border; 0 is the uniform layout.
        """
        # The shortest side of a cell is (1 - |s|) / (1 + |s|) of the uniform one.
        return (1 - self.min_width) / (1 + self.min_width) * tf.tanh(self.foveation)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.height, self.width, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "min_width": self.min_width,
        }


@component(
    PAPER,
    example=Example(
        kwargs={"height": 2, "width": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 7, 2)).astype("float32"),),
    ),
)
class RectangularSensorLayout(_SensorLayout):
    """Averages images over the cells of a learned grid of rectangles.

    Put it in front of any model. It starts as average pooling over equal cells, also where they cut
    through pixels.

    Args:
        height: rows of the sensor.
        width: columns of the sensor.
        min_width: least size of a row or column, as a part of the uniform one, above 0 and at most
            1 (a fixed uniform layout). Defaults to 0.01.
        symmetric: whether all sizes follow from two numbers, one for an axis, that move the cells
            to the centre or away from it, as in the paper (with `min_width=0.25` the authors'
            bound, 0.6). Defaults to False: each row and column has a size of its own.

    Input shape: [batch, image height, image width, channels], any size.
    Output shape: [batch, height, width, channels].

    Example:

    >>> model = keras.Sequential([RectangularSensorLayout(32, 32), classifier])

    Reference:
        Sommerhoff et al. (2023), arxiv.org/abs/2304.14736
    """

    def __init__(self, height, width, min_width=0.01, symmetric=False, **kwargs):
        super().__init__(height, width, min_width, **kwargs)
        self.symmetric = symmetric

    def build(self, input_shape):
        super().build(input_shape)
        if self.symmetric:
            self._add_foveation()
        else:
            self.row_logits = self.add_weight([self.height], "zeros", name="row_logits")
            self.column_logits = self.add_weight([self.width], "zeros", name="column_logits")

    def boundaries(self):
        """Where rows and columns end: float [height + 1] and [width + 1], from 0 to 1."""
        if self.symmetric:
            horizontal, vertical = tf.unstack(self.strengths())
            inner = _crowded(self.height, vertical), _crowded(self.width, horizontal)
        else:
            inner = self._cumulated(self.row_logits), self._cumulated(self.column_logits)
        return tuple(tf.pad(tf.pad(x, [[1, 0]]), [[0, 1]], constant_values=1.0) for x in inner)

    def cell_areas(self):
        """The areas of the cells, float [height, width], as parts of the image's."""
        rows, columns = self.boundaries()
        return (rows[1:] - rows[:-1])[:, None] * (columns[1:] - columns[:-1])

    def _cumulated(self, logits):
        widths = self.min_width / logits.shape[0] + (1 - self.min_width) * tf.nn.softmax(logits)
        return tf.cumsum(widths)[:-1]

    def call(self, inputs):
        images = tf.cast(inputs, self.variable_dtype)
        rows, columns = self.boundaries()
        shape = tf.shape(images)
        x = tf.einsum("ip,bpqc->biqc", _averages(rows, shape[1]), images)
        x = tf.einsum("jq,biqc->bijc", _averages(columns, shape[2]), x)
        return tf.cast(x, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "symmetric": self.symmetric}


@component(
    PAPER,
    example=Example(
        kwargs={"height": 2, "width": 3, "samples": 2},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 7, 2)).astype("float32"),),
    ),
)
class CurvilinearSensorLayout(_SensorLayout):
    """Averages images over the cells of a grid that is pulled to the centre, or away from it.

    Two numbers are learned, for the horizontal and the vertical pull. They bend the lines of the
    grid inside of the circle (the ellipse) that touches the image's sides, and only there. It
    starts as the uniform grid.

    Args:
        height: rows of the sensor.
        width: columns of the sensor.
        samples: points of a cell in either direction, at whose places the image is interpolated.
            Defaults to the pixels of a uniform cell, and 4 at least. With fewer, fine
            detail and noise are not averaged, and the uniform grid, whose points have the best
            places, can hold the layout where it started.
        min_width: least size of a cell in a direction, as a part of the uniform one, above 0 and at
            most 1 (a fixed uniform layout). Defaults to 0.25, with which the strengths are within
            0.6, as in the authors' code.

    Input shape: [batch, image height, image width, channels], any size.
    Output shape: [batch, height, width, channels].

    Example:

    >>> model = keras.Sequential([CurvilinearSensorLayout(32, 32), classifier])

    Reference:
        Sommerhoff et al. (2023), arxiv.org/abs/2304.14736
    """

    def __init__(self, height, width, samples=None, min_width=0.25, **kwargs):
        super().__init__(height, width, min_width, **kwargs)
        if samples is not None and (not isinstance(samples, int) or samples < 1):
            raise ValueError(f"`samples` must be a positive integer or None. Received: {samples!r}")
        self.samples = samples

    def build(self, input_shape):
        super().build(input_shape)
        self._add_foveation()
        sides = zip(input_shape[1:3], (self.height, self.width), strict=True)
        self._counts = [self.samples or _pixels_in_a_cell(*side) for side in sides]

    def deform(self, points):
        """The places in the image of points of the uniform grid; both are (x, y) from -1 to 1.

        Returns:
            The places, float [..., 2], and the determinant of the map's derivative, [...].
        """
        points = tf.cast(points, self.variable_dtype)
        squares = tf.square(points)
        # No further than the rim, where nothing moves: beyond it the denominators can be 0.
        radius = tf.minimum(tf.sqrt(tf.reduce_sum(squares, -1, keepdims=True)), 1.0)
        strengths = self.strengths()
        denominators = 1 + strengths - 2 * strengths * radius
        scales = (1 - strengths) / denominators
        growth = tf.math.divide_no_nan(2 * strengths * squares, radius * denominators)
        areas = tf.reduce_prod(scales, -1) * (1 + tf.reduce_sum(growth, -1))
        inside = radius < 1
        return tf.where(inside, points * scales, points), tf.where(inside[..., 0], areas, 1.0)

    def cell_areas(self):
        """The areas of the cells, float [height, width], as parts of the image's."""
        areas = self.deform(self._points())[1]
        return tf.reduce_mean(areas, [1, 3]) / (self.height * self.width)

    def _points(self):
        """The points of all cells: [height, counts[0], width, counts[1], 2]."""
        rows, columns = self.height * self._counts[0], self.width * self._counts[1]
        x, y = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in (columns, rows)))
        shape = (self.height, self._counts[0], self.width, self._counts[1], 2)
        return np.stack([x, y], axis=-1).reshape(shape)

    def call(self, inputs):
        images = tf.cast(inputs, self.variable_dtype)
        places, areas = self.deform(self._points())
        weights = areas / tf.reduce_sum(areas, axis=[1, 3], keepdims=True)
        x = tf.einsum("isjt,bisjtc->bijc", weights, _interpolated(images, places))
        return tf.cast(x, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "samples": self.samples}


def _crowded(cells, strength):
    """The boundaries between cells, [cells - 1], from 0 to 1."""
    uniform = tf.constant(np.linspace(-1, 1, cells + 1)[1:-1], strength.dtype)
    return (uniform * (1 - strength) / (1 + strength - 2 * strength * tf.abs(uniform)) + 1) / 2


def _averages(boundaries, length):
    """Weights [cells, length] of the pixels in the average over each interval."""
    places = boundaries[:, None] * tf.cast(length, boundaries.dtype)
    pixels = tf.cast(tf.range(length), boundaries.dtype)
    # The part of each pixel before each boundary. Not a clip, whose derivative would be 1 for both
    # pixels at an edge between them.
    covered = tf.minimum(tf.nn.relu(places - pixels), 1.0)
    overlaps = covered[1:] - covered[:-1]
    return overlaps / tf.reduce_sum(overlaps, axis=1, keepdims=True)


def _pixels_in_a_cell(pixels, cells):
    if pixels is None:
        raise ValueError("`samples` must be given for images of an open size.")
    return max(4, math.ceil(pixels / cells))


def _interpolated(images, places):
    """Bilinear values of images [batch, height, width, channels] at places [..., 2]."""
    shape = tf.shape(images)
    size = shape[2:0:-1]
    last = tf.cast(size - 1, images.dtype)
    # Pixels have their values at their centres; beyond those of the border nothing changes.
    places = tf.clip_by_value((places + 1) / 2 * (last + 1) - 0.5, 0.0, last)
    low = tf.floor(places)
    part = tf.unstack(places - low, axis=-1)
    low = tf.cast(low, tf.int32)
    corners = [tf.unstack(corner, axis=-1) for corner in (low, tf.minimum(low + 1, size - 1))]
    pixels = tf.reshape(images, [shape[0], shape[1] * shape[2], images.shape[3]])
    values = 0.0
    for i in (0, 1):
        for j in (0, 1):
            weight = abs(1 - i - part[1]) * abs(1 - j - part[0])
            index = corners[i][1] * shape[2] + corners[j][0]
            values += weight[..., None] * tf.gather(pixels, index, axis=1)
    return values
