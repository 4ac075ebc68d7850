"""From a convolutional network to a neural operator, with the weights that it has.

Layers that act on each point or on the channels stay as they are; a convolution becomes an integral
with a continuous kernel of fixed physical size, of the same weights:

    sum_i W_i u(x + i h_0)   ->   integral of kappa(y) u(x + y) dy,   kappa(i h_0) = W_i / h_0^d

On the grid of spacing h_0 that the network was made for both are the same; on others the
convolution's kernel would shrink or grow with the grid, and the integral's does not.

"Principled Approaches for Extending Neural Architectures to Function Spaces for Operator Learning",
Berner et al., 2025, arXiv 2506.10973, section 4 (a recipe for converting architectures).

Open choices: kernels are interpolated as in their U-Net with interpolated kernels, but with the
exact quadrature weight (h / h_0)^d and a kernel that goes to 0 at the end of its support. Strided
convolutions and local pooling change the grid and are refused: use global pooling, or resample by
interpolation outside of the model.
"""

import keras

from kzoo.layers.integral_conv import IntegralConv
from kzoo.layers.spectral_conv import PAPER, SpectralConv
from kzoo.papers import component

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# They see each point on its own, or all of the domain alike.
_KEPT = (
    keras.layers.InputLayer,
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.BatchNormalization,
    keras.layers.Concatenate,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Identity,
    keras.layers.LayerNormalization,
    keras.layers.LeakyReLU,
    keras.layers.Maximum,
    keras.layers.Multiply,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Rescaling,
    keras.layers.Softmax,
    keras.layers.Subtract,
    IntegralConv,
    SpectralConv,
)


@component(PAPER)
def to_neural_operator(model, length=1.0, padding="zeros"):
    """Converts a convolutional Keras model to one for grids of any size.

    Args:
        model: a functional or sequential model of one input [n_1, ..., n_d, channels] whose grid is
            known. Convolutions must have stride 1, odd kernels, `padding="same"`, no dilation and
            no groups; kernels of one point stay convolutions.
        length: extent of the domain on each axis. Defaults to 1.
        padding: "zeros", as the convolutions have it, or "periodic" where the domain is; the
            outputs near the boundary then are others than the model's. Defaults to "zeros".

    Returns:
        A new model with an open grid and copies of the weights. On the model's grid it gives the
        same outputs with "zeros".

    Raises:
        ValueError: for layers that have no counterpart on functions, with their name.

    Reference:
        Berner et al. (2025), section 4, arxiv.org/abs/2506.10973
    """
    shapes = [tuple(each.shape) for each in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) < 3 or None in shapes[0][1:]:
        raise ValueError(
            "`model` must have one input [n_1, ..., n_d, channels] with a known grid. "
            f"Received: {shapes}"
        )
    _, *grid, channels = shapes[0]
    lengths = [length] * len(grid) if isinstance(length, int | float) else list(length)
    spacings = [extent / n for extent, n in zip(lengths, grid, strict=True)]

    def converted(layer):
        if isinstance(layer, _CONVOLUTIONS):
            return _integral(layer, spacings, lengths, padding)
        if not isinstance(layer, _KEPT):
            raise ValueError(
                f"The layer {layer.name!r} ({type(layer).__name__}) depends on the grid and has "
                "no counterpart on functions here."
            )
        return type(layer).from_config(layer.get_config())

    opened = keras.Input((*[None] * len(grid), channels), dtype=model.inputs[0].dtype)
    structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    inputs = keras.tree.map_structure(lambda _: opened, structure)
    operator = keras.models.clone_model(model, input_tensors=inputs, clone_function=converted)
    operator.set_weights(model.get_weights())
    return operator


def _integral(layer, spacings, lengths, padding):
    """The integral with the weights of a convolution; the convolution for kernels of one point."""
    if set(layer.kernel_size) == {1} and set(layer.strides) == {1}:
        return type(layer).from_config(layer.get_config())
    odd = all(k % 2 for k in layer.kernel_size)
    plain = set(layer.strides) == set(layer.dilation_rate) == {layer.groups} == {1}
    if not (odd and plain and layer.padding == "same" and layer.data_format == "channels_last"):
        raise ValueError(
            "Convolutions must have stride 1, odd kernels, padding 'same', no dilation, one group "
            f"and channels last. Received: {layer.name!r}, kernel {layer.kernel_size}, strides "
            f"{layer.strides}, padding {layer.padding!r}, dilation {layer.dilation_rate}, groups "
            f"{layer.groups}, {layer.data_format!r}"
        )
    return IntegralConv(
        layer.filters,
        layer.kernel_size,
        radius=[(k + 1) / 2 * h for k, h in zip(layer.kernel_size, spacings, strict=True)],
        length=lengths,
        padding=padding,
        activation=layer.activation,
        use_bias=layer.use_bias,
        kernel_regularizer=layer.kernel_regularizer,
        dtype=layer.dtype_policy,
        name=layer.name,
    )
