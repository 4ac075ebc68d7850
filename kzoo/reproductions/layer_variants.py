"""Layers with other kernels, neurons and statistics: hypercomplex, quadratic, power norm."""

import functools

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets

from kzoo.layers.hypercomplex import PAPER as PHM
from kzoo.layers.hypercomplex import PHMDense
from kzoo.layers.power_norm import PAPER as POWER_NORM
from kzoo.layers.power_norm import GroupScaling1D, PowerNormalization
from kzoo.layers.quadratic import PAPER as QUADRATIC
from kzoo.layers.quadratic import QuadraticDense, relinear_multipliers
from kzoo.optimizers import LearningRateMultipliers
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction


@reproduction(
    QUADRATIC,
    claim="A single quadratic neuron separates concentric rings, which no plain neuron can.",
)
def quadratic_neuron_separates_rings(seed):
    """200 points on two concentric rings of radius 0.5 and 1, with noise of deviation 0.05.

    One neuron with a sigmoid, plain or quadratic from ReLinear's start, trained by Adam with the
    learning rate 0.05, 300 steps of all points. "Accuracy" is that on 2000 new points.
    """
    make = functools.partial(datasets.make_circles, factor=0.5, noise=0.05)
    x, y = make(200, random_state=seed)
    test = make(2000, random_state=seed + 1000)
    numbers, neurons = {}, {}
    for name, layer in (("plain", keras.layers.Dense), ("quadratic", QuadraticDense)):
        keras.utils.set_random_seed(seed)
        neuron = keras.Sequential([keras.Input([2]), layer(1, activation="sigmoid")])
        neuron.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
        neuron.fit(x, y[:, None], batch_size=200, epochs=300, verbose=0)
        accuracy = neuron.evaluate(test[0], test[1][:, None], verbose=0)[1]
        numbers[f"{name}: accuracy"], neurons[name] = accuracy, neuron
    return numbers, _decisions(neurons, x, y)


