"""Contact sheets of feature visualisations."""

import math

import numpy as np

_CELL_INCHES = 1.7


def visualization_sheet(
    images, captions=None, transparency=None, columns=None, percentile=99.0, stretch=True
):
    """A sheet of visualisations, left to right, top to bottom.

    Args:
        images: [n, height, width, 1 or 3], for example the `images` of `maco`.
        captions: [n] strings under the images, for example `objective.names`. None for none.
        transparency: [n, height, width(, channels)], at least 0, for example alpha of `maco`:
            where it is low, the white paper shows. None draws the images opaque.
        columns: images in a row. None makes the sheet about square.
        percentile: transparencies above it are opaque. Defaults to 99.
        stretch: whether the values of each image are spread over all of black to white, from
            their 1st to their 99th percentile. Defaults to True.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: for images, captions or transparencies of different numbers or sizes.
    """
    from matplotlib.figure import Figure

    from kzoo.plots import picture

    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must have the shape [n, height, width, 1 or 3]. Received: "
            f"{list(images.shape)}"
        )
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"`captions` must be {len(images)}, one each. Received: {len(captions)}")
    alpha = _opacity(transparency, images, percentile)
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    cell = _CELL_INCHES * images.shape[1] / images.shape[2] + (0.25 if captions is not None else 0)
    figure = Figure(figsize=(columns * _CELL_INCHES, rows * cell), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    for index, axis in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        if index >= len(images):
            axis.remove()
            continue
        shown = picture(_stretched(images[index]) if stretch else images[index])
        axis.imshow(alpha[index] * shown + 1 - alpha[index], interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if captions is not None:
            axis.set_xlabel(str(captions[index]), fontsize=9, labelpad=3)
    return figure


def _opacity(transparency, images, percentile):
    """[n, height, width, 1] in [0, 1]."""
    if transparency is None:
        return np.ones([*images.shape[:3], 1])
    transparency = np.asarray(transparency, "float64")
    if transparency.shape not in (images.shape, images.shape[:3]) or (transparency < 0).any():
        raise ValueError(
            "`transparency` must have the height and width of `images` and be at least 0. "
            f"Received the shape {list(transparency.shape)}"
        )
    if transparency.ndim == 4:
        transparency = transparency.sum(-1)
    level = np.percentile(transparency, percentile, axis=(1, 2), keepdims=True)
    return np.clip(transparency / np.maximum(level, np.finfo(float).tiny), 0, 1)[..., None]


def _stretched(image):
    low, high = np.percentile(image, [1, 99])
    return np.clip((image - low) / max(high - low, np.finfo(float).tiny), 0, 1)
