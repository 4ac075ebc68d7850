"""Neural operators on grids that they were not trained on, hard constraints, and triples."""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from kzoo.layers.grid_derivatives import GridDerivatives
from kzoo.layers.hard_constraint import PAPER as HARD_CONSTRAINT_PAPER
from kzoo.layers.spectral_conv import PAPER as OPERATOR_PAPER
from kzoo.layers.tensor_attention import PAPER as TENSOR_PAPER
from kzoo.layers.tensor_attention import TensorAttention
from kzoo.models.fno import FNO
from kzoo.models.neural_operator import to_neural_operator
from kzoo.models.pi_hc_moe import PIHCMoE
from kzoo.reproductions.registry import reproduction


@reproduction(
    OPERATOR_PAPER,
    claim="Neural operators keep their accuracy on grids that they were not trained on; a "
    "convolutional network does not.",
)
def fno_trained_at_16_points_and_evaluated_at_64(seed):
    """Burgers' equation u_t + u u_x = 0.1 u_xx on a periodic domain of length 2 pi, from random
    functions of 3 frequencies to t = 0.5, by a pseudo-spectral solver on 64 points. 256 functions
    for training, 64 for testing, Adam at 0.003 with a cosine decay, 100 epochs in batches of 32,
    on 16 points: an FNO (6 modes, 24 channels, 3 blocks), and a CNN (3 convolutions of 5 taps, 48
    channels, circular padding). On 64 points the CNN is evaluated as it is and converted to
    integrals by `to_neural_operator`, with the same weights. Measured: relative L2 error on the
    test functions on 16 and on 64 points.
    """
    keras.utils.set_random_seed(seed)
    starts, ends = _burgers(np.random.default_rng(seed), 320)
    fno = FNO(6, filters=24, blocks=3, hidden=48, coordinates=None)
    integrals, cnn = _circular_cnn(16), _circular_cnn(64)
    for model in (fno, integrals):
        rate = keras.optimizers.schedules.CosineDecay(3e-3, 100 * 8)
        model.compile(keras.optimizers.Adam(rate), "mse")
        model.fit(starts[:256, ::4], ends[:256, ::4], epochs=100, batch_size=32, verbose=0)
    cnn.set_weights(integrals.get_weights())
    grids = {
        "16 points": (starts[256:, ::4], ends[256:, ::4]),
        "64 points": (starts[256:], ends[256:]),
    }
    models = {"FNO": (fno, fno), "CNN": (integrals, cnn), "converted CNN": (integrals, integrals)}
    predicted = {
        f"{name}, {grid}": model(grids[grid][0]).numpy()
        for name, pair in models.items()
        for grid, model in zip(grids, pair, strict=True)
    }
    numbers = {
        f"relative error, {name}": _relative(each, grids[name.split(", ")[1]][1])
        for name, each in predicted.items()
    }
    return numbers, _solutions_figure(ends[256], {k: v[0] for k, v in predicted.items()})


@reproduction(
    TENSOR_PAPER,
    claim="Tensor attention detects triples (Match-3), which one layer of ordinary attention of "
    "that size cannot.",
)
def match_three_by_tensor_attention(seed):
    """Match-3 modulo 7 on 10 tokens: is there j, k with x_i + x_j + x_k = 0? The tokens of a row
    are drawn from 2 or 3 values, so that about half of the answers are yes. One head of key
    dimension 6 (tensor attention) or 10 (ordinary, so that it has no fewer weights), on an
    embedding of 6; a pointwise network of 16 hidden units reads token and attention. Adam at 0.01
    with a cosine decay, 2500 steps on fresh batches of 128. Measured: accuracy over the tokens of
    2000 new rows, the number of weights, and the accuracy of the more frequent answer.
    """
    numbers = {}
    for name, order, key_dim in (("tensor", 3, 6), ("ordinary", 2, 10)):
        keras.utils.set_random_seed(seed)
        tokens = keras.Input((10,), dtype="int32")
        x = keras.layers.Embedding(7, 6)(tokens)
        attended = TensorAttention(1, key_dim, order=order)(x)
        x = keras.layers.Concatenate()([x, attended])
        x = keras.layers.Dense(16, activation="relu")(x)
        model = keras.Model(tokens, keras.layers.Dense(1)(x))
        rate = keras.optimizers.schedules.CosineDecay(1e-2, 2500)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, steps_per_execution=50)
        rng = np.random.default_rng(seed)
        model.fit(*_match_three(rng, 2500 * 128), batch_size=128, shuffle=False, verbose=0)
        rows, answers = _match_three(rng, 2000)
        right = (model.predict(rows, batch_size=500, verbose=0) > 0) == answers
        numbers[f"accuracy, {name} attention"] = float(right.mean())
        numbers[f"weights, {name} attention"] = model.count_params()
    numbers["accuracy, more frequent answer"] = float(max(answers.mean(), 1 - answers.mean()))
    return numbers


