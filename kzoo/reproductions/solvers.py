"""Block coordinate descent, large steps, Prospect and deep conjugate directions, measured."""

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits

from kzoo.losses.spectral_risk import (
    SpectralRisk,
    risk_spectrum,
    spectral_risk_value,
    spectral_weights,
)
from kzoo.models import dcdm
from kzoo.models.dcdm import DCDMNet
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction
from kzoo.solvers import (
    L1,
    BlockCoordinateDescent,
    DeepConjugateDirection,
    LeastSquares,
    LogisticRegression,
    PoissonOperator,
    Prospect,
    ScaledResidualLoss,
    batch_perceptron,
    coloring_partition,
    forest_partition,
    forests,
    label_propagation,
    large_step_logistic,
    logistic_gradient_descent,
    prospect,
    ritz_right_hand_sides,
)


@reproduction(
    forests.PAPER,
    claim="Better greedy rules and updates of higher order make more progress per block than "
    "Gauss-Southwell with a gradient step.",
)
def greedy_blocks_and_newton_steps(seed):
    """Logistic regression, 500 examples of 200 normal features whose scales differ by exp(0.7 z), z
    normal, labels of a linear model with 10 % noise, l2 = 10, blocks of 20 variables, f* by
    Newton's method. Steps until f - f* <= 1e-6 (f_0 - f*); 2000 where they do not suffice.
    Lasso on the same features, variable blocks of 20 and of 40: after how many steps the support is
    final, and the optimality condition is met to 1e-11, at most 5000."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(500, 200)) * np.exp(0.7 * rng.normal(size=200))
    labels = np.sign(features @ rng.normal(size=200)) * rng.choice([1, -1], 500, p=[0.9, 0.1])
    problem = LogisticRegression(features, labels, l2=10.0)
    best = BlockCoordinateDescent(block_size=200, tolerance=1e-9).minimize(problem).values[-1]
    numbers, lines = {}, {}
    for name, options in _RULES.items():
        values = BlockCoordinateDescent(**options, max_iterations=2000).minimize(problem).values
        gaps = (values - best) / (values[0] - best)
        reached = np.flatnonzero(gaps <= 1e-6)
        numbers[f"{name}: steps"] = int(reached[0]) if len(reached) else 2000
        lines[name] = np.maximum(gaps[:500], 1e-12)
    numbers |= _lasso(features, rng)
    return numbers, curves({"(f - f*) / (f(0) - f*)": lines}, log=["(f - f*) / (f(0) - f*)"])


_RULES = {
    "random, gradient": {"rule": "random", "update": "gradient", "blocks": "sorted"},
    "GS, gradient": {"rule": "gs", "update": "gradient", "blocks": "sorted"},
    "GSL, gradient": {"rule": "gsl", "update": "gradient", "blocks": "sorted"},
    "GSQ, matrix": {"rule": "gsq", "update": "matrix", "blocks": "sorted"},
    "GSD, matrix, variable": {"rule": "gsd", "update": "matrix", "blocks": "variable"},
    "GSD, Newton, variable": {"rule": "gsd", "update": "newton", "blocks": "variable"},
}


def _lasso(features, rng):
    truth = np.where(rng.random(200) < 0.05, rng.normal(size=200), 0.0)
    problem = LeastSquares(features, features @ truth + rng.normal(size=500))
    penalty = L1(0.02 * np.abs(problem.gradient(np.zeros(200))).max())
    numbers = {}
    for name, update, size in (("gradient", "gradient", 20), ("second order", "newton", 40)):
        solver = BlockCoordinateDescent(
            "gsd", update, block_size=size, penalty=penalty, tolerance=1e-11, max_iterations=5000
        )
        result = solver.minimize(problem)
        numbers[f"lasso, {name}: support final after"] = result.identified_at
        numbers[f"lasso, {name}: solved after"] = result.iterations
        numbers[f"lasso, {name}: nonzeros"] = int((~result.active).sum())
    return numbers


@reproduction(
    forests.PAPER,
    claim="Message passing updates large tree-structured blocks exactly, which is faster than "
    "blocks without edges.",
)
def forest_blocks_in_label_propagation(seed):
    """Label propagation on a lattice of 30 x 30, 100 random nodes labelled -1 or 1. Steps until the
    gradient is below 1e-6: blocks in turn, of no edges (red-black) or of forests; one forest chosen
    anew in each step, at random or greedily (GSD)."""
    rng = np.random.default_rng(seed)
    operator = PoissonOperator(np.zeros((30, 30), bool)).matrix()
    weights = (operator < 0).astype(float)
    labels = np.full(900, np.nan)
    labels[rng.choice(900, 100, replace=False)] = rng.choice([-1.0, 1.0], 100)
    problem, _ = label_propagation(weights, labels)
    cases = {
        "red-black in turn": ("cyclic", coloring_partition(problem.matrix)),
        "two forests in turn": ("cyclic", forest_partition(problem.matrix)),
        "random forest": ("random", "forest"),
        "greedy forest": ("gsd", "forest"),
    }
    numbers, lines = {}, {}
    for name, (rule, blocks) in cases.items():
        solver = BlockCoordinateDescent(
            rule, "message_passing", blocks, tolerance=1e-6, max_iterations=3000, seed=seed
        )
        lines[name] = solver.minimize(problem).violations
        numbers[f"{name}: steps"] = len(lines[name]) - 1
    return numbers, curves({"largest derivative": lines}, log=["largest derivative"])


@reproduction(
    large_step_logistic.PAPER,
    claim="Larger steps have larger losses and separate the data sooner; with huge steps gradient "
    "descent is the batch perceptron; the normalized method is better where classes are unequal.",
)
def large_steps_in_logistic_regression(seed):
    """scikit-learn's digits 3 and 8, pixels in [0, 1] and a column of ones; all of both (balanced),
    and 10 of the eights (imbalanced), drawn by the seed. Steps of full-batch gradient descent from
    0 until all are classified, at most 50000, and the largest loss on the way. The worst case of
    theorem 5.1 has n = 1000; with it the paper's table 1 has 308 steps at the step 100, and 2, 2,
    16 and 157 with the normalized method at 100, 10, 1 and 0.1."""
    features, labels = _digit_pair(3, 8)
    rng = np.random.default_rng(seed)
    rare = np.r_[np.flatnonzero(labels > 0), rng.choice(np.flatnonzero(labels < 0), 10, False)]
    worst = np.tile([-0.5, -1.0], (1000, 1))
    worst[0, 0] = 0.5
    sets = {
        "balanced": (features, labels),
        "imbalanced": (features[rare], labels[rare]),
        "worst case": (worst, np.where(worst[:, 0] > 0, 1, -1)),
    }
    numbers, lines = {}, {"loss, balanced": {}, "accuracy, balanced": {}}
    for name, data in sets.items():
        for step in (0.1, 1.0, 10.0, 100.0):
            title = f"{name}, step {step:g}"
            run = logistic_gradient_descent(*data, step, max_steps=50000)
            numbers[f"{title}: steps"] = _steps(run)
            if name == "balanced":
                numbers[f"{title}: largest loss"] = run.losses.max()
                lines["loss, balanced"][f"step {step:g}"] = run.losses[:300]
                lines["accuracy, balanced"][f"step {step:g}"] = run.accuracies[:300]
            run = logistic_gradient_descent(*data, step, normalized=True, max_steps=50000)
            numbers[f"{title}, normalized: steps"] = _steps(run)
        numbers[f"{name}, batch perceptron: steps"] = _steps(batch_perceptron(*data))
        run = batch_perceptron(*data, normalized=True)
        numbers[f"{name}, normalized batch perceptron: steps"] = _steps(run)
    padded = {panel: _padded(of_panel, 300) for panel, of_panel in lines.items()}
    return numbers, curves(padded, np.arange(300), log=["loss, balanced"])


def _steps(run):
    return len(run.losses) - 1 if run.separated_at is None else run.separated_at


def _padded(lines, length):
    """Lines of one length, with nothing after their ends."""
    return {name: np.r_[line, np.full(length - len(line), np.nan)] for name, line in lines.items()}


def _digit_pair(first, second):
    digits = load_digits()
    kept = np.isin(digits.target, (first, second))
    pixels = digits.data[kept] / 16
    ones = np.ones((len(pixels), 1))
    return np.hstack([pixels, ones]), np.where(digits.target[kept] == first, 1, -1)


@reproduction(
    prospect.PAPER,
    claim="Prospect converges linearly to the minimum of a spectral risk with one learning rate; "
    "stochastic gradients of batches do not.",
)
def prospect_against_batches(seed):
    """Ridge regression on scikit-learn's diabetes data (442 x 10, standardized), squared errors,
    CVaR of the worst half, chi-square with shift cost 1, l2 = 1/442 as in the paper, 64 epochs. F*
    by L-BFGS. (F - F*) / (F_0 - F*) at the end, for the best learning rate of each method: 0.001,
    0.003 or 0.01 for Prospect, 0.003, 0.01, 0.03 or 0.1 for SGD, which has batches of 64."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]
    spectrum = risk_spectrum("cvar", 0.5, len(x))
    best = _minimum(x, y, spectrum)
    runs = {
        "Prospect": [_prospect(x, y, rate, seed) for rate in (0.001, 0.003, 0.01)],
        "SGD": [_batches(x, y, rate, seed, spectrum) for rate in (0.003, 0.01, 0.03, 0.1)],
    }
    numbers, lines = {}, {}
    for name, histories in runs.items():
        history = min(histories, key=lambda values: np.nan_to_num(values[-1], nan=np.inf))
        gaps = (history - best) / (history[0] - best)
        numbers[f"{name}: relative suboptimality"] = gaps[-1]
        below = np.flatnonzero(gaps < 1e-2)
        numbers[f"{name}: epochs to 1e-2"] = int(below[0]) if len(below) else len(gaps)
        lines[name] = np.maximum(gaps, 1e-16)
    panel = "(F - F*) / (F_0 - F*)"
    return numbers, curves({panel: lines}, np.arange(65), "epoch", [panel])


