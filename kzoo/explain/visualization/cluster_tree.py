"""The tree of an agglomerative clustering, with ways to ask for its clusters."""

import heapq

import numpy as np


class ClusterTree:
    """A binary tree of clusters: node i < n is the example i, node n + i the i-th merge.

    Args:
        merges: linkage matrix of `scipy.cluster.hierarchy`, [n - 1, 4], by growing distance: two
            nodes, their distance and the number of examples.

    Has `order`, int [n]: the examples from left to right, so that no branches cross; and `start`
    and `stop`, int [2 n - 1]: the examples of a node are `order[start[node]:stop[node]]`.
    """

    def __init__(self, merges):
        self.merges = np.asarray(merges, "float64")
        self.num_examples = len(self.merges) + 1
        self._check()
        self._children = self.merges[:, :2].astype(int)
        self.root = 2 * self.num_examples - 2
        self.start, self.stop = self._ranges()
        self.order = np.argsort(self.start[: self.num_examples])

    def _check(self):
        n = self.num_examples
        if self.merges.ndim != 2 or self.merges.shape[1] != 4 or n < 2:
            raise ValueError(
                "`merges` must be a linkage matrix of shape [examples - 1, 4]. Received: "
                f"{self.merges.shape}"
            )
        nodes = self.merges[:, :2]
        each_once = np.array_equal(np.sort(nodes, None), np.arange(2 * n - 2))
        if not each_once or (nodes.max(1) >= n + np.arange(n - 1)).any():
            raise ValueError("`merges` must merge every node once, after it was made.")
        if (np.diff(self.merges[:, 2]) < 0).any():
            raise ValueError("`merges` must be sorted by distance.")

    def _ranges(self):
        n = self.num_examples
        sizes = np.ones(2 * n - 1, int)
        for node, (left, right) in enumerate(self._children, n):
            sizes[node] = sizes[left] + sizes[right]
        start = np.zeros(2 * n - 1, int)
        for node in range(self.root, n - 1, -1):
            left, right = self._children[node - n]
            start[left] = start[node]
            start[right] = start[node] + sizes[left]
        return start, start + sizes

    def children(self, node):
        """The two nodes that were merged into this one; none for an example."""
        node = self._checked(node)
        if node < self.num_examples:
            return ()
        return tuple(map(int, self._children[node - self.num_examples]))

    def size(self, node):
        """The number of examples of a node."""
        return int(self.stop[self._checked(node)] - self.start[node])

    def distance(self, node):
        """At which distance the node was merged; 0 for an example."""
        node = self._checked(node)
        return 0.0 if node < self.num_examples else float(self.merges[node - self.num_examples, 2])

    def members(self, node):
        """The examples of a node, int [size], from left to right."""
        return self.order[self.start[self._checked(node)] : self.stop[node]]

    def cut(self, num_clusters, root=None):
        """The clusters below a node when its last merges are undone.

        Args:
            num_clusters: how many; all the examples of the node where it has fewer.
            root: a node. Defaults to the root of the tree.

        Returns:
            list of nodes, from left to right.
        """
        if num_clusters < 1:
            raise ValueError(f"`num_clusters` must be at least 1. Received: {num_clusters!r}")
        # Nodes are numbered by distance, so the latest merge has the highest number.
        clusters = [-self._checked(self.root if root is None else root)]
        while len(clusters) < num_clusters and -clusters[0] >= self.num_examples:
            for child in self.children(-heapq.heappop(clusters)):
                heapq.heappush(clusters, -child)
        return sorted((-node for node in clusters), key=lambda node: self.start[node])

    def _checked(self, node):
        if not 0 <= node <= self.root:
            raise ValueError(f"`node` must be from 0 to {self.root}. Received: {node!r}")
        return int(node)


def cluster_tree(features, method="ward"):
    """Clusters examples from the bottom up.

    Args:
        features: float [n, channels], n at least 2. The distances take 4 n^2 bytes.
        method: of `scipy.cluster.hierarchy.linkage`, one whose distances only grow. Defaults to
            "ward".

    Returns:
        `ClusterTree`
    """
    from scipy.cluster import hierarchy

    features = np.asarray(features, "float64")
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(
            "`features` must be finite, of shape [examples, channels], with two examples or more. "
            f"Received: shape {features.shape}"
        )
    if method in ("centroid", "median"):
        raise ValueError(f"`method` must have distances that only grow. Received: {method!r}")
    return ClusterTree(hierarchy.linkage(features, method))