@reproduction(
    HARD_CONSTRAINT_PAPER,
    claim="A mixture of hard constraints is more accurate than the same backbone trained with a "
    "soft penalty, and meets the equation better.",
)
def hard_constraints_against_a_soft_penalty(seed):
    """The Fisher equation u_t = 0.1 u_xx + 4 u (1 - u) on 16 points of t and x in [0, 1], 0 at both
    ends, from random sums of 2 sines; no solutions are seen in training. The backbone is an FNO
    (4 x 4 modes, 12 channels, 2 blocks); with hard constraints it predicts 8 basis functions for 1
    expert or for 1 in each half of x, with the soft penalty the solution; both meet the initial and
    boundary values by construction. 32 functions, Adam at 0.005, 60 steps in batches of 8 on the
    mean square of the residual; 16 other functions for testing. Measured: relative L2 error against
    a solver with small steps in time, and the root mean square of the equation's residual.
    """
    rng = np.random.default_rng(seed)
    starts, solutions = _fisher(rng, 48)
    numbers, pictures = {}, {}
    for name, experts in (("soft penalty", None), ("1 expert", (1, 1)), ("2 experts", (1, 2))):
        keras.utils.set_random_seed(seed)
        model = _soft_model() if experts is None else _hard_model(experts)
        model.compile(keras.optimizers.Adam(5e-3), {"residual": "mse", "solution": None})
        zeros = {"residual": np.zeros((32, 16, 16, 1), "float32")}
        model.fit(starts[:32], zeros, epochs=15, batch_size=8, verbose=0)
        outputs = {key: x.numpy()[..., 0] for key, x in model(starts[32:]).items()}
        numbers[f"relative error, {name}"] = _relative(outputs["solution"], solutions[32:])
        numbers[f"residual, {name}"] = float(np.sqrt(np.mean(outputs["residual"] ** 2)))
        pictures[name] = outputs["solution"][0]
    return numbers, _maps_figure(solutions[32], pictures)


def _burgers(rng, rows, points=64, viscosity=0.1, time=0.5, steps=100):
    """Functions [rows, points, 1] and their states at `time`, by RK4 with 2/3 dealiasing."""
    x = 2 * np.pi * np.arange(points) / points
    waves = np.arange(1, 4)[:, None] * x
    a, b = rng.normal(size=(2, rows, 3, 1)) / np.arange(1, 4)[:, None]
    u = start = (a * np.cos(waves) + b * np.sin(waves)).sum(1) / 2
    k = np.arange(points // 2 + 1)

    def slope(u):
        spectrum = np.fft.rfft(u) * (k < points / 3)
        squares = np.fft.rfft(np.fft.irfft(spectrum) ** 2) * (k < points / 3)
        return np.fft.irfft(-0.5j * k * squares - viscosity * k**2 * np.fft.rfft(u))

    h = time / steps
    for _ in range(steps):
        k1 = slope(u)
        k2 = slope(u + h / 2 * k1)
        k3 = slope(u + h / 2 * k2)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(u + h * k3))
    return start[..., None].astype("float32"), u[..., None].astype("float32")


def _circular_cnn(points):
    """On its own grid, the integrals of a converted network are its convolutions."""
    layers = [keras.layers.Conv1D(48, 5, padding="same", activation="gelu") for _ in range(3)]
    cnn = keras.Sequential([keras.Input((points, 1)), *layers, keras.layers.Dense(1)])
    return to_neural_operator(cnn, padding="periodic")


