import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses.sup_con import SupervisedContrastiveLoss

pytestmark = pytest.mark.paper(
    "Symmetric Neural-Collapse Representations with Supervised Contrastive Loss: The Impact of "
    "ReLU and Batching"
)


def example(rng, batch=7, classes=3):
    return np.arange(batch) % classes, rng.normal(size=(batch, 4))


def by_hand(labels, z, temperature, form):
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    losses = []
    for i in range(len(z)):
        exps = [np.exp(z[i] @ z[a] / temperature) for a in range(len(z))]
        total = sum(e for a, e in enumerate(exps) if a != i)
        parts = [exps[p] / total for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not parts:
            losses.append(0.0)
        elif form == "out":
            losses.append(-np.mean(np.log(parts)))
        else:
            losses.append(-np.log(np.mean(parts)))
    return np.array(losses)


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_sum_over_pairs(float64, rng, form, temperature):
    labels, z = example(rng)
    ours = SupervisedContrastiveLoss(temperature, form, reduction=None)(labels, z)
    np.testing.assert_allclose(ours, by_hand(labels, z, temperature, form), rtol=1e-10)


def test_sum_equals_equation_1_of_kini_et_al(float64, rng):
    labels, z = example(rng)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    expected = 0.0
    for i in range(7):
        same = [j for j in range(7) if j != i and labels[j] == labels[i]]
        for j in same:
            inner = sum(np.exp(z[i] @ z[a] - z[i] @ z[j]) for a in range(7) if a != i)
            expected += np.log(inner) / len(same)
    loss = SupervisedContrastiveLoss(1.0, normalize=False, reduction="sum")
    assert float(loss(labels, z)) == pytest.approx(expected, rel=1e-12)


def test_in_is_at_most_out(float64, rng):
    labels, z = example(rng, 9, 2)
    out, inside = (
        SupervisedContrastiveLoss(0.5, form, reduction=None)(labels, z).numpy()
        for form in ("out", "in")
    )
    assert np.all(inside < out)


def test_views_are_more_examples_of_the_same_class(float64, rng):
    labels, views = np.array([0, 1, 0, 2]), rng.normal(size=(4, 2, 5))
    ours = SupervisedContrastiveLoss(0.2, reduction=None)(labels, views)
    flat = by_hand(np.repeat(labels, 2), views.reshape(8, 5), 0.2, "out")
    np.testing.assert_allclose(ours, flat.reshape(4, 2).mean(-1), rtol=1e-10)


def test_different_labels_and_two_views_are_simclr(float64, rng):
    views = rng.normal(size=(5, 2, 3))
    flat = views.reshape(10, 3) / np.linalg.norm(views.reshape(10, 3), axis=-1, keepdims=True)
    logits = flat @ flat.T / 0.5 - 1e9 * np.eye(10)
    partner = np.arange(10) ^ 1
    expected = keras.losses.sparse_categorical_crossentropy(partner, logits, from_logits=True)
    ours = SupervisedContrastiveLoss(0.5, reduction=None)(np.arange(5), views)
    np.testing.assert_allclose(ours, np.reshape(expected, (5, 2)).mean(-1), rtol=1e-8)


def test_by_hand_and_lonely_anchors():
    z = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    losses = SupervisedContrastiveLoss(1.0, reduction=None)([[0], [0], [1]], z)
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-1))] * 2 + [0.0], rtol=1e-6)


def test_gradient_equals_differences(float64, rng):
    labels, z = example(rng, 5, 2)
    for form in ("out", "in"):
        loss = SupervisedContrastiveLoss(0.3, form)
        theirs, ours = tf.test.compute_gradient(lambda z, loss=loss: loss(labels, z), [z], 1e-5)
        np.testing.assert_allclose(theirs[0], ours[0], atol=1e-7)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0, 0, 1]])
@pytest.mark.parametrize("form", ["out", "in"])
def test_gradient_is_finite_at_extremes(labels, form):
    z = tf.constant([[0.0, 0.0], [1e10, 0.0], [1.0, 1e-10]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = SupervisedContrastiveLoss(1e-3, form)(labels, z)
    assert np.isfinite(float(loss))
    assert np.isfinite(tape.gradient(loss, z)).all()


def test_refuses_embeddings_that_are_not_of_length_1_where_they_must():
    loss = SupervisedContrastiveLoss(normalize=False)
    unit = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    loss([0, 0], unit)
    loss([0, 0], tf.cast(unit, "bfloat16"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="embeddings of length 1"):
        loss([0, 0], 1.1 * unit)
    with pytest.raises(tf.errors.InvalidArgumentError, match="embeddings of length 1"):
        tf.function(loss)(tf.constant([0, 0]), 1.1 * unit)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be a finite number above 0. Received: 0.0"),
        ({"form": "mean"}, "`form` must be one of .* Received: 'mean'"),
    ],
)
def test_refuses_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SupervisedContrastiveLoss(**kwargs)


def test_refuses_bad_shapes():
    with pytest.raises(ValueError, match=r"`y_true` must be class numbers.*\(2, 3\)"):
        SupervisedContrastiveLoss()(np.eye(3)[:2], np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`y_pred` must be embeddings.*\(2,\)"):
        SupervisedContrastiveLoss()([0, 1], np.ones(2))
