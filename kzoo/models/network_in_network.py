"""Network in Network: MLP convolutions, and a map for each class instead of dense layers.

    image -> MLPConv(192, 160, 96; 5x5) -> max-pooling -> dropout
          -> MLPConv(192, 192, 192; 5x5) -> average pooling -> dropout
          -> MLPConv(192, 192, classes; 3x3) -> GAP = logits

The last layer has one map per class, and the logit of a class is the mean of its map. The maps are
therefore class activation maps that add up to the logits exactly.

"Network In Network", Lin, Chen, Yan, 2013, arXiv 1312.4400; section 3, figure 2. The widths are
those of the authors' CIFAR-10 model, which the paper does not print; poolings are 3x3 with stride
2, dropout drops 0.5.

As in equation 2 and in the authors' model, the maps of the classes are rectified too: logits are
not negative. Deviations: kernels begin He-normal (the authors: normal with deviations set by hand).
The paper normalises the contrast of images and whitens them before; no preprocessing is part of
this model.
"""

import keras

from kzoo.layers.mlp_conv import PAPER, MLPConv2D
from kzoo.models.builder import build_image_model, stage_end
from kzoo.papers import Example, component


def _features(units, kernel_sizes, dropout_rate):
    def features(x):
        for number, (widths, size) in enumerate(zip(units, kernel_sizes, strict=True), 1):
            x = MLPConv2D(widths, size, name=f"mlpconv{number}")(x)
            x = stage_end(x, number - 1)
            if number < len(units):
                pool = keras.layers.MaxPooling2D if number == 1 else keras.layers.AveragePooling2D
                x = pool(3, strides=2, padding="same", name=f"pool{number}")(x)
                x = keras.layers.Dropout(dropout_rate, name=f"dropout{number}")(x)
        return x

    return features


def _mean_of_class_maps(x, classes):
    dtype = keras.backend.result_type(x.dtype, "float32")
    x = keras.layers.Conv2D(
        classes,
        1,
        activation="relu",
        kernel_initializer="he_normal",
        dtype=dtype,
        name="class_maps",
    )(x)
    return keras.layers.GlobalAveragePooling2D(dtype=dtype, name="avg_pool")(x)


@component(
    PAPER,
    example=Example(
        kwargs={
            "units": ((6, 4), (6, 4), (6, 6)),
            "kernel_sizes": (3, 3, 3),
            "dropout_rate": 0.0,
            "input_shape": (8, 8, 3),
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),),
    ),
)
def NetworkInNetwork(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    dropout_rate=0.5,
    units=((192, 160, 96), (192, 192, 192), (192, 192)),
    kernel_sizes=(5, 5, 3),
    name="network_in_network",
):
    """Network in Network for small images: 966,986 parameters with 10 classes.

    The layer "class_maps" is [batch, height / 4, width / 4, classes]; its means are the logits.

    Args:
        include_top: whether the maps of the classes and their means are part of the model; else
            it ends with the maps that they are made of.
        weights: None for random ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (32, 32, 3). Height and width are any
            or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        dropout_rate: after each pooling, in [0, 1). Defaults to the paper's 0.5.
        units: the widths of each block's layers. The maps of the classes are one more layer of the
            last block. Defaults to the CIFAR-10 model's.
        kernel_sizes: of the first convolution of each block. Defaults to the CIFAR-10 model's.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Lin et al. (2013), section 3, arxiv.org/abs/1312.4400
    """
    if not units or len(units) != len(kernel_sizes):
        raise ValueError(
            "`units` and `kernel_sizes` must have one entry for each block. "
            f"Received: units={units}, kernel_sizes={kernel_sizes}"
        )
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")
    return build_image_model(
        _features(units, kernel_sizes, dropout_rate),
        default_shape=(32, 32, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        top=_mean_of_class_maps,
    )
