import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.attention import recorded_attention
from kzoo.explain.attention_rollout import AttentionRollout, RawAttention
from kzoo.explain.observable_propagation import ObservablePropagation
from kzoo.explain.relevance_rules import relevance_rules
from kzoo.explain.transformer_relevance import (
    GradientAttentionRollout,
    TransformerRelevance,
    WeightedRollout,
)
from tests.explain.transformers import text_transformer, vision_transformer

CHEFER = pytest.mark.paper("Transformer Interpretability Beyond Attention Visualization")
GENERIC = pytest.mark.paper(
    "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder "
    "Transformers"
)
EXPLAINERS = (
    RawAttention, AttentionRollout, GradientAttentionRollout, TransformerRelevance,
    ObservablePropagation,
)  # fmt: skip


def relevance(model, function, inputs, given):
    """What the inputs of a part of the model have of the relevance given to its output."""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape, relevance_rules(model, tf.identity):
        tape.watch(inputs)
        output = function(*inputs)
    return tape.gradient(output, inputs, output_gradients=tf.constant(given, output.dtype))


@CHEFER
def test_sums_by_hand():
    # u = (4, 1), v = (-3, 1), R = (1, 2): R / (u + v) = (1, 1), so R^u = (4, 1), R^v = (-3, 1),
    # with the sums 5 and -2. Of the 3 given, u has 5/7 and v 2/7: times 3/7 and -3/7.
    u, v = np.array([[[4.0, 1]]], "float32"), np.array([[[-3.0, 1]]], "float32")
    model = text_transformer(blocks=1, dim=2, heads=1)
    layer, operation = (each for each in model.operations if type(each).__name__ == "Add")
    assert isinstance(layer, keras.layers.Add)
    for function in (lambda *terms: layer(list(terms)), operation):
        handed = relevance(model, function, [u, v], [[[1.0, 2]]])
        np.testing.assert_allclose(handed[0], [[[12 / 7, 3 / 7]]], rtol=1e-5)
        np.testing.assert_allclose(handed[1], [[[9 / 7, -3 / 7]]], rtol=1e-5)


@CHEFER
def test_linear_layers_by_hand():
    # x = (1, -2), kernel ((3, 1), (-1, 2)): x w = ((3, 1), (2, -4)); positive: 3 and 2, 1 and 0.
    # R = (10, 6): 10 * 3/5 + 6 and 10 * 2/5. Neither bias nor activation take part.
    model = text_transformer(blocks=1, dim=2, heads=1)
    layer = model.get_layer("hidden0")
    layer.set_weights([np.array([[3.0, 1, 0, 0], [-1, 2, 0, 0]]), np.array([7.0, -9, 0, 0])])
    x = np.array([[[1.0, -2]]], "float32")
    (handed,) = relevance(model, layer, [x], [[[10.0, 6, 0, 0]]])
    np.testing.assert_allclose(handed, [[[12, 4]]], rtol=1e-5)


def positive(x, kernel, given):
    """Equation 5 with loops."""
    handed = np.zeros_like(x)
    for place in np.ndindex(x.shape[:-1]):
        for i in range(kernel.shape[1]):
            products = np.maximum(x[place] * kernel[:, i], 0)
            handed[place] += products / products.sum() * given[(*place, i)]
    return handed


def normalized(u, v, given):
    """Equations 7 and 9 for u + v, of one row."""
    ratio = np.divide(given, u + v, out=np.zeros_like(u), where=given != 0)
    parts = u * ratio, v * ratio
    sums = [part.sum() for part in parts]
    total = sum(abs(each) for each in sums)
    return [part * abs(each) / total * given.sum() / each
            for part, each in zip(parts, sums, strict=True)]  # fmt: skip


