"""Reproductions of layers that learn how to look at functions and at images."""

import keras
import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from kzoo.layers.basis_layer import PAPER as ADAFNN_PAPER
from kzoo.layers.sensor_layout import PAPER as SENSOR_PAPER
from kzoo.layers.sensor_layout import RectangularSensorLayout
from kzoo.models.adafnn import AdaFNN
from kzoo.reproductions.registry import reproduction


@reproduction(
    ADAFNN_PAPER,
    claim="Where the response depends on a direction of little variance, learned basis functions "
    "beat a network on the leading functional principal components.",
)
def adafnn_against_principal_components(seed):
    """The authors' simulation of cases 2 and 3, without noise: 50 cosines phi_k on 51 points, with
    uniform coefficients of deviation 5 for k = 1 and 3, 3 for k = 5 and 10, else 1, and y =
    <X, phi_5>^2, standardized; 3000 curves for training and 1000 for testing. AdaFNN of two basis
    functions (hidden layers of 32, dense layers of 32) and dense layers alike on two principal
    components, both with Adam at 3e-3, 60 epochs of batches of 64. The cosine is that of phi_5 with
    the nearer learned function."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, 51)
    curves, y, phi = _curves(rng, 4000, grid)
    train, test = slice(3000), slice(3000, None)
    y = (y - y[train].mean()) / y[train].std()
    keras.utils.set_random_seed(seed)
    model = AdaFNN(grid, 1, 2, (32, 32), (32, 32), dropout_rate=0.0)
    components = PCA(2).fit(curves[train])
    scores = components.transform(curves) / np.sqrt(components.explained_variance_)
    plain = keras.Sequential(
        [*(keras.layers.Dense(32, "relu") for _ in "ab"), keras.layers.Dense(1)]
    )
    numbers = {}
    for name, network, x in (("AdaFNN", model, curves), ("FPCA + network", plain, scores)):
        network.compile(keras.optimizers.Adam(3e-3), "mse")
        network.fit(x[train], y[train], batch_size=64, epochs=60, verbose=0)
        predicted = network.predict(x[test], verbose=0)
        numbers[f"test R2, {name}"] = r2_score(y[test], predicted[:, 0])
    bases = np.asarray(model.basis_layer.bases(grid))
    cosines = phi @ bases / (np.linalg.norm(phi) * np.linalg.norm(bases, axis=0))
    numbers["|cosine| with the true direction"] = np.abs(cosines).max()
    return numbers


@reproduction(
    SENSOR_PAPER,
    claim="A sensor whose pixel sizes are learned with the classifier is better than a uniform one "
    "of as many pixels.",
)
def learned_sensor_for_digits_in_a_corner(seed):
    """scikit-learn's digits, scaled to 16 x 16, in the upper left corner of 64 x 64 pixels of
    normal noise of deviation 0.3 (digits are from 0 to 1), seen by a sensor of 8 x 8 cells:
    1200 for training, 597 for testing. One hidden layer of 64, Adam at 3e-3, 40 epochs of batches
    of 64; the uniform sensor is the same with its boundaries held. The share is that of cells whose
    centre is in the corner (a sixteenth of the image). The paper has photographs and CNNs."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = rng.normal(0, 0.3, size=(len(order), 64, 64, 1)).astype("float32")
    images[:, :16, :16, 0] += zoom(digits.images[order] / 16, (1, 2, 2), order=1)
    labels, train, test = digits.target[order], slice(1200), slice(1200, None)
    numbers = {}
    for name, learned in (("learned", True), ("uniform", False)):
        keras.utils.set_random_seed(seed)
        sensor = RectangularSensorLayout(8, 8, trainable=learned)
        layers = [sensor, keras.layers.Flatten(), keras.layers.BatchNormalization()]
        layers += [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input([64, 64, 1]), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
        model.fit(images[train], labels[train], batch_size=64, epochs=40, verbose=0)
        accuracy = model.evaluate(images[test], labels[test], verbose=0)[1]
        numbers[f"test accuracy, {name}"] = accuracy
        numbers[f"share of cells in the corner, {name}"] = _share(sensor)
    return numbers


def _curves(rng, count, grid):
    """Curves [count, points], responses [count], and phi_5 [points]."""
    deviations = np.ones(50)
    deviations[[0, 2]], deviations[[4, 9]] = 5, 3
    coefficients = deviations * rng.uniform(-np.sqrt(3), np.sqrt(3), (count, 50))
    phi = np.sqrt(2) * np.cos(np.pi * np.arange(50)[:, None] * grid)
    phi[0] = 1
    return (coefficients @ phi).astype("float32"), coefficients[:, 4] ** 2, phi[4]


def _share(sensor):
    """The share of cells whose centre is in the upper left sixteenth."""
    inside = [np.mean((b[1:] + b[:-1]) / 2 < 0.25) for b in map(np.asarray, sensor.boundaries())]
    return inside[0] * inside[1]
