"""Linear systems on forests in linear time, by message passing, and blocks that are forests.

A symmetric matrix whose graph has no cycle is eliminated from the leaves to the roots, without
fill-in, and solved back from the roots to the leaves (section 4 of the paper): node i sends its
parent p

    A_pp <- A_pp - A_pi^2 / A_ii,   b_p <- b_p - A_pi b_i / A_ii

"Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing,
Active-Set Complexity, and Superlinear Convergence", Nutini, Laradji, Schmidt, 2017, arXiv
1712.08859.
"""

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse.csgraph import breadth_first_order, connected_components

from kzoo.papers import Paper, component

PAPER = Paper(
    title="Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, "
    "Message-Passing, Active-Set Complexity, and Superlinear Convergence",
    authors=("Julie Nutini", "Issam Laradji", "Mark Schmidt"),
    year=2017,
    arxiv="1712.08859",
)


@component(PAPER)
def solve_forest(matrix, vector):
    """Solves A x = b for a positive definite A whose graph is a forest, in linear time.

    Args:
        matrix: A, symmetric, [n, n], an array or a SciPy sparse matrix. Only the entries that are
            not zero count as edges.
        vector: b, [n].

    Returns:
        x, float64 [n].

    Raises:
        ValueError: if the graph has a cycle, or the matrix is not positive definite.

    Example:

    >>> solve_forest([[2.0, 1.0], [1.0, 3.0]], [3.0, 4.0])
    array([1., 1.])

    Reference:
        Nutini et al. (2017), section 4, arxiv.org/abs/1712.08859
    """
    diagonal, edges = _split(matrix)
    size = len(diagonal)
    rhs = np.array(vector, float)
    if rhs.shape != (size,):
        raise ValueError(f"`vector` must be [{size}]. Received: {list(rhs.shape)}")
    order, parents, weights = _rooted(edges)
    levels = _levels(order, parents)
    for nodes in reversed(levels[1:]):
        ratio = weights[nodes] / diagonal[nodes]
        np.subtract.at(diagonal, parents[nodes], ratio * weights[nodes])
        np.subtract.at(rhs, parents[nodes], ratio * rhs[nodes])
    if not (diagonal > 0).all():
        raise ValueError("`matrix` must be positive definite.")
    x = rhs / diagonal
    for nodes in levels[1:]:
        x[nodes] -= weights[nodes] / diagonal[nodes] * x[parents[nodes]]
    return x


@component(PAPER)
def greedy_forest(graph, order):
    """The variables that are met in `order` and close no cycle with those taken before.

    With the order of a greedy rule, for example by falling |g_i| / sqrt(L_i), it is the paper's
    greedy choice of a tree-structured block.

    Args:
        graph: symmetric, [n, n], an array or a SciPy sparse matrix; entries that are not zero off
            the diagonal are edges.
        order: distinct integers, the candidates.

    Returns:
        int array of the variables taken, in rising order.
    """
    edges = _split(graph)[1]
    trees, taken = DisjointSet(), np.zeros(edges.shape[0], bool)
    for node in np.asarray(order).tolist():
        neighbours = edges.indices[edges.indptr[node] : edges.indptr[node + 1]]
        neighbours = neighbours[taken[neighbours]].tolist()
        if len({trees[neighbour] for neighbour in neighbours}) < len(neighbours):
            continue
        taken[node] = True
        trees.add(node)
        for neighbour in neighbours:
            trees.merge(node, neighbour)
    return np.flatnonzero(taken)


@component(PAPER)
def forest_partition(graph, order=None):
    """Splits the variables into few blocks, each of which is a forest.

    Every block is the `greedy_forest` of the variables that are left.

    Args:
        graph: see `greedy_forest`.
        order: [n], all variables. Defaults to 0, 1, ...

    Returns:
        List of int arrays, which together hold every variable once.
    """
    left = np.arange(graph.shape[0]) if order is None else np.asarray(order)
    blocks = []
    while len(left):
        blocks.append(greedy_forest(graph, left))
        left = left[~np.isin(left, blocks[-1])]
    return blocks


@component(PAPER)
def coloring_partition(graph, order=None):
    """Splits the variables into blocks without edges inside: red-black on a lattice.

    Each variable gets the first colour that no neighbour before it has. The Hessian of such a
    block is diagonal.

    Args:
        graph, order: see `forest_partition`.

    Returns:
        List of int arrays, which together hold every variable once.
    """
    edges = _split(graph)[1]
    colors = np.full(edges.shape[0], -1)
    for node in range(len(colors)) if order is None else order:
        taken = set(colors[edges.indices[edges.indptr[node] : edges.indptr[node + 1]]])
        colors[node] = next(c for c in range(len(colors)) if c not in taken)
    return [np.flatnonzero(colors == color) for color in range(colors.max() + 1)]


def _split(matrix):
    """The diagonal as a copy, and the rest as a sparse matrix without stored zeros."""
    matrix = sparse.csr_array(matrix, dtype=float)
    if matrix.shape[0] != matrix.shape[1] or (matrix != matrix.T).nnz:
        raise ValueError("`matrix` must be square and symmetric.")
    diagonal = matrix.diagonal()
    edges = sparse.csr_array(matrix - sparse.diags_array(diagonal))
    edges.eliminate_zeros()
    return diagonal, edges


def _rooted(edges):
    """Breadth-first order of a forest, the parent of each node and the weight of the edge to it.

    Roots have the parent -1.
    """
    size = edges.shape[0]
    count, labels = connected_components(edges, directed=False)
    if edges.nnz // 2 != size - count:
        raise ValueError("`matrix` must be a forest; its graph has a cycle.")
    # One more node beside them, tied to a node of every tree, makes one tree of the forest.
    roots = np.unique(labels, return_index=True)[1]
    ties = sparse.csr_array((np.ones(count), (np.zeros(count, int), roots)), shape=(1, size))
    whole = sparse.block_array([[edges, ties.T], [ties, None]], format="csr")
    order, parents = breadth_first_order(whole, size, directed=False)
    parents = np.where(parents[:size] == size, -1, parents[:size])
    rows = np.repeat(np.arange(size), np.diff(edges.indptr))
    to_parent = edges.indices == parents[rows]
    weights = np.zeros(size)
    weights[rows[to_parent]] = edges.data[to_parent]
    return order[1:], parents, weights


def _levels(order, parents):
    """The nodes by their distance from the root, nearest first."""
    depth = np.zeros(len(parents), int)
    for node, parent in zip(order.tolist(), parents[order].tolist(), strict=True):
        depth[node] = 0 if parent < 0 else depth[parent] + 1
    by_depth = np.argsort(depth, kind="stable")
    return np.split(by_depth, np.flatnonzero(np.diff(depth[by_depth])) + 1)
