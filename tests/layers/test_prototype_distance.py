import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from kzoo.layers.prototype_distance import PrototypeDistance

pytestmark = pytest.mark.paper(
    "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its "
    "Predictions"
)


def test_distances_are_squared_and_euclidean(rng):
    x = rng.normal(size=(6, 5)).astype("float32")
    layer = PrototypeDistance(4)
    result = layer(x)
    expected = cdist(x, layer.prototypes.numpy(), "sqeuclidean")
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    stacked = layer(np.stack([x, 2 * x]))
    assert stacked.shape == layer.compute_output_shape((2, 6, 5)) == (2, 6, 4)
    np.testing.assert_allclose(stacked[0], result, rtol=1e-5)


def test_rounding_makes_no_distance_negative(rng):
    # Far from the origin the three terms nearly cancel: unclipped, some are below zero.
    prototypes = (1e3 + rng.normal(size=(50, 8))).astype("float32")
    layer = PrototypeDistance(50)
    layer.build([None, 8])
    layer.prototypes.assign(prototypes)
    terms = (prototypes**2).sum(1, keepdims=True) - 2 * prototypes @ prototypes.T
    assert (terms + (prototypes**2).sum(1)).min() < 0
    assert np.min(layer(prototypes)) == 0


def test_gradient_leads_to_the_prototype(float64, rng):
    x = tf.constant(rng.normal(size=(3, 5)))
    layer = PrototypeDistance(1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(layer(x))
    gradient = tape.gradient(total, x)
    np.testing.assert_allclose(gradient, 2 * (x - layer.prototypes.numpy()), rtol=1e-10)


def test_half_precision_computes_in_float32(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert PrototypeDistance(2)(rng.normal(size=(3, 5))).dtype == tf.float32


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`units` must be an integer of at least 1. Received: 0"):
        PrototypeDistance(0)