def _linear(dtype, regularizer=None):
    layer = keras.layers.Dense(
        1, use_bias=False, dtype=dtype, kernel_initializer="zeros", kernel_regularizer=regularizer
    )
    return keras.Sequential([keras.Input([10], dtype=dtype), layer])


def _prospect(x, y, rate, seed):
    model, l2 = _linear("float64"), 1 / len(x)
    solver = Prospect(model, "mean_squared_error", learning_rate=rate, l2=l2, seed=seed)
    return solver.fit(x, y, epochs=64)


def _batches(x, y, rate, seed, spectrum):
    keras.utils.set_random_seed(seed)
    model = _linear("float32", keras.regularizers.L2(0.5 / len(x)))
    model.compile(keras.optimizers.SGD(rate), SpectralRisk("mean_squared_error"))
    weights = [np.zeros(10)]
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(model.get_weights()[0][:, 0])
    )
    model.fit(x, y, batch_size=64, epochs=64, verbose=0, callbacks=[record])
    return np.array([_objective(w, x, y, spectrum)[0] for w in weights])


def _objective(w, x, y, spectrum):
    """F and its gradient."""
    errors = x @ w - y[:, 0]
    value = spectral_risk_value(errors**2, spectrum, 1.0)
    weights = spectral_weights(errors**2, spectrum, 1.0).numpy()
    return float(value) + w @ w / (2 * len(x)), x.T @ (2 * weights * errors) + w / len(x)


