"""Adaptive optimizers: memory against forgetting, sharp coordinates, noise for deep networks."""

import functools

import keras
import numpy as np
import tensorflow as tf
from sklearn import datasets

from kzoo.analysis.directional_sharpness import compare_update_directions
from kzoo.analysis.online_regret import adam_counterexample, online_regret
from kzoo.optimizers.amsgrad import PAPER as AMSGRAD
from kzoo.optimizers.amsgrad import AdamNC, AMSGrad
from kzoo.optimizers.coordinate_clip import PAPER as SHARPNESS
from kzoo.optimizers.coordinate_clip import CoordinateClip
from kzoo.optimizers.gradient_noise import PAPER as NOISE
from kzoo.optimizers.gradient_noise import GradientNoise
from kzoo.optimizers.schedules.inverse_sqrt_decay import InverseSqrtDecay
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction

_LENGTH = 24


@reproduction(
    AMSGRAD,
    claim="On a simple convex problem Adam converges to the worst point; AMSGrad, which remembers "
    "large gradients, converges to the best.",
)
def adam_forgets_rare_gradients(seed):
    """Two sequences of linear losses on [-1, 1], where -1 is best and 1 is worst, from 0.

    "Cyclic": the slope 1010 in every 101st step, else -10; "random": 1010 with probability 0.01,
    else -10, as in the paper's section 5, 200 000 steps of each. beta_1 = 0.9 and beta_2 = 0.99
    for all, learning rate 2 / sqrt(t). "Point" is the mean of the last tenth, "average regret"
    that of all steps; whoever stays at 1 has 0.2 in the cyclic sequence and 0.4 in the random one.
    """
    steps = 200_000
    cyclic = adam_counterexample(steps, 1010.0, 10.0, 101)
    rare = np.random.default_rng(seed).random(steps) < 0.01
    numbers, panels = {}, {}
    for kind, slopes in (("cyclic", cyclic), ("random", np.where(rare, 1010.0, -10.0))):
        runs = {name: online_regret(make(), slopes, start=0.0) for name, make in _ONLINE.items()}
        for name, run in runs.items():
            numbers[f"{kind}, {name}: point"] = float(run.points[-steps // 10 :].mean())
            numbers[f"{kind}, {name}: average regret"] = float(run.average_regret[-1])
        panels[f"point, {kind}"] = {name: run.points[::200] for name, run in runs.items()}
    return numbers, curves(panels, x=np.arange(0, steps, 200))


def _online(cls, **options):
    return lambda: cls(InverseSqrtDecay(2.0), beta_1=0.9, **options)


_ONLINE = {
    "Adam": _online(keras.optimizers.Adam, beta_2=0.99),
    "AMSGrad": _online(AMSGrad, beta_2=0.99),
    "AdamNC": _online(AdamNC),
}


@reproduction(
    SHARPNESS,
    claim="The steps of SGD are sharper than those of adaptive optimizers on a transformer; "
    "clipping a few coordinates makes them less sharp and their best step better.",
)
def clipping_lowers_directional_sharpness(seed):
    """A transformer that predicts the next character of English text.

    The text is that of scikit-learn's descriptions of its data sets; 128 pieces of 24 characters,
    one block of dimension 32 with 4 heads, 18 thousand weights. The path of 60 steps is Adam's,
    at 0.005, with the gradients of all pieces; every third step the directional sharpness of what
    each optimizer would do there is measured, "decrease" being how much a step of the best length
    along it lowers the loss, to second order. Numbers are medians over the path. Gradients are
    clipped for SGD (10 %), updates for Adam (50 %). The paper measures larger transformers on
    minibatches.
    """
    model, data = _language(seed)
    result = compare_update_directions(
        model, data, {name: make() for name, make in _COMPARED.items()}, steps=60, every=3
    )
    numbers = {}
    for name in _COMPARED:
        numbers[f"{name}: sharpness"] = float(np.median(result.sharpness[name]))
        numbers[f"{name}: correlation"] = float(np.median(result.correlation[name]))
        numbers[f"{name}: decrease"] = float(np.median(result.decrease[name]))
    drawn = [name for name in _COMPARED if "momentum" not in name]
    panels = {"directional sharpness": result.sharpness, "decrease": result.decrease}
    panels = {what: {name: lines[name] for name in drawn} for what, lines in panels.items()}
    return numbers, curves(panels, x=result.steps, log=tuple(panels))


_COMPARED = {
    "Adam": lambda: keras.optimizers.Adam(0.005),
    "Adam, clipped": lambda: CoordinateClip(keras.optimizers.Adam(0.005), 0.5, target="update"),
    "Lion": lambda: keras.optimizers.Lion(0.001),
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "SGD, clipped": lambda: CoordinateClip(keras.optimizers.SGD(0.1), 0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "momentum, clipped": lambda: CoordinateClip(keras.optimizers.SGD(0.1, momentum=0.9), 0.1),
}


@reproduction(
    NOISE,
    claim="Gradient noise trains a fully connected network of 20 layers with plain SGD from a poor "
    "initialization, from which it does not train without.",
)
def noise_trains_a_deep_network(seed):
    """20 hidden layers of 50 ReLU units on scikit-learn's digits, 1500 to train, 297 to test.

    SGD with the learning rate 0.03, gradients clipped to a global norm of 1, batches of 32, 8000
    steps; weights are zero ("zeros") or normal with deviation 0.1 ("small"), with which the signal
    halves in every layer. The noise has eta = 0.3, the second of the paper's values. The paper
    trains on MNIST.
    """
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    data = (images[order] / 16).astype("float32"), labels[order]
    numbers, losses = {}, {}
    for start in ("zeros", "small"):
        for noise, eta in (("without noise", 0.0), ("with noise", 0.3)):
            name = f"{start}, {noise}"
            optimizer = keras.optimizers.SGD(0.03, global_clipnorm=1.0)
            network = _deep_network(start, seed)
            losses[name], accuracy = _train(network, GradientNoise(optimizer, eta, seed=seed), data)
            numbers[f"{name}: loss"] = losses[name][-1]
            numbers[f"{name}: test accuracy"] = accuracy
    return numbers, curves({"training loss": losses}, x=np.linspace(0, 8000, 17))


def _deep_network(start, seed):
    keras.utils.set_random_seed(seed)
    # A seed generator of its own: the same initializer must not make equal layers.
    small = keras.initializers.RandomNormal(stddev=0.1, seed=keras.random.SeedGenerator(seed))
    initializer = small if start == "small" else "zeros"
    dense = functools.partial(keras.layers.Dense, kernel_initializer=initializer)
    hidden = [dense(50, "relu") for _ in range(20)]
    return keras.Sequential([keras.Input([64]), *hidden, dense(10)])


def _train(model, optimizer, data, steps=8000, batch=32, rows=1500):
    """([loss on the training rows], at 0 and after every sixteenth of the steps; test accuracy)"""
    x, y = (tf.constant(array) for array in data)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables
    optimizer.jit_compile = False  # it would compile for longer than it trains
    optimizer.build(variables)

    @tf.function
    def run(start, end):
        for step in tf.range(start, end):
            at = step * batch % (rows - batch)
            with tf.GradientTape() as tape:
                value = loss(y[at : at + batch], model(x[at : at + batch], training=True))
            optimizer.apply(tape.gradient(value, [v.value for v in variables]), variables)

    losses = [float(loss(y[:rows], model(x[:rows])))]
    for start in range(0, steps, steps // 16):
        run(tf.constant(start), tf.constant(start + steps // 16))
        losses.append(float(loss(y[:rows], model(x[:rows]))))
    right = np.argmax(model(x[rows:]), axis=1) == data[1][rows:]
    return losses, float(right.mean())


def _language(seed):
    """(compiled transformer, (x, y)) of pieces of text and their next characters."""
    loaders = datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes
    text = " ".join("".join(load().DESCR for load in loaders).split())
    alphabet, codes = np.unique(list(text), return_inverse=True)
    starts = np.random.default_rng(seed).choice(len(codes) - _LENGTH - 1, 128, replace=False)
    pieces = codes[starts[:, None] + np.arange(_LENGTH + 1)]
    model = _transformer(len(alphabet), seed)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (np.eye(len(alphabet), dtype="float32")[pieces[:, :-1]], pieces[:, 1:])


def _transformer(characters, seed, dimension=32):
    """One block, from one-hot characters [batch, time, characters] to logits of the same shape."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input([_LENGTH, characters])
    x = layers.Dense(dimension, use_bias=False)(inputs)
    positions = np.arange(_LENGTH)[:, None] / 1000.0 ** np.linspace(0, 1, dimension // 2)
    x = x + np.concatenate([np.sin(positions), np.cos(positions)], 1).astype("float32")[None]
    normal = layers.LayerNormalization()(x)
    attention = layers.MultiHeadAttention(4, dimension // 4)
    x = x + attention(normal, normal, use_causal_mask=True)
    hidden = layers.Dense(4 * dimension, "gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(dimension)(hidden)
    return keras.Model(inputs, layers.Dense(characters)(layers.LayerNormalization()(x)))
