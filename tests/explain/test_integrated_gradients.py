import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients

pytestmark = pytest.mark.paper("Axiomatic Attribution for Deep Networks")


def model_of(function, size):
    """A model of one output column from a function of the columns of its input."""
    x = keras.Input([size])
    return keras.Model(x, keras.layers.Lambda(lambda x: function(x)[:, tf.newaxis])(x))


@pytest.fixture
def mlp():
    return keras.Sequential(
        [keras.Input([4]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    )


def test_product_is_shared_equally():
    # F = x1 x2 from zero: each of the two gets half.
    explainer = IntegratedGradients(model_of(lambda x: x[:, 0] * x[:, 1], 2), steps=2)
    result = explainer(np.array([[3.0, 4.0], [-1.0, 5.0]]))
    np.testing.assert_allclose(result["attributions"], [[6, 6], [-2.5, -2.5]], rtol=1e-6)
    np.testing.assert_allclose(result["score"], [12, -5], rtol=1e-6)


def test_sensitivity_where_the_gradient_is_zero():
    # The paper's example, section 2.1: F = 1 - ReLU(1 - x) is flat at x = 2, and IG is 1.
    explainer = IntegratedGradients(
        model_of(lambda x: 1 - tf.nn.relu(1 - x[:, 0]), 1), steps=1000, rule="middle"
    )
    result = explainer(np.array([[2.0]]))
    np.testing.assert_allclose(result["attributions"], [[1.0]], atol=1e-5)


def test_three_gauss_points_integrate_a_quintic_exactly(float64):
    def quintic(x):
        return x[:, 0] ** 5 - 2 * x[:, 0] * x[:, 1] ** 3 + x[:, 2]

    x = np.array([[1.3, -0.7, 2.0]])
    delta = IntegratedGradients(model_of(quintic, 3), steps=3, baseline=0.5)(x)
    np.testing.assert_allclose(delta["convergence_delta"], 0, atol=1e-12)
    assert abs(IntegratedGradients(model_of(quintic, 3), steps=2)(x)["convergence_delta"][0]) > 1e-3


def test_completeness_is_measured_against_the_logits(mlp, rng):
    x = rng.normal(size=(5, 4)).astype("float32")
    result = IntegratedGradients(mlp, steps=300)(x, target=[0, 1, 2, 0, 1])
    hidden, output = mlp.layers
    logits = lambda x: (hidden(x) @ output.kernel + output.bias).numpy()  # noqa: E731
    difference = (logits(x) - logits(np.zeros_like(x)))[range(5), [0, 1, 2, 0, 1]]
    np.testing.assert_allclose(tf.reduce_sum(result["attributions"], 1), difference, atol=3e-3)
    np.testing.assert_allclose(
        result["convergence_delta"],
        tf.reduce_sum(result["attributions"], 1) - difference,
        atol=1e-5,
    )


def test_equal_networks_with_other_weights_get_equal_attributions(mlp, rng):
    # Implementation invariance: hidden units in another order, scaled up and down.
    order, scale = rng.permutation(8), rng.uniform(0.5, 2, 8).astype("float32")
    kernel, bias, out, out_bias = mlp.get_weights()
    twin = keras.models.clone_model(mlp)
    twin.set_weights(
        [kernel[:, order] * scale, bias[order] * scale, out[order] / scale[:, None], out_bias]
    )
    x = rng.normal(size=(3, 4)).astype("float32")
    ours, theirs = (IntegratedGradients(m)(x)["attributions"] for m in (mlp, twin))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 80, 10_000])
def test_rows_bound_the_memory_and_leave_the_numbers(mlp, rng, rows):
    x = rng.normal(size=(3, 4)).astype("float32")
    expected = IntegratedGradients(mlp, steps=50)(x)
    result = IntegratedGradients(mlp, steps=50, rows=rows)(x)
    np.testing.assert_allclose(result["attributions"], expected["attributions"], atol=1e-6)


def test_one_trace_serves_all_batches_and_targets(mlp, rng):
    explainer = IntegratedGradients(mlp)
    for batch in (1, 4, 9):
        explainer(rng.normal(size=(batch, 4)), target=1)
    assert explainer.function(None).experimental_get_tracing_count() == 1


def test_several_inputs_and_their_baselines(rng):
    a, b = keras.Input([2], name="a"), keras.Input([3], name="b")
    joined = keras.layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(2)(joined))
    x = {"a": rng.normal(size=(4, 2)), "b": rng.normal(size=(4, 3))}
    result = IntegratedGradients(model, baseline={"a": 1.0, "b": np.arange(3.0)})(x, target=1)
    weights = model.layers[-1].kernel.numpy()[:, 1]
    np.testing.assert_allclose(result["attributions"]["a"], (x["a"] - 1) * weights[:2], atol=1e-5)
    np.testing.assert_allclose(
        result["attributions"]["b"], (x["b"] - np.arange(3)) * weights[2:], atol=1e-5
    )