@CHEFER
def test_the_relevance_of_attention_is_that_of_the_equations(float64, rng):
    keras.utils.set_random_seed(3)
    model, words = text_transformer(blocks=1, dim=16), rng.integers(0, 12, [1, 6])
    kernel = {layer.name: layer.get_weights()[0] for layer in model.layers if layer.weights}
    value = {
        layer.name: keras.Model(model.input, layer.output)(words).numpy()[0]
        for layer in model.layers[1:]
    }
    summed = [each for each in model.operations if type(each).__name__ == "Add"][-1]
    assert summed is not model.get_layer("attended0")
    layer = model.get_layer("attention0")
    _, attention = layer(*[value["norm_a0"][None]] * 2, return_attention_scores=True)
    values = np.einsum("td,dnh->tnh", value["norm_a0"], layer.get_weights()[4])
    values = values + layer.get_weights()[5]
    context = np.einsum("nts,snh->tnh", attention[0], values)

    head = positive(value["norm"][0], kernel["head"], np.array([0.0, 1, 0]))
    assert head.sum() == pytest.approx(1)
    top = np.zeros_like(value["norm"])
    top[0] = head
    skip, branch = normalized(value["attended0"], value["out0"], top)
    hidden = positive(value["hidden0"], kernel["out0"], branch)
    skip = skip + positive(value["norm_b0"], kernel["hidden0"], hidden)
    _, branch = normalized(value["positions"], value["attention0"], skip)
    output = layer.get_weights()[6].reshape(16, 16)
    given = positive(context.reshape(6, 16), output, branch).reshape(context.shape)
    expected = attention[0] * np.einsum("tnh,snh->nts", given / context, values) / 2

    explainer = TransformerRelevance(model)
    found = explainer.attention_relevance(tf.constant(words), tf.constant([1]), tf.constant(words))
    np.testing.assert_allclose(found[0][0], expected, rtol=1e-6, atol=1e-9)
    result = explainer(words, target=1)
    _, gradients, _ = explainer.attention_gradients(
        tf.constant(words, "int32"), tf.constant([1]), tf.constant(words, "int32")
    )
    row = np.maximum(expected * gradients[0][0], 0).mean(0)[0] + np.eye(6)[0]
    np.testing.assert_allclose(result["attributions"], [row], rtol=1e-6)


@CHEFER
@pytest.mark.parametrize("make", [vision_transformer, text_transformer])
def test_relevance_is_conserved_from_layer_to_layer(make, float64, rng):
    model = make(dim=32, heads=4)
    x = rng.uniform(size=(3, 8, 8, 1)) if make is vision_transformer else rng.integers(0, 9, [3, 6])
    streams = [each.output for each in model.operations if type(each).__name__ == "Add"]
    streams += [model.get_layer(name).output for name in ("positions", "norm")]
    assert len(streams) == 6
    given = keras.ops.one_hot([0, 1, 2], model.output.shape[-1])
    for stream in streams:
        values = keras.Model(model.input, stream)(x)
        upper = keras.Model(stream, model.output)
        upper.layers[-1].activation = keras.activations.linear
        (handed,) = relevance(model, upper, [values], given)
        np.testing.assert_allclose(tf.reduce_sum(handed, [1, 2]), 1, atol=1e-4)


@CHEFER
def test_attention_shares_out_its_relevance(float64, rng):
    model = text_transformer(dim=32, heads=4)
    layer = model.get_layer("attention1")
    query, source = rng.normal(size=(2, 1, 6, 32))
    (to_query, to_source) = relevance(model, layer, [query, source], np.full([1, 6, 32], 0.5))
    total = 0.5 * 6 * 32
    np.testing.assert_allclose(tf.reduce_sum(to_query) + tf.reduce_sum(to_source), total, rtol=1e-4)
    # Half goes to the values, a quarter each by way of the attention to queries and keys.
    np.testing.assert_allclose(tf.reduce_sum(to_query), total / 4, rtol=1e-4)


