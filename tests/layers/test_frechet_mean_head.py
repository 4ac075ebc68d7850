"""The Frechet-mean head against argmax, arithmetic means and a NumPy loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from kzoo.layers.frechet_mean_head import FrechetMeanHead

pytestmark = pytest.mark.paper("Geometry-Aware Adaptation for Pretrained Models")


def line(labels):
    return np.abs(np.subtract.outer(np.arange(labels), np.arange(labels)))


@pytest.mark.usefixtures("float64")
def test_zero_one_distance_is_argmax(rng):
    probabilities = rng.dirichlet(np.ones(7), size=10_000)
    head = FrechetMeanHead(7, 1 - np.eye(7), output="label")
    np.testing.assert_array_equal(head(probabilities), probabilities.argmax(1))


@pytest.mark.usefixtures("float64")
def test_between_the_ends_of_a_line_it_rounds_the_mean(rng):
    right = rng.uniform(size=2000)
    head = FrechetMeanHead(9, line(9)[[0, 8]], output="label")
    predicted = head(np.stack([1 - right, right], 1)).numpy()
    np.testing.assert_array_equal(predicted, np.round(8 * right))
    assert set(predicted) == set(range(9))


def test_scores_are_the_weighted_squared_distances(rng):
    distances = rng.uniform(size=(3, 6))
    probabilities = rng.dirichlet(np.ones(3), size=4).astype("float32")
    scores = FrechetMeanHead(6, distances)(probabilities).numpy()
    for row, p in enumerate(probabilities):
        for y in range(6):
            expected = -sum(p[i] * distances[i, y] ** 2 for i in range(3))
            assert scores[row, y] == pytest.approx(expected, rel=1e-5)


def test_temperature_divides_the_logits(rng):
    logits = rng.normal(size=(4, 2)).astype("float32")
    distances = line(5)[[0, 4]]
    expected = -softmax(logits / 3, axis=1) @ distances**2
    from_logits = FrechetMeanHead(5, distances, temperature=3.0, from_logits=True)
    from_probabilities = FrechetMeanHead(5, distances, temperature=3.0)
    np.testing.assert_allclose(from_logits(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(from_probabilities(softmax(logits, 1)), expected, rtol=1e-5)


def test_a_temperature_of_certain_probabilities(rng):
    head = FrechetMeanHead(3, line(3)[[0, 2]], temperature=2.0)
    certain = tf.constant([[1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(certain)
        scores = head(certain)
    np.testing.assert_allclose(scores, [[0, -1, -4]], atol=1e-6)
    assert np.isfinite(tape.gradient(scores, certain)).all()


def test_files_hold_the_distances(tmp_path, rng):
    probabilities = rng.dirichlet(np.ones(2), size=5).astype("float32")
    head = FrechetMeanHead(4, line(4)[[0, 3]], output="label")
    model = keras.Sequential([keras.Input([2]), head])
    expected = np.round(3 * probabilities[:, 1])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(probabilities), expected)
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    served = saved.serve(probabilities)
    assert served.dtype == tf.int32
    np.testing.assert_array_equal(served, expected)
    assert not model.trainable_weights


def test_without_distances_nothing_is_predicted_in_silence():
    assert np.isnan(FrechetMeanHead(3)(np.ones((1, 2)))).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": 0}, "`labels` must"),
        ({"labels": 3, "distances": line(4)[:2]}, "`distances` must be"),
        ({"labels": 2, "distances": [[0, np.inf]]}, "`distances` must be finite"),
        ({"labels": 2, "distances": [[0, -1]]}, "`distances` must be finite"),
        ({"labels": 2, "temperature": 0}, "`temperature` must"),
        ({"labels": 2, "output": "argmax"}, "`output` must"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FrechetMeanHead(**kwargs)


def test_inputs_of_another_width():
    with pytest.raises(ValueError, match="one row per observed label, 3 .* Received: 2 rows"):
        FrechetMeanHead(4, line(4)[[0, 3]])(np.ones((1, 3)))
