import itertools

import numpy as np
import pytest

from kzoo.explain.visualization.cluster_tree import cluster_tree
from kzoo.explain.visualization.treemap import Rect, fit_thumbnails, squarify, treemap_layout

pytestmark = pytest.mark.paper(
    "DendroMap: Visual Exploration of Large-Scale Image Datasets for Machine Learning with Treemaps"
)


def overlap(a, b):
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(width, 0) * max(height, 0)


def test_the_worked_example_of_squarified_treemaps():
    """Figure 4 of Bruls et al.: areas 6, 6, 4, 3, 2, 2, 1 in a rectangle of 6 x 4."""
    rects = squarify([6, 6, 4, 3, 2, 2, 1], (0, 0, 6, 4))
    expected = [
        (0, 0, 3, 2), (0, 2, 3, 2),
        (3, 0, 12 / 7, 7 / 3), (3 + 12 / 7, 0, 9 / 7, 7 / 3),
        (3, 7 / 3, 6 / 5, 5 / 3), (4.2, 7 / 3, 6 / 5, 5 / 3), (5.4, 7 / 3, 3 / 5, 5 / 3),
    ]  # fmt: skip
    np.testing.assert_allclose(rects, expected, rtol=1e-12)


def test_two_parts_divide_the_longer_side_and_keep_their_order():
    assert squarify([1, 3], (0, 0, 8, 2)) == [Rect(6, 0, 2, 2), Rect(0, 0, 6, 2)]
    assert squarify([1, 3], (0, 0, 2, 8)) == [Rect(0, 6, 2, 2), Rect(0, 0, 2, 6)]


def test_areas_are_proportional_and_nothing_overlaps(rng):
    sizes = rng.uniform(0.01, 5, size=40)
    rects = squarify(sizes, (1, 2, 300, 170))
    areas = np.array([rect.area for rect in rects])
    np.testing.assert_allclose(areas, sizes / sizes.sum() * 300 * 170, rtol=1e-9)
    assert max(overlap(a, b) for a, b in itertools.combinations(rects, 2)) < 1e-9


def test_a_tree_is_nested(rng):
    tree = cluster_tree(rng.normal(size=(60, 3)))
    visible = tree.cut(17)
    layout = treemap_layout(tree, tree.root, 640, 480, visible)
    areas = [layout[node].area for node in visible]
    expected = [tree.size(node) / 60 * 640 * 480 for node in visible]
    np.testing.assert_allclose(areas, expected, rtol=1e-9)
    np.testing.assert_allclose(sum(areas), 640 * 480, rtol=1e-12)
    leaves = [layout[node] for node in visible]
    assert max(overlap(a, b) for a, b in itertools.combinations(leaves, 2)) < 1e-7
    for node in layout.keys() - set(visible):
        for child in tree.children(node):
            assert overlap(layout[child], layout[node]) == pytest.approx(layout[child].area)
    assert len(layout) == 2 * 17 - 1


def test_thumbnails_fill_the_columns_and_are_spread_evenly():
    columns, side, shown = fit_thumbnails(Rect(0, 0, 35, 60), 100, thumbnail=10, header=12)
    assert (columns, side) == (3, 35 / 3)
    assert len(shown) == 3 * 4
    assert shown[0] == 0
    assert set(np.diff(shown)) == {8, 9}
    _, _, shown = fit_thumbnails(Rect(0, 0, 35, 60), 5, thumbnail=10)
    np.testing.assert_array_equal(shown, np.arange(5))
    assert not len(fit_thumbnails(Rect(0, 0, 9, 60), 5, thumbnail=10)[2])
    assert not len(fit_thumbnails(Rect(0, 0, 60, 9), 5, thumbnail=10)[2])


@pytest.mark.parametrize("sizes", [[], [1, 0], [1, -2], [1, float("nan")], [[1]]])
def test_refuses_sizes_that_have_no_area(sizes):
    with pytest.raises(ValueError, match="`sizes` must be positive"):
        squarify(sizes, (0, 0, 1, 1))


def test_refuses_a_canvas_without_area_and_foreign_nodes(rng):
    tree = cluster_tree(rng.normal(size=(5, 2)))
    with pytest.raises(ValueError, match="`rect`"):
        squarify([1], (0, 0, 0, 1))
    with pytest.raises(ValueError, match="`width` and `height`"):
        treemap_layout(tree, tree.root, 0, 1, [tree.root])
    left, right = tree.children(tree.root)
    with pytest.raises(ValueError, match="`visible` must be nodes below"):
        treemap_layout(tree, left, 1, 1, [left, right])
    with pytest.raises(ValueError, match="`thumbnail`"):
        fit_thumbnails(Rect(0, 0, 1, 1), 1, 0)