def test_tokens_are_attributed_at_the_embedding(rng):
    tokens = keras.Input([5], dtype="int32")
    embedded = keras.layers.Embedding(7, 3, mask_zero=True, name="embedding")(tokens)
    model = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.LSTM(4)(embedded)))
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]])
    result = IntegratedGradients(model, steps=100, tap="embedding")(x)
    assert result["attributions"].shape == (2, 5, 3)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-5)
    np.testing.assert_allclose(result["attributions"][0, 3:], 0)  # masked tokens play no part
    with pytest.raises(ValueError, match="dtype int32. Pass `tap`"):
        IntegratedGradients(model)(x)


class Subclassed(keras.Model):
    def __init__(self, layers):
        super().__init__()
        self.hidden, self.classifier = layers

    def call(self, x):
        return self.classifier(self.hidden(x))


def test_every_build_of_a_model_gives_the_same(mlp, rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    inputs = keras.Input([4])
    nested = keras.Model(inputs, keras.Sequential(mlp.layers)(inputs))
    builds = [keras.Model(mlp.inputs, mlp.outputs), Subclassed(mlp.layers), nested]
    expected = IntegratedGradients(mlp)(x)
    for build in builds:
        result = IntegratedGradients(build)(x)
        for key, value in expected.items():
            np.testing.assert_allclose(result[key], value, atol=1e-6)
    assert mlp.layers[-1].activation is keras.activations.softmax


def test_errors_name_the_argument(mlp):
    with pytest.raises(ValueError, match="`steps` must be a positive integer. Received: 0"):
        IntegratedGradients(mlp, steps=0)
    with pytest.raises(ValueError, match="`rule` must be one of .* Received: 'simpson'"):
        IntegratedGradients(mlp, rule="simpson")
    with pytest.raises(ValueError, match=r"`target` must have the shape \[2\].* Received: \[3\]"):
        IntegratedGradients(mlp)(np.zeros([2, 4]), target=[0, 1, 2])
    with pytest.raises(ValueError, match="`layer` must name exactly one layer"):
        IntegratedGradients(mlp, tap="nowhere")


def test_each_row_may_ask_for_its_own_number_of_steps(mlp, rng):
    x = rng.normal(size=(4, 4)).astype("float32")
    explainer = IntegratedGradients(mlp, steps=9, request=["steps"], rows=5)
    result = explainer(x, target=1, steps=[1, 9, 4, 2])
    for row, steps in enumerate([1, 9, 4, 2]):
        alone = IntegratedGradients(mlp, steps=steps)(x[row : row + 1], target=1)
        for name, value in alone.items():
            np.testing.assert_allclose(result[name][row], value[0], atol=1e-6)
    with pytest.raises(ValueError, match="`steps` must be from 1 to 9"):
        explainer(x, steps=10)
    with pytest.raises(ValueError, match="A request must bring target, steps. Received: target"):
        explainer(x)


def test_baseline_of_the_request(mlp, rng):
    x, baseline = rng.normal(size=(2, 3, 4)).astype("float32")
    result = IntegratedGradients(mlp, request=["baseline"])(x, target=0, baseline=baseline)
    for row in range(3):
        fixed = IntegratedGradients(mlp, baseline=baseline[row])(x[row : row + 1], target=0)
        np.testing.assert_allclose(result["attributions"][row], fixed["attributions"][0], atol=1e-6)
    with pytest.raises(ValueError, match="`request` may name"):
        IntegratedGradients(mlp, request=["rule"])


def test_arrays_as_baseline_survive_the_configuration(mlp, rng):
    x, baseline = rng.normal(size=(2, 4)).astype("float32"), np.array([0.1, 0.2, 0.3, 0.4])
    explainer = IntegratedGradients(mlp, baseline=baseline, steps=5)
    config = json.loads(json.dumps(explainer.get_config()))
    np.testing.assert_array_equal(
        IntegratedGradients(mlp, **config)(x)["attributions"], explainer(x)["attributions"]
    )
    with pytest.raises(ValueError, match=r"`baseline` must broadcast to the shape \(4,\)"):
        IntegratedGradients(mlp, baseline=[1.0, 2.0])(x)


def test_without_a_loop_it_is_the_same(mlp, rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(
        IntegratedGradients(mlp, rows=None)(x)["attributions"],
        IntegratedGradients(mlp, rows=7)(x)["attributions"],
        atol=1e-6,
    )


class CountRows(keras.layers.Layer):
    """Remembers the largest batch that it has seen."""

    def build(self, input_shape):
        self.most = self.add_weight(shape=(), dtype="int32", trainable=False)

    def call(self, x):
        self.most.assign(tf.maximum(self.most, tf.shape(x)[0]))
        return tf.reduce_sum(x, [1, 2])


@pytest.mark.parametrize(("size", "rows", "most"), [(16, "auto", 80), (512, "auto", 4), (16, 7, 7)])
def test_rows_are_bounded_without_a_setting(size, rows, most):
    counted = CountRows()
    model = keras.Sequential([keras.Input([size, size, 1]), counted])
    IntegratedGradients(model, steps=160, rows=rows)(np.zeros([1, size, size, 1]))
    assert most - 1 <= counted.most <= most
