"""Convolution and pooling as operations of a circuit: a window view and an einsum or reduction."""

import keras
import numpy as np

from kzoo.analysis.circuits import axes as axes_of
from kzoo.analysis.circuits.layers import activate, add_bias, lowering, weight

layers = keras.layers


def _padding(layer, length, size, stride, dilation):
    reach = (size - 1) * dilation
    if layer.padding == "causal":
        return reach, 0
    if layer.padding == "valid":
        return 0, 0
    total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
    return total // 2, total - total // 2


def windows(build, layer, x, sizes, dilations=None, fill="zero"):
    """Window views along all axes between batch and channels.

    Returns:
        The tensor, and the number of the axis of offsets for each spatial axis, or None where the
        window is a single place.
    """
    strides = layer.strides
    dilations = dilations or (1,) * len(sizes)
    offsets, axis = [], 1
    for size, stride, dilation in zip(sizes, strides, dilations, strict=True):
        if size == stride == 1:
            offsets.append(None)
            axis += 1
            continue
        padding = _padding(layer, x.shape[axis], size, stride, dilation)
        x = build.window(layer.name, x, axis, size, stride, dilation, padding, fill)
        offsets.append(axis + 1)
        axis += 2
    return x, offsets


def _places(x, offsets):
    return [at for at in range(len(x.axes) - 1) if at not in offsets]


