import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients
from kzoo.explain.expected_gradients import BatchExpectedGradients, ExpectedGradients

pytestmark = pytest.mark.paper(
    "Improving performance of deep learning models with axiomatic attribution priors and "
    "expected gradients"
)


def product_model():
    x = keras.Input([2])
    return keras.Model(x, keras.layers.Lambda(lambda x: x[:, :1] * x[:, 1:])(x))


@pytest.fixture
def mlp():
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input([4]), *layers])


def product_by_hand(x, reference):
    """EG_1 of x1 x2: the integral of (x1 - r1)(r2 + a (x2 - r2)) is (x1 - r1)(x2 + r2) / 2."""
    (x1, x2), (r1, r2) = x, reference.T
    return np.mean((x1 - r1) * (x2 + r2) / 2), np.mean((x2 - r2) * (x1 + r1) / 2)


def test_product_by_hand_on_a_grid(rng):
    # References (0, 0) and (1, 3) at x = (3, 4): (6 + 7) / 2 and (6 + 2) / 2.
    background = np.array([[0.0, 0.0], [1.0, 3.0]])
    explainer = ExpectedGradients(product_model(), background, samples=2, sampling="grid")
    result = explainer(np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(result["attributions"], [[6.5, 4.0]], rtol=1e-6)
    np.testing.assert_allclose(result["convergence_delta"], [0.0], atol=1e-6)


def test_random_draws_are_unbiased(float64, rng):
    background, x = rng.normal(size=(7, 2)), np.array([1.5, -0.5])
    samples = 100_000
    explainer = ExpectedGradients(product_model(), background, samples=samples, rows=samples)
    result = explainer(x[np.newaxis])
    drawn = background[rng.integers(7, size=samples)]
    alpha = rng.uniform(size=(samples, 1))
    point = drawn + alpha * (x - drawn)
    error = np.std((x - drawn) * point[:, ::-1], axis=0) / np.sqrt(samples)
    deviation = result["attributions"][0] - product_by_hand(x, background)
    assert np.all(np.abs(deviation) < 4 * error)
    assert np.abs(result["convergence_delta"][0]) < 6 * error.sum()


def test_one_reference_is_integrated_gradients(mlp, rng):
    x, reference = rng.normal(size=(3, 4)), rng.normal(size=4)
    ours = ExpectedGradients(mlp, reference[np.newaxis], samples=30, sampling="grid")(x, target=1)
    theirs = IntegratedGradients(mlp, steps=30, baseline=reference)(x, target=1)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-6)


def test_linear_models_get_the_weight_times_the_distance_from_the_mean(rng):
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
    background, x = rng.normal(size=(5, 4)), rng.normal(size=(2, 4))
    result = ExpectedGradients(model, background, samples=5, sampling="grid")(x, target=[0, 2])
    weights = model.get_weights()[0].T[[0, 2]]
    np.testing.assert_allclose(
        result["attributions"], weights * (x - background.mean(0)), atol=1e-6
    )


def test_delta_is_against_the_mean_score_of_the_background(mlp, rng):
    background, x = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    explainer = ExpectedGradients(mlp, background, samples=50, seed=3)
    result = explainer(x, target=[0, 1, 2])
    hidden, output = mlp.layers
    logits = hidden(background) @ output.kernel + output.bias
    gap = result["score"] - np.mean(logits, 0)
    np.testing.assert_allclose(
        result["convergence_delta"], np.sum(result["attributions"], 1) - gap, atol=1e-5
    )
    assert np.abs(result["convergence_delta"]).max() > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 10_000])
def test_rows_bound_the_memory_and_leave_the_numbers(mlp, rng, rows, noise):
    background, x = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    expected = ExpectedGradients(mlp, background, samples=20, noise=noise)(x)
    result = ExpectedGradients(mlp, background, samples=20, noise=noise, rows=rows)(x)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, atol=1e-5)


def test_noise_is_of_the_given_width_and_averages_out(float64):
    # Of a linear score a draw gives w (x + noise - x'): the mean of 100 has a tenth of the noise.
    model = keras.Sequential([keras.Input([2000]), keras.layers.Dense(1, use_bias=False)])
    weights = model.get_weights()[0][:, 0]
    explainer = ExpectedGradients(model, np.full([1, 2000], 0.5), samples=100, noise=0.3)
    shift = explainer(np.ones([1, 2000]))["attributions"][0] / weights - 0.5
    assert abs(np.mean(shift)) < 4 * 0.03 / np.sqrt(2000)
    np.testing.assert_allclose(np.std(shift), 0.03, rtol=0.1)


