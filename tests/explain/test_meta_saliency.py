"""Meta-saliency against a model that has really taken the step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients, Saliency
from kzoo.explain.full_grad import FullGrad
from kzoo.explain.meta_saliency import MetaSaliency
from kzoo.explain.norm_grad import NormGrad

pytestmark = pytest.mark.paper("There and Back Again: Revisiting Backpropagation Saliency Methods")


def trained_on(model, image, target, step_size):
    """A copy of `model` after one step of SGD on one image."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        # Its moving averages must not move.
        layer.trainable &= not isinstance(layer, keras.layers.BatchNormalization)
    loss = keras.losses.SparseCategoricalCrossentropy()
    copy.compile(keras.optimizers.SGD(step_size), loss)
    copy.train_on_batch(image[None], np.array([target]))
    return copy


@pytest.fixture
def plain_cnn():
    layers = [keras.layers.Conv2D(4, 3, activation="relu", name="first"), keras.layers.Flatten()]
    return keras.Sequential(
        [keras.Input([8, 8, 1]), *layers, keras.layers.Dense(3, "softmax", name="last")]
    )


@pytest.mark.parametrize("base", [Saliency, NormGrad])
def test_each_row_is_explained_by_a_model_that_was_trained_on_it(base, plain_cnn, images):
    before = plain_cnn.get_weights()
    images, target = images[:3], [0, 1, 2]
    result = MetaSaliency(plain_cnn, base=base, step_size=0.05)(images, target)
    for row in range(3):
        moved = trained_on(plain_cnn, images[row], target[row], 0.05)
        expected = base(moved)(images[row : row + 1], target[row])["attributions"][0]
        np.testing.assert_allclose(result["attributions"][row], expected, rtol=1e-3, atol=1e-5)
    for old, new in zip(before, plain_cnn.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    plain = base(plain_cnn)(images, target)
    np.testing.assert_allclose(result["score"], plain["score"], rtol=1e-6)
    assert np.abs(result["attributions"] - plain["attributions"]).max() > 1e-3


def test_linear_model_by_hand():
    # f = W x, p = softmax(f): the gradient of class c is W_c + epsilon (1 - p_c) x.
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    weights = np.array([[1.0, 0.0], [0.5, -0.5], [0.0, 2.0]])
    model.set_weights([weights, np.zeros(2)])
    x = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0]])
    logits = x @ weights
    p = np.exp(logits)[:, 1] / np.exp(logits).sum(1)
    result = MetaSaliency(model, step_size=0.25)(x, 1)
    expected = weights[:, 1] + 0.25 * (1 - p[:, None]) * x
    np.testing.assert_allclose(result["attributions"], expected, rtol=1e-5, atol=1e-6)


def test_single_logit_is_a_sigmoid():
    # -log sigmoid(w x) has the gradient -(1 - p) x.
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, "sigmoid", use_bias=False)])
    model.set_weights([np.array([[1.0], [-1.0]])])
    x = np.array([[2.0, 1.0]])
    result = MetaSaliency(model, step_size=0.5)(x)
    expected = [1, -1] + 0.5 * (1 - 1 / (1 + np.exp(-1))) * x
    np.testing.assert_allclose(result["attributions"], expected, rtol=1e-5)


@pytest.mark.parametrize("base", [None, NormGrad])
def test_no_step_is_the_base(base, cnn, images):
    result = MetaSaliency(cnn, base=base, step_size=0.0)(images, 1)
    expected = (base(cnn) if base else Saliency(cnn, absolute=False))(images, 1)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value)
    tiny = MetaSaliency(cnn, base=base, step_size=1e-9)(images, 1)
    np.testing.assert_allclose(tiny["attributions"], expected["attributions"], rtol=1e-3, atol=1e-5)


def test_methods_with_loops_of_their_own_and_taps(rng):
    tokens = keras.Input([5], dtype="int32")
    embedded = keras.layers.Embedding(7, 3, name="embedding")(tokens)
    pooled = keras.layers.GlobalAveragePooling1D()(embedded)
    model = keras.Model(tokens, keras.layers.Dense(2)(pooled))
    x = rng.integers(7, size=(3, 5))
    explainer = MetaSaliency(
        model, base=IntegratedGradients(model, steps=4, tap="embedding", rows=5), step_size=0.1
    )
    result = explainer(x, 0)
    assert result["attributions"].shape == (3, 5, 3)
    plain = IntegratedGradients(model, tap="embedding")(x, 0)["attributions"]
    assert np.abs(result["attributions"] - plain).max() > 1e-4


def test_the_step_is_the_rows_own(cnn, images):
    explainer = MetaSaliency(cnn, step_size=0.1)
    whole = explainer(images, 1)["attributions"]
    for row in range(5):
        alone = explainer(images[row : row + 1], 1)["attributions"][0]
        np.testing.assert_allclose(alone, whole[row], atol=1e-6)


def test_compiled_by_xla_and_without_python(plain_cnn, images):
    explainer = MetaSaliency(plain_cnn, base=FullGrad, step_size=0.05)
    function = explainer.function(explainer.input_spec())
    target = tf.constant([0, 1, 2, 1, -1])
    compiled = tf.function(function, jit_compile=True)(tf.constant(images), target)
    expected = explainer(images, target)
    for name, value in expected.items():
        np.testing.assert_allclose(compiled[name], value, rtol=1e-4, atol=1e-4)
    operations = {node.op for node in function.get_concrete_function().graph.as_graph_def().node}
    assert not any("PyFunc" in operation for operation in operations)


def test_configuration_survives(cnn, images):
    explainer = MetaSaliency(cnn, base=NormGrad(cnn, "first", 3), step_size=-0.1)
    again = MetaSaliency(cnn, **explainer.get_config())
    np.testing.assert_array_equal(again(images)["attributions"], explainer(images)["attributions"])


def test_errors(cnn, images):
    with pytest.raises(ValueError, match="`step_size` must be a finite number. Received: nan"):
        MetaSaliency(cnn, step_size=float("nan"))
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        MetaSaliency(keras.ops.relu)
    cnn.trainable = False
    with pytest.raises(ValueError, match="has no trainable weights"):
        MetaSaliency(cnn)(images)
