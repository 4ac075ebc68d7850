import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.losses import ArcFaceLoss
from kzoo.losses.circle import CircleLoss, UnifiedPairLoss

pytestmark = pytest.mark.paper("Circle Loss: A Unified Perspective of Pair Similarity Optimization")


def unit(rng, batch=8, dim=4):
    z = rng.normal(size=(batch, dim))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def circle_by_hand(positives, negatives, gamma, m):
    """Equation 4: lists of similarities of one anchor."""
    others = sum(np.exp(gamma * max(s + m, 0) * (s - m)) for s in negatives)
    own = sum(np.exp(-gamma * max(1 + m - s, 0) * (s - (1 - m))) for s in positives)
    return np.log(1 + others * own)


def test_class_level_form_equals_equation_6(float64, rng):
    labels, cosines = np.array([0, 2, 1, 1]), rng.uniform(-1, 1, size=(4, 3))
    ours = CircleLoss(8.0, 0.3, reduction=None)(labels, 8.0 * cosines)
    for value, row, label in zip(ours.numpy(), cosines, labels, strict=True):
        expected = circle_by_hand([row[label]], np.delete(row, label), 8.0, 0.3)
        assert value == pytest.approx(expected, rel=1e-10)


def test_without_weights_it_is_am_softmax(float64, rng):
    labels, cosines = rng.integers(0, 5, 6), rng.uniform(-1, 1, size=(6, 5))
    ours = CircleLoss(32.0, 0.3, reweight=False, reduction=None)(labels, 32.0 * cosines)
    theirs = ArcFaceLoss(32.0, angular_margin=0.0, cosine_margin=1 - 2 * 0.3, reduction=None)
    np.testing.assert_allclose(ours, theirs(labels, 32.0 * cosines), rtol=1e-8)


def test_one_hot_and_class_numbers_agree(rng):
    labels, logits = rng.integers(0, 3, 6), 8.0 * rng.uniform(-1, 1, size=(6, 3))
    loss = CircleLoss(8.0, reduction=None)
    expected = loss(labels, logits)
    np.testing.assert_allclose(loss(np.eye(3)[labels], logits), expected, rtol=1e-6)
    np.testing.assert_array_equal(loss(labels[:, None], logits), expected)


@pytest.mark.parametrize("angle", [-0.5, 0.3, 1.0, 2.0])
def test_decision_boundary_is_a_circle(float64, angle):
    # s_n^2 + (1 - s_p)^2 = 2 m^2, where both classes are as likely.
    m = 0.25
    s_n, s_p = np.sqrt(2) * m * np.sin(angle), 1 - np.sqrt(2) * m * np.cos(angle)
    loss = CircleLoss(100.0, m)([0], 100.0 * np.array([[s_p, s_n]]))
    assert float(loss) == pytest.approx(np.log(2), rel=1e-9)


