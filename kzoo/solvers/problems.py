"""Smooth convex problems for block coordinate descent: values, gradients, curvature by block.

Every problem has the same six members, of which NumPy arrays go in and out:

    size            number of variables n
    lipschitz       [n], L_i: bounds of the second derivatives along the axes
    value(x)        f(x)
    gradient(x)     [n]
    hessian(x, block)   [k, k], second derivatives of the variables `block` at x
    bound(block)    [k, k], H_b: an upper bound of `hessian` at every x
"""

import numpy as np
from scipy import sparse
from scipy.special import expit, log_softmax, softmax


class Quadratic:
    """1/2 x^T A x - b^T x.

    Args:
        matrix: A, symmetric positive semidefinite, [n, n], an array or a SciPy sparse matrix.
        vector: b, [n].
    """

    def __init__(self, matrix, vector):
        self.vector = np.asarray(vector, float)
        self.matrix = sparse.csr_array(matrix) if sparse.issparse(matrix) else np.asarray(matrix)
        self.size = len(self.vector)
        if self.matrix.shape != (self.size, self.size):
            raise ValueError(
                f"`matrix` must be [{self.size}, {self.size}] for a `vector` of {self.size}. "
                f"Received: {list(self.matrix.shape)}"
            )
        if abs(self.matrix - self.matrix.T).max() > 1e-10 * abs(self.matrix).max():
            raise ValueError("`matrix` must be symmetric.")
        self.lipschitz = np.asarray(self.matrix.diagonal(), float)

    def value(self, x):
        return 0.5 * x @ (self.matrix @ x) - self.vector @ x

    def gradient(self, x):
        return self.matrix @ x - self.vector

    def hessian(self, x, block):
        return self.bound(block)

    def bound(self, block):
        return dense(self.matrix[block][:, block])

    def graph_hessian(self, x, block):
        """`hessian` in the form of the matrix, sparse where that is, for message passing."""
        return self.matrix[block][:, block]


class LeastSquares:
    """1/2 ||A x - b||^2 + l2/2 ||x||^2.

    Args:
        features: A, [m, n].
        targets: b, [m].
        l2: at least 0. Defaults to 0.
    """

    def __init__(self, features, targets, l2=0.0):
        self.features, self.targets = checked("targets", features, targets)
        self.l2 = l2
        self.size = self.features.shape[1]
        self.lipschitz = (self.features**2).sum(0) + l2

    def value(self, x):
        residual = self.features @ x - self.targets
        return 0.5 * residual @ residual + 0.5 * self.l2 * x @ x

    def gradient(self, x):
        return self.features.T @ (self.features @ x - self.targets) + self.l2 * x

    def hessian(self, x, block):
        return self.bound(block)

    def bound(self, block):
        return gram(self.features[:, block], self.l2)


class LogisticRegression:
    """sum_i log(1 + exp(-y_i a_i^T x)) + l2/2 ||x||^2.

    Args:
        features: a, [m, n].
        labels: y, [m], each -1 or 1.
        l2: at least 0. Defaults to 0.
    """

    def __init__(self, features, labels, l2=0.0):
        self.features, self.labels = checked("labels", features, labels)
        if not np.isin(self.labels, (-1, 1)).all():
            raise ValueError(f"`labels` must be -1 or 1. Received: {np.unique(labels)[:5]}")
        self.l2 = l2
        self.size = self.features.shape[1]
        self.lipschitz = 0.25 * (self.features**2).sum(0) + l2

    def value(self, x):
        margins = self.labels * (self.features @ x)
        return np.logaddexp(0, -margins).sum() + 0.5 * self.l2 * x @ x

    def gradient(self, x):
        wrong = expit(-self.labels * (self.features @ x))
        return -self.features.T @ (self.labels * wrong) + self.l2 * x

    def hessian(self, x, block):
        margins = self.features @ x
        curvature = expit(margins) * expit(-margins)
        return gram(self.features[:, block] * np.sqrt(curvature)[:, None], self.l2)

    def bound(self, block):
        return gram(0.5 * self.features[:, block], self.l2)


