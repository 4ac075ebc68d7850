"""Jacobian descent: every image an objective, and two tasks in conflict."""

import keras
import numpy as np
import tensorflow as tf

from kzoo.data.builtin import digits
from kzoo.ops.aggregation import MGDA, DualProj, Mean, UPGrad
from kzoo.plots import curves
from kzoo.reproductions.registry import reproduction
from kzoo.training.jacobian_descent import PAPER, InstanceWiseRiskMinimization, JacobianDescent

_ROWS = 1024
_BATCH = 32
_EPOCHS = 8
_AGGREGATORS = {"mean": Mean, "UPGrad": UPGrad, "DualProj": DualProj, "MGDA": MGDA}
_RATES = {"mean": (0.1, 0.2, 0.4, 0.8), "UPGrad": (0.05, 0.1, 0.2), "DualProj": (0.1, 0.2, 0.4)}


@reproduction(
    PAPER,
    claim="Instance-wise risk minimization with UPGrad lowers the training loss faster than "
    "descent along the mean gradient, and its updates depart from the mean gradient.",
)
def instance_wise_risk_minimization_on_digits(seed):
    """1024 of scikit-learn's digits, 8 x 8 pixels; two convolutions (16, 32) and dense layers of 64
    and 10; SGD without momentum, batches of 32, 8 epochs, in the same order for all. For each
    aggregator the best of its learning rates (the mean 0.1, 0.2, 0.4, 0.8; UPGrad 0.05, 0.1, 0.2;
    DualProj 0.1, 0.2, 0.4) by the area under its curve of the training loss, as in the paper, which
    has 1024 images of SVHN, CIFAR-10 and four others, other networks, and finer grids. The training
    loss is the mean over all 1024 images before the first and after each epoch. The similarity is
    the cosine between the aggregator's update and the mean gradient, over 8 batches, at the weights
    of the run with UPGrad; MGDA is only looked at there.
    """
    images, labels = _images(seed)
    test = digits("test", seed=seed)
    numbers, losses, similarity = {}, {}, {}
    for name in _RATES:
        runs = [_run(name, rate, images, labels, seed) for rate in _RATES[name]]
        best = min(runs, key=lambda run: np.mean(run["losses"]))
        losses[name] = best["losses"]
        predicted = best["model"].predict(test.features, verbose=0).argmax(1)
        numbers |= {
            f"{name}: learning rate": best["rate"],
            f"{name}: mean training loss over the epochs": np.mean(best["losses"]),
            f"{name}: training loss after one epoch": best["losses"][1],
            f"{name}: training loss at the end": best["losses"][-1],
            f"{name}: test accuracy": np.mean(predicted == test.labels),
        }
        if name == "UPGrad":
            similarity = best["similarity"]
    for name, values in similarity.items():
        numbers[f"{name}: cosine with the mean, before training"] = values[0]
        numbers[f"{name}: cosine with the mean, after training"] = values[-1]
    panels = {"training loss": losses, "cosine with the mean gradient": similarity}
    return numbers, curves(panels, x=range(_EPOCHS + 1), xlabel="epoch", log=("training loss",))


@reproduction(
    PAPER,
    claim="Where the gradients of two tasks conflict and differ in scale, UPGrad lowers both "
    "losses in every step; the mean gradient lets the larger raise the smaller.",
)
def two_tasks_in_conflict(seed):
    """256 rows of 10 standard normal numbers, two linear targets whose directions are at an angle
    of 120 degrees, the second three times as large; a trunk of one linear unit that both tasks
    share and give as it is. Gradient descent on all rows, learning rate 0.01, 200 steps, from a
    trunk that is nearly right for the first task. A toy of our own: the paper draws
    trajectories on quadratic functions of two parameters.
    """
    numbers, lines = {}, {"first task": {}, "second task": {}}
    for name, aggregator in (("mean", Mean()), ("UPGrad", UPGrad())):
        first, second = _two_tasks(aggregator, seed)
        lines["first task"][name], lines["second task"][name] = first, second
        numbers |= {
            f"{name}: share of steps that raise the first loss": _rises(first),
            f"{name}: share of steps that raise the second loss": _rises(second),
            f"{name}: first loss, start": first[0],
            f"{name}: first loss, end": first[-1],
            f"{name}: second loss, start": second[0],
            f"{name}: second loss, end": second[-1],
        }
    return numbers, curves(lines, xlabel="step")


