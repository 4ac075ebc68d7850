import keras
import numpy as np
import pytest

from kzoo.explain.grad_cam import GradCAM
from kzoo.explain.neuron_names import (
    NeuronImportance,
    TextualExplanation,
    explain_in_words,
    name_neurons,
)
from kzoo.serving.export import export

pytestmark = pytest.mark.paper(
    "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization"
)


@pytest.fixture
def dissected():
    """Neurons for vertical stripes, horizontal ones, brightness, nothing; and two classes."""
    kernel = np.zeros([2, 2, 1, 4], "float32")
    kernel[:, :, 0, 0] = [[1, -1], [1, -1]]
    kernel[:, :, 0, 1] = [[1, 1], [-1, -1]]
    kernel[:, :, 0, 2] = 1
    x = keras.Input([6, 6, 1])
    convolution = keras.layers.Conv2D(4, 2, activation="relu", use_bias=False, name="maps")
    pooled = keras.layers.GlobalAveragePooling2D()(convolution(x))
    dense = keras.layers.Dense(2, "softmax")
    model = keras.Model(x, dense(pooled))
    convolution.set_weights([kernel])
    dense.set_weights([np.array([[2, -1], [-3, 1], [0.5, 0], [9, 9]], "float32"), np.zeros(2)])
    return model


@pytest.fixture
def stripes():
    """Images of vertical and of horizontal stripes, a bright one, and their concepts."""
    vertical = np.tile([1.0, 0.0], (6, 3))
    images = np.stack([vertical, 0.5 * vertical, vertical.T, np.ones([6, 6])])[..., None]
    return images.astype("float32"), np.eye(3)[[0, 0, 1, 2]]


def test_neurons_are_named_by_what_they_detect(dissected, stripes):
    names = ["vertical", "horizontal", "bright"]
    for batch_size in (1, 64):
        named = name_neurons(dissected, *stripes, names, batch_size=batch_size)
        assert named == ["vertical", "horizontal", "bright", None]
    # The mean over a concept's images: 4 in the bright one, 2 and 1 in the vertical ones.
    images, concepts = stripes
    both = concepts.copy()
    both[3, 0] = 1
    assert name_neurons(dissected, images, both, names)[2] == "bright"


def test_importance_is_alpha_of_equation_1(dissected, stripes, cnn, images):
    # Behind global average pooling, alpha is the dense layer's weight over the 25 positions.
    result = NeuronImportance(dissected)(stripes[0], target=[0, 1, 0, 1])
    weights = dissected.layers[-1].get_weights()[0]
    np.testing.assert_allclose(result["attributions"], weights.T[[0, 1, 0, 1]] / 25, atol=1e-6)
    # In general, Grad-CAM is ReLU(sum_k alpha_k A^k).
    alpha = NeuronImportance(cnn, "rectified")(images, target=1)["attributions"]
    maps = keras.Model(cnn.input, cnn.get_layer("rectified").output)(images)
    cam = np.maximum(np.einsum("bk,bijk->bij", alpha, maps), 0)
    expected = GradCAM(cnn, "rectified", upsample=False)(images, target=1)["attributions"]
    np.testing.assert_allclose(cam, expected, atol=1e-6)
    assert cam.max() > 1e-3


def test_text_says_what_speaks_for_and_against(dissected, stripes):
    names = name_neurons(dissected, *stripes, ["vertical", "horizontal", "bright"])
    alpha = NeuronImportance(dissected)(stripes[0], target=0)["attributions"]
    (text, *_) = explain_in_words(alpha, names, top=2)
    assert [name for name, _ in text.positive] == ["vertical", "bright"]
    assert [name for name, _ in text.negative] == ["horizontal"]
    assert str(text) == "for: vertical (+0.08), bright (+0.02); against: horizontal (-0.12)"


def test_a_name_comes_once_with_its_strongest_neuron():
    alpha = [[0.1, 0.4, 0.3, -0.2, 0.0, -0.5]]
    names = ["a", "a", "b", "a", "c", None]
    assert explain_in_words(alpha, names) == [
        TextualExplanation((("a", 0.4), ("b", 0.3)), (("a", -0.2),))
    ]
    assert explain_in_words(alpha, names, top=1)[0].positive == (("a", 0.4),)


def test_importance_is_served(cnn, tmp_path):
    export(cnn, tmp_path / "cnn", [NeuronImportance(cnn, "second")])


def test_errors_name_the_argument(dissected, stripes):
    images, concepts = stripes
    with pytest.raises(ValueError, match=r"`concepts` must be of shape \[4, 2\]"):
        name_neurons(dissected, images, concepts, ["a", "b"])
    with pytest.raises(ValueError, match=r"shown by \[4, 0\] images"):
        name_neurons(dissected, images, np.eye(2)[[0] * 4], ["a", "b"])
    with pytest.raises(ValueError, match=r"`importance` must be \[batch, 2\]"):
        explain_in_words([[1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="`top` must be a positive integer. Received: 0"):
        explain_in_words([[1.0]], ["a"], top=0)
