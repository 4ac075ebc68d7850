"""Reproductions of what single layers are claimed to do."""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from scipy.ndimage import rotate
from scipy.stats import chi, kstest
from sklearn.datasets import load_digits
from sklearn.decomposition import FastICA
from sklearn.feature_selection import mutual_info_regression

from kzoo import plots
from kzoo.analysis.isometry_gap import isometry_gap
from kzoo.layers.gdn import PAPER as GDN_PAPER
from kzoo.layers.spatial_transformer import PAPER as STN_PAPER
from kzoo.layers.spatial_transformer import SpatialTransformer
from kzoo.layers.uncentered_batch_norm import PAPER as DEPTH_PAPER
from kzoo.models.depth_stable_mlp import DepthStableMLP
from kzoo.models.gdn_density import GDNDensity
from kzoo.reproductions.registry import reproduction

_SIZE = 24
_DEPTHS = (10, 50, 200, 1000)
_WIDTH = 16


@reproduction(
    STN_PAPER,
    claim="A spatial transformer in front of a network classifies rotated and translated digits "
    "better than networks of the same size without one, and learns to undo the rotation.",
)
def spatial_transformer_on_distorted_digits(seed):
    """scikit-learn's digits, resized to 12 x 12, turned by up to 45 degrees either way and put
    anywhere into 24 x 24 pixels: 1200 digits, eight times over, for training and 597, twice, for
    testing. Three networks of about 17 800 weights: fully connected layers behind a spatial
    transformer (affine, to 12 x 12 pixels, its localization fully connected over 12 x 12 averages),
    fully connected layers, and a CNN of two convolutions. Adam with a rate of 2e-3, 20 epochs.
    The correlation is that of the angle of the learned transformation with the one that was
    applied, over test images. The paper has MNIST of 42 x 42 and 150 000 steps."""
    rng = np.random.default_rng(seed)
    images, labels = _digits(rng)
    x, y, _ = _distorted(rng, images[:1200], labels[:1200], copies=8)
    x_test, y_test, angles = _distorted(rng, images[1200:], labels[1200:], copies=2)
    numbers = {}
    for name, layers in _classifiers().items():
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input([_SIZE, _SIZE, 1]), *layers(), _dense(10, None)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
        model.fit(x, y, batch_size=128, epochs=20, verbose=0)
        numbers[f"test accuracy, {name}"] = model.evaluate(x_test, y_test, verbose=0)[1]
        numbers[f"weights, {name}"] = model.count_params()
        if name == "spatial transformer":
            transformer = model.layers[0]
    theta = transformer.parameters(x_test).numpy()
    learned = np.arctan2(theta[:, 1, 0] - theta[:, 0, 1], theta[:, 0, 0] + theta[:, 1, 1])
    numbers["correlation of the angles"] = abs(np.corrcoef(learned, angles)[0, 1])
    return numbers, _pairs(x_test[:16:2], transformer(x_test[:16:2]).numpy())


@reproduction(
    GDN_PAPER,
    claim="GDN makes data with heavy elliptical tails Gaussian, which leaves much less mutual "
    "information between the components than ICA does.",
)
def gdn_gaussianizes_student_t(seed):
    """Student-t of three degrees of freedom with a correlation of 0.77, 20 000 points of two
    dimensions for training, 20 000 for measuring; GDNDensity of one stage, Adam with a rate of
    0.02, 60 epochs. ICA: scikit-learn's FastICA. Distance: Kolmogorov-Smirnov, of the radius to
    that of the standard normal distribution (whitened outputs of ICA). Mutual information in nats
    by scikit-learn's estimator of nearest neighbours, cut off at 0, with noise of 0.01; the paper
    has patches of photographs."""
    rng = np.random.default_rng(seed)
    train, test = (_student(rng, 20_000) for _ in range(2))
    keras.utils.set_random_seed(seed)
    model = GDNDensity(2)
    model.compile(keras.optimizers.Adam(0.02, clipnorm=1.0))
    model.fit(train, batch_size=500, epochs=60, verbose=0)
    ica = FastICA(2, whiten="unit-variance", random_state=seed).fit(train)
    outputs = {"data": test, "ICA": ica.transform(test), "GDN": model.gaussianize(test).numpy()}
    numbers = {}
    for name, values in outputs.items():
        standard = values - values.mean(axis=0)
        if name == "data":
            standard = standard @ np.linalg.inv(np.linalg.cholesky(np.cov(standard.T))).T
        radius = np.linalg.norm(standard, axis=1)
        numbers[f"distance of the radius, {name}"] = kstest(radius, chi(2).cdf).statistic
        information = mutual_info_regression(values[:5000, :1], values[:5000, 1], random_state=seed)
        numbers[f"mutual information, {name}"] = information[0]
    numbers["negative log-likelihood, GDN"] = -float(np.mean(model.log_prob(test)))
    numbers["negative log-likelihood, truth"] = -float(np.mean(_student_log_prob(test)))
    return numbers, _clouds(outputs)


