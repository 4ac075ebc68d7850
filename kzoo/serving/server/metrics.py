"""Counters and distributions under TensorFlow Serving's names, and their Prometheus page.

One registry per process, as in TensorFlow: several servers in one process count together. The page
has TensorFlow Serving's layout, which Prometheus's own client cannot print: names keep their
colons, counters have no `_total`, bounds have six digits.
"""

import bisect
import functools
import itertools
import math
import re
import threading
import time

from kzoo.serving.server import text_proto
from kzoo.serving.server.errors import Code
from kzoo.serving.server.messages import MonitoringConfig

DEFAULT_PATH = "/monitoring/prometheus/metrics"

# Labels come from requests: neither their number nor their length may grow without bound.
MAX_CELLS = 10_000
MAX_LABEL = 256
_OVERFLOW = "(other)"

_METRICS = []


class _Metric:
    """Values by labels. Thread safe; an update takes one uncontended lock."""

    def __init__(self, name, *labels):
        self._name = _prometheus_name(name)
        self._labels = labels
        self._cells = {}
        self._lock = threading.Lock()
        _METRICS.append(self)

    @property
    def name(self):
        """The name on the page."""
        return self._name

    def _cell(self, values):
        """Returns the list behind a set of label values; the caller holds the lock."""
        cell = self._cells.get(values)
        if cell is None:
            values = tuple(value[:MAX_LABEL] for value in values)
            if values not in self._cells and len(self._cells) >= MAX_CELLS:
                values = (_OVERFLOW,) * len(values)
            cell = self._cells.setdefault(values, self._new_cell())
        return cell

    def _snapshot(self):
        with self._lock:
            return [
                (",".join(map(_label, self._labels, values)), list(cell))
                for values, cell in sorted(self._cells.items())
            ]


class Counter(_Metric):
    """A number that only grows, per set of labels."""

    def add(self, amount, *values):
        with self._lock:
            self._cell(values)[0] += amount

    def value(self, *values):
        """Returns the number counted so far."""
        with self._lock:
            return self._cells.get(values, [0])[0]

    def first(self):
        """Returns the number of the first set of labels."""
        return next((cell[0] for _, cell in self._snapshot()), 0)

    def _new_cell(self):
        return [0]

    def lines(self):
        """Returns the metric's part of the page."""
        points = [f"{self._name}{{{labels}}} {cell[0]}" for labels, cell in self._snapshot()]
        return [f"# TYPE {self._name} counter", *points]


class Histogram(_Metric):
    """A distribution over exponential buckets: a value v is in the first with v < bound.

    Args:
        name: TensorFlow's name of the metric.
        labels: names of the labels.
        scale, growth, count: the bounds are `scale * growth**i` for i < count, and infinity.
    """

    def __init__(self, name, *labels, scale=10, growth=1.8, count=33):
        super().__init__(name, *labels)
        bounds = itertools.accumulate(itertools.repeat(growth, count - 1), float.__mul__,
                                      initial=float(scale))  # fmt: skip
        self._bounds = list(bounds)

    def observe(self, value, *values):
        bucket = bisect.bisect_right(self._bounds, value)
        with self._lock:
            cell = self._cell(values)
            cell[bucket] += 1
            cell[-1] += value

    def count(self, *values):
        """Returns the number of values observed so far."""
        with self._lock:
            return sum(self._cells.get(values, [0])[:-1])

    def _new_cell(self):
        return [0] * (len(self._bounds) + 1) + [0.0]

    def lines(self):
        """Returns the metric's part of the page."""
        lines = [f"# TYPE {self._name} histogram"]
        for labels, (*buckets, total) in self._snapshot():
            lead = f"{labels}," if labels else ""
            counts = list(itertools.accumulate(buckets))
            bounds = [*map(_six_digits, self._bounds), "+Inf"]
            lines += [
                f'{self._name}_bucket{{{lead}le="{bound}"}} {count}'
                for bound, count in zip(bounds, counts, strict=True)
            ]
            lines.append(f"{self._name}_sum{{{labels}}} {_six_digits(total)}")
            lines.append(f"{self._name}_count{{{labels}}} {counts[-1]}")
        return lines


def _prometheus_name(name):
    return re.sub("[^a-zA-Z0-9_]", ":", name)


def _label(name, value):
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


def _six_digits(number):
    """As `absl::StrCat` prints a double."""
    return "inf" if math.isinf(number) else f"{number:.6g}"


REQUEST_COUNT = Counter("/tensorflow/serving/request_count", "model_name", "status")
REQUEST_LATENCY = Histogram(
    "/tensorflow/serving/request_latency", "model_name", "API", "entrypoint"
)
RUNTIME_LATENCY = Histogram("/tensorflow/serving/runtime_latency", "model_name", "API", "runtime")
EXAMPLE_COUNTS = Histogram(
    "/tensorflow/serving/request_example_counts", "model", scale=1, growth=2.0, count=15
)
EXAMPLE_COUNT_TOTAL = Counter("/tensorflow/serving/request_example_count_total", "model")
LOAD_ATTEMPTS = Counter("/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status")
LOAD_LATENCY = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")


def record_request(model_name, api, entrypoint, status, seconds):
    """Counts an answered request; the latency of those that failed is not of interest.

    Args:
        model_name: as the client sent it; empty if it is not known.
        api: "Predict", "Classify", "Regress"; over REST as in the path, empty for a GET.
        entrypoint: "GRPC" or "REST".
        status: `Code`.
        seconds: how long the answer took.
    """
    if status is Code.OK:
        REQUEST_LATENCY.observe(int(seconds * 1e6), model_name, api, entrypoint)
    REQUEST_COUNT.add(1, model_name, status.name)


def record_examples(model_name, count):
    """Counts the examples of one Classify, Regress or MultiInference request."""
    EXAMPLE_COUNTS.observe(count, model_name)
    EXAMPLE_COUNT_TOTAL.add(count, model_name)


def count_loads(load):
    """Decorates function(session, path, ...) that loads a SavedModel."""

    @functools.wraps(load)
    def call(session, path, *arguments):
        start = time.perf_counter()
        try:
            loaded = load(session, path, *arguments)
        except Exception:
            LOAD_ATTEMPTS.add(1, path, "fail")
            raise
        LOAD_ATTEMPTS.add(1, path, "success")
        LOAD_LATENCY.add(int(1e6 * (time.perf_counter() - start)), path)
        return loaded

    return call


def value(name):
    """Returns the first value of the counter with TensorFlow's name `name`; 0 if there is none."""
    for metric in _METRICS:
        if isinstance(metric, Counter) and metric.name == _prometheus_name(name):
            return metric.first()
    return 0


def page():
    """Returns all metrics in Prometheus's text format."""
    metrics = sorted(_METRICS, key=lambda metric: metric.name)
    return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"


def page_path(monitoring_config_file):
    """Returns the path of the page that a MonitoringConfig file asks for, None if it does not.

    Raises:
        ServingError: the file cannot be read or parsed.
    """
    if not monitoring_config_file:
        return None
    prometheus = text_proto.read(monitoring_config_file, MonitoringConfig()).prometheus_config
    return (prometheus.path or DEFAULT_PATH) if prometheus.enable else None
