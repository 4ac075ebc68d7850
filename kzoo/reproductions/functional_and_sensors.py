"""Reproductions of layers that learn how to look at functions and at images."""

import keras
import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from kzoo.layers.basis_layer import PAPER as ADAFNN_PAPER
from kzoo.layers.sensor_layout import PAPER as SENSOR_PAPER
from kzoo.layers.sensor_layout import CurvilinearSensorLayout, RectangularSensorLayout
from kzoo.models.adafnn import AdaFNN
from kzoo.reproductions.registry import reproduction


@reproduction(
    ADAFNN_PAPER,
    claim="Where the response depends on a direction of little variance, learned basis functions "
    "beat a network on the leading functional principal components.",
)
def adafnn_against_principal_components(seed):
    """The authors' simulation, case 3: 50 cosines phi_k on 51 points, with uniform coefficients of
    deviation 5 for k = 1 and 3, 3 for k = 5 and 10, else 1; y = <X, phi_5>^2; normal noise of
    deviation 1 on each point and 0.2 on y. 4000 curves, 64 % for training, 16 % for validation,
    20 % for testing; points and y are standardized. Networks and training as in the authors'
    notebook: AdaFNN of two basis functions (four hidden layers of 256), two dense layers of 64,
    dropout 0.1, Adam at 3e-4, 500 epochs of batches of 128, the best ones by validation. The others
    are dense layers of 64 on the leading principal components, two of them or those with 90 % of
    the variance, trained alike. The cosine is that of phi_5 with the nearer learned function. As in
    the authors' notebook the loss stays where it was for a few hundred epochs, until a basis
    function has found phi_5."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, 51)
    curves, y, phi = _curves(rng, 4000, grid)
    keras.utils.set_random_seed(seed)
    model = AdaFNN(grid, 1, 2, (256, 256, 256, 256), (64, 64))
    numbers = {"test R2, AdaFNN, 2 basis functions": _test_r2(model, curves, y)}
    for name, count in (("2 components", 2), ("components with 90 % of the variance", 0.9)):
        components = PCA(count, whiten=True).fit(curves[:2560])
        plain = [*(keras.layers.Dense(64, "relu") for _ in "ab"), keras.layers.Dense(1)]
        scores = components.transform(curves)
        numbers[f"test R2, network on {name}"] = _test_r2(keras.Sequential(plain), scores, y)
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
    1200 for training, with new noise in each step, 597 for testing. One hidden layer of 64, Adam at
    0.01, 60 epochs of batches of 64; the uniform sensor is the same with its boundaries held. The
    share is that of cells whose centre is in the corner (a sixteenth of the image). With the same
    noise in all epochs the network learns the training images by heart, and the boundaries stay.
    The paper has photographs and CNNs."""
    rng = np.random.default_rng(seed)
    data = _digits_in_noise(rng, slice(16))
    numbers = {}
    for name, learned in (("learned", True), ("uniform", False)):
        keras.utils.set_random_seed(seed)
        sensor = RectangularSensorLayout(8, 8, trainable=learned)
        numbers[f"test accuracy, {name}"] = _accuracy(sensor, data)
        inside = [
            np.mean((b[1:] + b[:-1]) / 2 < 0.25) for b in map(np.asarray, sensor.boundaries())
        ]
        numbers[f"share of cells in the corner, {name}"] = inside[0] * inside[1]
    return numbers


@reproduction(
    SENSOR_PAPER,
    claim="Two learned numbers, which pull the cells to where the object is, are enough to be "
    "better than a uniform sensor; the grid may be rectangular or curvilinear.",
)
def foveated_sensors_for_digits_in_the_centre(seed):
    """As the learned sensor for digits in a corner, but with the digits in the centre, where the
    paper's layouts can put more cells; both have strengths from -0.6 to 0.6, 0 at first. Also the
    sensor with free rows and columns."""
    rng = np.random.default_rng(seed)
    data = _digits_in_noise(rng, slice(24, 40))
    sensors = {
        "uniform": RectangularSensorLayout(8, 8, trainable=False),
        "rectangular": RectangularSensorLayout(8, 8, min_width=0.25, symmetric=True),
        "curvilinear": CurvilinearSensorLayout(8, 8),
        "free rows and columns": RectangularSensorLayout(8, 8),
    }
    numbers = {}
    for name, sensor in sensors.items():
        keras.utils.set_random_seed(seed)
        numbers[f"test accuracy, {name}"] = _accuracy(sensor, data)
        if name in ("rectangular", "curvilinear"):
            horizontal, vertical = np.asarray(sensor.strengths())
            numbers[f"horizontal strength, {name}"] = horizontal
            numbers[f"vertical strength, {name}"] = vertical
    return numbers


def _curves(rng, count, grid):
    """Curves [count, points] and responses [count], standardized, and phi_5 [points]."""
    deviations = np.ones(50)
    deviations[[0, 2]], deviations[[4, 9]] = 5, 3
    coefficients = deviations * rng.uniform(-np.sqrt(3), np.sqrt(3), (count, 50))
    phi = np.sqrt(2) * np.cos(np.pi * np.arange(50)[:, None] * grid)
    phi[0] = 1
    curves = coefficients @ phi + rng.normal(size=(count, len(grid)))
    y = coefficients[:, 4] ** 2 + rng.normal(0, 0.2, count)
    curves, y = ((x - x[:2560].mean(0)) / x[:2560].std(0) for x in (curves, y))
    return curves.astype("float32"), y, phi[4]


def _test_r2(network, x, y):
    """Of the last 800 rows, by the weights that were best on the 640 before them."""
    network.compile(keras.optimizers.Adam(3e-4), "mse")
    best = keras.callbacks.EarlyStopping(patience=500, restore_best_weights=True)
    network.fit(
        x[:2560],
        y[:2560],
        batch_size=128,
        epochs=500,
        validation_data=(x[2560:3200], y[2560:3200]),
        callbacks=[best],
        verbose=0,
    )
    return r2_score(y[3200:], network.predict(x[3200:], verbose=0)[:, 0])


def _digits_in_noise(rng, place):
    """Training images without their noise, test images with it, and labels; noise is 0.3."""
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = np.zeros((len(order), 64, 64, 1), "float32")
    images[:, place, place, 0] = zoom(digits.images[order] / 16, (1, 2, 2), order=1)
    images[1200:] += rng.normal(0, 0.3, size=images[1200:].shape)
    labels = digits.target[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def _accuracy(sensor, data):
    """Test accuracy of a small network that sees through the sensor, trained with it."""
    train, test = data
    layers = [keras.layers.GaussianNoise(0.3), sensor, keras.layers.Flatten()]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(64, "relu")]
    model = keras.Sequential([keras.Input([64, 64, 1]), *layers, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(*train, batch_size=64, epochs=60, verbose=0)
    return model.evaluate(*test, verbose=0)[1]
