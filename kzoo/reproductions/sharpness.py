"""Flat minima: GAM and gradient regularization, and whether flatness is what makes SAM work."""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, make_moons

from kzoo.analysis.first_order_flatness import first_order_flatness, interpolation_trace
from kzoo.analysis.sharpness import hessian_top_eigenvalues
from kzoo.data.boolean_xor import boolean_xor
from kzoo.models.memorizing_two_layer import PAPER as XOR_PAPER
from kzoo.models.memorizing_two_layer import TwoLayerReLU, memorizing_two_layer
from kzoo.ops.gradient_norm import PAPER as GAM_PAPER
from kzoo.regularizers.manifold_lipschitz import PAPER as MANIFOLD_PAPER
from kzoo.regularizers.manifold_lipschitz import heat_kernel_graph
from kzoo.reproductions.registry import reproduction
from kzoo.training.gam import GAM, AcceleratedGAM
from kzoo.training.gradient_regularization import PAPER as REGULARIZATION_PAPER
from kzoo.training.gradient_regularization import GradientRegularization
from kzoo.training.loop import Loop
from kzoo.training.primal_dual import PrimalDualTraining
from kzoo.training.sam import SAM

_FEATURES, _EXAMPLES, _UNITS = 30, 100, 500


@reproduction(
    XOR_PAPER,
    claim="Two-layer ReLU networks on boolean XOR: without bias flatness implies generalization; "
    "with bias there are flattest networks that do not generalize, and SAM does not either; with a "
    "simplified LayerNorm there are, but SAM generalizes.",
)
def flatness_and_generalization_on_xor(seed):
    """100 corners of a cube of 30 dimensions for training, 4000 for testing; 500 hidden units, all
    weights and biases uniform in +-1 / sqrt(number of inputs). SAM with batches of one example
    (1-SAM), 100000 steps, learning rate 0.003 and rho 0.1, or 0.1 and 0.5 with the LayerNorm, which
    takes larger steps. Sharpness is the trace of the Hessian at interpolation, divided by the least
    one possible (4 sqrt(d), 4 sqrt(d + 1) and 2). The memorizer is the construction of one unit a
    point. The paper's sizes and rates may differ; with Keras's smaller initial weights and no
    initial biases the network with a bias generalizes better, to about 0.9.
    """
    train = boolean_xor(_EXAMPLES, _FEATURES, seed=seed)
    test = boolean_xor(4000, _FEATURES, seed=1000 + seed)
    scenarios = {
        "no bias": (False, False, 4 * np.sqrt(_FEATURES)),
        "bias": (True, False, 4 * np.sqrt(_FEATURES + 1)),
        "bias and LayerNorm": (True, True, 2.0),
    }
    numbers = {}
    for name, (bias, normalize, least) in scenarios.items():
        model = _one_sample_sam(train, bias, normalize, seed)
        numbers[f"test accuracy of 1-SAM, {name}"] = _sign_accuracy(model, test)
        numbers[f"sharpness of 1-SAM / least, {name}"] = (
            interpolation_trace(model, train.features) / least
        )
        if not bias:
            continue
        memorizer = memorizing_two_layer(train.features, train.labels, normalize=normalize)
        numbers[f"test accuracy of the memorizer, {name}"] = _sign_accuracy(memorizer, test)
        numbers[f"sharpness of the memorizer / least, {name}"] = (
            interpolation_trace(memorizer, train.features) / least
        )
    return numbers


@reproduction(
    GAM_PAPER,
    claim="GAM finds flatter minima than SGD and SAM, which generalize better; first-order "
    "flatness bounds the largest eigenvalue of the Hessian.",
)
def first_order_flatness_of_gam(seed):
    """Digits (scikit-learn, 300 for training, the others for testing), a network of 64 and 64 tanh
    units, SGD with momentum 0.9, learning rate 0.05 with cosine decay, batches of 50, 100 epochs
    for each method; rho 0.05 for SAM, 0.2 for GAM, weight 0.5. Measured on the training data: the
    largest eigenvalue of the Hessian, and the first-order flatness R1 for rho = 0.05, over rho^2.
    """
    train, test = _digits(seed, 300)
    numbers = {}
    for name, wrap in {
        "SGD": lambda model: model,
        "SAM": lambda model: SAM(model, rho=0.05),
        "GAM": lambda model: GAM(model, rho=0.2, alpha=0.5),
        "GAM over SAM": lambda model: GAM(model, rho=0.2, alpha=0.5, sam_rho=0.05),
        "accelerated GAM": lambda model: AcceleratedGAM(model, rho=0.2),
    }.items():
        model = _trained_on_digits(wrap, train, seed)
        numbers[f"test accuracy, {name}"] = model.evaluate(*test, verbose=0)[1]
        numbers[f"largest eigenvalue, {name}"] = hessian_top_eigenvalues(model, train)[0]
        numbers[f"R1 / rho^2, {name}"] = first_order_flatness(model, train, 0.05) / 0.05**2
    return numbers