def _minimum(x, y, spectrum):
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 2000}
    found = minimize(
        _objective, np.zeros(10), (x, y, spectrum), "L-BFGS-B", jac=True, options=options
    )
    return found.fun


@reproduction(
    dcdm.PAPER,
    claim="With a network's directions a Poisson system is solved in few steps, fewer than by "
    "conjugate gradients, also on grids that it was not trained on.",
)
def deep_conjugate_directions_on_poisson(seed):
    """`DCDMNet` (16 filters, two residual pairs at each resolution), trained on 2048 mixtures of
    200 Ritz vectors of the 32 x 32 grid without obstacles: Adam, 20 epochs, batches of 32, rate
    2e-3 with a cosine decay. The paper has 3D grids of up to 256^3, 20000 mixtures of 10000 vectors
    and days of training. Steps until ||r|| <= 1e-4 ||b||, mean over 8 right-hand sides with
    independent normal entries; conjugate gradients are the same solver with the identity as its
    network. A step with the network costs far more than one without: these are counts, no times."""
    keras.utils.set_random_seed(seed)
    operator = PoissonOperator(np.zeros((32, 32), bool))
    b = ritz_right_hand_sides(operator, 2048, num_vectors=200, seed=seed)
    model = DCDMNet(filters=16, coarse_blocks=2, fine_blocks=2)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, 20 * 64)
    model.compile(keras.optimizers.Adam(rate), ScaledResidualLoss(operator))
    history = model.fit(b, b, batch_size=32, epochs=20, verbose=0).history["loss"]
    numbers = {"training loss, first epoch": history[0], "training loss, last": history[-1]}
    panels = {}
    rng = np.random.default_rng(seed + 1)
    for name, grid in _grids(rng).items():
        right = rng.normal(size=(8, *grid.shape)).astype("float32")
        panels[name] = {}
        for method, direction in (("conjugate gradients", tf.identity), ("network", model)):
            solver = DeepConjugateDirection(direction, grid, tolerance=1e-4, max_steps=500)
            solution = solver.solve(right)
            numbers[f"{name}, {method}: steps"] = solution.steps.mean()
            numbers[f"{name}, {method}: share solved"] = solution.converged.mean()
            panels[name][method] = np.exp(np.log(np.maximum(solution.residuals, 1e-6)).mean(1))
    longest = max(len(line) for lines in panels.values() for line in lines.values())
    padded = {panel: _padded(lines, longest) for panel, lines in panels.items()}
    return numbers, curves(padded, np.arange(longest), "step", list(padded))


def _grids(rng):
    obstacles = np.zeros((64, 64), bool)
    for row, column in rng.integers(6, 50, size=(6, 2)):
        obstacles[row : row + 8, column : column + 8] = True
    return {
        "32 x 32": PoissonOperator(np.zeros((32, 32), bool)),
        "64 x 64": PoissonOperator(np.zeros((64, 64), bool)),
        "64 x 64, obstacles": PoissonOperator(obstacles),
    }
