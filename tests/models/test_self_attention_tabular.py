import keras
import numpy as np
import pytest

from kzoo.models.self_attention_tabular import SelfAttentionTabular

pytestmark = pytest.mark.paper(
    "Interpreting Black-box Machine Learning Models for High Dimensional Datasets"
)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def selu(x):
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))


@pytest.fixture
def model():
    made = SelfAttentionTabular(num_features=5, num_classes=3, num_heads=2, hidden_units=4)
    rng = np.random.default_rng(0)
    made.set_weights([rng.normal(size=w.shape) for w in made.get_weights()])
    return made


def heads(model, x):
    weights = [model.get_layer(f"attention_{head}").get_weights() for head in range(2)]
    return np.mean([softmax(x @ kernel + bias) for kernel, bias in weights], axis=0)


def test_equations_of_the_paper(float64, model, rng):
    x = rng.normal(size=(7, 5))
    (w1, b1), (w2, b2) = (model.get_layer(name).get_weights() for name in ("hidden", "predictions"))
    hidden = selu((x * heads(model, x)) @ w1 + b1)
    expected = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    assert model(x).dtype == "float64"
    np.testing.assert_allclose(model(x), expected, rtol=1e-10)


def test_number_of_weights():
    """Heads F (F + 1) each, hidden (F + 1) h, outputs (h + 1) c."""
    model = SelfAttentionTabular(30, 2, num_heads=3)
    assert model.count_params() == 3 * 30 * 31 + 31 * 64 + 65 * 2


def test_global_attention_is_of_the_diagonals(model):
    diagonals = [np.diag(model.get_layer(f"attention_{head}").get_weights()[0]) for head in (0, 1)]
    expected = np.mean([softmax(diagonal) for diagonal in diagonals], axis=0)
    np.testing.assert_allclose(model.importance(), expected, rtol=1e-5)


def test_attention_of_examples_and_of_the_correct_ones(model, rng):
    x = rng.normal(size=(40, 5)).astype("float32")
    attention = heads(model, x)
    np.testing.assert_allclose(model.attention(x, batch_size=16), attention, atol=1e-6)
    np.testing.assert_allclose(model.importance(x), attention.mean(0), atol=1e-6)
    y = np.argmax(model(x), -1)
    y[:25] = (y[:25] + 1) % 3
    np.testing.assert_allclose(model.importance(x, y), attention[25:].mean(0), atol=1e-6)


def test_one_head_and_logits_survive_a_file(tmp_path, rng):
    model = SelfAttentionTabular(
        4, 2, classifier_activation=None, dropout_rate=0.5, dtype="float64"
    )
    model.save(tmp_path / "san.keras")
    again = keras.saving.load_model(tmp_path / "san.keras")
    x = rng.normal(size=(3, 4))
    np.testing.assert_array_equal(again(x), model(x))
    assert again(x).dtype == "float64"
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(again.importance(), model.importance())


def test_dropout_is_only_for_training(model, rng):
    x = rng.normal(size=(8, 5)).astype("float32")
    np.testing.assert_array_equal(model(x), model(x))
    assert np.abs(model(x, training=True) - model(x)).max() > 0


def test_attention_finds_the_feature_that_decides(rng):
    x = rng.uniform(size=(512, 6)).astype("float32")
    y = (x[:, 4] > 0.5).astype(int)
    model = SelfAttentionTabular(6, 2, hidden_units=8, dropout_rate=0.0)
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", steps_per_execution=8)
    model.fit(x, np.eye(2)[y], epochs=25, batch_size=64, verbose=0)
    assert np.mean(np.argmax(model(x), -1) == y) > 0.95
    for importance in (model.importance(), model.importance(x), model.importance(x, y)):
        assert np.argmax(importance) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_features": 0}, "`num_features` must be a positive integer"),
        ({"num_heads": 1.5}, "`num_heads` must be a positive integer"),
        ({"dropout_rate": 1.0}, "`dropout_rate` must be in"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        SelfAttentionTabular(**{"num_features": 4, "num_classes": 2, **change})


def test_refuses_labels_without_rows_and_none_right(model, rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    with pytest.raises(ValueError, match="`y` needs `x`"):
        model.importance(y=[0])
    with pytest.raises(ValueError, match="right for one at least"):
        model.importance(x, (np.argmax(model(x), -1) + 1) % 3)
