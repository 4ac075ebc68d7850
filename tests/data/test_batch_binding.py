import numpy as np
import pytest
import tensorflow as tf

from kzoo.data import Pipeline, Source
from kzoo.data.batch_binding import batches_bind, bind_batches, binding_examples, bound_batches

pytestmark = pytest.mark.paper(
    "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of "
    "ReLU and Batching"
)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0, 1, 0])


@pytest.fixture
def source():
    return Source(np.arange(20, dtype="float32").reshape(10, 2), LABELS, name="tiny")


def test_one_example_of_each_class_by_the_seed():
    for seed in range(5):
        chosen = binding_examples(LABELS, seed)
        np.testing.assert_array_equal(LABELS[chosen], [0, 1, 2])
        np.testing.assert_array_equal(binding_examples(LABELS, seed), chosen)
    assert len({tuple(binding_examples(LABELS, seed)) for seed in range(20)}) > 5


def test_every_batch_of_a_pipeline_ends_with_the_same_examples(source):
    pipeline = Pipeline(source, batch_size=4, seed=3)
    chosen = source.select(binding_examples(LABELS, 5))
    plain = list(pipeline.dataset(epoch=1))
    bound = list(bind_batches(pipeline.dataset(epoch=1), source, seed=5))
    assert [len(labels) for _, labels in bound] == [7, 7, 5]
    for (x, y), (more_x, more_y) in zip(plain, bound, strict=True):
        np.testing.assert_array_equal(more_x, np.concatenate([x, chosen.features]))
        np.testing.assert_array_equal(more_y, np.concatenate([y, [0, 1, 2]]))
        assert more_x.dtype == x.dtype
        assert more_y.dtype == y.dtype


def test_structured_features_are_bound():
    features = {"a": np.arange(10.0), "b": np.arange(10)[:, None]}
    source = Source(features, LABELS, name="two")
    dataset = tf.data.Dataset.from_tensor_slices((features, LABELS)).batch(10)
    ((x, y),) = bind_batches(dataset, source)
    chosen = binding_examples(LABELS)
    np.testing.assert_array_equal(x["a"][10:], chosen)
    np.testing.assert_array_equal(x["b"][10:, 0], chosen)
    np.testing.assert_array_equal(y[10:], [0, 1, 2])


def test_bound_batches_cover_all_and_repeat_none():
    chosen = binding_examples(LABELS, 2)
    batches = bound_batches(LABELS, 4, epoch=1, seed=2)
    assert len(batches) == 3
    np.testing.assert_array_equal(np.unique(np.concatenate(batches)), np.arange(10))
    for batch in batches:
        assert len(np.unique(batch)) == len(batch)
        np.testing.assert_array_equal(batch[-3:], chosen)
    free = bound_batches(LABELS, 4, epoch=1, seed=2, bound=[])
    order = np.random.default_rng([2, 1]).permutation(10)
    np.testing.assert_array_equal(np.concatenate(free), order)
    assert [len(batch) for batch in free] == [4, 4, 2]


def test_conditions_of_the_geometry():
    labels = [0, 0, 1, 1, 2, 2]
    assert batches_bind([range(6)], labels) == ([], [])
    assert batches_bind([[0, 1, 2, 3], [4, 5]], labels) == ([(0, 2), (1, 2)], [])
    # Class 0 meets both others, but never itself.
    assert batches_bind([[0, 2, 3, 4, 5], [1, 2, 4]], labels) == ([], [0])
    # Members 0 and 2 of a class are connected through member 1.
    assert batches_bind([[0, 1, 3], [1, 2, 3]], [0, 0, 0, 1]) == ([], [])


def test_binding_fulfils_them_for_any_batches():
    for seed in range(5):
        free = bound_batches(LABELS, 1, seed=seed, bound=[])
        pairs, split = batches_bind(free, LABELS)
        assert len(pairs) == 3
        assert split == [0, 1, 2]
        assert batches_bind(bound_batches(LABELS, 1, seed=seed), LABELS) == ([], [])


def test_refuses_bad_arguments(source):
    with pytest.raises(ValueError, match="`labels` must be integers"):
        binding_examples([0.5, 1.0])
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        bound_batches(LABELS, 0)
    with pytest.raises(ValueError, match=r"`bound` must be numbers in \[0, 10\)"):
        bound_batches(LABELS, 2, bound=[10])
    with pytest.raises(ValueError, match="`dataset` must hold batches"):
        bind_batches(tf.data.Dataset.from_tensors(np.zeros((2, 2))), source)
    wide = tf.data.Dataset.from_tensors((np.zeros((2, 3)), np.zeros(2, "int32")))
    with pytest.raises(ValueError, match=r"shapes in `dataset`. Received: \[2\] and \(3,\)"):
        bind_batches(wide, source)
