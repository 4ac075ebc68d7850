"""Sweeps through a linear decoder and a classifier whose answers are known."""

import keras
import numpy as np
import pytest

from kzoo.explain.latent_sweep import latent_sweep, latent_sweep_sheet

pytestmark = pytest.mark.paper("Generative causal explanations of black-box classifiers")

KERNEL = np.array([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]])


@pytest.fixture(scope="module")
def decoder():
    """Three factors to images of 2 x 2: rows of KERNEL."""
    layers = [keras.layers.Dense(4, use_bias=False), keras.layers.Reshape([2, 2, 1])]
    model = keras.Sequential([keras.Input([3]), *layers])
    model.set_weights([KERNEL])
    return model


@pytest.fixture(scope="module")
def classifier():
    """p(1 | x) = sigmoid(2 x_00): only the first factor moves it."""
    layers = [keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input([2, 2, 1]), *layers])
    model.set_weights([np.array([[2.0], [0], [0], [0]]), np.zeros(1)])
    return model


LATENTS = np.array([[0.5, 1.0, -1.0], [5.0, 0.0, 0.0]])


def test_a_sweep_by_hand(classifier, decoder):
    sweep = latent_sweep(classifier, decoder, LATENTS, offsets=[-2, 0, 1])
    assert sweep["decoded"].shape == (2, 3, 3, 2, 2, 1)
    # Factor 0 of the first vector at 0.5 - 2: pixels (z0, z1, 2 z0, 3 z2).
    np.testing.assert_allclose(sweep["decoded"][0, 0, 0].ravel(), [-1.5, 1, -3, -3], rtol=1e-6)
    np.testing.assert_allclose(sweep["decoded"][0, 2, 2].ravel(), [0.5, 1, 1, 0], atol=1e-6)
    p = 1 / (1 + np.exp(-2 * np.array([-1.5, 0.5, 1.5])))
    np.testing.assert_allclose(sweep["probabilities"][0, 0], np.stack([1 - p, p], 1), rtol=1e-5)
    np.testing.assert_array_equal(sweep["classes"][0, 0], [0, 1, 1])


def test_only_the_factor_that_the_classifier_reads_flips_it(classifier, decoder):
    sweep = latent_sweep(classifier, decoder, LATENTS)
    # The second vector is too far for three units to change its class.
    np.testing.assert_array_equal(sweep["flips"], [[True, False, False], [False] * 3])
    np.testing.assert_array_equal(sweep["offsets"], range(-3, 4))


def test_factors_and_logits(classifier, decoder):
    whole = latent_sweep(classifier, decoder, LATENTS)
    some = latent_sweep(classifier, decoder, LATENTS, factors=[2, 0])
    np.testing.assert_array_equal(some["decoded"], whole["decoded"][:, [2, 0]])
    np.testing.assert_array_equal(some["factors"], [2, 0])
    logits = keras.models.clone_model(classifier)
    logits.set_weights(classifier.get_weights())
    logits.layers[-1].activation = keras.activations.linear
    again = latent_sweep(logits, decoder, LATENTS, factors=0, from_logits=True)
    np.testing.assert_allclose(again["probabilities"], whole["probabilities"][:, :1], atol=1e-6)


def test_the_sheet_says_what_the_classifier_says(classifier, decoder):
    sweep = latent_sweep(classifier, decoder, LATENTS, offsets=[-2, 0, 1])
    figure = latent_sweep_sheet(sweep, factor=0, titles=["near", "far"], class_names=["a", "b"])
    assert len(figure.axes) == 6
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["a: 0.95", "b: 0.73", "b: 0.95", "b: 1.00", "b: 1.00", "b: 1.00"]
    frames = [axis.spines["left"].get_edgecolor() for axis in figure.axes]
    assert frames[0] != frames[1] == frames[2] == frames[5]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["-2", "+0", "+1"]

    figure = latent_sweep_sheet(sweep, row=1)
    assert len(figure.axes) == 9
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["factor 0", "factor 1", "factor 2"]


def test_errors_name_the_argument(classifier, decoder):
    with pytest.raises(ValueError, match="`latents` must have the shape"):
        latent_sweep(classifier, decoder, LATENTS[0])
    with pytest.raises(ValueError, match="`offsets` must have the shape"):
        latent_sweep(classifier, decoder, LATENTS, offsets=1.0)
    with pytest.raises(ValueError, match="`factors` must be integers from 0 to 2. Received: "):
        latent_sweep(classifier, decoder, LATENTS, factors=[3])
    sweep = latent_sweep(classifier, decoder, LATENTS, factors=[0])
    with pytest.raises(ValueError, match="One of `factor` and `row` must be given"):
        latent_sweep_sheet(sweep)
    with pytest.raises(ValueError, match="`factor` must be one of those swept, .*. Received: 1"):
        latent_sweep_sheet(sweep, factor=1)
    with pytest.raises(ValueError, match="`row` must be from 0 to 1. Received: 2"):
        latent_sweep_sheet(sweep, row=2)
    with pytest.raises(ValueError, match="`titles` must have one entry for each of 2 rows"):
        latent_sweep_sheet(sweep, factor=0, titles=["one"])
    with pytest.raises(ValueError, match="`class_names` must name 2 classes. Received: 3"):
        latent_sweep_sheet(sweep, factor=0, class_names="abc")