@reproduction(
    DEPTH_PAPER,
    claim="With batch normalization and orthogonal weights the gradients of a linear network are "
    "bounded at any depth, with Gaussian ones they explode; shaping extends it to tanh.",
)
def gradients_at_depth_1000(seed):
    """Gradient of the first layer's kernel at the start, for networks of width 16 and batches of
    16 normal samples, in float64; mean squared error to normal targets. Orthogonal and Gaussian
    (LeCun) weights without activations, orthogonal ones with tanh, with and without the gains
    l^-0.4. A network of depth 10 is the first ten layers of that of depth 1000, with the same
    output layer. Isometry gaps are shown where samples are independent to rounding. The paper has
    width 100 and CIFAR-10."""
    rng = np.random.default_rng(seed)
    x, y = (tf.constant(rng.normal(size=(_WIDTH, _WIDTH))) for _ in "xy")
    kinds = {
        "orthogonal": {},
        "Gaussian": {"kernel_initializer": "lecun_normal"},
        "tanh": {"activation": "tanh", "gain_exponent": 0.0},
        "shaped tanh": {"activation": "tanh"},
    }
    numbers, lines = {}, {}
    for name, kwargs in kinds.items():
        keras.utils.set_random_seed(seed)
        model = DepthStableMLP(_WIDTH, max(_DEPTHS), _WIDTH, _WIDTH, dtype="float64", **kwargs)
        lines[name], gaps = _norms_and_gaps(model, x, y)
        for depth, norm in zip(_DEPTHS, lines[name], strict=True):
            numbers[f"gradient norm at depth {depth}, {name}"] = norm
        if np.isfinite(gap := gaps[_DEPTHS.index(200)]):
            numbers[f"isometry gap at depth 200, {name}"] = gap
    figure = plots.curves(
        {"gradient norm": lines}, x=_DEPTHS, xlabel="depth", log=("gradient norm",)
    )
    return numbers, figure


def _digits(rng):
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = tf.image.resize(digits.images[order, ..., None] / 16, (12, 12)).numpy()
    return np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)]), digits.target[order]


def _distorted(rng, images, labels, copies):
    """(images, labels, degrees), each image `copies` times at angles and places of its own."""
    images, labels = np.repeat(images, copies, axis=0), np.repeat(labels, copies)
    angles = rng.uniform(-45, 45, len(images))
    room, side = _SIZE - images.shape[1] + 1, images.shape[1]
    canvas = np.zeros([len(images), _SIZE, _SIZE, 1], "float32")
    for each, image, angle in zip(canvas, images, angles, strict=True):
        row, column = rng.integers(0, room, 2)
        turned = rotate(image, angle, reshape=False, order=1)
        each[row : row + side, column : column + side] = turned
    return canvas, labels, angles


def _dense(units, activation="relu"):
    return keras.layers.Dense(units, activation)


def _classifiers():
    """{name: function that returns the layers but the last}"""
    layers = keras.layers

    def localization():
        pooling = layers.AveragePooling2D(2)
        return keras.Sequential([pooling, layers.Flatten(), _dense(32), _dense(32)])

    def convolution(filters):
        return [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D()]

    return {
        "spatial transformer": lambda: [
            SpatialTransformer(localization(), output_size=(12, 12)),
            layers.Flatten(),
            _dense(64),
            _dense(32),
        ],
        "fully connected": lambda: [layers.Flatten(), _dense(28), _dense(48)],
        "CNN": lambda: [*convolution(12), *convolution(16), layers.Flatten(), _dense(60)],
    }


def _student(rng, count):
    normal = rng.normal(size=(count, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])
    return (normal / np.sqrt(rng.chisquare(3, (count, 1)) / 3)).astype("float32")


def _student_log_prob(x):
    scaled = np.linalg.solve([[1.0, 0.0], [0.6, 0.5]], x.T)
    return -2.5 * np.log1p(np.sum(scaled**2, axis=0) / 3) - np.log(2 * np.pi * 0.5)


def _norms_and_gaps(model, x, y):
    """Gradient norms of the first kernel, and isometry gaps, for each depth: in one pass.

    Eager, as a graph of thousands of layers takes longer to make than to run once."""
    kernel = model.hidden[0][0].kernel.value
    with tf.GradientTape(persistent=True) as tape:
        states = model.hidden_states(x, training=True)
        states = [states[depth - 1] for depth in _DEPTHS]
        losses = [tf.reduce_mean(tf.square(model.head(state) - y)) for state in states]
    norms = [float(tf.norm(tape.gradient(loss, kernel))) for loss in losses]
    return norms, [float(isometry_gap(state)) for state in states]


def _pairs(inputs, outputs):
    """Two rows of images: before and after."""
    figure = Figure(figsize=(len(inputs), 2.2), layout="constrained")
    axes = figure.subplots(2, len(inputs))
    for row, name, images in zip(axes, ("input", "output"), (inputs, outputs), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    return figure


def _clouds(outputs):
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(outputs)), outputs.items(), strict=True):
        axis.plot(*values[:3000].T, ".", markersize=2)
        axis.set_title(name)
        axis.set_aspect("equal")
        limit = np.quantile(np.abs(values), 0.995) * 1.3
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
    return figure