def _rises(losses):
    """The share of the steps that raise the loss by more than rounding."""
    losses = np.array(losses)
    return np.mean(np.diff(losses) > 1e-6 * losses[:-1])


def _images(seed):
    train = digits("train", seed=seed)
    return train.features[:_ROWS], train.labels[:_ROWS]


def _network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )


def _run(name, rate, images, labels, seed):
    """The training loss after each epoch, from the untrained network on, and similarities."""
    model = _network(seed)
    # The mean needs no Jacobian: it is what `fit` does.
    plain = name == "mean"
    trainer = model if plain else InstanceWiseRiskMinimization(model, _AGGREGATORS[name]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(rate), loss)
    recorder = _Recorder(images, labels, similarities=name == "UPGrad")
    rows = tf.data.Dataset.from_tensor_slices((images, labels))
    rows = rows.shuffle(_ROWS, seed=seed, reshuffle_each_iteration=True).batch(_BATCH)
    trainer.fit(rows, epochs=_EPOCHS, shuffle=False, callbacks=[recorder], verbose=0)
    return {
        "rate": rate,
        "model": model,
        "losses": recorder.losses,
        "similarity": recorder.similarities,
    }


class _Recorder(keras.callbacks.Callback):
    def __init__(self, images, labels, similarities):
        super().__init__()
        self._rows = images, labels
        self._aggregators = {}
        if similarities:
            self._aggregators = {n: make() for n, make in _AGGREGATORS.items() if n != "mean"}
        self.losses = []
        self.similarities = {name: [] for name in self._aggregators}

    def on_train_begin(self, logs=None):
        self._cosines = tf.function(self._of_batch, autograph=False)
        self._record()

    def on_epoch_end(self, epoch, logs=None):
        self._record()

    def _record(self):
        images, labels = self._rows
        model = getattr(self.model, "model", self.model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.losses.append(float(loss(labels, model.predict(images, batch_size=256, verbose=0))))
        if not self._aggregators:
            return
        starts = range(0, 8 * _BATCH, _BATCH)
        found = [self._cosines(images[i : i + _BATCH], labels[i : i + _BATCH]) for i in starts]
        for values, value in zip(self.similarities.values(), np.mean(found, axis=0), strict=True):
            values.append(float(value))

    def _of_batch(self, images, labels):
        jacobian = self.model.jacobian(images, labels)
        mean = tf.reduce_mean(jacobian, axis=0)
        return [
            -keras.losses.cosine_similarity(mean, aggregator(jacobian))
            for aggregator in self._aggregators.values()
        ]


def _two_tasks(aggregator, seed):
    """The losses of both tasks before each step."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(256, 10)).astype("float32")
    basis = np.linalg.qr(rng.normal(size=(10, 2)))[0].astype("float32")
    directions = [basis[:, :1], 3 * (-0.5 * basis[:, :1] + 0.75**0.5 * basis[:, 1:])]
    inputs = keras.Input([10])
    trunk = keras.layers.Dense(1, use_bias=False)
    shared = trunk(inputs)
    ends = {name: keras.layers.Identity()(shared) for name in ("first", "second")}
    trunk.kernel.assign(directions[0] + 0.3 * basis[:, 1:] + 0.1 * rng.normal(size=(10, 1)))
    trainer = JacobianDescent(keras.Model(inputs, ends), aggregator)
    trainer.compile(keras.optimizers.SGD(0.01), dict.fromkeys(ends, "mse"))
    targets = {name: x @ each for name, each in zip(ends, directions, strict=True)}
    history = trainer.fit(x, targets, batch_size=256, epochs=200, shuffle=False, verbose=0).history
    return history["first_loss"], history["second_loss"]