def test_several_inputs_share_the_reference(rng):
    a, b = keras.Input([1], name="a"), keras.Input([1], name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Multiply()([a, b]))
    background = rng.normal(size=(4, 2))
    structured = {"a": background[:, :1], "b": background[:, 1:]}
    x = rng.normal(size=2)
    explainer = ExpectedGradients(model, structured, samples=8, sampling="grid")
    result = explainer({"a": x[None, :1], "b": x[None, 1:]})["attributions"]
    expected = product_by_hand(x, background)
    np.testing.assert_allclose([result["a"][0, 0], result["b"][0, 0]], expected, rtol=1e-5)
    again = ExpectedGradients(model, **explainer.get_config()).background
    np.testing.assert_array_equal(again["b"], structured["b"])


def test_references_of_tokens_are_tokens(rng):
    tokens = keras.Input([5], dtype="int32")
    embedded = keras.layers.Embedding(7, 3, name="embedding")(tokens)
    model = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Flatten()(embedded)))
    background, x = rng.integers(0, 7, (6, 5)), rng.integers(0, 7, (2, 5))
    explainer = ExpectedGradients(model, background, samples=6, sampling="grid", tap="embedding")
    result = explainer(x, target=1)
    table, kernel = model.get_weights()[0], model.get_weights()[1][:, 1].reshape(5, 3)
    expected = (table[x] - table[background].mean(0)) * kernel
    np.testing.assert_allclose(result["attributions"], expected, atol=1e-6)


def test_configuration_makes_the_same(mlp, rng):
    background, x = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    explainer = ExpectedGradients(mlp, background, samples=10, noise=0.1, seed=4, rows=9)
    again = ExpectedGradients(mlp, **explainer.get_config())
    np.testing.assert_array_equal(again(x)["attributions"], explainer(x)["attributions"])


def test_batch_references_are_the_rows_before(float64, rng):
    # For a linear score the place on the way does not matter.
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1, use_bias=False)])
    x, kernel = rng.normal(size=(4, 4)), model.get_weights()[0][:, 0]
    for samples, shifts in ((1, [1]), (3, [1, 2, 3]), (6, [1, 2, 3, 1, 2, 3])):
        result = BatchExpectedGradients(model, samples=samples)(x)["attributions"]
        expected = np.mean([(x - np.roll(x, shift, axis=0)) * kernel for shift in shifts], axis=0)
        np.testing.assert_allclose(result, expected, atol=1e-12)
    np.testing.assert_array_equal(BatchExpectedGradients(model)(x[:1])["attributions"], 0)


def test_batch_places_differ_by_row_and_step_and_repeat_by_seed(rng):
    model = product_model()
    x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    explainer = BatchExpectedGradients(model, seed=1)
    first, second = (explainer(x)["attributions"].numpy() for _ in range(2))
    # Row 0, from (0, 1): (x1 - r1) (r2 + a (x2 - r2)) = 1 - a, and -a for the other.
    np.testing.assert_allclose(first[0] - [1, 0], first[0, 1], rtol=1e-5)
    assert len(np.unique(np.concatenate([first[:, 0], second[:, 0]]).round(6))) == 8
    np.testing.assert_array_equal(BatchExpectedGradients(model, seed=1)(x)["attributions"], first)
    places = [BatchExpectedGradients(model, seed=s)(x)["attributions"][0, 1] for s in range(3)]
    assert all(-1 < place < 0 for place in places)


def test_errors_name_the_argument(mlp):
    background = np.zeros([2, 4])
    with pytest.raises(ValueError, match=r"`background` must have the shape \[references, \*\[4\]"):
        ExpectedGradients(mlp, np.zeros([2, 5]))
    with pytest.raises(ValueError, match="at least 1, in its first axis"):
        ExpectedGradients(mlp, np.zeros([0, 4]))
    with pytest.raises(ValueError, match="`background` must be finite"):
        ExpectedGradients(mlp, background * np.nan)
    with pytest.raises(ValueError, match="multiple of the number of references, 2, .* Received: 3"):
        ExpectedGradients(mlp, background, samples=3, sampling="grid")
    with pytest.raises(ValueError, match="`sampling` must be one of random, grid"):
        ExpectedGradients(mlp, background, sampling="sobol")
    with pytest.raises(ValueError, match="`noise` must be a number of at least 0. Received: -1"):
        ExpectedGradients(mlp, background, noise=-1)
    with pytest.raises(ValueError, match="`samples` must be a positive integer. Received: 0"):
        BatchExpectedGradients(mlp, samples=0)


def test_runs_under_xla(mlp, rng):
    background, x = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)).astype("float32")
    explainer = ExpectedGradients(mlp, background, samples=20, noise=0.1, rows=10)
    compiled = tf.function(explainer.explain, jit_compile=True)
    result = compiled(tf.constant(x), tf.constant([0, 1, 2]))
    for name, value in explainer(x, target=[0, 1, 2]).items():
        np.testing.assert_allclose(result[name], value, atol=1e-5)
