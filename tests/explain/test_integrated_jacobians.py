import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients, IntegratedJacobians
from kzoo.serving.export import export

pytestmark = pytest.mark.paper("An Attribution Method for Siamese Encoders")


def siamese(encoder, **inputs):
    a, b = keras.Input(name="a", **inputs), keras.Input(name="b", **inputs)
    return keras.Model([a, b], keras.layers.Dot(-1)([encoder(a), encoder(b)]))


def text_encoder(tokens=5, size=6):
    x = ids = keras.Input([tokens], dtype="int32")
    x = keras.layers.Embedding(12, 4, name="embedding", embeddings_initializer="normal")(x)
    x = keras.layers.Conv1D(8, 2, padding="same", activation="tanh", name="convolution")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(ids, keras.layers.Dense(size, "tanh")(x), name="encoder")


@pytest.fixture
def pair(rng):
    return [rng.integers(0, 12, [3, 5]) for _ in range(2)]


def test_linear_encoder_by_hand(rng):
    # e = W x: A_ij = a_i (W^T W)_ij b_j from zero references.
    encoder = keras.layers.Dense(3, use_bias=False, name="encoder")
    model = siamese(encoder, shape=[4])
    a, b = rng.normal(size=(2, 2, 4)).astype("float32")
    kernel = encoder.kernel.numpy()
    result = IntegratedJacobians(model, "encoder", steps=1)([a, b])
    expected = a[:, :, None] * (kernel @ kernel.T) * b[:, None, :]
    np.testing.assert_allclose(result["attributions"], expected, atol=1e-6)
    np.testing.assert_allclose(result["score"], np.sum((a @ kernel) * (b @ kernel), 1), rtol=1e-5)


@pytest.mark.parametrize("cosine", [False, True])
def test_complete_over_both_inputs(float64, pair, cosine):
    encoder = text_encoder()
    model = siamese(encoder, shape=[5], dtype="int32")
    explainer = IntegratedJacobians(
        model, "encoder", steps=30, tap="embedding", cosine=cosine, reference=0.1
    )
    result = explainer(pair)
    assert result["attributions"].shape == (3, 5, 5)

    tail = keras.Model(encoder.get_layer("convolution").input, encoder.output)
    table = encoder.get_layer("embedding").embeddings.numpy()

    def encode(x):
        y = tail(x).numpy()
        return y / np.linalg.norm(y, axis=1, keepdims=True) if cosine else y

    a, b = (encode(table[ids]) for ids in pair)
    r = encode(np.full([1, 5, 4], 0.1))
    expected = np.sum(a * b - a * r - r * b + r * r, axis=1)
    np.testing.assert_allclose(np.sum(result["attributions"], axis=(1, 2)), expected, atol=1e-8)
    np.testing.assert_allclose(result["score"], np.sum(a * b, 1), atol=1e-10)
    swapped = explainer(pair[::-1])["attributions"]
    np.testing.assert_allclose(swapped, np.transpose(result["attributions"], [0, 2, 1]), atol=1e-9)


def test_error_falls_at_least_with_the_steps(pair):
    model = siamese(text_encoder(), shape=[5], dtype="int32")
    deltas = [
        np.abs(
            IntegratedJacobians(model, "encoder", steps=n, tap="embedding", rule="trapezoid")(pair)[
                "convergence_delta"
            ]
        ).max()
        for n in (5, 9)
    ]
    assert deltas[1] < deltas[0] / 2


def test_a_fixed_partner_of_one_number_is_integrated_gradients(rng):
    encoder = keras.Sequential(
        [keras.Input([4]), keras.layers.Dense(6, "tanh"), keras.layers.Dense(1)], name="encoder"
    )
    a, b = rng.normal(size=(2, 2, 4)).astype("float32")
    result = IntegratedJacobians(siamese(encoder, shape=[4]), "encoder")([a, b])
    gradients = [IntegratedGradients(encoder)(x)["attributions"].numpy() for x in (a, b)]
    expected = gradients[0][:, :, None] * gradients[1][:, None, :]
    np.testing.assert_allclose(result["attributions"], expected, atol=1e-5)


def test_a_planted_pair_of_tokens_holds_the_similarity(rng):
    encoder = text_encoder()
    table = 0.05 * rng.normal(size=(12, 4))
    table[7] = 1.0
    encoder.get_layer("embedding").set_weights([table])
    model = siamese(encoder, shape=[5], dtype="int32")
    a, b = np.full([1, 5], 2), np.full([1, 5], 3)
    a[0, 1] = b[0, 3] = 7
    result = IntegratedJacobians(model, "encoder", tap="embedding")([a, b])
    share = np.abs(result["attributions"][0])
    assert share[1, 3] == share.max()
    assert share[1, 3] > 0.6 * share.sum()


def test_served_for_any_batch(pair, tmp_path):
    model = siamese(text_encoder(), shape=[5], dtype="int32")
    explainer = IntegratedJacobians(model, "encoder", steps=4, tap="embedding", rows=7)
    version = export(model, tmp_path / "pairs", [explainer])
    loaded = tf.saved_model.load(str(version)).signatures["explain_integrated_jacobians"]
    expected = explainer(pair)
    for rows in (1, 3):
        a, b = (tf.constant(x[:rows], tf.int32) for x in pair)
        served = loaded(a=a, b=b, target=tf.fill([rows], -1))
        np.testing.assert_allclose(
            served["attributions"], expected["attributions"][:rows], atol=1e-6
        )
    config = explainer.get_config()
    assert IntegratedJacobians(model, **config).get_config() == config


def test_errors_name_the_argument(pair):
    encoder = text_encoder()
    model = siamese(encoder, shape=[5], dtype="int32")
    with pytest.raises(ValueError, match="Pass `tap`, the name of the encoder's embedding layer"):
        IntegratedJacobians(model, "encoder")(pair)
    with pytest.raises(ValueError, match="A siamese model has two inputs"):
        IntegratedJacobians(keras.Sequential([encoder]), "encoder", tap="embedding")(pair[0])
