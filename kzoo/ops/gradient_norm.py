"""Steps of a given length in the space of weights, lists of tensors with one Euclidean norm.

"Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization", Zhang,
Xu, Yu, Zou, Cui, 2023, arXiv 2303.03108, makes several of them in a row.
"""

import tensorflow as tf

from kzoo.papers import Paper

PAPER = Paper(
    title="Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization",
    authors=("Xingxuan Zhang", "Renzhe Xu", "Han Yu", "Hao Zou", "Peng Cui"),
    year=2023,
    arxiv="2303.03108",
)


def unit(tensors):
    """The tensors divided by their common Euclidean norm; 0 where that is. None stays None."""
    norm = tf.linalg.global_norm([t for t in tensors if t is not None])
    factor = tf.math.divide_no_nan(tf.ones_like(norm), norm)
    return [None if t is None else t * tf.cast(factor, t.dtype) for t in tensors]


def combined(a, tensors, b, others):
    """a x + b y for each pair of a list; None, an absent gradient, counts as 0 beside a tensor."""
    pairs = zip(tensors, others, strict=True)
    return [_sum([None if x is None else a * x, None if y is None else b * y]) for x, y in pairs]


def _sum(terms):
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None
