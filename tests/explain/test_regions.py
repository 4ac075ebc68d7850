"""Hiding regions: ablation, Shapley values by sampling and by regression, LIME, region maps."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import Ridge

from kzoo.explain import (
    LIME,
    FeatureAblation,
    IntegratedGradients,
    KernelSHAP,
    RegionMap,
    Saliency,
    SampledShapley,
)
from kzoo.explain.regions import Regions
from kzoo.ops.superpixels import slic

ABLATION = pytest.mark.paper("Visualizing and Understanding Convolutional Networks")
SAMPLED = pytest.mark.paper("Polynomial calculation of the Shapley value based on sampling")
SHAP = pytest.mark.paper("A Unified Approach to Interpreting Model Predictions")
LIME_PAPER = pytest.mark.paper(
    '"Why Should I Trust You?": Explaining the Predictions of Any Classifier'
)
XRAI = pytest.mark.paper("XRAI: Better Attributions Through Regions")


@pytest.fixture
def mlp():
    """Of six features, with interactions of all orders."""
    return keras.Sequential(
        [keras.Input([6]), keras.layers.Dense(9, "tanh"), keras.layers.Dense(2)]
    )


def exact_shapley(game, players):
    """From the definition: the mean over all coalitions without i of what i adds."""
    values = np.zeros(players)
    for i in range(players):
        others = [j for j in range(players) if j != i]
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1)
            for coalition in itertools.combinations(others, size):
                gain = game({*coalition, i}) - game(set(coalition))
                values[i] += weight / math.factorial(players) * gain
    return values


def game_of(model, row, baseline, target):
    """The score of `row` where the features of a coalition are kept."""

    def game(coalition):
        kept = [i in coalition for i in range(len(row))]
        return float(model(np.where(kept, row, baseline)[np.newaxis])[0, target])

    return game


@SHAP
def test_all_coalitions_give_the_shapley_values(mlp, rng):
    x, baseline = rng.normal(size=(2, 6)).astype("float32"), np.full(6, 0.2, "float32")
    result = KernelSHAP(mlp, baseline=baseline)(x, target=1)
    for row in range(2):
        expected = exact_shapley(game_of(mlp, x[row], baseline, 1), 6)
        np.testing.assert_allclose(result["attributions"][row], expected, atol=1e-5)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-5)


@SHAP
def test_a_product_by_hand():
    # F = x1 x2 + 3 x3 from 0 at (2, 5, 1): the product is shared equally.
    x = keras.Input([3])
    model = keras.Model(x, (x[:, 0] * x[:, 1] + 3 * x[:, 2])[:, None])
    for explainer in (KernelSHAP(model), SampledShapley(model, permutations=2)):
        result = explainer(np.array([[2.0, 5.0, 1.0]]))
        np.testing.assert_allclose(result["attributions"], [[5, 5, 3]], rtol=1e-5)
    result = FeatureAblation(model)(np.array([[2.0, 5.0, 1.0]]))
    np.testing.assert_allclose(result["attributions"], [[10, 10, 3]], rtol=1e-6)
    np.testing.assert_allclose(result["convergence_delta"], [23 - 13], rtol=1e-6)


@SHAP
def test_sampled_coalitions_come_near_and_add_up(rng):
    model = keras.Sequential(
        [keras.Input([14]), keras.layers.Dense(9, "tanh"), keras.layers.Dense(1)]
    )
    x = rng.normal(size=(1, 14)).astype("float32")
    assert 2**14 - 2 <= 20_000
    exact = KernelSHAP(model, samples=20_000, rows=20_000)(x)["attributions"]
    sampled = KernelSHAP(model, samples=4000, rows=4000)(x)
    few = KernelSHAP(model, samples=100, rows=4000)(x)
    error = np.abs(sampled["attributions"] - exact).max()
    assert error < 0.03 * np.abs(exact).max()
    assert error < np.abs(few["attributions"] - exact).max()
    np.testing.assert_allclose(sampled["convergence_delta"], 0, atol=1e-5)
    with pytest.raises(ValueError, match="`samples` must be at least 28"):
        KernelSHAP(model, samples=27)(x)


@SAMPLED
def test_all_orders_give_the_shapley_values(mlp, rng):
    """A design of every permutation once is exact: checked with the sampled one's own formula."""
    x = rng.normal(size=(1, 6)).astype("float32")
    expected = exact_shapley(game_of(mlp, x[0], 0.0, 0), 6)
    result = SampledShapley(mlp, permutations=2000, rows=20_000)(x, target=0)
    np.testing.assert_allclose(result["attributions"][0], expected, atol=0.02)
    np.testing.assert_allclose(result["convergence_delta"], 0, atol=1e-4)


@SAMPLED
def test_one_order_by_hand(mlp, rng):
    x = rng.normal(size=(1, 6)).astype("float32")
    explainer = SampledShapley(mlp, permutations=1, seed=3)
    order = np.random.default_rng(3).permutation(6)
    game, expected, before = game_of(mlp, x[0], 0.0, 0), np.zeros(6), set()
    for region in order:
        expected[region] = game({*before, region}) - game(before)
        before.add(region)
    np.testing.assert_allclose(explainer(x, 0)["attributions"][0], expected, atol=1e-5)