@reproduction(
    REGULARIZATION_PAPER,
    claim="In a diagonal linear network gradient regularization leads to the rich regime, with "
    "sparse solutions, and forward differences with large steps do so more strongly.",
)
def gradient_regularization_of_a_diagonal_network(seed):
    """f(x) = <u * u - v * v, x> in 100 dimensions, all u and v at 0.1; 40 examples, normal with
    mean 5 and variance 5, of a function with 5 coefficients of 1 / sqrt(5), without noise. Full
    batches of gradient descent, learning rate 2e-4, 40000 steps; gamma = 0.02. Measured: the
    squared distance of the coefficients to the true ones, and their l1 norm. The mean matters: with
    inputs of mean 0 we found no sparser solutions.
    """
    rng = np.random.default_rng(seed)
    beta = np.zeros(100)
    beta[:5] = 5**-0.5
    x = 5 + 5**0.5 * rng.normal(size=[40, 100])
    y = (x @ beta)[:, np.newaxis]
    numbers = {}
    for name, options in {
        "gradient descent": {"gamma": 0.0},
        "double backpropagation": {"gamma": 0.02, "method": "double"},
        "forward, epsilon 0.001": {"gamma": 0.02, "epsilon": 0.001},
        "forward, epsilon 0.002": {"gamma": 0.02, "epsilon": 0.002},
        "forward, epsilon 0.005": {"gamma": 0.02, "epsilon": 0.005},
        "backward, epsilon 0.005": {"gamma": 0.02, "epsilon": 0.005, "method": "backward"},
    }.items():
        layer = _DiagonalLinear()
        model = keras.Sequential([keras.Input([100]), layer])
        trainer = GradientRegularization(model, **options)
        trainer.compile(keras.optimizers.SGD(2e-4), _half_squared_error)
        _steps(trainer, x, y, np.arange(40)[np.newaxis].repeat(40000, axis=0))
        found = layer.coefficients().numpy()
        numbers[f"test error, {name}"] = np.sum((found - beta) ** 2)
        numbers[f"l1 norm, {name}"] = np.abs(found).sum()
        numbers[f"training loss, {name}"] = np.mean((x @ found - y[:, 0]) ** 2) / 2
    return numbers


@reproduction(
    MANIFOLD_PAPER,
    claim="Learning the smoothest function on the manifold generalizes from few labels, better "
    "than empirical risk and than manifold regularization that weighs all points alike, and "
    "estimates the Lipschitz constant.",
)
def two_moons_from_two_labels(seed):
    """202 points of two moons with noise 0.05 and one label each, drawn at random; two hidden
    layers of 64 ReLUs, mean squared error, epsilon 0.05, 8 neighbours, Adam with the rate 0.01,
    3000 full batches. Steepness is the local gradient on the graph. The figure shows the
    multipliers.
    """
    points, classes = make_moons(202, noise=0.05, random_state=seed)
    rng = np.random.default_rng(seed)
    labelled = [rng.choice(np.flatnonzero(classes == c)) for c in (0, 1)]
    x, y = points[labelled], 2.0 * classes[labelled, np.newaxis] - 1
    numbers = {}
    for name, rate in {"equal weights": 0.0, "primal-dual": 1e-2, "empirical risk": None}.items():
        keras.utils.set_random_seed(seed)
        hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
        model = keras.Sequential([keras.Input([2]), *hidden, keras.layers.Dense(1)])
        graph = heat_kernel_graph(points, 8)
        trainer = PrimalDualTraining(model, points, 0.05, graph, point_rate=rate or 0.0)
        trained = model if rate is None else trainer
        trained.compile(keras.optimizers.Adam(0.01), "mse")
        _steps(trained, x, y, np.arange(2)[np.newaxis].repeat(3000, axis=0))
        steepness = np.sqrt(trainer.squared_gradients())
        found = model(points)[:, 0].numpy() > 0
        numbers[f"accuracy, {name}"] = np.mean(found == (classes > 0))
        numbers[f"largest steepness, {name}"] = steepness.max()
        if name == "primal-dual":
            steepest = np.argsort(-steepness)[:20]
            multipliers = trainer.multipliers.numpy()
            numbers["share of the multipliers at the steepest tenth"] = multipliers[steepest].sum()
            figure = _multiplier_figure(points, model, multipliers, labelled)
    return numbers, figure


