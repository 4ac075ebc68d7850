"""What layers cost that stand in for a built-in one: forward and backward pass, over its time.

Each runs in a `tf.function` on batches of 32, with gradients of all weights and of the input.
"""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measure import alternate
from benchmarks.report import main
from kzoo import layers

_IMAGES, _TOKENS, _VECTORS = (28, 28, 64), (64, 256), (512,)
# kzoo's layer, the built-in one that it replaces, and the shape of an input.
_PAIRS = {
    "PHMDense(512, n=4) over Dense": (
        lambda: layers.PHMDense(512, n=4), lambda: keras.layers.Dense(512), _VECTORS
    ),
    "PHMConv2D(64, 3, n=4) over Conv2D": (
        lambda: layers.PHMConv2D(64, 3, n=4, padding="same"),
        lambda: keras.layers.Conv2D(64, 3, padding="same"),
        _IMAGES,
    ),
    "QuadraticDense(512) over Dense": (
        lambda: layers.QuadraticDense(512), lambda: keras.layers.Dense(512), _VECTORS
    ),
    "QuadraticConv2D(64, 3) over Conv2D": (
        lambda: layers.QuadraticConv2D(64, 3, padding="same"),
        lambda: keras.layers.Conv2D(64, 3, padding="same"),
        _IMAGES,
    ),
    "GDN over BatchNormalization": (layers.GDN, keras.layers.BatchNormalization, _IMAGES),
    "PowerNormalization over LayerNormalization": (
        layers.PowerNormalization, keras.layers.LayerNormalization, _TOKENS
    ),
    "PowerNormalization over BatchNormalization": (
        layers.PowerNormalization, keras.layers.BatchNormalization, _TOKENS
    ),
    "InceptionDepthwiseConv2D over DepthwiseConv2D(7)": (
        layers.InceptionDepthwiseConv2D,
        lambda: keras.layers.DepthwiseConv2D(7, padding="same"),
        _IMAGES,
    ),
}  # fmt: skip


def measure(options, report):
    batch = options.pick(32, 2)
    for name, (ours, theirs, shape) in _PAIRS.items():
        x = tf.constant(np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32"))
        contenders = {"kzoo": _step(ours(), x), "keras": _step(theirs(), x)}
        timings = alternate(contenders, options.times(15), unit="step")
        report.add_timings(name, timings)
        report.add_ratio(f"{name}: time", timings["kzoo"].median / timings["keras"].median)


def _step(layer, x):
    # A model passes `training` on only to a layer that takes it.
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            loss = tf.reduce_sum(y * y)
        return tape.gradient(loss, [x, *model.trainable_variables])

    return step.get_concrete_function()


if __name__ == "__main__":
    main("layers", "Layers", measure, __doc__)