@LIME_PAPER
def test_lime_is_the_ridge_regression_of_its_neighbours(mlp, rng):
    x = rng.normal(size=(1, 6)).astype("float32")
    explainer = LIME(mlp, samples=200, alpha=0.5, baseline=0.1)
    kept = explainer.design(6).kept
    scores = tf.nn.softmax(mlp(np.where(kept, x, np.float32(0.1))))[:, 1]
    whole = np.ones(6)
    cosine = [z @ whole / (np.linalg.norm(z) * np.linalg.norm(whole) + 1e-12) for z in kept * 1.0]
    weights = np.exp(-((1 - np.array(cosine)) ** 2) / 0.25**2)
    ridge = Ridge(alpha=0.5).fit(kept, scores, sample_weight=weights)
    np.testing.assert_allclose(explainer(x, 1)["attributions"][0], ridge.coef_, atol=1e-5)


@ABLATION
def test_patches_of_images_are_hidden_whole(cnn, images):
    cnn.layers[-1].activation = None
    result = FeatureAblation(cnn, regions=4, rows=3)(images, target=0)
    hidden = images.copy()
    hidden[:, 2:4, 6:8] = 0
    fall = (cnn(images) - cnn(hidden))[:, 0]
    np.testing.assert_allclose(result["attributions"][:, 3, 6], fall, atol=1e-5)
    np.testing.assert_allclose(result["region_attributions"][:, 1 * 4 + 3], fall, atol=1e-5)


@ABLATION
def test_regions_of_ones_own_and_tokens(rng):
    tokens = keras.Input([5], dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2)(x))
    ids = rng.integers(1, 10, [3, 5])
    result = FeatureAblation(model, regions=[0, 0, 1, 1, 1], baseline=9)(ids, target=1)
    hidden = ids.copy()
    hidden[:, 2:] = 9
    fall = (model(ids) - model(hidden))[:, 1]
    np.testing.assert_allclose(result["attributions"][:, 4], fall, atol=1e-6)
    np.testing.assert_allclose(result["region_attributions"][:, 1], fall, atol=1e-6)


@XRAI
def test_region_map_is_the_mean_within_each_region(cnn, images):
    result = RegionMap(cnn, base=Saliency(cnn), regions=2)(images)
    base = Saliency(cnn)(images)["attributions"][..., 0].numpy()
    quarters = base.reshape(5, 2, 4, 2, 4).mean((2, 4))
    np.testing.assert_allclose(
        result["attributions"], np.kron(quarters, np.ones([4, 4])), rtol=1e-5
    )
    default = RegionMap(cnn)
    assert isinstance(default.base, IntegratedGradients)
    assert default.get_config()["regions"] == ["slic", 7]


@XRAI
def test_superpixels_follow_the_edges():
    image = np.zeros([1, 24, 24, 1], "float32")
    image[0, 5:, 9:] = 1
    labels = slic(tf.constant(image), 4).numpy()[0]
    assert labels.min() >= 0
    assert labels.max() < 16
    for label in np.unique(labels):
        assert np.ptp(image[0, ..., 0][labels == label]) == 0
    np.testing.assert_array_equal(slic(tf.zeros([2, 4, 6, 3]), 2)[1, 0], [0, 0, 0, 1, 1, 1])
    # Each image of a batch is divided by itself.
    pair = slic(tf.concat([tf.constant(image), 1 - tf.constant(image[:, ::-1])], 0), 4)
    np.testing.assert_array_equal(pair[0], labels)


@XRAI
def test_superpixels_in_the_graph_explain_each_image(cnn, images):
    result = FeatureAblation(cnn, regions=("slic", 3))(images)
    ids = slic(tf.constant(images), 3).numpy()
    values = result["region_attributions"].numpy()
    for row in range(5):
        np.testing.assert_allclose(result["attributions"][row], values[row][ids[row]])


@SHAP
def test_errors_name_the_argument(cnn, mlp):
    for bad in (0, "felzenszwalb", ("slic", 0), [1, 2], [0.5]):
        with pytest.raises(ValueError, match="`regions` must be None"):
            Regions(bad)
    with pytest.raises(ValueError, match=r"`regions` must broadcast to \(6,\)"):
        KernelSHAP(mlp, regions=[0, 1, 2])(np.zeros([1, 6]))
    with pytest.raises(ValueError, match="`regions` 3 is for images"):
        KernelSHAP(mlp, regions=3)(np.zeros([1, 6]))
    with pytest.raises(ValueError, match="9 x 9 regions of images of"):
        KernelSHAP(cnn, regions=9)(np.zeros([1, 8, 8, 1]))
    with pytest.raises(ValueError, match="`kernel_width` must be positive. Received: 0"):
        LIME(mlp, kernel_width=0)
    with pytest.raises(ValueError, match="`permutations` must be a positive integer"):
        SampledShapley(mlp, permutations=0)
