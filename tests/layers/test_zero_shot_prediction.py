"""Zero-shot prediction against scikit-learn's ridge regression, by hand, and from `compile`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import Ridge

from kzoo.layers.generalized_sum_pooling import GeneralizedSumPooling
from kzoo.layers.zero_shot_prediction import ZeroShotPrediction

pytestmark = pytest.mark.paper("Generalized Sum Pooling for Metric Learning")

# Present are 0, 2, 3, 6 and 7: 0, 3 and 7 are the first half, 2 and 6 the second.
LABELS = np.array([3, 0, 2, 7, 2, 6, 0, 3, 6])
FIRST = np.isin(LABELS, [0, 3, 7])


@pytest.fixture
def histograms(rng):
    return rng.dirichlet(np.ones(4), size=len(LABELS))


def built(histograms, classes=8, units=3, **kwargs):
    layer = ZeroShotPrediction(classes, units, **kwargs)
    layer.build(histograms.shape, LABELS.shape)
    return layer


@pytest.mark.usefixtures("float64")
def test_equals_ridge_regressions_between_the_halves(histograms):
    layer = built(histograms, ridge=0.02, scale=3.0)
    embeddings = np.asarray(layer.embeddings)
    expected = np.empty((len(LABELS), 8))
    for fitted, predicted in ((FIRST, ~FIRST), (~FIRST, FIRST)):
        ridge = Ridge(0.02, fit_intercept=False)
        ridge.fit(histograms[fitted], embeddings[LABELS[fitted]])
        expected[predicted] = 3.0 * ridge.predict(histograms[predicted]) @ embeddings.T
    np.testing.assert_allclose(layer(histograms, LABELS), expected, atol=1e-10)
    np.testing.assert_allclose(layer(histograms, LABELS[:, None]), expected, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_equals_the_form_over_examples_of_the_authors(histograms):
    """A = Z' (Z Z' + ridge I)^-1 V, with a matrix of examples in place of one of prototypes."""
    layer = built(histograms)
    embeddings = np.asarray(layer.embeddings)
    z, v = histograms[FIRST], embeddings[LABELS[FIRST]]
    fit = z.T @ np.linalg.inv(z @ z.T + 0.05 * np.eye(len(z))) @ v
    expected = 9.5 * histograms[~FIRST] @ fit @ embeddings.T
    np.testing.assert_allclose(layer(histograms, LABELS)[~FIRST], expected, atol=1e-10)


def test_by_hand():
    """One prototype, one unit: A = v / (1 + ridge) from a single example with z = 1."""
    layer = ZeroShotPrediction(2, 1, ridge=1.0, scale=2.0)
    layer.build((2, 1), (2,))
    layer.embeddings.assign([[2.0], [3.0]])
    # 0 is predicted by 3 / 2, 1 by 2 / 2; times the scale and the embeddings.
    logits = layer(np.ones((2, 1), "float32"), np.array([0, 1]))
    np.testing.assert_allclose(logits, [[6.0, 9.0], [4.0, 6.0]], rtol=1e-6)


def test_order_of_examples_does_not_matter(histograms, rng):
    layer = built(histograms)
    order = rng.permutation(len(LABELS))
    np.testing.assert_allclose(
        layer(histograms[order], LABELS[order]),
        tf.gather(layer(histograms, LABELS), order),
        atol=1e-5,
    )


def test_examples_without_a_class_take_no_part(histograms, rng):
    layer = built(histograms)
    more = np.concatenate([histograms, rng.dirichlet(np.ones(4), size=2)])
    logits = layer(more, np.append(LABELS, [-1, 8]))
    np.testing.assert_allclose(logits[:-2], layer(histograms, LABELS), atol=1e-6)
    np.testing.assert_array_equal(logits[-2:], np.zeros((2, 8)))


def test_a_single_class_has_nothing_to_learn_from(histograms):
    layer = built(histograms)
    x = tf.constant(histograms, "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = layer(x, np.full(len(LABELS), 5))
        loss = tf.reduce_sum(tf.exp(logits))
    np.testing.assert_array_equal(logits, np.zeros((len(LABELS), 8)))
    for gradient in tape.gradient(loss, [x, layer.embeddings.value]):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.usefixtures("float64")
def test_gradients_equal_finite_differences(histograms):
    layer = built(histograms)

    @tf.function
    def loss(histograms, embeddings):
        with keras.StatelessScope(state_mapping=[(layer.embeddings, embeddings)]):
            logits = layer(histograms, LABELS)
        return keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True)

    arguments = [tf.constant(histograms), tf.constant(layer.embeddings)]
    exact, numeric = tf.test.compute_gradient(loss, arguments, delta=1e-5)
    for one, other in zip(exact, numeric, strict=True):
        assert np.abs(one).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_graph_xla_and_16_bit(histograms):
    layer = built(histograms)
    x, labels = tf.constant(histograms, "float32"), tf.constant(LABELS)
    expected = layer(x, labels)
    specs = [tf.TensorSpec([None, 4]), tf.TensorSpec([None], labels.dtype)]
    np.testing.assert_allclose(tf.function(layer, specs)(x, labels), expected, atol=1e-5)
    compiled = tf.function(layer, jit_compile=True)(x, labels)
    np.testing.assert_allclose(compiled, expected, atol=1e-5)
    narrow = built(histograms, dtype="mixed_bfloat16")
    assert narrow(x, labels).dtype == "float32"


def model_of(features):
    """Images that are their features, pooled, and the zero-shot prediction beside it."""
    image, label = keras.Input(features.shape[1:]), keras.Input((), dtype="int32")
    pooled, histogram = GeneralizedSumPooling(4, 1.0, return_histogram=True)(image)
    logits = ZeroShotPrediction(6, 8, name="zero_shot")(histogram, label)
    return keras.Model(
        [image, label], {"class": keras.layers.Dense(6)(pooled), "zero_shot": logits}
    )


def test_trains_from_compile_and_keeps_through_a_file(rng, tmp_path):
    """Classes are pairs of 4 directions: what a prototype stands for is the same in each."""
    directions = 2.0 * np.eye(4)
    pairs = np.array([(a, b) for a in range(4) for b in range(a)])
    y = rng.integers(6, size=240).astype("int32")
    parts = pairs[y][np.arange(240)[:, None], rng.integers(2, size=(240, 8))]
    x = (directions[parts] + 0.1 * rng.normal(size=(240, 8, 4))).astype("float32")
    model = model_of(x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"class": loss, "zero_shot": loss}
    model.compile(keras.optimizers.Adam(0.05), losses, {"class": 0.9, "zero_shot": 0.1})
    history = model.fit([x, y], {"class": y, "zero_shot": y}, 60, epochs=12, verbose=0).history
    # Guessing among the six classes has log 6 = 1.79.
    assert history["zero_shot_loss"][-1] < 0.6
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(
        keras.tree.flatten(again([x, y])), keras.tree.flatten(model([x, y])), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", 1), ("units", 0), ("units", 2.0), ("ridge", 0.0), ("scale", float("inf"))],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        ZeroShotPrediction(**{"classes": 3, "units": 2, name: value})


def test_bad_inputs():
    layer = ZeroShotPrediction(3, 2)
    with pytest.raises(ValueError, match=r"`histograms` must be \[batch, m\]"):
        layer(np.zeros((2, 3, 4)), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"`labels` must be \[batch\]"):
        layer(np.zeros((2, 4)), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="`labels` must be integers"):
        layer(np.zeros((2, 4)), np.zeros(2))
