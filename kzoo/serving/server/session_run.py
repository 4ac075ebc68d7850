"""Runs feeds to fetches of one graph session, within the deadline of the request if it has one."""

import math
import threading
import time

from tensorflow.core.protobuf import config_pb2

from kzoo.serving.server import metrics, request_context

_MIN_TIMEOUT_MS = 16
_MAX_TIMEOUT_MS = 2**22  # some 70 minutes; what may take longer is not limited
_SAFETY = 10  # times the slowest recent run
_FORGET = 0.99  # of what a run weighs after each further one
_RUNTIME = "TF1"  # TensorFlow Serving's name of a session, in its metrics
_MEASURED = ("Predict", "Classify", "Regress")


class SessionRun:
    """A function of arrays: session callables for the same feeds and fetches.

    The request's own thread runs the graph, the cheapest way, if there is no deadline or if no
    recent run took more than a tenth of the time that is left. A thread cannot give itself up, so
    otherwise the runtime's pool runs it, and stops it when its time is over. That time is part of
    a callable; powers of two keep them few, and the client, who has had DEADLINE_EXCEEDED by then,
    does not notice that it is rounded up.

    Args:
        session: `tf.compat.v1.Session`.
        feeds, fetches: names of tensors.
    """

    def __init__(self, session, feeds, fetches):
        self._session = session
        self._feeds = feeds
        self._fetches = fetches
        self._lock = threading.Lock()
        self._inline = self._callable(inter_op_thread_pool=-1)
        self._limited = {}
        self._slowest_ms = math.inf  # of the recent runs; nothing is known before the first

    def __call__(self, *arrays):
        """Returns the list of fetched arrays."""
        call = self._choose(request_context.remaining_ms())
        start = time.perf_counter()
        try:
            return call(*arrays)
        finally:
            self._remember(1000 * (time.perf_counter() - start))

    def _remember(self, milliseconds):
        known = self._slowest_ms < math.inf
        self._slowest_ms = max(milliseconds, _FORGET * self._slowest_ms if known else 0.0)

    def _choose(self, remaining_ms):
        if remaining_ms is None or remaining_ms > _MAX_TIMEOUT_MS:
            return self._inline
        if remaining_ms > _SAFETY * self._slowest_ms:
            return self._inline
        timeout_ms = max(_MIN_TIMEOUT_MS, 1 << (remaining_ms - 1).bit_length())
        call = self._limited.get(timeout_ms)
        if call is None:
            with self._lock:
                if timeout_ms not in self._limited:
                    self._limited[timeout_ms] = self._callable(timeout_in_ms=timeout_ms)
                call = self._limited[timeout_ms]
        return call

    def _callable(self, **run_options):
        return self._session._make_callable_from_options(
            config_pb2.CallableOptions(
                feed=self._feeds,
                fetch=self._fetches,
                run_options=config_pb2.RunOptions(**run_options),
            )
        )


def measured(model_name, call, arrays):
    """Returns `call(*arrays)` and records its latency under the API of the thread's request."""
    start = time.perf_counter()
    outputs = call(*arrays)
    api = request_context.api()
    if api in _MEASURED:
        micros = int(1e6 * (time.perf_counter() - start))
        metrics.RUNTIME_LATENCY.observe(micros, model_name, api, _RUNTIME)
    return outputs
