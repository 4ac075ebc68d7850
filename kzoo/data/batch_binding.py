"""Batch-binding: the same few examples, one of each class, in every mini-batch.

A contrastive loss compares what is in one batch. Batches that never bring two classes together, or
two halves of a class, leave the angle between them open. Binding examples close it: features of
UFM+ are an orthogonal frame for certain if and only if

    (1) every two classes meet in some batch, and
    (2) within every class, the graph of the examples that meet in some batch is connected,

and with one bound example of each class in all batches both hold.

"Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of ReLU and
Batching", Kini, Vakilian, Behnia, Gill, Thrampoulidis, 2023, arXiv 2306.07960; section 5.

Open choices: bound examples are drawn once, by a seed. A batch that holds one of them already gets
it again from `bind_batches`, which does not look at what is in the batch; `bound_batches`, which
deals in numbers of examples, has it once. Both are a batch of up to k more examples.
"""

import itertools

import numpy as np
import tensorflow as tf

from kzoo.data.order import num_batches, permutation
from kzoo.losses.sup_con import PAPER
from kzoo.papers import component


@component(PAPER)
def binding_examples(labels, seed=0):
    """One example of each class, drawn at random.

    Args:
        labels: integers [n].
        seed: of the choice, at least 0.

    Returns:
        int64 [classes], numbers of examples, in the order of the classes.

    Raises:
        ValueError: for labels of another shape, or none.

    Example:

    >>> binding_examples([1, 0, 2])
    array([1, 0, 2])

    Reference:
        Kini et al. (2023), section 5.2, arxiv.org/abs/2306.07960
    """
    labels = _checked_labels(labels)
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in np.unique(labels)])


@component(PAPER)
def bind_batches(dataset, source, seed=0):
    """Appends the same examples, one of each class, to every batch of a data set.

    Args:
        dataset: `tf.data.Dataset` of batches (features, labels), such as
            `kzoo.data.Pipeline(...).dataset()`, prepared as the examples of `source` are.
        source: `kzoo.data.Source` with labels that are classes; the bound examples are from it.
            Their features are cast to the type of the batches.
        seed: of the choice of the bound examples, at least 0.

    Returns:
        A `tf.data.Dataset` of batches with `classes` more examples, at the end.

    Raises:
        ValueError: for a data set that does not hold pairs, or features of other shapes.

    Example:

    >>> dataset = bind_batches(Pipeline(source, batch_size=64).dataset(epoch=0), source)
    >>> model.fit(dataset)

    Reference:
        Kini et al. (2023), section 5.2, arxiv.org/abs/2306.07960
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(f"`dataset` must hold batches (features, labels). Received: {spec}")
    bound = source.select(binding_examples(source.labels, seed)).decoded()
    tail = tf.nest.map_structure(_as_rows_of, spec, (bound.features, bound.labels))
    return dataset.map(
        lambda features, labels: tf.nest.map_structure(
            lambda rows, more: tf.concat([rows, more], axis=0), (features, labels), tail
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


@component(PAPER)
def bound_batches(labels, batch_size, epoch=0, seed=0, bound=None):
    """The numbers of the examples of an epoch's batches, each with the bound ones at its end.

    Args:
        labels: integers [n].
        batch_size: examples of a batch besides the bound ones, at least 1.
        epoch, seed: determine the order as in `kzoo.data.Pipeline`; the bound examples depend on
            the seed alone.
        bound: numbers of bound examples; None for those of `binding_examples`, empty for none.

    Returns:
        List of int64 arrays without repetitions.

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Kini et al. (2023), section 5.2, arxiv.org/abs/2306.07960
    """
    labels = _checked_labels(labels)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1. Received: {batch_size!r}")
    bound = binding_examples(labels, seed) if bound is None else np.asarray(bound, np.int64)
    if len(bound) and not 0 <= bound.min() <= bound.max() < len(labels):
        raise ValueError(f"`bound` must be numbers in [0, {len(labels)}). Received: {bound}")
    order = permutation(len(labels), seed, epoch)
    batches = np.array_split(order, batch_size * np.arange(1, num_batches(len(labels), batch_size)))
    return [np.concatenate([batch[~np.isin(batch, bound)], bound]) for batch in batches]


@component(PAPER)
def batches_bind(batches, labels):
    """Whether batches determine the geometry of all classes: conditions (1) and (2) above.

    Args:
        batches: lists of example numbers, such as those of one epoch or of all.
        labels: integers [n].

    Returns:
        (pairs, classes): a list of the pairs of classes that never meet, and one of the classes
        whose examples fall into separate groups. With both empty, an orthogonal frame is the only
        minimum.

    Example:

    >>> batches_bind([[0, 1], [2, 3]], labels=[0, 0, 1, 1])
    ([(0, 1)], [])

    Reference:
        Kini et al. (2023), corollary 2.1, arxiv.org/abs/2306.07960
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    labels = _checked_labels(labels)
    classes = np.unique(labels)
    met, edges = set(), []
    for batch in map(np.asarray, batches):
        met.update(itertools.combinations(np.unique(labels[batch]).tolist(), 2))
        for label in np.unique(labels[batch]):
            members = batch[labels[batch] == label]
            # A chain connects what a clique would.
            edges.append(np.stack([members[:-1], members[1:]]))
    ends = np.concatenate([np.zeros((2, 0), int), *edges], axis=1)
    graph = coo_matrix((np.ones(ends.shape[1]), ends), shape=(len(labels), len(labels)))
    groups = connected_components(graph, directed=False)[1]
    apart = [pair for pair in itertools.combinations(classes.tolist(), 2) if pair not in met]
    split = [c for c in classes.tolist() if len(np.unique(groups[labels == c])) > 1]
    return apart, split


def _as_rows_of(spec, rows):
    if tuple(rows.shape[1:]) != tuple(spec.shape[1:]):
        raise ValueError(
            "`source` must have examples of the shapes in `dataset`. "
            f"Received: {list(rows.shape[1:])} and {spec.shape[1:]}"
        )
    return tf.cast(tf.constant(rows), spec.dtype)


def _checked_labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be integers [n]. Received: {labels.dtype} {list(labels.shape)}"
        )
    return labels