def test_weights_carry_no_gradient(float64):
    m, gamma, s_p, s_n = 0.25, 4.0, 0.6, 0.3
    cosines = tf.constant([[s_p, s_n]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(cosines)
        loss = CircleLoss(gamma, m)([0], gamma * cosines)
    a_p, a_n = 1 + m - s_p, s_n + m
    sigmoid = 1 - np.exp(-float(loss))
    expected = gamma * sigmoid * np.array([[-a_p, a_n]])
    np.testing.assert_allclose(tape.gradient(loss, cosines), expected, rtol=1e-10)


def test_gradient_falls_towards_the_optimum_and_is_0_beyond():
    m = 0.25
    cosines = tf.constant([[1.0, 0.9], [1.0, 0.3], [1.0, -m - 0.05]])
    with tf.GradientTape() as tape:
        tape.watch(cosines)
        loss = CircleLoss(256.0, m, reduction="sum")([0, 0, 0], 256.0 * cosines)
    by_negative = tape.gradient(loss, cosines).numpy()[:, 1]
    assert by_negative[0] > by_negative[1] > 0
    assert by_negative[2] == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradient_is_finite_at_extremes(scale):
    logits = tf.constant([[scale * 256, -scale * 256], [-scale * 256, scale * 256]])
    z = scale * tf.constant([[1.0, 0.0], [1.0, 1e-7], [-1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([logits, z])
        loss = CircleLoss()([0, 0], logits) + UnifiedPairLoss(1e4)([0, 0, 1], z)
    assert np.isfinite(float(loss))
    for gradient in tape.gradient(loss, [logits, z]):
        assert np.isfinite(gradient).all()


def test_reweighted_pairs_equal_equation_4_and_keras(float64, rng):
    labels, z = np.array([0, 1, 0, 2, 1, 0, 2, 1]), unit(rng)
    ours = UnifiedPairLoss(80.0, 0.4, reweight=True, reduction=None)(labels, z).numpy()
    keras_circle = keras.losses.Circle(80.0, 0.4, reduction=None)(labels, z)
    np.testing.assert_allclose(ours, keras_circle, atol=1e-5)
    for i in range(8):
        positives = [z[i] @ z[j] for j in range(8) if j != i and labels[j] == labels[i]]
        negatives = [z[i] @ z[j] for j in range(8) if labels[j] != labels[i]]
        expected = circle_by_hand(positives, negatives, 80.0, 0.4)
        assert ours[i] == pytest.approx(expected, rel=1e-9)


def test_keras_differentiates_the_weights(float64, rng):
    """Which the docstring says; where this fails, Keras does as the paper and the text can go."""
    labels, z = np.array([0, 1, 0, 1]), tf.constant(unit(rng, 4))
    gradients = []
    losses = keras.losses.Circle(8.0, 0.4), UnifiedPairLoss(8.0, 0.4, True, normalize=False)
    for loss in losses:
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(labels, z)
        gradients.append(tape.gradient(value, z).numpy())
    assert np.abs(gradients[0] - gradients[1]).max() > 0.1


def test_unified_loss_equals_equation_1(float64, rng):
    labels, z = np.array([0, 1, 0, 2, 1, 0, 2, 1]), unit(rng)
    ours = UnifiedPairLoss(5.0, 0.3, reduction=None)(labels, 3.0 * z).numpy()
    for i in range(8):
        total = sum(
            np.exp(5.0 * (z[i] @ z[j] - z[i] @ z[k] + 0.3))
            for j in range(8)
            for k in range(8)
            if labels[j] != labels[i] and labels[k] == labels[i] and k != i
        )
        assert ours[i] == pytest.approx(np.log(1 + total), rel=1e-10)


def test_unified_loss_goes_to_the_hardest_triplet(float64, rng):
    labels, z = np.array([0, 1, 0, 2, 1, 0, 2, 1]), unit(rng)
    ours = UnifiedPairLoss(1e5, 0.1, reduction=None)(labels, z).numpy() / 1e5
    for i in range(8):
        positives = [z[i] @ z[j] for j in range(8) if j != i and labels[j] == labels[i]]
        negatives = [z[i] @ z[j] for j in range(8) if labels[j] != labels[i]]
        assert ours[i] == pytest.approx(max(max(negatives) - min(positives) + 0.1, 0), abs=1e-4)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
@pytest.mark.parametrize("reweight", [False, True])
def test_without_a_pair_the_loss_is_0(rng, labels, reweight):
    z = tf.constant(unit(rng, 3))
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = UnifiedPairLoss(reweight=reweight)(labels, z)
    assert float(loss) == 0
    np.testing.assert_array_equal(tape.gradient(loss, z), 0)


def test_refuses_labels_out_of_range():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"label value of 3 .*\[0, 3\)"):
        CircleLoss()([0, 3], np.zeros((2, 3)))


def test_refuses_embeddings_that_are_not_of_length_1_where_they_must():
    with pytest.raises(tf.errors.InvalidArgumentError, match="embeddings of length 1"):
        UnifiedPairLoss(normalize=False)([0, 0], 2.0 * np.eye(2))


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (CircleLoss, {"gamma": 0.0}, "`gamma` must be a finite number above 0. Received: 0.0"),
        (CircleLoss, {"margin": 1.5}, r"`margin` must be in \[0, 1\]. Received: 1.5"),
        (UnifiedPairLoss, {"margin": -0.1}, r"`margin` must be in \[0, 2\]. Received: -0.1"),
        (UnifiedPairLoss, {"gamma": float("nan")}, "`gamma` must be .* Received: nan"),
    ],
)
def test_refuses_bad_arguments(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


def test_refuses_bad_shapes():
    with pytest.raises(ValueError, match=r"`y_pred` must be logits .*\(2, 1\)"):
        CircleLoss()([0, 0], np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"`y_pred` must be embeddings .*\(2, 1, 3\)"):
        UnifiedPairLoss()([0, 0], np.zeros((2, 1, 3)))
