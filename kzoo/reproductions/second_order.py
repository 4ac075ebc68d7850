"""Second derivatives at work: steps without a learning rate, and learned decays of every weight."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction
from kzoo.training.hypergradient import PAPER as HYPERGRADIENT_PAPER
from kzoo.training.hypergradient import HypergradientTrainer, decay_variables, l2_decay
from kzoo.training.oasis import OASIS, PAPER

_RATES = tuple(10.0**exponent for exponent in np.arange(-3, 2.01, 0.5))
# Gradients in a step: those at this step's and at the last weights, and a product with the Hessian
# for two.
_GRADIENTS_PER_OASIS_STEP = 4


@reproduction(
    PAPER,
    claim="Without tuning, OASIS is competitive with tuned first-order methods on badly scaled "
    "problems.",
)
def oasis_on_badly_scaled_logistic_regression(seed):
    """Logistic regression, 1000 synthetic rows of 50 features whose scales go from 0.1 to 10 (a
    Hessian of condition number 1e4 and more), labels drawn from the model with weights that matter
    alike; the whole data in every step, float64, from w = 0. OASIS with its defaults, against SGD,
    SGD with momentum 0.9 and Adam, each with the best of 11 learning rates from 0.001 to 100.
    Measured: gradients (of which an OASIS step counts 4) until the norm of the gradient is below
    1e-4 for the first time, at most 4000, and the norm after 2000 gradients; for the others at the
    learning rate that is best by the first, then by the second.
    """
    data = _badly_scaled(seed)
    norms = {"OASIS": _gradient_norms(data, keras.optimizers.SGD(1.0), 1000, oasis=True)}
    norms["OASIS"] = np.repeat(norms["OASIS"], _GRADIENTS_PER_OASIS_STEP)
    chosen = {}
    for name, make in {
        "SGD": keras.optimizers.SGD,
        "SGD, momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
        "Adam": keras.optimizers.Adam,
    }.items():
        runs = {rate: _gradient_norms(data, make(rate), 4000) for rate in _RATES}
        chosen[name] = min(_RATES, key=lambda rate: (_until(runs[rate]), runs[rate][1999]))
        norms[name] = runs[chosen[name]]
    numbers = {f"gradients, {name}": _until(each) for name, each in norms.items()}
    numbers |= {f"norm after 2000, {name}": each[1999] for name, each in norms.items()}
    numbers |= {f"learning rate, {name}": rate for name, rate in chosen.items()}
    lines = {name: each[3:4000:4] for name, each in norms.items()}
    panel = "norm of the gradient"
    return numbers, curves(
        {panel: lines}, x=np.arange(4, 4001, 4), xlabel="gradients", log=(panel,)
    )


@reproduction(
    HYPERGRADIENT_PAPER,
    claim="Implicit hypergradients tune as many hyper-parameters as there are weights: decays of "
    "single weights overfit a small validation set.",
)
def decays_overfit_a_small_validation_set(seed):
    """50 digits of 8 x 8 pixels for training, 50 for validation, 1697 for testing; one hidden layer
    of 64 tanh units. The weights are first trained with a decay of 0.001 on all (1000 steps of SGD,
    0.1), then 600 outer steps (Adam, 0.1, on the logarithms of the decays) follow, with 10 of the
    same SGD before each, on whole batches. The decays are one for each weight or one for each
    kernel and bias; the inverse is a Neumann series of 20 terms or its first (T1-T2). Measured:
    cross-entropy on the validation rows before, after, and their ratio, and the accuracy on
    validation and test rows.
    """
    parts = _digits(seed)
    settings = {
        "per weight, Neumann": ("weight", 20),
        "per variable, Neumann": ("variable", 20),
        "per weight, T1-T2": ("weight", 1),
    }
    numbers, lines = {}, {}
    for name, (per, terms) in settings.items():
        measured, lines[name] = _learn_decays(seed, parts, per, terms)
        numbers |= {f"{what}, {name}": value for what, value in measured.items()}
    panel = "validation cross-entropy"
    return numbers, curves({panel: lines}, xlabel="outer step", log=(panel,))


def _badly_scaled(seed, rows=1000, features=50):
    rng = np.random.default_rng(seed)
    scales = np.logspace(-1, 1, features)
    x = rng.normal(size=(rows, features)) * scales
    w = rng.normal(size=features) / scales / np.sqrt(features) * 2
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-x @ w))
    return tf.constant(x, tf.float64), tf.constant(y[:, None], tf.float64)


def _gradient_norms(data, optimizer, steps, oasis=False):
    """Norms of the gradient after each of the steps, from zero weights."""
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="float64")
    inputs = keras.Input([data[0].shape[1]], dtype="float64")
    model = keras.Model(inputs, dense(inputs))
    loss = keras.losses.BinaryCrossentropy(from_logits=True, dtype="float64")
    trainer = OASIS(model, dtype="float64") if oasis else model
    trainer.compile(optimizer, loss)
    optimizer.build(trainer.trainable_variables)

    def norm():
        with tf.GradientTape() as tape:
            value = loss(data[1], model(data[0]))
        return tf.linalg.global_norm(tape.gradient(value, [dense.kernel.value]))

    @tf.function
    def run():
        norms = tf.TensorArray(tf.float64, steps)
        for step in tf.range(steps):
            trainer.train_step(data)
            norms = norms.write(step, norm())
        return norms.stack()

    return run().numpy()


def _until(norms, tolerance=1e-4):
    """Number of the first gradient norm below the tolerance; one more than all if there is none."""
    below = np.flatnonzero(norms < tolerance)
    return int(below[0]) + 1 if len(below) else len(norms) + 1


def _digits(seed):
    """(x, y) of 50 training, 50 validation and all other digits, the pixels in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
    return [(x[rows], y[rows]) for rows in (slice(50), slice(50, 100), slice(100, None))]


def _learn_decays(seed, parts, per, terms):
    """What was measured, and the validation loss at every outer step."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(64, "tanh"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input([64]), *layers])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(model, decays, batch):
        return cross_entropy(batch[1], model(batch[0]))

    def decayed(model, decays, batch):
        return loss(model, decays, batch) + l2_decay(model.trainable_variables, decays)

    decays = decay_variables(model.trainable_variables, per, initial=1e-3)
    train, validation = map(tf.data.Dataset.from_tensors, parts[:2])

    def fit(inner_steps, outer_steps, hyper_optimizer):
        optimizer = keras.optimizers.SGD(0.1)
        trainer = HypergradientTrainer(
            model, decays, decayed, loss, optimizer, hyper_optimizer, inner_steps, terms=terms
        )
        history = trainer.fit(train, validation, epochs=outer_steps, steps_per_epoch=1)
        return history.history["val_loss"]

    # With a learning rate of 0 the decays stay what they are.
    (start,) = fit(1000, 1, keras.optimizers.SGD(0.0))
    history = fit(10, 600, keras.optimizers.Adam(0.1))
    measured = {
        "loss before": start,
        "loss after": history[-1],
        "ratio": history[-1] / start,
        "validation accuracy": _accuracy(model, *parts[1]),
        "test accuracy": _accuracy(model, *parts[2]),
    }
    return measured, history


def _accuracy(model, x, y):
    return float(np.mean(model.predict(x, verbose=0).argmax(-1) == y))
