"""Sensor layouts: an image sensor whose pixels' sizes are learned with the task.

    width_i    = softmax(logits)_i,   boundary_i = width_1 + ... + width_i
    out_ij     = 1 / area(cell_ij) * integral of the image over cell_ij

The high-resolution image is constant on each of its pixels, so that the integral over a rectangle
is exact: with A the matrix of the overlaps of the sensor's rows (columns) with the image's, each
row of it divided by its sum, out = A_rows image A_columns'.

"Differentiable Sensor Layouts for End-to-End Learning of Task-Specific Camera Parameters",
Sommerhoff, Agnihotri, Saleh, Moeller, Keuper, Kolb, 2023, arXiv 2304.14736; its rectangular layout.

Open choices: the softmax (the paper's own parameterization may be another); no width is
below `min_width` of the uniform one, so that no cell is empty in floating point. Where a boundary
is on an edge of image pixels, its derivative is that to the side of the smaller coordinates. The
curvilinear layout is left out.
"""

import keras
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


@component(
    PAPER,
    example=Example(
        kwargs={"height": 2, "width": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 7, 2)).astype("float32"),),
    ),
)
class RectangularSensorLayout(keras.layers.Layer):
    """Averages images over the cells of a learned grid of rectangles.

    Put it in front of any model. It starts as average pooling over equal cells, also where they cut
    through pixels.

    Args:
        height: rows of the sensor.
        width: columns of the sensor.
        min_width: least size of a row or column, as a part of the uniform one, above 0 and at most
            1 (a fixed uniform layout). Defaults to 0.01.

    Input shape: [batch, image height, image width, channels], any size.
    Output shape: [batch, height, width, channels].

    Example:

    >>> model = keras.Sequential([RectangularSensorLayout(32, 32), classifier])

    Reference:
        Sommerhoff et al. (2023), arxiv.org/abs/2304.14736
    """

    def __init__(self, height, width, min_width=0.01, **kwargs):
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
        self.row_logits = self.add_weight([self.height], "zeros", name="row_logits")
        self.column_logits = self.add_weight([self.width], "zeros", name="column_logits")

    def boundaries(self):
        """Where rows and columns end: float [height + 1] and [width + 1], from 0 to 1."""
        return self._boundaries(self.row_logits), self._boundaries(self.column_logits)

    def cell_areas(self):
        """The areas of the cells, float [height, width], as parts of the image's."""
        rows, columns = self.boundaries()
        return (rows[1:] - rows[:-1])[:, None] * (columns[1:] - columns[:-1])

    def _boundaries(self, logits):
        widths = self.min_width / logits.shape[0] + (1 - self.min_width) * tf.nn.softmax(logits)
        inner = tf.cumsum(widths)[:-1]
        return tf.concat([tf.zeros([1], inner.dtype), inner, tf.ones([1], inner.dtype)], 0)

    def call(self, inputs):
        images = tf.cast(inputs, self.variable_dtype)
        rows, columns = self.boundaries()
        shape = tf.shape(images)
        x = tf.einsum("ip,bpqc->biqc", _averages(rows, shape[1]), images)
        x = tf.einsum("jq,biqc->bijc", _averages(columns, shape[2]), x)
        return tf.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.height, self.width, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "height": self.height,
            "width": self.width,
            "min_width": self.min_width,
        }


def _averages(boundaries, length):
    """Weights [cells, length] of the pixels in the average over each interval."""
    places = boundaries[:, None] * tf.cast(length, boundaries.dtype)
    pixels = tf.cast(tf.range(length), boundaries.dtype)
    # The part of each pixel before each boundary. Not a clip, whose derivative would be 1 for both
    # pixels at an edge between them.
    covered = tf.minimum(tf.nn.relu(places - pixels), 1.0)
    overlaps = covered[1:] - covered[:-1]
    return overlaps / tf.reduce_sum(overlaps, axis=1, keepdims=True)
