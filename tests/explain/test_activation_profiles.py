import keras
import numpy as np
import pytest

from kzoo.explain.activation_profiles import (
    LayerProfile,
    neuron_activation_profiles,
    plot_profile,
)

pytestmark = pytest.mark.paper(
    "Exploration of Interpretability Techniques for Deep COVID-19 Classification using Chest "
    "X-ray Images"
)


@pytest.fixture
def groups(rng):
    """Groups that overlap, of other sizes."""
    groups = rng.uniform(size=(11, 3)) < [0.7, 0.4, 0.2]
    groups[:3] |= np.eye(3, dtype=bool)
    return groups


@pytest.mark.parametrize("batch_size", [4, 64])
def test_means_of_groups_less_the_mean_of_the_means(cnn, rng, groups, batch_size):
    images = rng.uniform(size=(11, 8, 8, 1)).astype("float32")
    profiles = neuron_activation_profiles(
        cnn, images, groups, ["rectified", "first"], batch_size=batch_size
    )
    assert list(profiles) == ["rectified", "first"]
    for name, profile in profiles.items():
        maps = keras.Model(cnn.input, cnn.get_layer(name).output)(images).numpy()
        means = np.stack([maps[groups[:, g]].mean(0) for g in range(3)])
        np.testing.assert_allclose(profile.averages, means, atol=1e-6)
        np.testing.assert_allclose(profile.contrasts, means - means.mean(0), atol=1e-6)
        # A group's size plays no part: otherwise the contrasts would be those to this mean.
        assert np.abs(means.mean(0) - maps.mean(0)).max() > 1e-3
        strength = np.abs(profile.contrasts).mean((0, 1, 2))
        alive = [k for k in np.argsort(-strength) if np.ptp(maps[..., k], axis=(1, 2)).max() > 0]
        np.testing.assert_array_equal(profile.ranking, alive)
    assert "call" not in cnn.get_layer("first").__dict__


def test_contrasts_by_hand():
    # Groups a and b with the means 4 and 0, 1 and 3, at the two positions of one channel.
    profile = LayerProfile(np.array([[[4.0], [0]], [[1], [3]]]), np.array([False]))
    np.testing.assert_array_equal(profile.contrasts[..., 0], [[1.5, -1.5], [-1.5, 1.5]])


def test_dead_maps_are_constant_in_space(rng):
    # Channel 0 follows the image, 1 is constant, 2 is dead but for one image, 3 has other
    # constants for other images: dead, too, though it tells the groups apart.
    x = keras.Input([2, 2, 1])

    def maps(x):
        late = keras.ops.relu(x - 10)
        level = keras.ops.broadcast_to(keras.ops.mean(x, (1, 2), keepdims=True), keras.ops.shape(x))
        return keras.ops.concatenate([x, 0 * x + 5, late, 100 * level], -1)

    model = keras.Model(x, keras.layers.Lambda(maps, name="maps")(x))
    images = rng.uniform(size=(6, 2, 2, 1)).astype("float32")
    images[5, 0, 0] = 11
    groups = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    profile = neuron_activation_profiles(model, images, groups, ["maps"], batch_size=2)["maps"]
    np.testing.assert_array_equal(profile.dead, [False, True, False, True])
    np.testing.assert_array_equal(profile.ranking, [0, 2])


def test_picture_shows_the_ranking_on_one_scale(cnn, rng, groups):
    images = rng.uniform(size=(11, 8, 8, 1)).astype("float32")
    profile = neuron_activation_profiles(cnn, images, groups, ["first"])["first"]
    figure = plot_profile(profile, ["a", "b", "c"], channels=2)
    shown = [axis.images[0] for axis in figure.axes[:6]]
    expected = profile.contrasts[1, ..., profile.ranking[1]]
    np.testing.assert_array_equal(shown[3].get_array(), expected)
    assert len({image.get_clim() for image in shown}) == 1
    assert [axis.get_title() for axis in figure.axes[:2]] == [str(k) for k in profile.ranking[:2]]


def test_errors_name_the_argument(cnn, images):
    ones = np.ones([5, 1])
    with pytest.raises(ValueError, match=r"`groups` must be 0 and 1, \[5, groups\]"):
        neuron_activation_profiles(cnn, images, np.arange(5), ["first"])
    with pytest.raises(ValueError, match=r"`groups` must each have a member. Received: \[1\]"):
        neuron_activation_profiles(cnn, images, np.eye(2)[[0] * 5], ["first"])
    with pytest.raises(ValueError, match="Did you mean 'first'"):
        neuron_activation_profiles(cnn, images, ones, ["frist"])
    with pytest.raises(ValueError, match="with positions. Received: 'hidden'"):
        neuron_activation_profiles(cnn, images, ones, ["hidden"])
    flat = LayerProfile(np.zeros([2, 4, 3]), np.zeros(3, bool))
    with pytest.raises(ValueError, match="`profile` must be that of maps"):
        plot_profile(flat, ["a", "b"])