def _match_three(rng, rows, length=10, modulus=7):
    values = rng.permuted(np.tile(np.arange(modulus), (rows, 1)), axis=1)
    chosen = rng.integers(rng.integers(2, 4, (rows, 1)), size=(rows, length))
    tokens = np.take_along_axis(values, chosen, 1)
    present = np.zeros((rows, modulus), bool)
    np.put_along_axis(present, tokens, True, 1)
    pairs = np.stack(
        [(present & np.roll(present[:, ::-1], s + 1, 1)).any(1) for s in range(modulus)], 1
    )
    answers = np.take_along_axis(pairs, (-tokens) % modulus, 1)
    return tokens.astype("int32"), answers[..., None].astype("float32")


@keras.saving.register_keras_serializable("kzoo")
def fisher_residual(fields, data):
    """u_t - 0.1 u_xx - 4 u (1 - u)."""
    u, u_t, u_xx = tf.unstack(fields, axis=-1)
    return u_t - 0.1 * u_xx - 4 * u * (1 - u)


_FISHER = {"orders": ((1, 0), (0, 2)), "zero_at": ("start", "ends")}


def _fisher(rng, rows, points=16, steps_between=400):
    """Initial functions at all times [rows, t, x, 1], and the solutions [rows, t, x]."""
    x = np.linspace(0, 1, points)
    sines = np.sin(np.pi * np.arange(1, 3)[:, None] * x)
    u = (rng.uniform(0, 1, (rows, 2, 1)) * [[0.6], [0.2]] * sines).sum(1)
    states, h = [u], 1 / (points - 1) / steps_between
    for _ in range(points - 1):
        for _ in range(steps_between):
            second = np.zeros_like(u)
            second[:, 1:-1] = (u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]) * (points - 1) ** 2
            inside = 0.1 * second + 4 * u * (1 - u)
            inside[:, [0, -1]] = 0
            u = u + h * inside
        states.append(u)
    solutions = np.stack(states, 1)
    starts = np.repeat(solutions[:, :1], points, 1)
    return starts[..., None].astype("float32"), solutions


def _hard_model(experts):
    kwargs = {"modes": (4, 4), "basis": 8, "filters": 12, "blocks": 2, "hidden": 24}
    return PIHCMoE(
        (16, 16), experts=experts, residual=fisher_residual, iterations=15, **_FISHER, **kwargs
    )


def _soft_model():
    inputs = keras.Input((16, 16, 1))
    network = FNO((4, 4), filters=12, blocks=2, hidden=24)
    orders = ((0, 0), *_FISHER["orders"])
    fields = GridDerivatives(orders, zero_at=_FISHER["zero_at"])(network(inputs))
    fields = keras.layers.Add()([fields, GridDerivatives(orders)(inputs)])[..., 0]
    residual = keras.layers.Lambda(lambda x: fisher_residual(x, None)[..., None])(fields)
    return keras.Model(inputs, {"solution": fields[..., :1], "residual": residual})


def _relative(predicted, expected):
    return float(np.linalg.norm(predicted - expected) / np.linalg.norm(expected))


def _solutions_figure(expected, predicted):
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, grid in zip(panels, ("16 points", "64 points"), strict=True):
        axes.plot(np.arange(64) / 64, expected[:, 0], "k", lw=3, alpha=0.3, label="solution")
        for name, values in predicted.items():
            if name.endswith(grid):
                x = np.arange(len(values)) / len(values)
                axes.plot(x, values[:, 0], ".-", label=name.split(", ")[0])
        axes.set_title(grid)
        axes.set_xlabel("x / 2 pi")
        axes.legend()
    return figure


def _maps_figure(expected, predicted):
    figure = Figure(figsize=(2.4 * (len(predicted) + 1), 2.6), layout="constrained")
    maps = {"solution": expected, **predicted}
    for axes, (name, values) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        drawn = axes.imshow(values, origin="lower", vmin=expected.min(), vmax=expected.max())
        axes.set(title=name, xlabel="x", ylabel="t", xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes)
    return figure
