"""A DendroMap as a still picture."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kzoo.explain.visualization.treemap import fit_thumbnails, treemap_layout

_ERROR_COLOR = "#d55e00"
_INCH = 72.0
_HEADER, _MARGIN = 11.0, 3.0


def dendromap_figure(dendromap, num_clusters=12, root=None, size=(10.0, 7.0), thumbnail=None):
    """Draws the clusters below a node, as the page shows them.

    Args:
        dendromap: a `DendroMap`.
        num_clusters: how many clusters. Defaults to 12.
        root: the node that fills the picture. Defaults to all images.
        size: width and height in inches. Defaults to (10, 7).
        thumbnail: side of a thumbnail at least, in points (1/72 inch). Defaults to a size at which
            about all images fit, but at least 16.

    Returns:
        A matplotlib figure. Errors have an orange frame.
    """
    width, height = (side * _INCH for side in size)
    visible = dendromap.tree.cut(num_clusters, root)
    root = dendromap.tree.root if root is None else root
    if thumbnail is None:
        thumbnail = max(16.0, 0.8 * math.sqrt(width * height / dendromap.tree.size(root)))
    layout = treemap_layout(dendromap.tree, root, width, height, visible)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for node in visible:
        _draw_cluster(axes, dendromap, node, layout[node], thumbnail)
    for node in layout.keys() - set(visible):
        axes.add_patch(_frame(layout[node], "#202020", 2.0))
    return figure


def _draw_cluster(axes, dendromap, node, rect, thumbnail):
    axes.add_patch(_frame(rect, "#909090", 0.8))
    heading = _heading(dendromap.describe(node))
    text = axes.text(rect.x + _MARGIN, rect.y + 2, heading, fontsize=6, va="top", clip_on=True)
    text.set_clip_path(axes.add_patch(_frame(rect, "none", 0)))
    inner = rect._replace(width=rect.width - 2 * _MARGIN, height=rect.height - 2 * _MARGIN)
    members = dendromap.tree.members(node)
    columns, side, shown = fit_thumbnails(inner, len(members), thumbnail, _HEADER)
    for position, image in enumerate(members[shown]):
        left = rect.x + _MARGIN + side * (position % columns)
        top = rect.y + _MARGIN + _HEADER + side * (position // columns)
        _draw_image(axes, dendromap, image, left, top, side - 1)


def _heading(about):
    words = [f"{about['size']} images"]
    if about["class_mix"]:
        name, count = next(iter(about["class_mix"].items()))
        words.append(f"{count / about['size']:.0%} {name}")
    if about["error"]:
        words.append(f"{100 * about['error']:.1f} % errors")
    return ", ".join(words)


def _draw_image(axes, dendromap, image, left, top, side):
    pixels = dendromap.thumbnails[image]
    scale = side / max(pixels.shape[:2])
    right, bottom = left + scale * pixels.shape[1], top + scale * pixels.shape[0]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    axes.imshow(pixels, extent=(left, right, bottom, top), aspect="auto")
    if dendromap.errors is not None and dendromap.errors[image]:
        axes.add_patch(
            Rectangle((left, top), side, side, fill=False, edgecolor=_ERROR_COLOR, linewidth=1)
        )


def _frame(rect, color, width):
    return Rectangle(
        (rect.x, rect.y), rect.width, rect.height, fill=False, edgecolor=color, linewidth=width
    )
