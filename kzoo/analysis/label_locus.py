"""Which labels a Frechet-mean prediction can reach, and which label to observe next.

The locus of the observed labels y_1 .. y_K is the set of labels that are the Frechet mean for some
probabilities:

    y in locus  <=>  some w >= 0 with sum w = 1 has, for all labels y',
                     sum_i w_i (d(y', y_i)^2 - d(y, y_i)^2) >= 0

Of trees it is the union of the paths between observed nodes, so the leaves reach all nodes; of a
path its two ends do; of a complete graph it is the observed labels alone.

"Geometry-Aware Adaptation for Pretrained Models", Roberts, Li, Adila, Cromp, Huang, Zhao, Sala,
2023, arXiv 2307.12226; section 4.

The condition is linear in w, so each label is decided by one linear program and not, as a search
over the simplex would, up to its resolution. What the paper's algorithms do for trees, grids and
pairwise decomposable spaces in less time is included as a special case.
"""

import numpy as np
from scipy.optimize import linprog

from kzoo.layers.frechet_mean_head import PAPER
from kzoo.papers import component

# Margins relative to the largest squared distance: below this they are rounding of the solver.
_TOLERANCE = 1e-9
_RULES = ("distance", "locus")


@component(PAPER)
def label_locus(distances, observed, unique=False):
    """The labels that a Frechet-mean prediction from the observed ones can give.

    Solves a linear program of `observed` + 1 variables for each label: milliseconds each for
    hundreds of labels.

    Args:
        distances: [labels, labels], symmetric with a zero diagonal, finite and at least 0.
        observed: indices of the labels whose probabilities a model gives, at least one.
        unique: whether a label must be the only Frechet mean for some probabilities, so that it is
            predicted however ties are broken. Defaults to False, the paper's locus.

    Returns:
        Sorted int array of labels; it contains the observed ones, unless with `unique` where two
        labels have distance 0.

    Raises:
        ValueError: for distances that are no such matrix, or observed labels outside it.

    Example:

    >>> line = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    >>> label_locus(line, [1, 4])
    array([1, 2, 3, 4])

    Reference:
        Roberts et al. (2023), section 4, arxiv.org/abs/2307.12226
    """
    distances = _checked_distances(distances)
    observed = _checked_observed(observed, len(distances))
    return _locus(distances, observed, unique)


@component(PAPER)
def next_class_selection(distances, observed, rule="distance"):
    """The label whose observation helps most to reach the others.

    Args:
        distances, observed: see `label_locus`.
        rule: "distance" for the label farthest from the present locus, the paper's choice, which
            is optimal for trees with edges of equal length; "locus" for the label with which the
            locus is largest, tried one by one: exact for one label in every space, at labels^2
            linear programs. Defaults to "distance".

    Returns:
        An int, the first of equally good labels; None where all labels are reached.

    Raises:
        ValueError: for arguments that `label_locus` refuses, or an unknown rule.

    Reference:
        Roberts et al. (2023), section 4, arxiv.org/abs/2307.12226
    """
    if rule not in _RULES:
        raise ValueError(f"`rule` must be one of {', '.join(_RULES)}. Received: {rule!r}")
    distances = _checked_distances(distances)
    observed = _checked_observed(observed, len(distances))
    reached = _locus(distances, observed)
    unreached = np.setdiff1d(np.arange(len(distances)), reached)
    if not len(unreached):
        return None
    if rule == "distance":
        gains = distances[np.ix_(unreached, reached)].min(axis=1)
    else:
        gains = [len(_locus(distances, np.append(observed, label))) for label in unreached]
    return int(unreached[np.argmax(gains)])


def _locus(distances, observed, unique=False):
    squares = np.square(distances / (distances.max() or 1.0))[:, observed]
    least = _TOLERANCE if unique else -_TOLERANCE
    labels = range(len(squares))
    return np.array([y for y in labels if _margin(squares, y) >= least], dtype=int)


def _margin(squares, label):
    """The most by which `label` can be better than every other label; `squares` is [labels, K].

    max over w in the simplex of min over y' of  sum_i w_i (squares[y', i] - squares[label, i])
    """
    gaps = np.delete(squares, label, axis=0) - squares[label]
    others, observed = gaps.shape
    if not others:
        return np.inf
    result = linprog(
        c=np.append(np.zeros(observed), -1.0),
        A_ub=np.hstack([-gaps, np.ones((others, 1))]),
        b_ub=np.zeros(others),
        A_eq=np.append(np.ones(observed), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * observed + [(None, None)],
        method="highs",
    )
    if not result.success:
        raise RuntimeError(f"The linear program of label {label} failed: {result.message}")
    return -result.fun


def _checked_distances(distances):
    distances = np.asarray(distances, "float64")
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not distances.size:
        raise ValueError(f"`distances` must be [labels, labels]. Received: {distances.shape}")
    if not np.all(np.isfinite(distances) & (distances >= 0)):
        raise ValueError(
            "`distances` must be finite and at least 0. "
            f"Received: values from {distances.min()} to {distances.max()}"
        )
    if np.diag(distances).any() or not np.allclose(distances, distances.T):
        raise ValueError("`distances` must be symmetric with a zero diagonal; it is not.")
    return distances


def _checked_observed(observed, labels):
    chosen = np.unique(np.asarray(observed))
    integers = np.issubdtype(chosen.dtype, np.integer)
    if not chosen.size or not integers or chosen[0] < 0 or chosen[-1] >= labels:
        raise ValueError(
            f"`observed` must be one or more of the labels 0 to {labels - 1}. "
            f"Received: {observed!r}"
        )
    return chosen
