import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import Saliency
from kzoo.explain.attention import recorded_attention
from kzoo.explain.observable_propagation import (
    AttentionHead,
    Observable,
    ObservablePropagation,
    coupling_coefficient,
    feature_vector,
)
from tests.explain.transformers import text_transformer

pytestmark = pytest.mark.paper(
    "Observable Propagation: A Data-Efficient Approach to Uncover Feature Vectors in Transformers"
)


def attention_only(attention, tokens=5, features=8, words=7):
    """Logits for each token of one residual attention layer, without normalization."""
    x = keras.Input([tokens, features])
    return keras.Model(x, keras.layers.Dense(words, name="unembed")(x + attention(x, x)))


@pytest.mark.parametrize("grouped", [False, True])
def test_vectors_are_matrix_products_and_measure_what_heads_contribute(grouped, float64, rng):
    if grouped:
        attention = keras.layers.GroupQueryAttention(3, 4, 2, bias_initializer="random_normal")
    else:
        attention = keras.layers.MultiHeadAttention(4, 3, bias_initializer="random_normal")
    model, x = attention_only(attention), rng.normal(size=(2, 5, 8))
    observable = Observable(rng.normal(size=7))
    unembed = model.get_layer("unembed")
    _, patterns = attention(x, x, return_attention_scores=True)
    weights = dict(zip([w.path for w in attention.weights], attention.get_weights(), strict=True))
    value = next(w for path, w in weights.items() if "value/kernel" in path)
    output = next(w for path, w in weights.items() if "output/kernel" in path)
    result = ObservablePropagation(model, score=observable)(x)
    assert result["attributions"].shape == (2, 1, 4, 5)
    for head in range(4):
        y = feature_vector(observable, [unembed, AttentionHead(attention, head)])
        circuit = value[:, head // 2 if grouped else head] @ output[head]
        np.testing.assert_allclose(y, circuit @ unembed.get_weights()[0] @ observable.vector)
        contribution = np.asarray(patterns)[:, head, -1] * (x @ y)
        np.testing.assert_allclose(result["attributions"][:, 0, head], contribution, rtol=1e-5)


def test_contributions_are_what_is_lost_without_a_head_and_token(float64, rng):
    attention = keras.layers.MultiHeadAttention(2, 3)
    model, x = attention_only(attention), rng.normal(size=(3, 5, 8))
    observable = Observable({2: 1, 5: -1}, classes=7, position=1)
    result = ObservablePropagation(model, score=observable)(x)
    whole = model(x)[:, 1]
    # Keras's fused attention scales in float32.
    np.testing.assert_allclose(result["score"], whole[:, 2] - whole[:, 5], atol=1e-6)
    # The residual, and nothing else, is not the attention's.
    kernel = model.get_layer("unembed").get_weights()[0]
    direct = x[:, 1] @ (kernel[:, 2] - kernel[:, 5])
    np.testing.assert_allclose(
        tf.reduce_sum(result["attributions"], [1, 2, 3]), result["score"] - direct, rtol=1e-6
    )


def test_patterns_are_frozen_and_layers_linearised(float64, rng):
    """Through a whole block above, against a central difference with the patterns held."""
    model, words = text_transformer(), tf.constant(rng.integers(0, 12, [1, 6]), tf.int32)
    explainer = ObservablePropagation(model)
    result = explainer(words, target=1)
    with recorded_attention(model, tf.identity) as patterns:
        explainer.scores(words, tf.constant([1]), words)
    first = patterns[0].numpy()

    def score(scale):
        """What token 3 gives by head 1 of the first layer is scaled in its pattern."""
        changed = first.copy()
        changed[:, 1, :, 3] *= scale
        held = iter([changed, patterns[1]])
        with recorded_attention(model, lambda attention: tf.identity(next(held))):
            return explainer.scores(words, tf.constant([1]), words)["score"]

    slope = (score(1 + 1e-5) - score(1 - 1e-5)) / 2e-5
    # Biases of values are zero here.
    np.testing.assert_allclose(result["attributions"][:, 0, 1, 3], slope, rtol=1e-5)


def test_normalization_hardly_turns_a_vector(rng):
    def mean_cosine(features):
        norm = keras.layers.LayerNormalization(epsilon=1e-9)
        cosines = []
        for _ in range(100):
            n, x = rng.normal(size=(2, features))
            y = feature_vector(n, [(norm, x)])
            cosines.append(n @ y / np.linalg.norm(n) / np.linalg.norm(y))
        return np.mean(cosines)

    assert mean_cosine(768) > 0.997
    assert mean_cosine(8) < 0.95


def test_normalization_by_hand(float64):
    # x = (1, -1, 1, -1) has mean 0 and variance 1: n loses its part along (1, ..., 1), which is
    # 1/4 in each place, and its part along x, n.x/4 x; with n = e_1: (1 - 1/4 - 1/4, 1/4, ...).
    norm = keras.layers.LayerNormalization(epsilon=0)
    y = feature_vector([1, 0, 0, 0], [(norm, [1, -1, 1, -1])])
    np.testing.assert_allclose(y, [0.5, 0, -0.5, 0], atol=1e-12)


def test_an_mlp_is_linearised_at_the_point(float64, rng):
    # relu(x . (1, 1)) at (1, 2) is on, at (1, -2) off.
    mlp = keras.layers.Dense(1, "relu", kernel_initializer="ones")
    mlp.build([None, 2])
    np.testing.assert_allclose(feature_vector([3.0], [(mlp, [1, 2])]), [3, 3])
    np.testing.assert_allclose(feature_vector([3.0], [(mlp, [1, -2])]), [0, 0])


def test_coupling_coefficient_is_the_mean_on_a_sphere(rng):
    first, second = rng.normal(size=(2, 6))
    given, radius = 1.3, 4.0
    # Uniform on the sphere where x . first is given: a fixed part along it, the rest free.
    free = rng.normal(size=(200_000, 6))
    unit = first / np.linalg.norm(first)
    free -= np.outer(free @ unit, unit)
    along = given / np.linalg.norm(first)
    free *= np.sqrt(radius**2 - along**2) / np.linalg.norm(free, axis=1, keepdims=True)
    measured = (along * unit + free) @ second
    error = measured.std() / np.sqrt(len(measured))
    assert abs(measured.mean() - given * coupling_coefficient(first, second)) < 3 * error
    assert coupling_coefficient([2, 0], [3, 5]) == 6 / 4
    np.testing.assert_allclose(coupling_coefficient([[2, 0], [0, 1]], [3, 5]), [6 / 4, 5])


def test_an_observable_is_a_score_of_every_explainer(rng):
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
    result = Saliency(model, absolute=False, score=Observable([1, 0, -2]))(rng.normal(size=(2, 4)))
    kernel = model.get_weights()[0]
    np.testing.assert_allclose(result["attributions"], [kernel[:, 0] - 2 * kernel[:, 2]] * 2, 1e-5)


def test_bad_input_is_refused(rng):
    for weights in ([], [0, 0], [[1.0]], [np.nan, 1]):
        with pytest.raises(ValueError, match="`weights` must be finite numbers"):
            Observable(weights)
    with pytest.raises(ValueError, match="`classes` must be the number"):
        Observable({3: 1}, classes=3)
    with pytest.raises(ValueError, match=r"logits \[batch, 2\]"):
        Observable([1, 2])(tf.zeros([1, 3]), None)
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer(tf.zeros([1, 2, 4]), tf.zeros([1, 2, 4]))
    with pytest.raises(ValueError, match="one of 2 heads. Received: 2"):
        AttentionHead(layer, 2)
    with pytest.raises(ValueError, match="features of the step before it. Received: 4"):
        feature_vector([1, 2], [AttentionHead(layer, 0)])
    dense = keras.layers.Dense(2, "relu", name="relu")
    dense.build([None, 2])
    with pytest.raises(ValueError, match="'relu' is not known to be linear"):
        feature_vector([1, 2], [dense])
    for other in (dense, keras.layers.MultiHeadAttention(2, 3)):
        with pytest.raises(ValueError, match="`layer` must be a built"):
            AttentionHead(other, 0)
    with pytest.raises(ValueError, match="`observable` must be a vector"):
        feature_vector([[1, 2]], [])
    with pytest.raises(ValueError, match="`first` must not be 0"):
        coupling_coefficient([0, 0], [1, 1])