@CHEFER
def test_with_attention_for_relevance_it_is_rollout(rng):
    class Unweighted(WeightedRollout):
        def weighted_attention(self, values, target, inputs):
            return self.attention(values, target, inputs)

    model, words = text_transformer(blocks=3), rng.integers(0, 12, [4, 6])
    expected = AttentionRollout(model)(words)["attributions"]
    # A + I in place of the half of both, in three blocks.
    np.testing.assert_allclose(Unweighted(model)(words)["attributions"], 8 * expected, rtol=1e-5)


@CHEFER
@GENERIC
def test_without_a_gradient_each_token_is_its_own(rng):
    model, words = text_transformer(blocks=1), rng.integers(0, 12, [4, 6])
    layer = model.get_layer("attention0")
    layer.set_weights([*layer.get_weights()[:6], np.zeros([2, 4, 8]), np.zeros(8)])
    for explainer in (TransformerRelevance(model), GradientAttentionRollout(model)):
        np.testing.assert_allclose(explainer(words)["attributions"], np.eye(6)[[0] * 4])


@GENERIC
def test_gradient_rollout_is_the_update_of_the_paper(rng):
    model, words = text_transformer(), rng.integers(0, 12, [4, 6])
    explainer = GradientAttentionRollout(model)
    words = tf.constant(words, tf.int32)
    attentions, gradients, _ = explainer.attention_gradients(words, tf.constant([2] * 4), words)
    joint = np.eye(6)
    for attention, gradient in zip(attentions, gradients, strict=True):
        joint = joint + np.maximum(attention * gradient, 0).mean(1) @ joint
    result = explainer(words, target=2)
    np.testing.assert_allclose(result["attributions"], joint[:, 0], rtol=1e-5)
    assert np.abs(explainer(words, target=1)["attributions"] - result["attributions"]).max() > 1e-4


@GENERIC
def test_gradients_of_attention_are_slopes(float64, rng):
    """Against the change of the score where the probabilities of one head are changed."""
    model, words = text_transformer(blocks=1), tf.constant(rng.integers(0, 12, [2, 6]), tf.int32)
    explainer = GradientAttentionRollout(model)
    target = tf.constant([1, 1])
    attentions, gradients, _ = explainer.attention_gradients(words, target, words)
    change = np.zeros_like(attentions[0])
    change[:, 1, 0, 4] = 1e-5
    with recorded_attention(model, lambda x: x + change):
        up = explainer.scores(words, target, words)["score"]
    with recorded_attention(model, lambda x: x - change):
        down = explainer.scores(words, target, words)["score"]
    np.testing.assert_allclose((up - down) / 2e-5, gradients[0][:, 1, 0, 4], rtol=1e-5)


@CHEFER
def test_layers_with_code_of_their_own_are_refused(rng):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="own_block")
            self.attention = keras.layers.MultiHeadAttention(2, 3)

        def call(self, x):
            return x + self.attention(x, x)

    model = keras.Sequential(
        [keras.Input([5, 8]), Block(), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="own code. Received: own_block.*GradientAttention"):
        TransformerRelevance(model)
    x = rng.normal(size=(2, 5, 8))
    assert GradientAttentionRollout(model)(x)["attributions"].shape == (2, 5)

    inputs = keras.Input([5, 8])
    gated = keras.layers.MultiHeadAttention(2, 3, use_gate=True, name="gated")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(gated[:, 0]))
    with pytest.raises(ValueError, match="with a gate. Received: gated"):
        TransformerRelevance(model)


