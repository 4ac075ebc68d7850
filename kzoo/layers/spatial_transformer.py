"""Spatial transformer: a layer that learns where to look, and how to hold it.

    theta = regression(localization(U)),  V = sample(U, grid(theta))

The regression starts with a kernel of 0 and the identity as its bias, so that training starts from
the network without the layer.

"Spatial Transformer Networks", Jaderberg, Simonyan, Zisserman, Kavukcuoglu, 2015, arXiv 1506.02025;
section 3. Grids, sampler and their conventions are in `kzoo.ops.grids`.

Deviation: the thin plate spline is regressed as displacements of the control points rather than
their places, which differs by a constant.
Open choices: -1 and 1 are the centres of the outermost pixels (`align_corners`), which the paper
leaves open.
"""

import keras
import numpy as np
from keras import ops

from kzoo.ops import grids
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Spatial Transformer Networks",
    authors=("Max Jaderberg", "Karen Simonyan", "Andrew Zisserman", "Koray Kavukcuoglu"),
    year=2015,
    arxiv="1506.02025",
)

# {transform: its parameters at the identity}
_IDENTITIES = {
    "affine": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "attention": (1.0, 0.0, 0.0),
    "projective": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    "thin_plate_spline": None,
}


def _example_kwargs():
    return {"localization": keras.layers.Conv2D(2, 3, strides=2), "output_size": (4, 5)}


