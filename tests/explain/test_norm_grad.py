"""NormGrad and its framework against an identity layer that is really put in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import GradCAM
from kzoo.explain.norm_grad import LinearApproximation, NormGrad, extract_and_aggregate

pytestmark = pytest.mark.paper("There and Back Again: Revisiting Backpropagation Saliency Methods")
IDENTITIES = ("bias", "scaling", "conv")
AGGREGATIONS = ("sum", "norm", "positive_norm", "max")


@pytest.fixture
def tensors(rng):
    x, g = rng.normal(size=(2, 3, 4, 5, 6))
    return tf.constant(x), tf.constant(g)


def contributions(x, g, identity, kernel_size=1):
    """What each place adds to the gradient of the identity's weights, [..., entries], by loops."""
    if identity == "bias":
        return g
    if identity == "scaling":
        return g * x
    edge = kernel_size // 2
    padded = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    result = np.empty([*x.shape[:3], kernel_size**2 * x.shape[3] * g.shape[3]])
    for place in np.ndindex(*x.shape[:3]):
        image, row, column = place
        patch = padded[image, row : row + kernel_size, column : column + kernel_size]
        result[place] = np.outer(patch, g[place]).ravel()
    return result


def aggregated(entries, aggregation):
    return {
        "sum": lambda: entries.sum(-1),
        "norm": lambda: np.linalg.norm(entries, axis=-1),
        "positive_norm": lambda: np.linalg.norm(np.maximum(entries, 0), axis=-1),
        "max": lambda: entries.max(-1),
    }[aggregation]()


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_cell_of_the_framework(identity, aggregation, tensors):
    x, g = tensors
    expected = aggregated(contributions(x.numpy(), g.numpy(), identity), aggregation)
    result = extract_and_aggregate(x, g, identity, aggregation)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_patches_of_larger_convolutions(aggregation, tensors):
    x, g = tensors
    expected = aggregated(contributions(x.numpy(), g.numpy(), "conv", 3), aggregation)
    result = extract_and_aggregate(x, g, "conv", aggregation, kernel_size=3)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_patches_of_sequences(tensors):
    x, g = (each[:, :, 0] for each in tensors)
    padded = np.pad(x, [(0, 0), (1, 1), (0, 0)])
    patch = np.concatenate([padded[:, k : k + 4] for k in range(3)], axis=-1)
    expected = np.linalg.norm(patch, axis=-1) * np.linalg.norm(g, axis=-1)
    result = extract_and_aggregate(x, g, "conv", "norm", kernel_size=3)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_contributions_sum_to_the_gradient_of_an_identity_that_is_put_in(kernel_size, rng, float64):
    """The gradient of the weights by autodiff, from the activations and gradients of the model."""
    inputs = keras.Input([6, 6, 1])
    maps = keras.layers.Conv2D(3, 3, activation="relu")(inputs)
    identity = keras.layers.Conv2D(3, kernel_size, padding="same", use_bias=False, name="put_in")
    head = [keras.layers.Conv2D(2, 2, activation="tanh"), keras.layers.Flatten()]
    head = keras.Sequential([*head, keras.layers.Dense(1)])
    with_identity = keras.Model(inputs, head(identity(maps)))
    kernel = np.zeros(identity.kernel.shape)
    kernel[kernel_size // 2, kernel_size // 2] = np.eye(3)
    identity.set_weights([kernel])
    x = tf.constant(rng.normal(size=(1, 6, 6, 1)))
    with tf.GradientTape() as tape:
        score = with_identity(x)
    expected = tape.gradient(score, identity.kernel.value)

    features = keras.Model(inputs, maps)(x)
    with tf.GradientTape() as tape:
        tape.watch(features)
        score = head(features)
    g = tape.gradient(score, features)
    entries = contributions(features.numpy(), g.numpy(), "conv", kernel_size)
    summed = entries.sum(axis=(0, 1, 2)).reshape(expected.shape)
    np.testing.assert_allclose(summed, expected, atol=1e-12)

    explainer = NormGrad(
        with_identity, with_identity.layers[1], kernel_size=kernel_size, upsample=False
    )
    norms = np.linalg.norm(entries, axis=-1)
    np.testing.assert_allclose(explainer(x)["attributions"], norms, rtol=1e-9)


def test_grad_cam_is_an_aggregation(cnn, images):
    explainer = GradCAM(cnn, "first", relu=False, upsample=False)

    def combine(activations, gradients):
        pooled = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        return extract_and_aggregate(activations, pooled, "scaling", "sum")

    expected = explainer(images, 1)["attributions"]
    unified = GradCAM(cnn, "first", relu=False, upsample=False)
    unified.combine = combine
    np.testing.assert_allclose(unified(images, 1)["attributions"], expected, rtol=1e-5, atol=1e-7)


def test_linear_approximation_is_grad_cam_before_global_pooling(rng):
    model = keras.Sequential(
        [
            keras.Input([6, 6, 1]),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    x = rng.normal(size=(3, 6, 6, 1))
    linear = LinearApproximation(model, upsample=False)(x, 2)["attributions"]
    cam = GradCAM(model, relu=False, upsample=False)(x, 2)["attributions"]
    np.testing.assert_allclose(linear, cam, rtol=1e-4, atol=1e-6)


def test_linear_approximation_is_not_grad_cam_at_other_layers(cnn, images):
    linear = LinearApproximation(cnn, "first", upsample=False)(images, 0)["attributions"]
    cam = GradCAM(cnn, "first", relu=False, upsample=False)(images, 0)["attributions"]
    assert np.abs(linear - cam).max() > 1e-4


def test_selective_is_of_the_class_and_the_norm_is_not_signed(cnn, images):
    selective = {
        against: NormGrad(cnn, "first", selective=True, counterfactual=against)(images, 1)
        for against in (False, True)
    }
    difference = selective[False]["attributions"] - selective[True]["attributions"]
    assert np.abs(difference).max() > 1e-4
    one, other = (
        NormGrad(cnn, "first", counterfactual=against)(images, 1)["attributions"]
        for against in (False, True)
    )
    np.testing.assert_array_equal(one, other)


def test_configuration_survives(cnn):
    again = NormGrad(cnn, **NormGrad(cnn, "first", 3, upsample=False).get_config())
    assert (again.layer.name, again.kernel_size, again.upsample) == ("first", 3, False)


def test_errors(cnn):
    with pytest.raises(
        ValueError, match="`kernel_size` must be a positive odd number. Received: 2"
    ):
        NormGrad(cnn, kernel_size=2)
    with pytest.raises(ValueError, match="`kernel_size` must be 1 for the selective map"):
        NormGrad(cnn, kernel_size=3, selective=True)
    with pytest.raises(ValueError, match="`aggregation` must be one of sum, .* Received: 'mean'"):
        extract_and_aggregate(tf.ones([1, 2, 3]), tf.ones([1, 2, 3]), "bias", "mean")
    with pytest.raises(ValueError, match="`activations` must be of shape .*steps, channels"):
        extract_and_aggregate(tf.ones([1, 2]), tf.ones([1, 2]), "conv", "norm")
