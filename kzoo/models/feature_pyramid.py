"""The feature maps of all stages of a backbone, for detection and segmentation heads."""

import re

import keras


def feature_pyramid(backbone):
    """Returns a model of the last feature map of each stage of a backbone.

    Args:
        backbone: an image model of `kzoo.models`, with or without its classifier, new or loaded
            from a .keras file. Its layers are shared, not copied.

    Returns:
        A `keras.Model` with the inputs of `backbone` and the outputs {"P2": [batch, height / 4,
        width / 4, channels], "P3": ...}: "P" and the number of halvings, from the first stage of
        the backbone to the last. Where strided convolutions are not padded, maps are smaller by
        the border.

    Raises:
        ValueError: for a model that marks no stages.

    Example:

    >>> pyramid = feature_pyramid(DenseNet121(include_top=False, input_shape=(224, 224, 3)))
    >>> pyramid(images)["P3"].shape
    [1, 28, 28, 256]
    """
    maps = {
        layer.name: layer.output
        for layer in backbone.layers
        if isinstance(layer, keras.layers.Identity) and re.fullmatch(r"P\d", layer.name)
    }
    if not maps:
        raise ValueError(
            "`backbone` must be an image model of `kzoo.models` that marks its stages by layers "
            f'named "P1", "P2", ... Received: {backbone.name!r}, which has none'
        )
    return keras.Model(backbone.input, maps, name=f"{backbone.name}_pyramid")
