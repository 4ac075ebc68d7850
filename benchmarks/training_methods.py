"""What a step of a training method costs, in steps of the optimizer alone.

A pre-activation ResNet-20 on batches of 128 random images of 32 x 32, SGD with momentum; each step
is one call of a `tf.function` of `train_step`.
"""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measure import alternate
from benchmarks.report import main
from kzoo import training
from kzoo.models import PreActResNetCIFAR

_PLAIN = "the optimizer alone"
_METHODS = {
    "SAM": (training.SAM, {}, 2.1),
    "GAM, differences": (training.GAM, {"hessian": "differences"}, 4.2),
    "AcceleratedGAM": (training.AcceleratedGAM, {}, 4.2),
    "GradientRegularization": (training.GradientRegularization, {}, 2.1),
    "GAM, exact": (training.GAM, {}, None),
    "GradientRegularization, exact": (
        training.GradientRegularization, {"method": "double"}, None
    ),
}  # fmt: skip


def measure(options, report):
    rng = np.random.default_rng(0)
    rows = options.pick(128, 8)
    batch = (
        tf.constant(rng.normal(size=(rows, 32, 32, 3)).astype("float32")),
        tf.constant(rng.integers(0, 10, rows)),
    )
    contenders = {_PLAIN: _step(_network(), batch)}
    for name, (cls, arguments, _) in _METHODS.items():
        contenders[name] = _step(cls(_network(), **arguments), batch)
    timings = alternate(contenders, options.times(15), unit="step")
    report.add_timings(f"ResNet-20, batch {rows}", timings)
    for name, (_, _, goal) in _METHODS.items():
        ratio = timings[name].median / timings[_PLAIN].median
        report.add_ratio(f"{name}: time, over a plain step", ratio, at_most=goal)


def _network():
    keras.utils.set_random_seed(0)
    return PreActResNetCIFAR(
        input_shape=(32, 32, 3), classes=10, depth=20, bottleneck=False, classifier_activation=None
    )


def _step(model, batch):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.build(batch[0].shape)
    model.optimizer.build(model.trainable_variables)
    return tf.function(lambda: model.train_step(batch)).get_concrete_function()


if __name__ == "__main__":
    main("training_methods", "Training methods", measure, __doc__)
