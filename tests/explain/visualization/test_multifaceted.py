import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain.visualization import (
    activation_maximization,
    class_logit,
    find_facets,
    multifaceted_visualization,
    neuron,
)

pytestmark = pytest.mark.paper(
    "Multifaceted Feature Visualization: Uncovering the Different Types of Features Learned By "
    "Each Neuron in Deep Neural Networks"
)
SIZE = 12


def templates():
    """A horizontal and a vertical bar, each of mean zero and norm one, orthogonal."""
    bar = np.zeros([SIZE, SIZE])
    bar[4:8] = 1
    both = np.stack([bar, bar.T]) - bar.mean()
    return both / np.linalg.norm(both, axis=(1, 2), keepdims=True)


@pytest.fixture(scope="module")
def two_faced():
    """A neuron max(<A, x>, <B, x>) of orthogonal templates."""
    keras.utils.set_random_seed(0)
    codes = keras.layers.Dense(2, use_bias=False, name="codes")
    image = keras.Input([SIZE, SIZE, 1])
    dots = codes(keras.layers.Flatten()(image))
    best = keras.layers.MaxPooling1D(2)(keras.layers.Reshape([2, 1])(dots))
    model = keras.Model(image, keras.layers.Flatten(name="best")(best))
    codes.set_weights([templates().reshape(2, -1).T])
    return model


@pytest.fixture(scope="module")
def images():
    """60 images, each of one template in noise, and which; then 20 of noise alone."""
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 2
    noise = rng.normal(scale=0.02, size=(80, SIZE, SIZE))
    noise[:60] += 2 * rng.uniform(0.8, 1.2, (60, 1, 1)) * templates()[kind]
    return (0.5 + noise)[..., np.newaxis].astype("float32"), kind


def correlations(images):
    flat = np.reshape(images, [len(images), -1])
    return np.array([[np.corrcoef(x, t.ravel())[0, 1] for t in templates()] for x in flat])


@pytest.fixture(scope="module")
def result(two_faced, images):
    goal = neuron(two_faced, "best", 0)
    return multifaceted_visualization(
        goal, images[0], "codes", facets=2, top=60, jitter=0, total_variation=0.05
    )


def test_the_templates_are_orthogonal():
    first, second = templates()
    assert abs(np.sum(first * second)) < 1e-12


def test_the_most_active_images_are_chosen_and_parted_by_kind(result, images):
    assert sorted(result["selected"]) == list(range(60)), "not the 20 without a template"
    labels = result["facets"].labels
    kind = images[1][result["selected"]]
    purity = sum(np.bincount(kind[labels == facet]).max() for facet in (0, 1)) / 60
    assert purity > 0.95
    assert result["facets"].members.shape == (2, 15)


def test_each_facet_shows_exactly_one_template(result):
    found = correlations(result["images"])
    assert sorted(found.argmax(1)) == [0, 1]
    assert found.max(1).min() > 0.8
    assert found.min(1).max() < 0.3


def test_a_single_start_from_the_mean_of_all_mixes(result, two_faced, images):
    """Of the same few steps: from the mean of a facet to one template, from that of all to both."""
    goal = neuron(two_faced, "best", 0)
    options = {"steps": 6, "noise": 0.0, "normalize": True, "optimizer": keras.optimizers.SGD(0.02)}
    mixed = activation_maximization(goal, images[0][:60].mean(0), **options)["images"]
    assert correlations(mixed).min() > 0.3
    parted = activation_maximization(goal, result["start"], **options)["images"]
    assert correlations(parted).max(1).min() > 0.95
    assert correlations(parted).min(1).max() < 0.05


def test_the_activation_rises_beyond_that_of_any_image(result, two_faced, images):
    activations = result["activations"].numpy()
    assert np.mean(np.diff(activations, axis=0) >= -1e-6) >= 0.9
    assert activations[-1].min() > np.max(two_faced(images[0]))


def test_the_starts_are_means_of_the_images_nearest_to_the_centroids(result, images):
    facets, chosen = result["facets"], images[0][result["selected"]]
    for facet in (0, 1):
        inside = np.flatnonzero(facets.labels == facet)
        centroid = facets.embedding[inside].mean(0)
        order = np.argsort(np.linalg.norm(facets.embedding[inside] - centroid, axis=1))
        assert set(facets.members[facet]) == set(inside[order[:15]])
        np.testing.assert_allclose(
            result["start"][facet], chosen[inside[order[:15]]].mean(0), rtol=1e-5
        )


def test_total_variation_is_lower_than_without_the_regulariser(result, two_faced):
    goal = neuron(two_faced, "best", 0)
    noisy = result["start"] + np.random.default_rng(1).normal(scale=0.05, size=(2, SIZE, SIZE, 1))
    options = {"steps": 20, "normalize": True, "optimizer": keras.optimizers.SGD(0.01)}
    plain = activation_maximization(goal, noisy, **options)["images"]
    smooth = activation_maximization(goal, noisy, total_variation=0.3, **options)["images"]
    of_smooth, of_plain = tf.image.total_variation(smooth), tf.image.total_variation(plain)
    assert np.all(of_smooth < 0.8 * of_plain)
    assert np.all(correlations(smooth).max(1) > 0.9), "the bars themselves stay"


def test_small_and_empty_facets(rng):
    """Three far groups of 20, 9 and 4: ordered by size, and short rows are filled up."""
    centers = np.repeat(np.eye(3) * 50, [4, 20, 9], axis=0)
    facets = find_facets(centers + rng.normal(size=(33, 3)), 3, neighbors=6)
    np.testing.assert_array_equal(np.bincount(facets.labels), [20, 9, 4])
    assert np.all(facets.labels[4:24] == 0)
    assert np.all(facets.labels[24:] == 1)
    assert sorted(facets.members[2]) == [-1, -1, 0, 1, 2, 3]
    means = facets.means(np.arange(33.0)[:, None])
    np.testing.assert_allclose(means[2], [1.5])


def test_bad_arguments_are_refused(two_faced, images, rng):
    goal = neuron(two_faced, "best", 0)
    with pytest.raises(ValueError, match="`objective` must have one target"):
        multifaceted_visualization(class_logit(two_faced, [0, 0]), images[0], "codes")
    with pytest.raises(ValueError, match="`top` must be from 1 to 80"):
        multifaceted_visualization(goal, images[0], "codes", top=81)
    with pytest.raises(ValueError, match="`facets` must be from 1"):
        multifaceted_visualization(goal, images[0][:5], "codes", facets=6)
    with pytest.raises(ValueError, match="`neighbors` must be"):
        find_facets(rng.normal(size=(9, 2)), 2, neighbors=0)
