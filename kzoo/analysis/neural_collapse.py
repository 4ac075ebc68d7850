"""How far features have collapsed to their class means, and the geometry of those means.

    NC1    = tr(S_W S_B^+) / k                          within against between the classes
    OF     = || G / ||G||_F - I / ||I||_F ||_F           orthogonal frame,  G = M' M
    ETF    = the same of the centred means, with I - 1 1' / k for I

for the k class means M, of the covariances S_W of the features around their class mean and S_B of
the class means around the global mean. All are 0 in the limit.

"Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of ReLU and
Batching", Kini, Vakilian, Behnia, Gill, Thrampoulidis, 2023, arXiv 2306.07960; sections 3 and E.3.

Open choices: S_W is a mean over examples and S_B one over classes, so that the geometry does not
depend on how many examples each has; the global mean is that of the class means.
"""

from dataclasses import dataclass

import numpy as np

from kzoo.losses.sup_con import PAPER
from kzoo.papers import component


@dataclass(frozen=True)
class NeuralCollapse:
    """What `neural_collapse_metrics` found.

    Attributes:
        variability: NC1, the variation within the classes relative to that between them.
        orthogonal_frame: distance of the class means from an orthogonal frame, in [0, sqrt(2)].
        simplex_frame: distance of the centred class means from a simplex equiangular tight frame,
            in [0, sqrt(2)].
        cosines: float64 [k, k], of the class means.
    """

    variability: float
    orthogonal_frame: float
    simplex_frame: float
    cosines: np.ndarray

    @property
    def largest_cosine(self):
        """The largest |cosine| of two class means."""
        return float(np.abs(self.cosines - np.diag(np.diag(self.cosines))).max())


@component(PAPER)
def orthogonal_frame_distance(means):
    """How far class means are from being orthogonal and of the same length.

    Args:
        means: [k, d], at least two; not centred.

    Returns:
        A float in [0, sqrt(2)].

    Raises:
        ValueError: for another shape, or means that are all zero.

    Example:

    >>> orthogonal_frame_distance([[2.0, 0.0], [0.0, 2.0]])
    0.0

    Reference:
        Kini et al. (2023), section 3, arxiv.org/abs/2306.07960
    """
    means = np.asarray(means, "float64")
    if means.ndim != 2 or len(means) < 2:
        raise ValueError(
            f"`means` must be [k, d] of at least two classes. Received: shape {means.shape}"
        )
    return _distance(means @ means.T, np.eye(len(means)))


@component(PAPER)
def neural_collapse_metrics(features, labels):
    """Collapse of the features of a layer, and the geometry of their class means.

    Args:
        features: [n, d], such as the outputs of the layer before the classifier, or embeddings.
        labels: [n] classes, at least two.

    Returns:
        A `NeuralCollapse`.

    Raises:
        ValueError: for shapes that do not fit, a single class, or means that are all the same.

    Reference:
        Kini et al. (2023), sections 3 and E.3, arxiv.org/abs/2306.07960
    """
    features, means, labels = _class_means(features, labels)
    centred = means - means.mean(axis=0)
    within = features - means[labels]
    covariance_within = within.T @ within / len(features)
    covariance_between = centred.T @ centred / len(means)
    count = len(means)
    # The between-class covariance has rank k - 1: what is left of the others is rounding.
    inverse = np.linalg.pinv(covariance_between, rcond=1e-10, hermitian=True)
    lengths = np.linalg.norm(means, axis=1)
    scale = np.outer(lengths, lengths)
    gram = means @ means.T
    return NeuralCollapse(
        variability=float(np.sum(covariance_within * inverse)) / count,
        orthogonal_frame=orthogonal_frame_distance(means),
        simplex_frame=_distance(centred @ centred.T, np.eye(count) - 1 / count),
        cosines=np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0),
    )


def _class_means(features, labels):
    """Features float64 [n, d], class means [k, d], labels in 0..k-1."""
    features, labels = np.asarray(features, "float64"), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "`features` must be [n, d] and `labels` [n]. "
            f"Received: shapes {features.shape} and {labels.shape}"
        )
    classes, labels = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"`labels` must hold at least two classes. Received: {list(classes)}")
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, labels, features)
    return features, sums / np.bincount(labels)[:, np.newaxis], labels


def _distance(gram, ideal):
    """The distance of two matrices that were scaled to the norm 1."""
    norm = np.linalg.norm(gram)
    if not norm > 0:
        raise ValueError("The class means must not all be the same. Received: a Gram matrix of 0")
    return float(np.linalg.norm(gram / norm - ideal / np.linalg.norm(ideal)))
