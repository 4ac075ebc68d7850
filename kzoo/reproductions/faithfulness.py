"""Reproductions of measures of explanations: which methods do better than a random map, and why."""

import keras
import numpy as np
from matplotlib.figure import Figure

from kzoo import plots
from kzoo.data.loading import load
from kzoo.explain.faithfulness.compare import compare, default_measures
from kzoo.explain.faithfulness.infidelity import PAPER as INFIDELITY_PAPER
from kzoo.explain.faithfulness.infidelity import gaussian_noise, infidelity, max_sensitivity
from kzoo.explain.faithfulness.queries import explain_in_batches
from kzoo.explain.faithfulness.randomization import PAPER as SANITY_PAPER
from kzoo.explain.faithfulness.randomization import model_randomization
from kzoo.explain.full_grad import FullGrad
from kzoo.explain.grad_cam import GradCAM, GuidedGradCAM
from kzoo.explain.guided import GuidedBackprop
from kzoo.explain.input_x_gradient import InputXGradient
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.kernel_shap import KernelSHAP
from kzoo.explain.lime import LIME
from kzoo.explain.occlusion import Occlusion
from kzoo.explain.rise import PAPER as RISE_PAPER
from kzoo.explain.rise import RISE
from kzoo.explain.saliency import Saliency
from kzoo.explain.smoothgrad import SmoothGrad
from kzoo.reproductions.registry import reproduction

_NOISE_LEVELS = (0.05, 0.1, 0.2, 0.4)


@reproduction(
    RISE_PAPER,
    claim="By deletion and insertion RISE explains better than Grad-CAM, LIME and a sliding "
    "window.",
)
def faithfulness_of_methods(seed):
    """Scikit-learn's digits (1437 for training, 64 of 360 of the test are explained), 8 x 8 pixels,
    CNN of four convolutions, Adam, 20 epochs. Maps of the top class; RISE with 2000 masks of 4 x 4
    cells, occlusion by windows of 3 x 3. Deletion to black; insertion into a blurred image. Other
    measures of `compare` for the same maps. The paper has ImageNet, ResNet-50 and VGG-16."""
    model, x, accuracy = _trained_model(seed)
    x = x[:64]
    explainers = {
        "gradient": Saliency(model),
        "input x gradient": InputXGradient(model),
        "SmoothGrad": SmoothGrad(model),
        "integrated gradients": IntegratedGradients(model),
        "guided": GuidedBackprop(model),
        "Grad-CAM": GradCAM(model),
        "FullGrad": FullGrad(model),
        "occlusion": Occlusion(model, window=3, strides=1),
        "LIME": LIME(model),
        "KernelSHAP": KernelSHAP(model),
        "RISE": RISE(model, samples=2000, grid=4),
    }
    comparison = compare(explainers, x, measures=default_measures(x)[:5], seed=seed)
    numbers = {"test accuracy": accuracy}
    for measure in comparison.measures:
        for name in comparison.maps:
            numbers[f"{measure.name}, {name}"] = comparison.mean(measure.name, name)
    return numbers, comparison.figure(rows=4)


@reproduction(
    SANITY_PAPER,
    claim="Gradients and Grad-CAM change as the layers of a model become random; guided "
    "backpropagation and guided Grad-CAM change little.",
)
def maps_of_random_layers(seed):
    """The model and images of faithfulness_of_methods; layers become random from the output down.
    Mean SSIM and Spearman's correlation of the magnitudes of the maps with those of the trained
    model; Grad-CAM at the second convolution, where it still has 8 x 8 places. The paper has
    Inception v3 on ImageNet, and a CNN and an MLP on MNIST."""
    model, x, _ = _trained_model(seed)
    explainers = {
        "gradient": Saliency(model),
        "input x gradient": InputXGradient(model),
        "integrated gradients": IntegratedGradients(model),
        "Grad-CAM": GradCAM(model, "second"),
        "guided": GuidedBackprop(model),
        "guided Grad-CAM": GuidedGradCAM(model, "second"),
    }
    numbers, lines = {}, {"SSIM": {}, "Spearman, magnitudes": {}}
    for name, explainer in explainers.items():
        report = model_randomization(explainer, x[:64], seed=seed)
        for label, key in (("SSIM", "ssim"), ("Spearman, magnitudes", "spearman_absolute")):
            means = np.nanmean(report.similarity[key], axis=1)
            lines[label][name] = np.concatenate([[1.0], means])
            for layer, value in ((report.layers[0], means[0]), ("all", means[-1])):
                numbers[f"{label}, {layer} random, {name}"] = float(value)
    figure = plots.curves(lines, x=range(1 + len(report.layers)), xlabel="random layers")
    _legend_below(figure)
    return numbers, figure


@reproduction(
    INFIDELITY_PAPER,
    claim="Smoothing an explanation by Gaussian noise lowers its sensitivity, and, done "
    "appropriately, its infidelity as well.",
)
def infidelity_of_smoothed_gradients(seed):
    """The model and images of faithfulness_of_methods; the gradient, and SmoothGrad of 50 samples
    with the noise of several levels; infidelity for Gaussian noise of standard deviation 0.2, in
    logits, and relative max-sensitivity in a ball of radius 0.02, 10 samples. The paper has MNIST,
    CIFAR-10 and ImageNet."""
    model, x, _ = _trained_model(seed)
    x = x[:64]
    explainers = {0.0: Saliency(model, absolute=False)}
    explainers |= {level: SmoothGrad(model, noise_level=level) for level in _NOISE_LEVELS}
    numbers, lines = {}, {"infidelity": [], "max-sensitivity": []}
    for level, explainer in explainers.items():
        maps, target = explain_in_batches(explainer, x)
        error = infidelity(
            model, x, maps, target, gaussian_noise(0.2), multiplied=False, seed=seed
        ).mean()
        change = np.nanmean(max_sensitivity(explainer, x, target, relative=True, seed=seed))
        for name, value in (("infidelity", error), ("max-sensitivity", change)):
            lines[name].append(value)
            numbers[f"{name}, " + (f"noise {level:g}" if level else "gradient")] = float(value)
    return numbers, plots.curves(lines, x=list(explainers), xlabel="noise of SmoothGrad")


def _legend_below(figure: Figure):
    """One legend for all panels, since they have the same lines."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for axis in figure.axes:
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def _trained_model(seed):
    """A trained CNN, test images, and its accuracy on them."""
    train, test = (load("digits", split) for split in ("train", "test"))
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)
        for filters, name in ((16, "first"), (32, "second"), (32, "third"), (32, "fourth"))
    ]
    layers.insert(2, keras.layers.MaxPooling2D())
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, name="logits")]
    model = keras.Sequential([keras.Input(train.features.shape[1:]), *layers, *head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, steps_per_execution=8)
    model.fit(train.features, train.labels, batch_size=64, epochs=20, verbose=0)
    accuracy = np.mean(np.argmax(model(test.features), axis=-1) == test.labels)
    return model, test.features, float(accuracy)