class SoftmaxRegression:
    """Multi-class logistic regression, sum_i -log softmax(a_i^T W)[y_i] + l2/2 ||W||^2.

    The variables are W, [d, classes], in a row: the weights of one feature are neighbours.

    Args:
        features: a, [m, d].
        labels: y, [m], integers in [0, classes).
        num_classes: at least 2.
        l2: at least 0. Defaults to 0.
    """

    def __init__(self, features, labels, num_classes, l2=0.0):
        self.features, labels = checked("labels", features, labels)
        self.labels = labels.astype(int)
        if self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise ValueError(
                f"`labels` must be in [0, {num_classes}). "
                f"Received: {self.labels.min()} to {self.labels.max()}"
            )
        self.num_classes, self.l2 = num_classes, l2
        self.size = self.features.shape[1] * num_classes
        # p (1 - p) <= 1/4 along an axis, and diag(p) - p p^T <= (I - 1 1^T / classes) / 2.
        self.lipschitz = np.repeat(0.25 * (self.features**2).sum(0), num_classes) + l2

    def value(self, x):
        picked = log_softmax(self._logits(x), axis=1)[np.arange(len(self.labels)), self.labels]
        return -picked.sum() + 0.5 * self.l2 * x @ x

    def gradient(self, x):
        error = softmax(self._logits(x), axis=1)
        error[np.arange(len(self.labels)), self.labels] -= 1
        return (self.features.T @ error).ravel() + self.l2 * x

    def hessian(self, x, block):
        p = softmax(self._logits(x), axis=1)
        rows, classes = np.divmod(block, self.num_classes)
        scaled = self.features[:, rows] * p[:, classes]
        same = classes[:, None] == classes
        diagonal = np.where(same, self.features[:, rows].T @ scaled, 0.0)
        return diagonal - scaled.T @ scaled + self.l2 * np.eye(len(block))

    def bound(self, block):
        rows, classes = np.divmod(block, self.num_classes)
        between = 0.5 * ((classes[:, None] == classes) - 1 / self.num_classes)
        features = self.features[:, rows]
        return features.T @ features * between + self.l2 * np.eye(len(block))

    def _logits(self, x):
        return self.features @ x.reshape(-1, self.num_classes)


def label_propagation(weights, labels):
    """The problem of label propagation, 1/2 sum_{i<j} w_ij (x_i - x_j)^2 with some x_i known.

    Its minimum is the harmonic solution: every unknown is the weighted mean of its neighbours.

    Args:
        weights: symmetric, at least 0, [n, n], an array or a SciPy sparse matrix.
        labels: [n], the known values; NaN where unknown.

    Returns:
        (`Quadratic` in the unknown values, int indices of the unknown)
    """
    weights = sparse.csr_array(weights)
    labels = np.asarray(labels, float)
    unknown = np.flatnonzero(np.isnan(labels))
    known = np.flatnonzero(~np.isnan(labels))
    if not len(unknown) or not len(known):
        raise ValueError("`labels` must have both known and unknown (NaN) values.")
    laplacian = sparse.csr_array(sparse.csgraph.laplacian(weights))
    matrix = laplacian[unknown][:, unknown]
    return Quadratic(matrix, weights[unknown][:, known] @ labels[known]), unknown


def checked(name, features, targets):
    """The table and the column as float arrays that fit each other."""
    features, targets = np.asarray(features, float), np.asarray(targets, float)
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            f"`features` must be [m, n] and `{name}` [m]. "
            f"Received: {list(features.shape)} and {list(targets.shape)}"
        )
    return features, targets


def gram(columns, l2):
    """columns^T columns + l2 I."""
    return columns.T @ columns + l2 * np.eye(columns.shape[1])


def dense(matrix):
    """An array, whether the argument is sparse or not."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
