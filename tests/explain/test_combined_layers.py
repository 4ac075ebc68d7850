"""Maps of several layers in one."""

import numpy as np
import pytest

from kzoo.explain import GradCAM
from kzoo.explain.combined_layers import CombinedLayers
from kzoo.explain.norm_grad import LinearApproximation, NormGrad

pytestmark = pytest.mark.paper("There and Back Again: Revisiting Backpropagation Saliency Methods")


def test_layers_are_combined_by_powers_of_maps_between_0_and_1(cnn, images):
    weights = {"first": 0.5, "second": 2.0}
    expected = np.ones([5, 8, 8])
    for layer, weight in weights.items():
        saliency = NormGrad(cnn, layer)(images, 1)["attributions"].numpy()
        low, high = (f(saliency, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        expected *= ((saliency - low) / (high - low)) ** weight
    explainer = CombinedLayers(cnn, list(weights), weights=weights.values())
    np.testing.assert_allclose(explainer(images, 1)["attributions"], expected, rtol=1e-4, atol=1e-6)


def test_one_layer_is_the_map_itself(cnn, images):
    explainer = CombinedLayers(cnn, ["second"], base=LinearApproximation)
    combined = explainer(images, 1)["attributions"].numpy()
    alone = LinearApproximation(cnn, "second")(images, 1)["attributions"].numpy()
    for row in range(5):
        assert combined[row].max() == 1
        assert combined[row].min() == 0
        np.testing.assert_allclose(np.corrcoef(combined[row].ravel(), alone[row].ravel()), 1)


def test_configurations_survive(cnn, images):
    patches = {"class_name": "kzoo>NormGrad", "config": {"kernel_size": 3}}
    explainer = CombinedLayers(cnn, ["first", "rectified"], base=patches, weights=[1, 2])
    config = explainer.get_config()
    assert config["base"]["config"]["kernel_size"] == 3
    again = CombinedLayers(cnn, **config)
    np.testing.assert_array_equal(again(images)["attributions"], explainer(images)["attributions"])


def test_errors(cnn):
    with pytest.raises(ValueError, match="`layers` must be a list of at least one"):
        CombinedLayers(cnn, "first")
    with pytest.raises(ValueError, match="`weights` must be 2 numbers of at least 0"):
        CombinedLayers(cnn, ["first", "second"], weights=[1.0])
    with pytest.raises(TypeError, match="`base` must be None, an explainer's class"):
        CombinedLayers(cnn, ["first"], base=GradCAM(cnn))
