import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.attention import attention_layers
from kzoo.explain.attention_rollout import AttentionRollout, RawAttention, rollout
from tests.explain.transformers import text_transformer, vision_transformer

pytestmark = pytest.mark.paper("Quantifying Attention Flow in Transformers")


def test_rollout_by_hand():
    # Mixed with I by halves: ((3/4, 1/4), (0, 1)), then ((1, 0), (1/4, 3/4)); their product.
    first, second = ([[0.5, 0.5], [0, 1]], [[1.0, 0], [0.5, 0.5]])
    joint = rollout([tf.constant([first]), tf.constant([second])])
    np.testing.assert_allclose(joint, [[[3 / 4, 1 / 4], [3 / 16, 13 / 16]]])
    plain = rollout([tf.constant([first]), tf.constant([second])], normalize=False)
    np.testing.assert_allclose(plain, 4 * joint)


def shown(model, x):
    """The attention of `model` by Keras's own `return_attention_scores`, the blocks in turn."""
    scores = []
    for layer in attention_layers(model):
        normed = model.get_layer(layer.name.replace("attention", "norm_a")).output
        tokens = keras.Model(model.input, normed)(x)
        scores.append(np.mean(layer(tokens, tokens, return_attention_scores=True)[1], 1))
    return scores


def test_it_is_the_rollout_of_what_keras_shows(rng):
    model, words = text_transformer(blocks=3), rng.integers(0, 12, [4, 6])
    joint = np.eye(6)
    for attention in shown(model, words):
        joint = (0.5 * attention + 0.5 * np.eye(6)) @ joint
    result = AttentionRollout(model)(words)
    np.testing.assert_allclose(result["attributions"], joint[:, 0], rtol=1e-4)
    np.testing.assert_allclose(np.sum(result["attributions"], -1), 1, rtol=1e-5)
    last = AttentionRollout(model, token=-1)(words, target=1)
    np.testing.assert_allclose(last["attributions"], joint[:, -1], rtol=1e-4)
    mean = AttentionRollout(model, token="mean")(words)
    np.testing.assert_allclose(mean["attributions"], joint.mean(1), rtol=1e-4)


def test_raw_attention_is_one_layers(rng):
    model, words = text_transformer(), rng.integers(0, 12, [4, 6])
    for call in (0, 1, -1):
        result = RawAttention(model, call)(words)
        np.testing.assert_allclose(result["attributions"], shown(model, words)[call][:, 0], 1e-4)
    with pytest.raises(ValueError, match="`call` must be one of the 2 calls.*Received: 2"):
        RawAttention(model, 2)(words)


def attend(layer, x, **kwargs):
    inputs = keras.Input(x.shape[1:])
    tokens = layer(inputs, inputs, **kwargs)
    return keras.Model(inputs, keras.layers.Dense(2)(tokens[:, -1]))


@pytest.mark.parametrize("causal", [False, True])
def test_every_kind_of_attention_layer_gives_what_it_gave_and_what_keras_shows(causal, rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    mask = np.ones([5, 5], bool)
    mask[:, 2] = False
    for layer in (
        keras.layers.MultiHeadAttention(2, 3, value_dim=4),
        keras.layers.MultiHeadAttention(2, 3, dropout=0.5),
        keras.layers.GroupQueryAttention(3, 4, 2),
    ):
        for kwargs in ({}, {"attention_mask": mask}):
            model = attend(layer, x, use_causal_mask=causal, **kwargs)
            result = AttentionRollout(model, token=-1)(x)
            np.testing.assert_allclose(result["predictions"], model(x), rtol=1e-4, atol=1e-5)
            _, scores = layer(x, x, use_causal_mask=causal, return_attention_scores=True, **kwargs)
            expected = np.mean(scores, 1)[:, -1] + np.eye(5)[-1]
            np.testing.assert_allclose(result["attributions"], expected / 2, rtol=1e-4, atol=1e-6)


class Subclassed(keras.Model):
    """Builds its layers in its first call, and attends twice with the same."""

    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(2, 3)
        self.head = keras.layers.Dense(2)

    def call(self, x):
        x = self.attention(x, x)
        return self.head(self.attention(x, x)[:, 0])


def test_models_of_any_build_and_shared_layers(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    model = Subclassed()
    result = AttentionRollout(model)(x)
    joint, tokens = np.eye(5), tf.constant(x)
    for _ in range(2):
        tokens, scores = model.attention(tokens, tokens, return_attention_scores=True)
        joint = (0.5 * np.mean(scores, 1) + 0.5 * np.eye(5)) @ joint
    np.testing.assert_allclose(result["attributions"], joint[:, 0], rtol=1e-4)
    nested = keras.Sequential([keras.Input([5, 8]), model])
    np.testing.assert_allclose(
        AttentionRollout(nested)(x)["attributions"], result["attributions"], rtol=1e-5
    )


def test_maps_of_patches(rng):
    model = vision_transformer(image=(8, 4, 1), patch=2, classes=3)
    x = rng.uniform(size=(2, 8, 4, 1)).astype("float32")
    tokens = AttentionRollout(model, grid=None)(x)["attributions"]
    assert tokens.shape == (2, 9)
    for grid in ("auto", (4, 2)):
        patches = AttentionRollout(model, grid=grid, upsample=False)(x)["attributions"]
        np.testing.assert_allclose(patches, np.reshape(tokens[:, 1:], [2, 4, 2]))
    resized = AttentionRollout(model)(x)["attributions"]
    np.testing.assert_allclose(resized, tf.image.resize(patches[..., None], [8, 4])[..., 0])


def test_what_cannot_be_rolled_out_is_refused(rng):
    image = rng.uniform(size=(2, 8, 8, 1)).astype("float32")
    model = vision_transformer()
    with pytest.raises(ValueError, match="17 tokens.*no grid.*Pass `grid`"):
        AttentionRollout(model, token="mean")(image)
    with pytest.raises(ValueError, match="`grid` must have at most the 17 tokens"):
        AttentionRollout(model, grid=(5, 5))(image)
    with pytest.raises(ValueError, match="`grid` must be"):
        AttentionRollout(model, grid=(4, 0))
    with pytest.raises(ValueError, match="`token` must be an index"):
        AttentionRollout(model, token="first")
    with pytest.raises(ValueError, match="must hold layers of the type.*Received none"):
        AttentionRollout(keras.Sequential([keras.Input([2]), keras.layers.Dense(2)]))

    x, other = keras.Input([5, 8]), keras.Input([3, 8])
    crossed = keras.layers.MultiHeadAttention(2, 3)(x, other)
    model = keras.Model([x, other], keras.layers.Dense(2)(crossed[:, 0]))
    with pytest.raises(ValueError, match="Rollout is for self-attention"):
        AttentionRollout(model)([np.ones([1, 5, 8]), np.ones([1, 3, 8])])

    class Own(keras.layers.MultiHeadAttention):
        def _compute_attention(self, query, key, value, *args, **kwargs):
            return value, None

    with pytest.raises(ValueError, match="in a way of its own.*Own"):
        AttentionRollout(attend(Own(2, 3), np.ones([1, 5, 8])))