class _DiagonalLinear(keras.layers.Layer):
    """<u * u - v * v, x>"""

    def build(self, input_shape):
        start = keras.initializers.Constant(0.1)
        self.u, self.v = (self.add_weight(shape=input_shape[-1:], initializer=start) for _ in "uv")

    def coefficients(self):
        return self.u**2 - self.v**2

    def call(self, inputs):
        return keras.ops.sum(inputs * self.coefficients(), axis=-1, keepdims=True)


def _half_squared_error(y_true, y_pred):
    return keras.losses.mean_squared_error(y_true, y_pred) / 2


def _steps(model, x, y, batches):
    """One training step for each row of `batches`, numbers of examples, in one XLA program."""
    x, y = tf.constant(x, tf.float32), tf.constant(y, tf.float32)
    model.optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=True)
    def run(batches):
        def step(count):
            rows = batches[count]
            model.train_step((tf.gather(x, rows), tf.gather(y, rows)))
            return count + 1

        tf.while_loop(lambda count: count < tf.shape(batches)[0], step, [tf.constant(0)])

    run(tf.constant(batches, tf.int32))


def _one_sample_sam(train, bias, normalize, seed):
    rng = np.random.default_rng(seed)
    model = TwoLayerReLU(_FEATURES, _UNITS, bias, normalize)
    inputs = [_FEATURES] * (1 + bias) + [_UNITS]
    model.set_weights(
        [
            rng.uniform(-(n**-0.5), n**-0.5, weight.shape)
            for n, weight in zip(inputs, model.get_weights(), strict=True)
        ]
    )
    trainer = SAM(model, rho=0.5 if normalize else 0.1)
    trainer.compile(keras.optimizers.SGD(0.1 if normalize else 0.003), "mse")
    order = np.concatenate([rng.permutation(_EXAMPLES) for _ in range(1000)])
    _steps(trainer, train.features, train.labels[:, np.newaxis], order[:, np.newaxis])
    return model


def _sign_accuracy(model, data):
    return np.mean((model(data.features)[:, 0].numpy() > 0) == (data.labels > 0))


def _digits(seed, examples):
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, y = digits.data.astype("float32") / 16, digits.target
    return [(x[part], y[part]) for part in (order[:examples], order[examples:])]


def _trained_on_digits(wrap, train, seed, epochs=100, batch_size=50):
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(64, "tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input([64]), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = epochs * len(train[0]) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    trainer = wrap(model)
    trainer.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(1000, seed).batch(batch_size)
    Loop(trainer, data, epochs=epochs).run()
    model.compile(loss=loss, metrics=["accuracy"])
    return model


def _multiplier_figure(points, model, multipliers, labelled):
    """The learned function around the points, whose area is their multiplier."""
    low, high = points.min(axis=0) - 0.3, points.max(axis=0) + 0.3
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 120).T), axis=-1)
    values = model(grid.reshape(-1, 2)).numpy().reshape(120, 120)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    image = axis.contourf(grid[..., 0], grid[..., 1], values, 20, cmap="RdBu", alpha=0.6)
    axis.scatter(*points.T, s=4 + 2000 * multipliers, color="0.2", alpha=0.7, linewidths=0)
    axis.scatter(*points[labelled].T, s=120, marker="*", color="gold", edgecolors="black")
    axis.set_title("Learned function; points by their multipliers, stars labelled", fontsize=10)
    axis.set_aspect("equal")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure
