import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.inspection import permutation_importance as sklearn_importance

from kzoo.explain.permutation_importance import permutation_importance

pytestmark = pytest.mark.paper(
    "Interpreting Black-box Machine Learning Models for High Dimensional Datasets"
)


@pytest.fixture
def table(rng):
    return rng.normal(size=(60, 5)).astype("float32")


@pytest.fixture
def classifier():
    x = inputs = keras.Input([5])
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(6, "tanh")(x))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))


class Estimator:
    """A Keras model as scikit-learn wants it."""

    def __init__(self, model):
        self.model = model

    def fit(self, x, y):
        raise NotImplementedError

    def score(self, x, y):
        return np.mean(np.argmax(self.model(x), -1) == y)


@pytest.mark.parametrize("seed", [0, 7])
def test_equals_scikit_learn_with_the_same_seed(classifier, table, rng, seed):
    y = rng.integers(3, size=60)
    expected = sklearn_importance(Estimator(classifier), table, y, n_repeats=4, random_state=seed)
    actual = permutation_importance(classifier, table, y, repeats=4, seed=seed)
    assert np.abs(expected.importances).max() > 0.05
    np.testing.assert_allclose(actual.importances, expected.importances, atol=1e-12)
    np.testing.assert_allclose(actual.mean, expected.importances_mean, atol=1e-12)
    np.testing.assert_allclose(actual.std, expected.importances_std, atol=1e-12)


def test_squared_error_of_a_linear_model(table):
    """For y = x w, shuffling column j gives the error w_j^2 mean (x_j - x_j')^2, on average
    2 w_j^2 var(x_j)."""
    weights = tf.constant([[2.0], [0.0], [1.0], [0.5], [-1.0]])
    y = table @ weights.numpy()
    found = permutation_importance(
        lambda x: x @ weights, table, y, "negative_squared_error", repeats=400
    )
    assert found.score == pytest.approx(0, abs=1e-9)
    expected = 2 * weights.numpy()[:, 0] ** 2 * table.var(axis=0)
    np.testing.assert_allclose(found.mean, expected, rtol=0.03, atol=1e-9)
    assert np.abs(found.importances[1]).max() < 1e-9


def test_rows_do_not_change_it(classifier, table, rng):
    y = rng.integers(3, size=60)
    whole = permutation_importance(classifier, table, y, rows=1000)
    for rows in (1, 7, 60):
        part = permutation_importance(classifier, table, y, rows=rows)
        np.testing.assert_array_equal(part.importances, whole.importances)


def test_one_column_of_probabilities_and_own_scores(table):
    def model(x):
        return tf.sigmoid(4 * x[:, 2:3])

    y = (table[:, 2] > 0).astype(int)
    found = permutation_importance(model, table, y)
    assert found.score == 1
    np.testing.assert_array_equal(found.mean > 0, [False, False, True, False, False])
    likelihood = permutation_importance(
        model, table, y,
        lambda y, outputs: -keras.losses.binary_crossentropy(y[:, tf.newaxis], outputs),
    )  # fmt: skip
    outputs = model(table).numpy()[:, 0]
    expected = np.mean(np.log(np.where(y, outputs, 1 - outputs)))
    assert likelihood.score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros([60])}, "`x` must be of shape"),
        ({"y": np.zeros([59])}, "`y` have n rows"),
        ({"score": "r2"}, "`score` must be one of accuracy"),
        ({"repeats": 0}, "`repeats` must be a positive integer"),
        ({"rows": 0.5}, "`rows` must be a positive integer"),
    ],
)
def test_refuses_bad_arguments(table, change, message):
    with pytest.raises(ValueError, match=message):
        permutation_importance(
            **{"model": lambda x: x, "x": table, "y": np.zeros(60, int), **change}
        )
