"""The locus of observed labels against trees, a search over the simplex and growth by hand."""

import itertools

import networkx as nx
import numpy as np
import pytest

from kzoo.analysis.label_locus import label_locus, next_class_selection

pytestmark = pytest.mark.paper("Geometry-Aware Adaptation for Pretrained Models")


def metric(graph):
    return nx.floyd_warshall_numpy(graph)


def searched_locus(distances, observed, steps=24):
    """The unique Frechet means over a grid of the simplex, and all of them, ties included."""
    unique, tied = set(), set()
    for parts in itertools.product(range(steps + 1), repeat=len(observed)):
        if sum(parts) == steps:
            cost = np.dot(parts, distances[observed] ** 2)
            best = np.flatnonzero(cost < cost.min() + 1e-9)
            tied |= set(best)
            unique |= set(best) if len(best) == 1 else set()
    return sorted(unique), sorted(tied)


@pytest.mark.parametrize("seed", range(4))
def test_of_a_tree_it_is_the_paths_between_observed_nodes(seed):
    rng = np.random.default_rng(seed)
    tree = nx.random_labeled_tree(12, seed=seed)
    observed = rng.choice(12, 3, replace=False)
    pairs = itertools.combinations(observed, 2)
    paths = set().union(*(nx.shortest_path(tree, a, b) for a, b in pairs))
    np.testing.assert_array_equal(label_locus(metric(tree), observed), sorted(paths))


def test_leaves_reach_the_whole_tree():
    tree = nx.balanced_tree(2, 3)
    leaves = [node for node in tree if tree.degree(node) == 1]
    np.testing.assert_array_equal(label_locus(metric(tree), leaves, unique=True), range(15))


def test_of_a_complete_graph_it_is_the_observed_labels():
    np.testing.assert_array_equal(label_locus(1 - np.eye(6), [1, 4]), [1, 4])


@pytest.mark.parametrize("graph", [nx.cycle_graph(6), nx.grid_2d_graph(3, 3), nx.wheel_graph(6)])
def test_equals_a_search_over_the_simplex(graph):
    distances, observed = metric(graph), [0, 2, 4]
    unique, tied = searched_locus(distances, observed)
    np.testing.assert_array_equal(label_locus(distances, observed, unique=True), unique)
    np.testing.assert_array_equal(label_locus(distances, observed), tied)


@pytest.mark.parametrize("seed", range(3))
def test_farthest_label_makes_the_largest_locus_of_a_tree(seed):
    distances = metric(nx.random_labeled_tree(10, seed=seed))
    present = label_locus(distances, [0, 1])
    chosen = next_class_selection(distances, [0, 1])
    grown = len(label_locus(distances, [0, 1, chosen]))
    assert grown == len(present) + distances[chosen, present].min()
    best = next_class_selection(distances, [0, 1], rule="locus")
    assert grown == len(label_locus(distances, [0, 1, best]))


def test_next_class_of_a_line_is_its_other_end():
    line = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    assert next_class_selection(line, [1, 2]) == 5
    assert next_class_selection(line, [0, 5]) is None


@pytest.mark.parametrize(
    ("distances", "observed", "message"),
    [
        (np.ones((2, 3)), [0], "`distances` must be .labels, labels."),
        ([[0, np.inf], [np.inf, 0]], [0], "`distances` must be finite"),
        ([[0, 1], [2, 0]], [0], "`distances` must be symmetric"),
        (1 - np.eye(3), [], "`observed` must"),
        (1 - np.eye(3), [3], "`observed` must"),
        (1 - np.eye(3), [0.5], "`observed` must"),
    ],
)
def test_bad_arguments(distances, observed, message):
    with pytest.raises(ValueError, match=message):
        label_locus(distances, observed)


def test_unknown_rule():
    with pytest.raises(ValueError, match="`rule` must"):
        next_class_selection(1 - np.eye(3), [0], rule="nearest")
