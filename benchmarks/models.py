"""Predictions and training steps of image models, at 224x224 in batches of 1 and of 32.

    --peers PYTHON  also measure PyTorch, eager and channels last, in a Python that can import
                    torch, torchvision and timm
    --only NAME     one network

Each network against the nearest one of `keras.applications`, where that has one of the same shape
with a goal, and against torchvision's or timm's. A step has forward and backward pass and SGD with
momentum. TensorFlow runs graphs without XLA, which is slower for convolutions on CPUs.
"""

import argparse
import functools
import sys
from dataclasses import dataclass

import keras
import tensorflow as tf

from benchmarks.explain import in_process, take_turns
from benchmarks.explain_peers import Worker, noise_images
from benchmarks.loop import bare_step
from benchmarks.measure import Timing
from benchmarks.report import main
from kzoo import models

_CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """A network and what a user would take instead.

    Args:
        name: constructor in `kzoo.models`.
        application: constructor in `keras.applications`.
        torch: "library:name" in torchvision or timm.
        equal: whether the application has the same shape, so that there is a goal.
    """

    name: str
    application: str
    torch: str
    equal: bool = False


_NETWORKS = (
    Network("DenseNet121", "DenseNet121", "torchvision:densenet121", equal=True),
    Network("PreActResNet50", "ResNet50V2", "timm:resnetv2_50", equal=True),
    Network("CSPResNet50", "ResNet50", "timm:cspresnet50"),
    Network("InceptionNeXtTiny", "ConvNeXtTiny", "timm:inception_next_tiny"),
    Network("InceptionV4", "InceptionV3", "timm:inception_v4"),
)


def measure(options, report, peers=None, only=None):
    worker = Worker(peers, "benchmarks.models_torch") if peers else None
    for network in _NETWORKS:
        if only not in (None, network.name):
            continue
        for batch in options.pick((1, 32), (1,)):
            _compare(network, batch, options.pick(224, 96), worker, options, report)
        keras.backend.clear_session()
    if worker:
        worker.close()


def _compare(network, batch, size, worker, options, report):
    ours = getattr(models, network.name)
    theirs = getattr(keras.applications, network.application)
    made = {
        "kzoo": _network(ours, size),
        f"keras {network.application}": _network(functools.partial(theirs, weights=None), size),
    }
    for kind, make in (("prediction", _prediction), ("training step", _training_step)):
        contenders = {label: in_process(make(model, batch, size)) for label, model in made.items()}
        if worker:
            request = {"network": network.torch, "kind": kind, "batch": batch, "size": size}
            contenders["torch"] = functools.partial(worker.timed, request)
        seconds, peaks = take_turns(contenders, options)
        timings = {label: Timing(tuple(each), batch, "image") for label, each in seconds.items()}
        title = f"{network.name}, {kind}, batch {batch}"
        report.add_timings(title, timings)
        if batch > 1:
            report.add_fact(f"{title}: MiB", {label: round(each) for label, each in peaks.items()})
        own = timings["kzoo"].median
        for label in timings.keys() - {"kzoo"}:
            # Not slower than the equal of Keras, but for what two runs of one program differ by.
            goal = 0.95 if network.equal and label.startswith("keras") else None
            ratio = timings[label].median / own
            report.add_ratio(f"{title}: speed, over {label}", ratio, at_least=goal)


def _network(constructor, size):
    return constructor(input_shape=(size, size, 3), classes=_CLASSES, classifier_activation=None)


def _prediction(model, batch, size):
    images = tf.constant(noise_images(batch, size))
    predict = tf.function(lambda x: model(x, training=False)).get_concrete_function(images)
    return lambda: predict(images).numpy()


def _training_step(model, batch, size):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, jit_compile=False)
    images, labels = tf.constant(noise_images(batch, size)), tf.zeros([batch], tf.int32)
    step = bare_step(model).get_concrete_function(images, labels)
    return lambda: float(step(images, labels))


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("This benchmark reads the memory of a process from Linux's /proc.")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peers")
    parser.add_argument("--only", choices=[network.name for network in _NETWORKS])
    # The rest is for the parser that all benchmarks share.
    own, sys.argv[1:] = parser.parse_known_args()
    main("models", "Models", functools.partial(measure, **vars(own)), __doc__)
