"""Explanations by kzoo against plain gradients and predictions, tf-keras-vis, Xplique and Captum.

The limit is the rate of plain input gradients, or predictions, in one tf.function, at the faster of
two batch sizes. What else a method computes (the clean map, the scores, the masks) counts as its
overhead. Linux only, for the sake of the memory.

  --peers PYTHON  also measure Xplique and Captum, which that Python can import, besides torch,
                  tensorflow and tf-keras-vis. Without it they are left out.
"""

import argparse
import functools
import math
import sys
import tempfile
from dataclasses import dataclass

import keras
import tensorflow as tf

from benchmarks.explain_peers import TARGET, THREADS, Worker, noise_images
from benchmarks.measure import Timing
from benchmarks.peak import allocated, timed
from benchmarks.report import main
from kzoo import explain
from kzoo.models import PreActResNetCIFAR

# Seconds of timed calls in a case; then it ends at the fewest repetitions.
_BUDGET = 10
_FEWEST, _MOST = 2, 15

_PEERS = "benchmarks.explain_peers"


@dataclass(frozen=True)
class Network:
    """What is explained.

    Args:
        name: of the network, also in `benchmarks.explain_torch`.
        model: the Keras model, which ends in logits.
        batches: the two batch sizes of plain gradients and predictions.
        rows: {library: size of the batches that it makes of many evaluations}.
    """

    name: str
    model: keras.Model
    batches: tuple[int, int]
    rows: dict

    @property
    def size(self):
        return self.model.input_shape[1]

    @functools.cached_property
    def layer(self):
        """Name of the layer that Grad-CAM looks at."""
        return explain.GradCAM(self.model).layer.name


@dataclass(frozen=True)
class Case:
    """A method that explains a batch of images.

    Args:
        method: name of the class in `kzoo.explain`.
        steps: gradients or predictions that it takes of each image; what it takes besides does not
            count.
    """

    network: Network
    method: str
    batch: int
    steps: int = 1

    @property
    def title(self):
        steps = f"({self.steps})" if self.steps > 1 else ""
        return f"{self.method}{steps}, {self.network.name}, batch {self.batch}"

    @property
    def window(self):
        """Size of the occlusion's window; half of it is the stride, so there are `steps` places."""
        return 2 * self.network.size // (math.isqrt(self.steps) + 1)

    @property
    def libraries(self):
        """What the method is compared with."""
        return {
            "Saliency": ("tf-keras-vis", "xplique", "captum"),
            "SmoothGrad": ("tf-keras-vis", "xplique", "captum"),
            "IntegratedGradients": ("xplique", "captum"),
            "GradCAM": ("tf-keras-vis", "xplique", "captum"),
            "RISE": ("xplique",),
            "Occlusion": ("xplique", "captum"),
        }[self.method]

    def explainer(self):
        arguments = {
            "SmoothGrad": {"samples": self.steps},
            "IntegratedGradients": {"steps": self.steps},
            "RISE": {"samples": self.steps},
            "Occlusion": {"window": self.window},
        }
        method = getattr(explain, self.method)
        return method(self.network.model, **arguments.get(self.method, {}))

    def raw(self):
        """{label: (function without arguments, its rows)}: the limit, at two batch sizes."""
        kind = raw_predictions if self.method in ("RISE", "Occlusion") else raw_gradients
        function, count = kind(self.network.model), self.batch * self.steps
        sizes = {min(size, count) for size in self.network.batches} if self.steps > 1 else {count}
        images = {size: tf.constant(noise_images(size, self.network.size)) for size in sizes}
        name = kind.__name__.replace("_", " ")
        return {
            f"{name}, batch {size}": (functools.partial(function, images[size]), size)
            for size in sorted(sizes)
        }