@component(
    PAPER,
    example=Example(
        kwargs=_example_kwargs,
        inputs=lambda rng, batch: (rng.normal(size=(batch, 6, 7, 2)).astype("float32"),),
    ),
)
class SpatialTransformer(keras.layers.Layer):
    """Warps its inputs as a small network, which is part of the layer, finds best.

    Put it in front of a classifier, or on any feature map; several in parallel look at several
    parts. Train the localization more slowly than the rest where it is unstable (the paper: a
    tenth of the learning rate).

    Args:
        localization: a layer or model from the inputs to features of any shape. Its features are
            flattened and regressed to the parameters by the layer itself.
        transform: "affine" (6 parameters), "attention" (isotropic scale and translation, 3),
            "projective" (8), or "thin_plate_spline" (2 a control point). Defaults to "affine".
        output_size: (height, width) of the outputs, or None for that of the inputs.
        control_points: of the thin plate spline: how many along each side of a regular grid over
            the image, at least 2. Defaults to 4, so 16 points.
        interpolation: "bilinear" or "bicubic". Defaults to "bilinear".
        fill_mode: what is outside of the inputs: "constant" for 0, "nearest" for their outermost
            pixels. Defaults to "constant".
        align_corners: whether -1 and 1 are the centres of the outermost pixels, or else their
            edges. Defaults to True.

    Input shape: [batch, height, width, channels].
    Output shape: [batch, *output_size, channels].

    Example:

    >>> localization = keras.Sequential(
    ...     [
    ...         keras.layers.Conv2D(8, 5, activation="relu"),
    ...         keras.layers.MaxPooling2D(),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(32, activation="relu"),
    ...     ]
    ... )
    >>> upright = SpatialTransformer(localization)(images)

    Reference:
        Jaderberg et al. (2015), arxiv.org/abs/1506.02025
    """

    def __init__(
        self,
        localization,
        transform="affine",
        output_size=None,
        control_points=4,
        interpolation="bilinear",
        fill_mode="constant",
        align_corners=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(localization, keras.layers.Layer):
            raise ValueError(f"`localization` must be a Keras layer. Received: {localization!r}")
        choices = {
            "transform": (transform, tuple(_IDENTITIES)),
            "interpolation": (interpolation, ("bilinear", "bicubic")),
            "fill_mode": (fill_mode, grids.FILL_MODES),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}"
                )
        if not isinstance(control_points, int) or control_points < 2:
            raise ValueError(
                f"`control_points` must be an integer of at least 2. Received: {control_points!r}"
            )
        if output_size is not None:
            output_size = tuple(output_size)
            if len(output_size) != 2 or not all(isinstance(n, int) and n > 0 for n in output_size):
                raise ValueError(
                    f"`output_size` must be two positive integers or None. Received: {output_size}"
                )
        self.localization = localization
        self.transform = transform
        self.output_size = output_size
        self.control_points = control_points
        self.interpolation = interpolation
        self.fill_mode = fill_mode
        self.align_corners = bool(align_corners)
        # Coordinates need more digits than bfloat16 has.
        wide = keras.backend.result_type(self.compute_dtype, "float32")
        identity = self._identity()
        self.regression = keras.layers.Dense(
            len(identity),
            kernel_initializer="zeros",
            bias_initializer=lambda shape, dtype=None: ops.convert_to_tensor(identity, dtype),
            dtype=wide,
            name="regression",
        )

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"Inputs must be [batch, height, width, channels]. Received: {input_shape}"
            )
        if None in self._size(input_shape):
            raise ValueError(
                "`output_size` must be given where the size of the inputs is open. Received: "
                f"input_shape={input_shape}"
            )
        if not self.localization.built:
            self.localization.build(input_shape)
        features = self.localization.compute_output_shape(input_shape)[1:]
        if None in features:
            raise ValueError(f"`localization` must give features of a fixed shape: {features}")
        self.regression.build((None, int(np.prod(features))))

    def call(self, inputs, training=None):
        grid = self.grid(inputs)
        images = ops.cast(inputs, grid.dtype)
        outputs = grids.grid_sample(
            images, grid, self.interpolation, self.fill_mode, self.align_corners
        )
        return ops.cast(outputs, self.compute_dtype)

    def parameters(self, inputs):
        """What the localization finds, before it becomes a grid.

        Returns:
            At least float32: "affine" [batch, 2, 3], "attention" [batch, 3] of (s, t_x, t_y),
            "projective" [batch, 3, 3], "thin_plate_spline" [batch, points, 2], displacements.
        """
        # `training` reaches the localization through Keras's call context.
        features = self.localization(inputs)
        size = self.regression.kernel.shape[0]
        theta = self.regression(ops.reshape(features, [-1, size]))
        if self.transform == "affine":
            return ops.reshape(theta, [-1, 2, 3])
        if self.transform == "projective":
            return ops.reshape(ops.pad(theta, [[0, 0], [0, 1]], constant_values=1.0), [-1, 3, 3])
        if self.transform == "thin_plate_spline":
            return ops.reshape(theta, [-1, self.control_points**2, 2])
        return theta

    def grid(self, inputs):
        """Where each output pixel comes from, [batch, *output_size, 2] of (x, y)."""
        theta = self.parameters(inputs)
        size = self._size(inputs.shape)
        if self.transform == "thin_plate_spline":
            points = self._control_grid()
            return grids.tps_grid(theta, points, size, self.align_corners)
        make = {
            "affine": grids.affine_grid,
            "attention": grids.attention_grid,
            "projective": grids.projective_grid,
        }[self.transform]
        return make(theta, size, self.align_corners)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self._size(input_shape), input_shape[3])

    def _size(self, input_shape):
        return self.output_size or tuple(input_shape[1:3])

    def _identity(self):
        if self.transform == "thin_plate_spline":
            return (0.0,) * (2 * self.control_points**2)
        return _IDENTITIES[self.transform]

    def _control_grid(self):
        line = np.linspace(-1, 1, self.control_points)
        return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)

    def get_config(self):
        return {
            **super().get_config(),
            "localization": keras.saving.serialize_keras_object(self.localization),
            "transform": self.transform,
            "output_size": self.output_size,
            "control_points": self.control_points,
            "interpolation": self.interpolation,
            "fill_mode": self.fill_mode,
            "align_corners": self.align_corners,
        }

    @classmethod
    def from_config(cls, config):
        localization = keras.saving.deserialize_keras_object(config["localization"])
        return cls(**{**config, "localization": localization})
