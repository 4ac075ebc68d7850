import networkx
import numpy as np
import pytest
import tensorflow as tf

from kzoo.regularizers.attribution_priors import (
    AttributionGini,
    AttributionGraphLaplacian,
    AttributionTotalVariation,
    global_batch_mean,
)

pytestmark = pytest.mark.paper(
    "Improving performance of deep learning models with axiomatic attribution priors and "
    "expected gradients"
)


def test_total_variation_by_definition(rng):
    x = rng.normal(size=(3, 4, 5, 2))
    total = 0.0
    for image in x:
        for i in range(4):
            for j in range(5):
                total += np.abs(image[i + 1, j] - image[i, j]).sum() if i < 3 else 0
                total += np.abs(image[i, j + 1] - image[i, j]).sum() if j < 4 else 0
    prior = AttributionTotalVariation()
    np.testing.assert_allclose(prior(x), total / 3, rtol=1e-12)
    np.testing.assert_allclose(
        prior(x), np.mean(tf.image.total_variation(tf.constant(x))), rtol=1e-12
    )
    np.testing.assert_allclose(prior(x[..., :1]), prior(x[..., 0]), rtol=1e-12)


def test_gini_by_definition(rng):
    x = rng.normal(size=(6, 3, 4))
    mean = np.abs(x).mean(0).ravel()
    pairs = np.abs(mean[:, None] - mean[None, :]).sum()
    np.testing.assert_allclose(AttributionGini()(x), -pairs / (12 * mean.sum()), rtol=1e-12)


@pytest.mark.parametrize(
    ("attributions", "expected"),
    [([1, 1, 1, 1], 0.0), ([0, 0, 0, 5], -1.5), ([1, 2, 3, 4], -0.5), ([0, 0, 0, 0], 0.0)],
)
def test_gini_by_hand(attributions, expected):
    # The Gini coefficients are 0, (n - 1) / n = 3/4, 1/4, and 0 where there is nothing to share.
    x = np.array([attributions, attributions], "float32") * [[1.0], [-3.0]]
    np.testing.assert_allclose(AttributionGini()(x), expected, atol=1e-6)


def test_gini_gradient_is_that_of_its_definition(rng):
    x = tf.constant(rng.normal(size=(6, 5)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours = AttributionGini()(x)
        mean = tf.reduce_mean(tf.abs(x), 0)
        theirs = -tf.reduce_sum(tf.abs(mean[:, None] - mean)) / (5 * tf.reduce_sum(mean))
    np.testing.assert_allclose(tape.gradient(ours, x), tape.gradient(theirs, x), atol=1e-12)


def test_graph_prior_is_the_quadratic_form_of_the_laplacian(rng):
    graph = networkx.gnm_random_graph(8, 14, seed=1)
    weights = rng.uniform(size=14)
    networkx.set_edge_attributes(graph, dict(zip(graph.edges, weights, strict=True)), "weight")
    x = rng.normal(size=(5, 8))
    mean = np.abs(x).mean(0)
    laplacian = networkx.laplacian_matrix(graph, nodelist=range(8)).toarray()
    prior = AttributionGraphLaplacian(list(graph.edges), weights)
    np.testing.assert_allclose(prior(x), mean @ laplacian @ mean, rtol=1e-12)


def test_weighted_mean_counts_the_chosen_rows(rng):
    x = rng.normal(size=(4, 3))
    np.testing.assert_allclose(global_batch_mean(x, [1.0, 0.0, 1.0, 0.0]), x[::2].mean(0))
    np.testing.assert_array_equal(global_batch_mean(x, np.zeros(4)), np.zeros(3))


def test_refuses_bad_graphs_and_shapes():
    with pytest.raises(ValueError, match=r"`edges` must be integers of the shape \[edges, 2\]"):
        AttributionGraphLaplacian([[0, 1, 2]])
    with pytest.raises(ValueError, match="`edges` must name features from 0"):
        AttributionGraphLaplacian([[-1, 1]])
    with pytest.raises(ValueError, match="`weights` must be 1 finite numbers of at least 0"):
        AttributionGraphLaplacian([[0, 1]], [-1.0])
    with pytest.raises(ValueError, match="name the feature 9. Received attributions of 4 features"):
        AttributionGraphLaplacian([[0, 9]])(np.zeros([2, 4]))
    with pytest.raises(ValueError, match=r"`attributions` must have the shape \[batch, height"):
        AttributionTotalVariation()(np.zeros([2, 4]))