def raw_gradients(model):
    """Returns a function of images to the gradients of a logit with respect to them."""

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape)])
    def gradients(images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            score = model(images, training=False)[:, TARGET]
        return tape.gradient(score, images)

    return gradients


def raw_predictions(model):
    """Returns a function of images to the outputs."""
    signature = [tf.TensorSpec(model.input_shape)]
    return tf.function(functools.partial(model, training=False), input_signature=signature)


def measure(options, report, peers=None):
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.config.set_visible_devices([], "GPU")
    small, *_ = together = networks(options)
    with tempfile.TemporaryDirectory() as folder:
        for network in together:
            network.model.save(f"{folder}/{network.name}.keras")
        workers = start_workers(folder, peers)
        try:
            for case in cases(*together):
                compare(case, workers, options, report)
        finally:
            for worker in set(workers.values()):
                worker.close()
    compare_memory(small, options, report)


def networks(options):
    """ResNet-20 for 32x32 and ResNet-50 for 224x224 images, with logits for all contenders.

    A smoke run takes the first one only.
    """
    model = PreActResNetCIFAR(20, bottleneck=False, classifier_activation=None)
    small = Network("ResNet-20", model, (80, 400), {"captum": 80, "xplique": 400})
    if options.quick:
        return [small]
    model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    return [small, Network("ResNet-50", model, (4, 16), {"captum": 16, "xplique": 32})]


def cases(small, large=None):
    """All that is compared, in the order of the report; few cases without the large network."""
    steps = {"Saliency": 1, "GradCAM": 1, "SmoothGrad": 25, "IntegratedGradients": 50}
    steps |= {"RISE": 500, "Occlusion": 225}
    if large is None:
        return [Case(small, name, 2, min(count, 4)) for name, count in steps.items()]
    # Many steps of large images take seconds for each of them.
    return [
        *(Case(small, name, batch, count) for name, count in steps.items() for batch in (1, 32)),
        *(Case(large, name, 32 if count == 1 else 1, count) for name, count in steps.items()),
    ]


def start_workers(folder, peers):
    """{library: `Worker`}; TensorFlow's libraries share one."""
    if peers is None:
        return {"tf-keras-vis": Worker(sys.executable, _PEERS, "tensorflow", folder)}
    tensorflow = Worker(peers, _PEERS, "tensorflow", folder)
    captum = Worker(peers, _PEERS, "torch", folder)
    return {"tf-keras-vis": tensorflow, "xplique": tensorflow, "captum": captum}


def compare(case, workers, options, report):
    """Times kzoo, the limit and the libraries, in turns."""
    images, explainer = tf.constant(noise_images(case.batch, case.network.size)), case.explainer()
    raw = case.raw()
    contenders = {"kzoo": in_process(lambda: explainer(images, TARGET))}
    contenders |= {label: in_process(call) for label, (call, _) in raw.items()}
    for library in case.libraries:
        if library in workers:
            contenders[library] = functools.partial(workers[library].timed, request(case, library))

    seconds, peaks = take_turns(contenders, options)
    work = {"kzoo": case.batch, **{label: rows for label, (_, rows) in raw.items()}}
    timings = {
        label: Timing(tuple(each), work.get(label, case.batch), "image")
        for label, each in seconds.items()
    }
    report.add_timings(case.title, timings)
    if case.batch * case.steps > 1:
        report.add_fact(f"{case.title}: MiB", {label: round(each) for label, each in peaks.items()})
    add_ratios(case, timings, list(raw), report)


def request(case, library):
    """What a worker has to know of a case, see `benchmarks.explain_peers`."""
    network = case.network
    return {
        "library": library,
        "method": case.method,
        "network": network.name,
        "parameters": network.model.count_params(),
        "size": network.size,
        "batch": case.batch,
        "steps": case.steps,
        "window": case.window,
        "layer": network.layer,
        "rows": network.rows.get(library),
    }


def take_turns(contenders, options):
    """Calls contenders A B A B until the budget is spent.

    Args:
        contenders: {label: function of whether the peak is asked for -> (seconds, MiB or None)}

    Returns:
        {label: seconds of each repetition}, {label: peak MiB of the first of them}
    """
    for call in contenders.values():
        call()
    first = {label: call(with_peak=True) for label, call in contenders.items()}
    total = sum(taken for taken, _ in first.values())
    repetitions = options.times(min(max(_FEWEST, int(_BUDGET / total)), _MOST))
    # Cheap calls are warmed up twice; of others, the one that finds the peak counts as well.
    counted = total > _BUDGET / _FEWEST
    seconds = {label: [taken] if counted else [] for label, (taken, _) in first.items()}
    while any(len(each) < repetitions for each in seconds.values()):
        for label, call in contenders.items():
            seconds[label].append(call()[0])
    return seconds, {label: peak for label, (_, peak) in first.items()}


def in_process(function):
    """A contender for `take_turns` of a function without arguments."""
    return lambda with_peak=False: timed(function, allocated if with_peak else None)


def add_ratios(case, timings, raw, report):
    own, limit = timings["kzoo"].median, case.steps * min(timings[each].median for each in raw)
    gradients = case.method in ("Saliency", "SmoothGrad", "IntegratedGradients")
    if case.method == "GradCAM":
        report.add_ratio(f"{case.title}: time, over raw gradients", own / limit, at_most=1.2)
    else:
        kind = "gradients" if gradients else "predictions"
        goal = None if case.method == "Occlusion" else 0.95
        report.add_ratio(f"{case.title}: rate, over raw {kind}", limit / own, at_least=goal)
    goals = {"xplique": 2, "captum": 1} if gradients else {}
    if case.method == "SmoothGrad":
        goals["tf-keras-vis"] = 10
    for library in case.libraries:
        if library in timings:
            other, goal = timings[library].median, goals.get(library)
            # Where plain gradients are below a goal, no explainer can reach it.
            most = f" (plain gradients: {other / limit:.3g})" if goal else ""
            what = f"{case.title}: speed, over {library}{most}"
            report.add_ratio(what, other / own, at_least=goal)


def compare_memory(network, options, report):
    """Peak memory of many steps over that of few."""
    batch = options.pick(8, 2)
    images = tf.constant(noise_images(batch, network.size))
    cases = [("IntegratedGradients", 50, 500), ("RISE", 500, 4000)]
    for method, few, many in options.pick(cases, [("RISE", 160, 320)]):
        peaks = []
        for steps in (few, many):
            explainer = Case(network, method, batch, steps).explainer()
            explainer(images[:1], TARGET)
            call = functools.partial(explainer, images, TARGET)
            peaks.append(timed(call, allocated)[1])
        what = f"{method}, {network.name}, batch {batch}"
        report.add_fact(f"{what}: MiB", {few: round(peaks[0]), many: round(peaks[1])})
        report.add_ratio(
            f"{what}: peak memory of {many} steps, over that of {few}",
            peaks[1] / peaks[0],
            at_most=1.1,
        )


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("This benchmark reads the memory of a process from Linux's /proc.")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peers")
    # The rest is for the parser that all benchmarks share.
    own, sys.argv[1:] = parser.parse_known_args()
    main("explain", "Explanations", functools.partial(measure, peers=own.peers), __doc__)
