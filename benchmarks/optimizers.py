"""One optimizer step over the 214 trainable tensors of ResNet-50, 25.6 M parameters.

Each optimizer has variables and slots of its own and the same gradients, and is called as in
training, from a tf.function. The floor of an optimizer is the number of bytes that it must read
and write, over the rate of the best memory stream of all cores in the same run. What a step may
hold for itself is one temporary per tensor: the size of the weights.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measure import alternate, stream_gbs
from benchmarks.peak import allocated, timed
from benchmarks.report import main
from kzoo import optimizers

_ADAM = "keras Adam"
_ADAM_XLA = "keras Adam, jit_compile=True"


def _sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


@dataclass(frozen=True)
class _Ours:
    """An optimizer of kzoo.

    Args:
        make: makes it.
        slots: tensors per weight. A step reads the gradient, the weight and the slots, and writes
            the latter two.
        peer: its name in pytorch_optimizer, if it is there.
    """

    make: Callable
    slots: int
    peer: str | None = None


_OURS = {
    "AdEMAMix": _Ours(lambda: optimizers.AdEMAMix(warmup_steps=10_000), 3, "AdEMAMix"),
    "Grams": _Ours(optimizers.Grams, 2, "Grams"),
    "CautiousAdamW": _Ours(optimizers.CautiousAdamW, 2),
    "CautiousLion": _Ours(optimizers.CautiousLion, 1),
    "AMSGrad": _Ours(optimizers.AMSGrad, 3),
    "AdamNC": _Ours(optimizers.AdamNC, 2),
    "OptAMSGrad": _Ours(optimizers.OptAMSGrad, 10),
    "DiffGrad": _Ours(optimizers.DiffGrad, 3, "DiffGrad"),
    "GradientNoise over SGD": _Ours(lambda: optimizers.GradientNoise(_sgd()), 1),
    "CoordinateClip over SGD": _Ours(lambda: optimizers.CoordinateClip(_sgd()), 1),
    "LearningRateMultipliers over SGD": _Ours(
        lambda: optimizers.LearningRateMultipliers(_sgd()), 1
    ),
}
_OVER_FLOOR, _OVER_ADAM, _OVER_PEER = 2.0, 2.0, 3.0


def measure(options, report):
    shapes = resnet50_shapes()[:: options.pick(1, 40)]
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.standard_normal(shape, "float32")) for shape in shapes]
    contenders = {name: step(ours.make(), gradients) for name, ours in _OURS.items()}
    contenders |= {
        _ADAM: step(keras.optimizers.Adam(), gradients),
        _ADAM_XLA: step(keras.optimizers.Adam(), gradients, jit_compile=True),
        **torch_steps(gradients),
    }
    streams = stream_gbs(os.cpu_count(), options.pick(10**8, 10**6))
    timings = alternate(contenders, options.times(15), unit="step")
    again = stream_gbs(os.cpu_count(), options.pick(10**8, 10**6))
    best = {kind: max(streams[kind], again[kind]) for kind in streams}
    report.add_timings(f"{len(shapes)} tensors", timings)
    report.add_fact("GB/s of the streams", {kind: round(rate, 1) for kind, rate in best.items()})
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    _report(report, timings, parameters, 1e9 * max(best.values()))
    for name in _OURS:
        _, peak = timed(contenders[name], allocated)
        ratio = 2**20 * peak / (4 * parameters)
        report.add_ratio(f"{name}: memory of a step, over that of the weights", ratio, at_most=1)


def resnet50_shapes():
    """Shapes of the trainable variables of ResNet-50, as Keras has it."""
    model = keras.applications.ResNet50(weights=None)
    return [tuple(variable.shape) for variable in model.trainable_variables]


def step(optimizer, gradients, jit_compile=False):
    """A traced `tf.function` that takes one step, over new variables."""
    variables = [
        keras.Variable(np.ones(gradient.shape, "float32"), trainable=True) for gradient in gradients
    ]
    optimizer.build(variables)
    function = tf.function(lambda: optimizer.apply(gradients, variables), jit_compile=jit_compile)
    return function.get_concrete_function()


def torch_steps(gradients):
    """{name: step} of PyTorch's Adam and of pytorch_optimizer, where both are installed."""
    if not all(map(importlib.util.find_spec, ("torch", "pytorch_optimizer"))):
        return {}
    import pytorch_optimizer
    import torch

    torch.set_num_threads(os.cpu_count())

    def weights():
        made = [torch.nn.Parameter(torch.ones(tuple(gradient.shape))) for gradient in gradients]
        for weight, gradient in zip(made, gradients, strict=True):
            weight.grad = torch.from_numpy(gradient.numpy())
        return made

    steps = {
        "torch Adam, fused": torch.optim.Adam(weights(), fused=True).step,
        "torch Adam, foreach": torch.optim.Adam(weights(), foreach=True).step,
    }
    for ours in _OURS.values():
        if ours.peer is not None:
            steps[_peer(ours)] = getattr(pytorch_optimizer, ours.peer)(weights()).step
    return steps


def _peer(ours):
    return f"pytorch_optimizer {ours.peer}"


def _report(report, timings, parameters, bytes_per_second):
    for name, ours in _OURS.items():
        floor = 4 * parameters * (2 * (ours.slots + 1) + 1) / bytes_per_second
        median = timings[name].median
        report.add_ratio(f"{name}: time, over its floor", median / floor, at_most=_OVER_FLOOR)
        rivals = {_ADAM: _OVER_ADAM, _ADAM_XLA: None, "torch Adam, fused": None,
                  "torch Adam, foreach": None, _peer(ours): _OVER_PEER}  # fmt: skip
        for rival, goal in rivals.items():
            if rival in timings:
                ratio = timings[rival].median / median
                report.add_ratio(f"{name}: speed, over `{rival}`", ratio, at_least=goal)


if __name__ == "__main__":
    main("optimizers", "Optimizers", measure, __doc__)
