"""What the image models share: the input, the top, the weights, and their usual layers.

The arguments have the names and meanings of `keras.applications`. Images are channels last.
"""

import functools
import pathlib

import keras
import numpy as np

from kzoo.models.torch_weights import TORCH_SUFFIXES, is_torch_file, load_torch_weights
from kzoo.ops.distribute import num_replicas

# Of the kernel's fan-out, as the authors of both ResNet and DenseNet draw their weights.
HE_FAN_OUT = {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}


def conv(filters, kernel_size, name, strides=1, use_bias=False, padding="same", groups=1):
    """A `Conv2D` layer with He initialisation, without bias unless asked for."""
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        groups=groups,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(**HE_FAN_OUT),
        name=name,
    )


def padded_conv(x, filters, kernel_size, name, strides=2, use_bias=False):
    """A convolution with the same padding on all sides, also where it is strided."""
    pad = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name.removesuffix('conv')}pad")
    return conv(filters, kernel_size, name, strides, use_bias, padding="valid")(pad(x))


def batch_norm(x, name, momentum=0.9, epsilon=1.001e-5, **kwargs):
    """Batch norm, synchronised where it is built for several replicas.

    Args:
        kwargs: of `keras.layers.BatchNormalization`.
    """
    return keras.layers.BatchNormalization(
        momentum=momentum, epsilon=epsilon, synchronized=num_replicas() > 1, name=name, **kwargs
    )(x)


def bn_relu(x, name):
    """Batch norm and ReLU."""
    return keras.layers.Activation("relu", name=f"{name}relu")(batch_norm(x, f"{name}bn"))


def stage_end(x, level):
    """Marks `x` as the output of a stage: the last feature map that is 2^level times smaller.

    `kzoo.models.feature_pyramid` finds it by its name, also in a model that was loaded.
    """
    return keras.layers.Identity(name=f"P{level}")(x)


def stem_pool(x):
    """The 3x3 max-pooling of stride 2 that ends the stem of an ImageNet model."""
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def blocks_per_stage(depth, convolutions, others):
    """Returns n for a net of depth `convolutions` * n + `others`.

    Raises:
        ValueError: naming the nearest depths, if there is no such positive integer n.
    """
    n, rest = divmod(depth - others, convolutions) if isinstance(depth, int) else (0, 1)
    if rest or n < 1:
        below = max(n, 1)
        raise ValueError(
            f"`depth` must be {convolutions} n + {others}; the nearest are "
            f"{convolutions * below + others} and {convolutions * (below + 1) + others}. "
            f"Received: {depth!r}"
        )
    return n


def build_image_model(
    features,
    *,
    default_shape,
    min_size,
    include_top,
    weights,
    input_tensor,
    input_shape,
    pooling,
    classes,
    classifier_activation,
    name,
    application=None,
    torch_names=None,
    top=None,
    model_class=keras.Model,
):
    """Builds a classifier, or with `include_top=False` its body.

    Args:
        features: function from the image tensor to the last feature map.
        default_shape: the input's shape where neither `input_tensor` nor `input_shape` says.
        min_size: least height and width for which no feature map becomes empty.
        application: name in `keras.applications` of the model whose "imagenet" weights fit; None
            if there is none.
        torch_names: function from the name of a layer with weights to that of its module in
            published PyTorch checkpoints, see `kzoo.models.torch_weights`; None if there are none.
        top: function from the last feature map and `classes` to logits [batch, classes], where
            that is not global average pooling and a dense layer.
        model_class: of the result: `keras.Model` or a class with its constructor.

    Raises:
        ValueError: for arguments that are out of range or do not go together.
    """
    x = _image(input_tensor, input_shape or default_shape, input_shape, min_size)
    _check_top(include_top, pooling, classes)
    _check_weights(weights, application, torch_names, name, include_top, classes, x.shape[-1])
    inputs = keras.utils.get_source_inputs(x)
    x = features(x)
    if include_top:
        outputs = _classify(x, top, classes, classifier_activation)
    else:
        outputs = _pool(x, pooling)
    model = model_class(inputs[0] if len(inputs) == 1 else inputs, outputs, name=name)
    if weights == "imagenet":
        pretrained = getattr(keras.applications, application)(
            include_top=include_top, weights="imagenet"
        )
        model.set_weights(pretrained.get_weights())
    elif is_torch_file(weights):
        load_torch_weights(model, weights, torch_names)
    elif weights is not None:
        model.load_weights(weights)
    return model