@CHEFER
def test_grouped_pooled_and_nested_models(rng):
    tokens = keras.Input([5, 8])
    x = tokens + keras.layers.GroupQueryAttention(3, 4, 2)(tokens, tokens, use_causal_mask=True)
    inner = keras.Model(tokens, keras.layers.Activation("gelu")(keras.layers.Dense(8)(0.5 * x)))
    inputs = keras.Input([5, 8])
    pooled = keras.layers.GlobalAveragePooling1D()(inner(inputs))
    outputs = keras.layers.Softmax()(keras.layers.Dense(3)(pooled))
    model = keras.Model(inputs, outputs)
    x = rng.normal(size=(4, 5, 8)).astype("float32")
    result = TransformerRelevance(model, token="mean")(x)
    np.testing.assert_allclose(tf.nn.softmax(result["predictions"]), model(x), rtol=1e-4, atol=1e-6)
    assert np.isfinite(result["attributions"]).all()
    matrix, _ = TransformerRelevance(model).token_matrix(x, result["target"], x)
    # Causal: no token has anything from later ones.
    np.testing.assert_allclose(np.triu(matrix - np.eye(5), 1), 0)
    assert np.abs(np.tril(matrix - np.eye(5))).max() > 0


@CHEFER
@pytest.mark.parametrize("cls", [AttentionRollout, TransformerRelevance])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_padding_has_no_part(cls, dropout, rng):
    inputs = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(12, 8, mask_zero=True)(inputs)
    # One block: attention layers take the mask off their input, so that a second sees none.
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 4, dropout=dropout)(x, x)])
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    words = rng.integers(1, 12, [3, 6])
    words[:, 4:] = 0
    result = cls(model)(words)
    np.testing.assert_allclose(result["predictions"], model(words), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["attributions"][:, 4:], 0, atol=1e-6)
    assert np.min(result["attributions"][:, 0]) > 0


@CHEFER
@pytest.mark.parametrize("cls", EXPLAINERS)
def test_served_compiled_and_in_any_batch(cls, rng, tmp_path):
    if cls in (AttentionRollout, RawAttention):
        model, x = vision_transformer(patch=4, blocks=1), rng.uniform(size=(4, 8, 8, 1))
    else:
        model, x = text_transformer(blocks=1), rng.integers(0, 12, [4, 6])
    x = x.astype(model.input.dtype)
    explainer = cls(model)
    assert cls(model, **explainer.get_config()).get_config() == explainer.get_config()
    whole = explainer(x)
    assert np.ptp(whole["attributions"]) > 0
    for row in range(4):
        alone = explainer(x[row : row + 1])["attributions"][0]
        np.testing.assert_allclose(alone, whole["attributions"][row], rtol=1e-3, atol=1e-5)
    compiled = tf.function(explainer.explain, jit_compile=True)(x, whole["target"])
    np.testing.assert_allclose(
        compiled["attributions"], whole["attributions"], rtol=1e-3, atol=1e-5
    )
    for name, value in in_a_session(explainer, x, tmp_path).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)


def in_a_session(explainer, x, path):
    """What a plain graph session gives, as TensorFlow Serving runs it."""
    module = tf.Module()
    module.variables_ = [variable.value for variable in explainer.model.variables]
    module.explain = explainer.function(explainer.input_spec())
    tf.saved_model.save(module, path, signatures=module.explain.get_concrete_function())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        signature = loaded.signature_def["serving_default"]
        feeds = {
            info.name: np.full(len(x), -1) if key == "target" else x
            for key, info in signature.inputs.items()
        }
        return session.run({key: info.name for key, info in signature.outputs.items()}, feeds)


@CHEFER
@pytest.mark.parametrize("cls", EXPLAINERS)
def test_half_precision_gives_float32(cls, rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    result = cls(vision_transformer(blocks=1, patch=4))(rng.uniform(size=(3, 8, 8, 1)))
    assert result["attributions"].dtype == tf.float32
    assert np.isfinite(result["attributions"]).all()


@CHEFER
def test_the_model_is_left_as_it_was(rng):
    model, words = text_transformer(blocks=1), rng.integers(0, 12, [2, 6])
    before = model(words)
    with contextlib.suppress(ZeroDivisionError), relevance_rules(model, tf.identity):
        raise ZeroDivisionError
    TransformerRelevance(model)(words)
    replaced = {"call", "_compute_attention"}
    assert not any(replaced & set(vars(layer)) for layer in model._flatten_layers())
    np.testing.assert_array_equal(model(words), before)