@lowering(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _convolution(build, layer, inputs):
    kernel, groups = weight(layer.kernel), layer.groups
    channels = build.learned_axis(layer, "", layer.filters)
    x, offsets = windows(build, layer, inputs, layer.kernel_size, layer.dilation_rate)
    kernel = kernel.reshape([n for n, at in zip(kernel.shape, offsets, strict=False)
                             if at is not None] + list(kernel.shape[-2:]))  # fmt: skip
    offsets = [at for at in offsets if at is not None]
    places, rank = _places(x, offsets), len(x.axes)
    if groups > 1:
        x = build.reshape(layer.name, x, [*x.shape[:-1], groups, x.shape[-1] // groups])
        kernel = kernel.reshape([*kernel.shape[:-1], groups, layer.filters // groups])
        group, made = axes_of.split(channels, [groups, layer.filters // groups])
        kernel = np.moveaxis(kernel, -2, -3)
        axes_of.join(x.axes[-2], group, layer.name)
        terms, new = [range(rank + 1), [*offsets, rank - 1, rank, rank + 1]], rank + 1
        result = [*places, rank - 1, new]
    else:
        terms, new, made = [range(rank), [*offsets, rank - 1, rank]], rank, channels
        result = [*places, new]
    constant = build.constant(f"{layer.name}.kernel", kernel)
    x = build.einsum(layer.name, [x, constant], terms, result, {new: made})
    if groups > 1:
        x = build.reshape(layer.name, x, [*x.shape[:-2], layer.filters])
    x = add_bias(build, layer, x, layer.bias)
    return activate(build, layer.name, x, layer.activation)


@lowering(layers.Conv1DTranspose, layers.Conv2DTranspose)
def _transposed_convolution(build, layer, inputs):
    """Each element of the input times the kernel, added up where the kernels overlap."""
    if set(layer.dilation_rate) != {1} or layer.output_padding is not None:
        raise ValueError(
            f"Layer {layer.name!r} must have dilation_rate=1 and no output_padding to be drawn."
        )
    kernel, count = weight(layer.kernel), len(layer.kernel_size)
    rank, channels = len(inputs.axes), build.learned_axis(layer, "", layer.filters)
    offsets = range(rank, rank + count)
    made = {
        index: build.learned_axis(layer, f"k{at}", kernel.shape[at])
        for at, index in enumerate(offsets)
    }
    constant = build.constant(f"{layer.name}.kernel", kernel)
    x = build.einsum(
        layer.name,
        [inputs, constant],
        [range(rank), [*offsets, rank + count, rank - 1]],
        [*range(rank - 1), *offsets, rank + count],
        {**made, rank + count: channels},
    )
    for axis, (size, stride) in enumerate(zip(layer.kernel_size, layer.strides, strict=True), 1):
        overlap, length = max(size - stride, 0), inputs.shape[axis] * stride
        same = layer.padding == "same"
        low, length = (overlap // 2, length) if same else (0, length + overlap)
        x = build.fold(layer.name, x, axis, rank - 1, stride, low, length)
    x = add_bias(build, layer, x, layer.bias)
    return activate(build, layer.name, x, layer.activation)


def _depthwise(build, layer, inputs, kernel, multiplier):
    """A filter, or `multiplier` of them, for each channel."""
    x, offsets = windows(build, layer, inputs, layer.kernel_size, layer.dilation_rate)
    kernel = kernel.reshape([n for n, at in zip(kernel.shape, offsets, strict=False)
                             if at is not None] + list(kernel.shape[-2:]))  # fmt: skip
    offsets = [at for at in offsets if at is not None]
    rank = len(x.axes)
    result, term = [*_places(x, offsets), rank - 1], [*offsets, rank - 1]
    if multiplier == 1:
        constant = build.constant(f"{layer.name}.kernel", kernel[..., 0])
        return build.einsum(layer.name, [x, constant], [range(rank), term], result)
    constant = build.constant(f"{layer.name}.kernel", kernel)
    made = {rank: build.learned_axis(layer, "", multiplier)}
    terms = [range(rank), [*term, rank]]
    x = build.einsum(layer.name, [x, constant], terms, [*result, rank], made)
    return build.reshape(layer.name, x, [*x.shape[:-2], x.shape[-2] * multiplier])


@lowering(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise_convolution(build, layer, inputs):
    x = _depthwise(build, layer, inputs, weight(layer.kernel), layer.depth_multiplier)
    x = add_bias(build, layer, x, layer.bias)
    return activate(build, layer.name, x, layer.activation)


@lowering(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
def _max_pooling(build, layer, inputs):
    return _pool(build, layer, inputs, "max")


@lowering(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
def _average_pooling(build, layer, inputs):
    if layer.padding == "valid":
        return _pool(build, layer, inputs, "mean")
    x = _pool(build, layer, inputs, "sum")
    # Only what is inside of the image counts.
    share = np.ones([1] * (len(x.axes)))
    for axis, (size, stride) in enumerate(zip(layer.pool_size, layer.strides, strict=True), 1):
        length = inputs.shape[axis]
        low, _ = _padding(layer, length, size, stride, 1)
        starts = np.arange(x.shape[axis]) * stride - low
        count = np.minimum(starts + size, length) - np.maximum(starts, 0)
        share = share * np.expand_dims(1 / count, [a for a in range(share.ndim) if a != axis])
    share = share.astype("float32")
    return build.with_constant(layer.name, "multiply", x, share, f"{layer.name}.share")


def _pool(build, layer, inputs, function):
    fill = "lowest" if function == "max" else "zero"
    x, offsets = windows(build, layer, inputs, layer.pool_size, fill=fill)
    offsets = [at for at in offsets if at is not None]
    return build.reduce(layer.name, function, x, offsets) if offsets else inputs


def _global(function):
    def lower(build, layer, inputs):
        axes = range(1, len(inputs.axes) - 1)
        return build.reduce(layer.name, function, inputs, axes, layer.keepdims)

    return lower


lowering(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D)(_global("mean"))
lowering(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D)(_global("max"))


@lowering(layers.ZeroPadding1D, layers.ZeroPadding2D)
def _zero_padding(build, layer, inputs):
    pairs = layer.padding if isinstance(layer.padding[0], tuple) else [layer.padding]
    for axis, (low, high) in enumerate(pairs, 1):
        inputs = build.pad(layer.name, inputs, axis, low, high)
    return inputs


@lowering(layers.Cropping1D, layers.Cropping2D)
def _cropping(build, layer, inputs):
    pairs = layer.cropping if isinstance(layer.cropping[0], tuple) else [layer.cropping]
    for axis, (low, high) in enumerate(pairs, 1):
        stop = inputs.shape[axis] - high
        made = axes_of.grid(inputs.axes[axis], 1, stop - low)
        inputs = build.slice(layer.name, inputs, axis, low, stop, 1, made)
    return inputs


@lowering(layers.UpSampling1D, layers.UpSampling2D)
def _up_sampling(build, layer, inputs):
    factors = layer.size if isinstance(layer.size, tuple) else (layer.size,)
    interpolation = getattr(layer, "interpolation", "nearest")
    if interpolation == "nearest":
        return build.repeat(layer.name, inputs, dict(enumerate(factors, 1)))
    if interpolation != "bilinear":
        raise ValueError(
            f"Layer {layer.name!r} must have interpolation 'nearest' or 'bilinear' to be drawn. "
            f"Received: {interpolation!r}"
        )
    for axis, factor in enumerate(factors, 1):
        inputs = _interpolated(build, layer, inputs, axis, factor)
    return inputs


def _interpolated(build, layer, x, axis, factor):
    """Linear interpolation along one axis: a matrix, with the centres of pixels at a half."""
    length, rank = x.shape[axis], len(x.axes)
    at = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    matrix = np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0).astype("float32")
    made = {rank: axes_of.grid(x.axes[axis], factor, length * factor)}
    constant = build.constant(f"{layer.name}.interpolation", matrix)
    result = [rank if index == axis else index for index in range(rank)]
    return build.einsum(
        layer.name, [x, constant], [range(rank), [rank, axis]], result, made
    )  # fmt: skip