def _decisions(neurons, x, y):
    """The points over what each neuron says of the plane."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    grid = np.linspace(-1.4, 1.4, 141)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    for axis, (name, neuron) in zip(figure.subplots(1, 2), neurons.items(), strict=True):
        output = neuron.predict(plane, batch_size=len(plane), verbose=0).reshape(141, 141)
        axis.contourf(grid, grid, output, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.6)
        axis.scatter(*x.T, c=y, cmap="RdBu_r", s=6)
        axis.set(title=f"{name} neuron", xticks=[], yticks=[], aspect="equal")
    return figure


@reproduction(
    QUADRATIC,
    claim="ReLinear trains deep quadratic networks, which collapse from a random start.",
)
def relinear_trains_deep_quadratic_networks(seed):
    """8 hidden layers of 32 ReLU neurons on scikit-learn's digits, 1500 to train, 297 to test.

    SGD with momentum 0.9 and the learning rate 0.01, batches of 50, 40 epochs. "Random": Glorot
    uniform kernels for all three products, b_g = 1. "ReLinear": the linear start, with the learning
    rates of the quadratic terms multiplied by the number (the authors' code has 0.0001 for
    CIFAR-10). A loss that is not finite any more is reported as infinite. There is no
    normalisation; the paper trains ResNets with batch norm.
    """
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    data = (images[order] / 16).astype("float32"), labels[order]
    random = {"kernel_g_initializer": "glorot_uniform", "kernel_b_initializer": "glorot_uniform"}
    networks = {
        "plain": (keras.layers.Dense, None),
        "random": (functools.partial(QuadraticDense, **random), 1.0),
        **{f"ReLinear, {gamma}": (QuadraticDense, gamma) for gamma in (1.0, 0.1, 0.001)},
    }
    numbers, losses = {}, {}
    for name, (dense, gamma) in networks.items():
        losses[name], accuracy = _train_digits(dense, gamma, data, seed)
        numbers[f"{name}: loss"] = losses[name][-1]
        numbers[f"{name}: test accuracy"] = accuracy
    return numbers, curves({"training loss": losses}, xlabel="epoch", log=("training loss",))


def _train_digits(dense, gamma, data, seed, rows=1500):
    """([training loss of each epoch], test accuracy)"""
    keras.utils.set_random_seed(seed)
    hidden = [dense(32, activation="relu") for _ in range(8)]
    model = keras.Sequential([keras.Input([64]), *hidden, dense(10)])
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if gamma is not None:
        multipliers = relinear_multipliers(model, gamma, gamma)
        optimizer = LearningRateMultipliers(optimizer, multipliers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    x, y = data
    history = model.fit(x[:rows], y[:rows], batch_size=50, epochs=40, verbose=0).history["loss"]
    accuracy = model.evaluate(x[rows:], y[rows:], verbose=0)[1]
    return [each if np.isfinite(each) else np.inf for each in history], accuracy


@reproduction(
    PHM,
    claim="A parameterised hypercomplex layer learns the algebra of quaternions from data, with a "
    "quarter of a dense layer's weights.",
)
def hypercomplex_layer_learns_quaternions(seed):
    """Targets are products of 8 quaternions with an 8 x 8 matrix of fixed random ones.

    2000 normal vectors of dimension 32; layers without bias, trained by Adam from the learning rate
    0.02, which falls to 0 as a cosine over 3000 steps with batches of 100. The mean squared error
    is that on 1000 new vectors, the targets having variance 1.
    """
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(3000, 32)).astype("float32")
    teacher = PHMDense(32, 4, "quaternion", kernel_initializer="random_normal", use_bias=False)
    targets = np.asarray(teacher(inputs))
    data = inputs, targets / targets.std()
    layers = {
        "dense": lambda: keras.layers.Dense(32, use_bias=False),
        "hypercomplex, n = 4": lambda: PHMDense(32, 4, use_bias=False),
        "hypercomplex, n = 8": lambda: PHMDense(32, 8, use_bias=False),
    }
    numbers = {}
    for name, make in layers.items():
        keras.utils.set_random_seed(seed)
        layer = make()
        numbers[f"{name}: squared error"] = _regress(layer, *data)
        numbers[f"{name}: weights"] = sum(int(w.numpy().size) for w in layer.trainable_weights)
    return numbers


def _regress(layer, x, y, rows=2000, epochs=150):
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    rate = keras.optimizers.schedules.CosineDecay(0.02, epochs * rows // 100)
    model.compile(keras.optimizers.Adam(rate), "mse", jit_compile=True)
    model.fit(x[:rows], y[:rows], batch_size=100, epochs=epochs, verbose=0)
    return model.evaluate(x[rows:], y[rows:], verbose=0)


_WORDS, _LENGTH, _TOPICS, _BATCH = 200, 24, 8, 16


@reproduction(
    POWER_NORM,
    claim="Batch norm fails in transformers, as the statistics of text fluctuate between batches; "
    "power norm does not.",
)
def power_norm_in_a_language_model(seed):
    """Synthetic text of 200 words in 8 topics, each with its own order of a Zipf distribution and
    its own successors: half of the words are the successor of the last one, the others drawn. A
    batch of 16 pieces of 24 words is on one topic, so that its statistics are not those of the
    text.

    Transformers of 4 blocks (dimension 32, 4 heads, normalised after each addition, as in the
    paper) that predict the next word; Adam with the learning rate 0.001, 600 steps. Power norm is
    the authors' layer, scaling of the whole token first, with a warm-up of 100 steps. "Training" is
    the mean loss of the last 100 steps, "test" that of 50 new batches at inference, in nats per
    word; the curves are means over 20 steps.
    """
    rng = np.random.default_rng(seed)
    train, test = _text(rng, 600), _text(rng, 50)
    numbers, losses = {}, {}
    for name, norm in _NORMS.items():
        keras.utils.set_random_seed(seed)
        model = _language_model(norm)
        losses[name] = [float(model.train_on_batch(x[:, :-1], x[:, 1:])) for x in train]
        numbers[f"{name}: training"] = float(np.mean(losses[name][-100:]))
        numbers[f"{name}: test"] = float(
            np.mean([model.test_on_batch(x[:, :-1], x[:, 1:]) for x in test])
        )
    windows = {name: np.convolve(each, np.ones(20) / 20, "valid") for name, each in losses.items()}
    return numbers, curves({"training loss": windows})


_NORMS = {
    "layer norm": lambda x: keras.layers.LayerNormalization()(x),
    "batch norm": lambda x: keras.layers.BatchNormalization(momentum=0.9)(x),
    "power norm": lambda x: PowerNormalization(100)(GroupScaling1D(1)(x)),
    "power norm, no group scaling": lambda x: PowerNormalization(100)(x),
}


def _text(rng, batches):
    topics = np.random.default_rng(0)
    zipf = 1 / np.arange(1, _WORDS + 1)
    orders = np.stack([topics.permutation(_WORDS) for _ in range(_TOPICS)])
    successors = np.stack([topics.permutation(_WORDS) for _ in range(_TOPICS)])
    topic = rng.integers(0, _TOPICS, batches)[:, None]
    shape = (batches, _BATCH, _LENGTH + 1)
    words = orders[topic[..., None], rng.choice(_WORDS, shape, p=zipf / zipf.sum())]
    follows = rng.random(shape) < 0.5
    for place in range(1, _LENGTH + 1):
        following = successors[topic, words[..., place - 1]]
        words[..., place] = np.where(follows[..., place], following, words[..., place])
    return words


def _language_model(norm, width=32, blocks=4):
    words = keras.Input([_LENGTH], dtype="int32")
    places = keras.ops.arange(_LENGTH)
    x = keras.layers.Embedding(_WORDS, width)(words)
    x = norm(x + keras.layers.Embedding(_LENGTH, width)(places))
    for _ in range(blocks):
        attention = keras.layers.MultiHeadAttention(4, width // 4)
        x = norm(x + attention(x, x, use_causal_mask=True))
        hidden = keras.layers.Dense(4 * width, "relu")(x)
        x = norm(x + keras.layers.Dense(width)(hidden))
    model = keras.Model(words, keras.layers.Dense(_WORDS)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss)
    return model
