"""Generalised sum pooling against linear programming, average pooling and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linprog
from scipy.special import logsumexp

from kzoo.layers.generalized_sum_pooling import GeneralizedSumPooling

pytestmark = pytest.mark.paper("Generalized Sum Pooling for Metric Learning")


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 4, 2, 5))


def pooling(features, prototypes=4, **kwargs):
    layer = GeneralizedSumPooling(prototypes, **kwargs)
    layer.build(features.shape)
    return layer


def costs(features, prototypes):
    """c_ij of the paper, [n, m], for the features of one example."""

    def short(u):
        return u / np.maximum(1, np.linalg.norm(u, axis=-1, keepdims=True))

    features = features.reshape(-1, features.shape[-1])
    return np.linalg.norm(short(features)[:, None] - short(prototypes), axis=-1)


def fixed_point_plan(cost, ratio, epsilon, iterations=20_000):
    """The authors' iteration: (rho [n], pi [n, m])."""
    kernel = np.exp(-epsilon * cost)
    mass, level = 1 / len(cost), ratio
    for _ in range(iterations):
        rho = mass / (1 + level * kernel.sum(1))
        level = ratio / np.sum(rho * kernel.sum(1))
    return rho, level * kernel * rho[:, None]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.usefixtures("float64")
def test_equals_the_authors_iteration(features, ratio):
    layer = pooling(features, transport_ratio=ratio, epsilon=5.0, return_histogram=True)
    pooled, histogram = layer(features)
    for i, example in enumerate(features):
        cost = costs(example, np.asarray(layer.prototypes))
        rho, plan = fixed_point_plan(cost, ratio, 5.0)
        weights = (1 / len(rho) - rho) / ratio
        np.testing.assert_allclose(pooled[i], weights @ example.reshape(-1, 5), atol=1e-9)
        np.testing.assert_allclose(histogram[i], plan.sum(0) / ratio, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.usefixtures("float64")
def test_sharp_transport_is_the_linear_program(features, ratio):
    layer = pooling(features, transport_ratio=ratio, epsilon=2000.0)
    plan = ratio * layer._plan(features.reshape(3, 8, 5)).numpy()
    for i, example in enumerate(features):
        cost = costs(example, np.asarray(layer.prototypes))
        n, m = cost.shape
        solved = linprog(
            cost.ravel(),
            A_ub=np.kron(np.eye(n), np.ones(m)),
            b_ub=np.full(n, 1 / n),
            A_eq=np.ones((1, n * m)),
            b_eq=[ratio],
        )
        assert np.sum(cost * plan[i]) == pytest.approx(solved.fun, rel=1e-3)


def test_whole_transport_is_average_pooling(features):
    layer = pooling(features, transport_ratio=1.0, return_histogram=True)
    pooled, histogram = layer(features.astype("float32"))
    expected = keras.layers.GlobalAveragePooling2D()(features.astype("float32"))
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-7)
    score = -5.0 * costs(features[0], np.asarray(layer.prototypes))
    shares = np.exp(score - logsumexp(score, axis=1, keepdims=True))
    np.testing.assert_allclose(histogram[0], shares.mean(0), atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_nearly_whole_transport_tends_to_average_pooling(features):
    layer = pooling(features, transport_ratio=1 - 1e-9)
    np.testing.assert_allclose(layer(features), features.mean((1, 2)), atol=1e-7)


@pytest.mark.parametrize("epsilon", [0.1, 20.0, 1e3])
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_weights_are_a_bounded_distribution(features, ratio, epsilon):
    layer = pooling(features, transport_ratio=ratio, epsilon=epsilon)
    weights = layer.weights_of(features).numpy()
    assert weights.shape == (3, 4, 2)
    assert weights.min() >= 0
    assert weights.max() <= 1 / (8 * ratio) * (1 + 1e-6)
    np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-4)


def test_features_far_from_the_prototypes_are_left_out():
    layer = pooling(np.zeros((1, 4, 2)), prototypes=1, transport_ratio=0.5, epsilon=20.0)
    layer.prototypes.assign([[1.0, 0.0]])
    near, far = [1.0, 0.0], [-1.0, 0.0]
    np.testing.assert_allclose(layer(np.array([[near, far, near, far]])), [near], atol=1e-6)


@pytest.mark.parametrize("epsilon", [1.0, 20.0])
@pytest.mark.usefixtures("float64")
def test_gradients_equal_finite_differences(features, epsilon):
    few = features[:1, :, :1]
    layer = pooling(few, 2, transport_ratio=0.4, epsilon=epsilon, return_histogram=True)

    @tf.function
    def outputs(features, prototypes):
        with keras.StatelessScope(state_mapping=[(layer.prototypes, prototypes)]):
            return tf.concat(layer(features), -1)

    arguments = [tf.constant(few), tf.constant(layer.prototypes)]
    exact, numeric = tf.test.compute_gradient(outputs, arguments, delta=1e-5)
    for one, other in zip(exact, numeric, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_gradient_is_finite_where_every_choice_is_made(features):
    layer = pooling(features, transport_ratio=0.5, epsilon=1e5)
    x = tf.constant(features, "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(layer(x) ** 2)
    gradients = tape.gradient(total, [x, layer.prototypes.value])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prototypes", 0), ("transport_ratio", 0.0), ("transport_ratio", 1.1), ("epsilon", 0.0)],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        GeneralizedSumPooling(**{name: value})