def preprocess_copy(preprocess, x):
    """Returns `preprocess(x)`, a function of `keras.applications`, and leaves `x` as it was."""
    if keras.ops.is_tensor(x):
        # Integers cannot be scaled in place.
        integer = not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
        return preprocess(keras.ops.cast(x, keras.config.floatx()) if integer else x)
    return preprocess(np.array(x))


def preprocess_as_torch(x):
    """Scales RGB images in [0, 255], [..., 3], as weights from PyTorch expect; returns a copy.

    Returns (x / 255 - mean) / deviation with the means and deviations of ImageNet's channels.
    """
    scale = functools.partial(keras.applications.imagenet_utils.preprocess_input, mode="torch")
    return preprocess_copy(scale, x)


def _image(input_tensor, shape, input_shape, min_size):
    """The image tensor that the model begins with."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("kzoo.models need keras.config.image_data_format() == 'channels_last'.")
    if input_tensor is not None:
        _check_shape("input_tensor", tuple(input_tensor.shape[1:]), min_size)
        if input_shape is not None and tuple(input_shape) != tuple(input_tensor.shape[1:]):
            raise ValueError(
                "`input_shape` must be left out or be that of `input_tensor`, "
                f"{tuple(input_tensor.shape[1:])}. Received: {input_shape}"
            )
        return input_tensor
    _check_shape("input_shape", shape, min_size)
    return keras.Input(tuple(shape), name="images")


def _check_shape(argument, shape, min_size):
    sizes = [shape] if isinstance(shape, int) else list(shape)
    valid = len(sizes) == 3 and all(
        size is None or (isinstance(size, int) and size >= least)
        for size, least in zip(sizes, (min_size, min_size, 1), strict=True)
    )
    if not valid or sizes[-1] is None:
        raise ValueError(
            f"`{argument}` must be (height, width, channels) with height and width of at least "
            f"{min_size}, or None, so that every feature map has a position. Received: {shape}"
        )


def _check_top(include_top, pooling, classes):
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'`pooling` must be None, "avg" or "max". Received: {pooling!r}')
    if include_top and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"`classes` must be a positive integer. Received: {classes!r}")


def _check_weights(weights, application, torch_names, name, include_top, classes, channels):
    if weights is None:
        return
    if weights == "imagenet":
        _check_imagenet(application, name, include_top, classes, channels)
        return
    kinds = [".keras", ".weights.h5", *(TORCH_SUFFIXES if torch_names else ())]
    if not str(weights).endswith(tuple(kinds)) or not pathlib.Path(weights).exists():
        raise ValueError(
            '`weights` must be None, "imagenet" or the path of an existing '
            f"{' or '.join(kinds)} file. Received: {weights!r}"
        )


def _check_imagenet(application, name, include_top, classes, channels):
    if application is None:
        raise ValueError(
            'weights="imagenet" exists for DenseNet121, DenseNet169, DenseNet201, PreActResNet50, '
            f"PreActResNet101, PreActResNet152 and InceptionResNetV2. Received it for: {name}"
        )
    if include_top and classes != 1000:
        raise ValueError(
            f'`classes` must be 1000 with weights="imagenet" and `include_top`. Received: {classes}'
        )
    if channels != 3:
        raise ValueError(f'weights="imagenet" need 3 channels. Received: {channels}')


def _classify(x, top, classes, classifier_activation):
    # Outputs and losses stay in full precision under a mixed policy.
    dtype = keras.backend.result_type(x.dtype, "float32")
    if top is not None:
        activation = keras.layers.Activation(classifier_activation, dtype=dtype, name="predictions")
        return activation(top(x, classes))
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.layers.Dense(
        classes, activation=classifier_activation, dtype=dtype, name="predictions"
    )(x)


def _pool(x, pooling):
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name="max_pool")(x)
    return x
