"""Squarified treemaps: rectangles with areas in proportion to sizes, nested as a tree is.

"Squarified Treemaps", Bruls, Huizing, van Wijk, 2000: rows of rectangles are laid along the shorter
side of what is left, and a row takes the next rectangle for as long as that does not make the worst
aspect ratio of the row,

    worst(R, w) = max over r in R of max(w^2 r / s^2, s^2 / (w^2 r)),  s = sum of R,

any worse. Two children therefore divide the longer side of their parent.
"""

import itertools
from typing import NamedTuple

import numpy as np


class Rect(NamedTuple):
    """A rectangle; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self):
        return self.width * self.height


def squarify(sizes, rect):
    """Divides a rectangle.

    Args:
        sizes: positive numbers; the areas are in proportion to them.
        rect: the `Rect` (or x, y, width, height) to fill.

    Returns:
        list of `Rect`, one for each of `sizes`, in their order.
    """
    sizes, rect = np.asarray(sizes, "float64"), Rect(*map(float, rect))
    if sizes.ndim != 1 or not len(sizes) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"`sizes` must be positive numbers, at least one. Received: {sizes}")
    if not (rect.width > 0 and rect.height > 0):
        raise ValueError(f"`rect` must have a positive width and height. Received: {rect}")
    areas = sizes * (rect.area / sizes.sum())
    waiting = list(np.argsort(-areas, kind="stable"))
    placed = [None] * len(areas)
    while waiting:
        row = _next_row(areas[waiting], min(rect.width, rect.height))
        indices, waiting = waiting[:row], waiting[row:]
        laid, rect = _lay_row(areas[indices], rect, is_last=not waiting)
        for index, each in zip(indices, laid, strict=True):
            placed[index] = each
    return placed


def treemap_layout(tree, root, width, height, visible):
    """Lays out a tree: every node lies in its parent and is divided among its children.

    Args:
        tree: has `children(node)`, the numbers of two or more nodes, and `size(node)`, as a
            `ClusterTree` does.
        root: the node that fills the canvas.
        width, height: of the canvas.
        visible: the nodes below `root`, or `root`, that are not divided further.

    Returns:
        {node: `Rect`} of `root`, the visible nodes and those between them, parents first.
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"`width` and `height` must be positive. Received: {width} and {height}")
    visible, layout = set(visible), {}
    waiting = [(root, Rect(0.0, 0.0, float(width), float(height)))]
    while waiting:
        node, rect = waiting.pop()
        layout[node] = rect
        if node not in visible:
            children = tree.children(node)
            waiting += zip(children, squarify([*map(tree.size, children)], rect), strict=True)
    if not visible <= layout.keys():
        raise ValueError(f"`visible` must be nodes below {root}. Received: {sorted(visible)}")
    return layout


def fit_thumbnails(rect, count, thumbnail, header=0.0):
    """The grid of thumbnails that fits into a rectangle.

    Args:
        rect: a `Rect`.
        count: how many images there are.
        thumbnail: side of a thumbnail at least, in the units of the rectangle.
        header: height of the line of text above them. Defaults to 0.

    Returns:
        (columns, side, shown): the number of columns, which fill the width; the side of a
        thumbnail; and the positions of the images that are shown, int [at most columns * rows]:
        all of them, or as many as fit, at even distances.
    """
    if not thumbnail > 0:
        raise ValueError(f"`thumbnail` must be positive. Received: {thumbnail!r}")
    columns = int(rect.width // thumbnail)
    side = rect.width / max(columns, 1)
    room = columns * max(0, int((rect.height - header) // side))
    shown = min(count, room)
    return columns, side, np.arange(shown) * count // max(shown, 1)


def _next_row(areas, side):
    """How many of the areas, from the first, make a row along a side of this length."""
    best = _worst(areas[:1], side)
    for count in range(2, len(areas) + 1):
        worst = _worst(areas[:count], side)
        if worst > best:
            return count - 1
        best = worst
    return len(areas)


def _worst(areas, side):
    across = areas.sum() / side
    along = areas / across
    return np.maximum(across / along, along / across).max()


def _lay_row(areas, rect, is_last):
    """The rectangles of a row along the shorter side, and the rectangle that is left."""
    wide = rect.width >= rect.height
    side, length = (rect.height, rect.width) if wide else (rect.width, rect.height)
    across = length if is_last else min(areas.sum() / side, length)
    # Shared edges are the same number on both sides, so that nothing overlaps by rounding.
    edges = np.concatenate([[0.0], np.cumsum(areas)]) * (side / areas.sum())
    edges[-1] = side
    if wide:
        row = [Rect(rect.x, rect.y + a, across, b - a) for a, b in itertools.pairwise(edges)]
        return row, Rect(rect.x + across, rect.y, rect.width - across, rect.height)
    row = [Rect(rect.x + a, rect.y, b - a, across) for a, b in itertools.pairwise(edges)]
    return row, Rect(rect.x, rect.y + across, rect.width, rect.height - across)
