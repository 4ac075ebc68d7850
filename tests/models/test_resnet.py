import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.resnet import ResNet18, ResNet34

pytestmark = pytest.mark.paper("Deep Residual Learning for Image Recognition")


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(("build", "published"), [(ResNet18, 11_689_512), (ResNet34, 21_797_672)])
def test_parameters_as_published(build, published):
    model = build()
    assert count(model.trainable_variables) == published
    assert model.output_shape == (None, 1000)
    # Layers with weights on the longest path: all convolutions but the 3 projections, and the top.
    weighted = [x for x in model.layers if isinstance(x, keras.layers.Conv2D | keras.layers.Dense)]
    assert f"resnet{len(weighted) - 3}" == model.name


def reference(model, images, blocks):
    """The network in plain operations, from the weights by name, padded as torch pads."""
    weights = {v.path.removeprefix(f"{model.name}/"): tf.constant(v) for v in model.variables}

    def convolve(x, name, stride):
        kernel = weights[f"{name}_conv/kernel"]
        pad = [kernel.shape[0] // 2] * 2
        return tf.nn.conv2d(x, kernel, stride, [[0, 0], pad, pad, [0, 0]])

    def norm(x, name):
        gamma, beta, mean, variance = (
            weights[f"{name}_bn/{each}"]
            for each in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / tf.sqrt(variance + 1.001e-5) * gamma + beta

    x = tf.nn.relu(norm(convolve(images, "conv1", 2), "conv1"))
    x = tf.nn.max_pool2d(x, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    for stage, number in enumerate(blocks, 2):
        for block in range(1, number + 1):
            name, stride = f"conv{stage}_block{block}", 2 if stage > 2 and block == 1 else 1
            y = tf.nn.relu(norm(convolve(x, f"{name}_1", stride), f"{name}_1"))
            y = norm(convolve(y, f"{name}_2", 1), f"{name}_2")
            if stride == 2:
                x = norm(convolve(x, f"{name}_0", 2), f"{name}_0")
            x = tf.nn.relu(x + y)
    x = tf.reduce_mean(x, [1, 2])
    return x @ weights["predictions/kernel"] + weights["predictions/bias"]


def test_is_the_network_of_the_paper(rng):
    model = ResNet18(input_shape=(40, 32, 3), classes=5, classifier_activation=None)
    for variable in model.variables:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    images = rng.normal(size=(2, 40, 32, 3)).astype("float32")
    expected = reference(model, images, (2, 2, 2, 2))
    np.testing.assert_allclose(model(images), expected, atol=1e-5 * np.abs(expected).max())


def test_without_top_and_with_several_labels():
    body = ResNet18(include_top=False, pooling="avg", input_shape=(None, None, 1))
    assert body.output_shape == (None, 512)
    assert ResNet18(include_top=False, input_shape=(64, 96, 1)).output_shape == (None, 2, 3, 512)
    several = ResNet18(input_shape=(32, 32, 3), classes=4, classifier_activation="sigmoid")
    assert np.all(np.abs(several(np.zeros([1, 32, 32, 3])) - 0.5) <= 0.5)
    assert several.get_layer("predictions").activation is keras.activations.sigmoid


def test_refuses_impossible_arguments():
    with pytest.raises(ValueError, match="`input_shape` must be .height, width"):
        ResNet18(input_shape=(64, 64))
    with pytest.raises(ValueError, match="exists for .* Received it for: resnet34"):
        ResNet34(weights="imagenet")
