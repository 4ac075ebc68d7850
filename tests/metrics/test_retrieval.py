import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from kzoo.losses.circle import UnifiedPairLoss
from kzoo.metrics import retrieval
from kzoo.metrics.retrieval import clustering_nmi, map_at_r, recall_at_k
from kzoo.metrics.retrieval_metrics import MeanAveragePrecisionAtR, RecallAtK

pytestmark = [
    pytest.mark.paper("Circle Loss: A Unified Perspective of Pair Similarity Optimization"),
    pytest.mark.paper("A Metric Learning Reality Check"),
]


def by_hand(embeddings, labels, similarity, k):
    """(recall@k, MAP@R) by sorting all others of each example."""
    if similarity == "cosine":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    recalls, precisions = [], []
    for i, (query, label) in enumerate(zip(embeddings, labels, strict=True)):
        distances = np.linalg.norm(embeddings - query, axis=1)
        order = [j for j in np.argsort(distances, kind="stable") if j != i]
        hits = [labels[j] == label for j in order]
        size = sum(hits)
        if size:
            recalls.append(any(hits[:k]))
            precisions.append(sum(np.mean(hits[: r + 1]) for r in range(size) if hits[r]) / size)
    return np.mean(recalls), np.mean(precisions)


@pytest.fixture
def example(rng):
    labels = rng.integers(0, 5, 40)
    labels[3] = 17  # alone
    return rng.normal(size=(40, 3)) + 0.7 * np.eye(20)[labels][:, :3], labels


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("block", [7, 256])
def test_equal_the_sorted_lists(monkeypatch, example, similarity, k, block):
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    recall, precision = by_hand(*example, similarity, k)
    assert recall_at_k(*example, k, similarity) == pytest.approx(recall, abs=1e-12)
    assert map_at_r(*example, similarity) == pytest.approx(precision, abs=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_metrics_fed_in_batches_equal_the_functions(example, similarity):
    embeddings, labels = example[0].astype("float32"), example[1]
    recall = RecallAtK(3, 64, k=2, similarity=similarity)
    precision = MeanAveragePrecisionAtR(3, 64, similarity)
    for part in np.split(np.arange(40), [9, 30]):
        for metric in (recall, precision):
            tf.function(metric.update_state)(tf.constant(labels[part]), embeddings[part])
    expected = (
        recall_at_k(embeddings, labels, 2, similarity),
        map_at_r(embeddings, labels, similarity),
    )
    assert float(recall.result()) == pytest.approx(expected[0], abs=1e-6)
    assert float(precision.result()) == pytest.approx(expected[1], abs=1e-6)
    compiled = tf.function(precision.result, jit_compile=True)
    assert float(compiled()) == pytest.approx(expected[1], abs=1e-6)
    recall.reset_state()
    assert float(recall.result()) == 0


def test_recall_at_1_is_the_accuracy_of_the_nearest_neighbour():
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:500], labels[:500]
    # Each image is its own first neighbour for scikit-learn.
    second = KNeighborsClassifier(2).fit(images, labels).kneighbors(images)[1][:, 1]
    expected = np.mean(labels[second] == labels)
    assert recall_at_k(images, labels, similarity="euclidean") == pytest.approx(expected)


def test_map_at_r_by_hand():
    # On a line, queries of class 0 at 0, 1 and 4: their others are at ranks (1, 4), (1, 4), (3, 4).
    points = np.array([[0.0], [1.0], [4.0], [2.5], [2.6], [30.0]])
    labels = np.array([0, 0, 0, 1, 2, 3])
    # R = 2 lets ranks 1 and 2 count: 1/2, 1/2 and 0; the others are alone in their class.
    assert map_at_r(points, labels, "euclidean") == pytest.approx(1 / 3)
    assert recall_at_k(points, labels, 1, "euclidean") == pytest.approx(2 / 3)


def test_separated_classes_are_perfect_and_string_labels_will_do(rng):
    labels = np.array(["cat", "dog", "owl"]).repeat(6)
    embeddings = np.eye(3).repeat(6, axis=0) + 0.01 * rng.normal(size=(18, 3))
    assert recall_at_k(embeddings, labels) == 1
    assert map_at_r(embeddings, labels) == pytest.approx(1)
    assert clustering_nmi(embeddings, labels) == pytest.approx(1)
    # A split of each class in two and of all in two bounds what else there is.
    assert clustering_nmi(embeddings, labels, clusters=1) == 0


def test_nmi_equals_its_definition(rng):
    # Two clusters far apart, so that k-means is certain; labels do not quite agree with them.
    embeddings = np.repeat([[1.0, 0.0], [0.0, 1.0]], 10, axis=0) + 0.01 * rng.normal(size=(20, 2))
    labels = np.array([0] * 8 + [1] * 12)
    joint = np.array([[8, 0], [2, 10]]) / 20

    def entropy(p):
        return -np.sum(p[p > 0] * np.log(p[p > 0]))

    marginals = entropy(joint.sum(0)), entropy(joint.sum(1))
    mutual = sum(marginals) - entropy(joint)
    assert clustering_nmi(embeddings, labels) == pytest.approx(mutual / np.mean(marginals))


def test_metric_in_evaluate_and_its_config(example):
    embeddings, labels = example[0].astype("float32"), example[1]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    metric = RecallAtK(3, 40, k=3)
    again = RecallAtK.from_config(metric.get_config())
    assert again.get_config() == metric.get_config()
    model.compile(loss=UnifiedPairLoss(), metrics=[again])
    found = model.evaluate(embeddings, labels, 16, verbose=0, return_dict=True)["recall_at_k"]
    assert found == pytest.approx(recall_at_k(embeddings, labels, 3), abs=1e-6)


def test_more_than_the_capacity_is_refused():
    metric = RecallAtK(2, 3)
    metric.update_state([0, 1], np.eye(2))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`capacity` of the metric"):
        metric.update_state([0, 1], np.eye(2))
    assert int(metric._count) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_at_k(np.eye(2), [0, 1], k=0), "`k` must be an integer of at least 1"),
        (lambda: recall_at_k(np.eye(2), [0, 1, 1]), r"Received: shapes \(2, 2\) and \(3,\)"),
        (lambda: map_at_r(np.eye(2) / 0.0, [0, 1]), "`embeddings` must be finite"),
        (lambda: map_at_r(np.eye(2), [0, 1], "dot"), "`similarity` must be one of .* 'dot'"),
        (lambda: clustering_nmi(np.eye(2), [0, 1], 3), r"`clusters` must be in \[1, 2\]"),
        (lambda: RecallAtK(0, 3), "`dim` must be an integer of at least 1. Received: 0"),
        (lambda: RecallAtK(2, 3, k=0), "`k` must be"),
        (lambda: MeanAveragePrecisionAtR(2, 0), "`capacity` must be"),
        (lambda: RecallAtK(2, 3).update_state([0], np.ones((1, 3))), r"embeddings \[batch, 2\]"),
        (lambda: RecallAtK(2, 3).update_state([0], np.ones((1, 2)), [1.0]), "`sample_weight`"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_refuses_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_refuses_several_replicas(mirrored):
    with mirrored.scope():
        metric = RecallAtK(2, 3)
    with pytest.raises(ValueError, match="outside of a strategy of several replicas"):
        mirrored.run(lambda: metric.update_state([0], np.ones((1, 2))))
