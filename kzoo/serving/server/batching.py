"""Runs requests in batches: what TensorFlow Serving's BatchingSession does around a session.

Requests for the same inputs and outputs of the same version are concatenated along the first
dimension, run as one, and the outputs are cut apart again. Every signature is batched, those of
explanations too; one whose outputs do not have a row per input row therefore fails, as it does on
TensorFlow Serving.
"""

import functools
import itertools
import logging
import math
import time

import numpy as np

from kzoo.serving.server import batching_config, request_context
from kzoo.serving.server.batch_scheduler import BatchQueue, BatchScheduler, Task
from kzoo.serving.server.errors import Code, ServingError, invalid_argument, runtime_errors
from kzoo.serving.server.metrics import Counter, Histogram

log = logging.getLogger(__name__)

_MAX_PADDED_RANK = 6

_METRIC = "/tensorflow/serving/batching_session/"
_ROWS = {"scale": 1, "growth": 2.0, "count": 14}
QUEUING_LATENCY = Histogram(
    f"{_METRIC}queuing_latency", "thread_pool_name", scale=100, growth=1.2, count=52
)
RUN_COUNT = Counter(f"{_METRIC}wrapped_run_count")
INPUT_SIZE = Histogram(f"{_METRIC}input_batch_size", **_ROWS)
PROCESSED_SIZE = Histogram(f"{_METRIC}processed_batch_size", **_ROWS)
PADDING_SIZE = Histogram(f"{_METRIC}padding_size", "execution_batch_size", **_ROWS)


class Batching:
    """The batching of one server: a pool of threads for all models and versions.

    Args:
        options: `ServerOptions` with `enable_batching`.

    Raises:
        ServingError: the parameters cannot be read, or ask for no threads.
    """

    def __init__(self, options):
        self._parameters = batching_config.of_server(options)
        self._per_model = options.enable_per_model_batching_parameters
        self._scheduler = BatchScheduler(*batching_config.thread_pool(self._parameters))

    def of_version(self, path):
        """Returns function(call, names of the fed tensors) -> `BatchedCall`; None for no batching.

        Args:
            path: the version's directory.

        Raises:
            ServingError: the version's parameters are invalid.
        """
        parameters = batching_config.of_version(path) if self._per_model else self._parameters
        if parameters is None:
            return None
        options = batching_config.queue_options(parameters)
        return functools.partial(BatchedCall, self._scheduler, options)

    def close(self, timeout=None):
        """Takes no more requests; waits up to `timeout` seconds for those that it has."""
        self._scheduler.close(timeout)


class BatchedCall:
    """A function of arrays that runs together with the calls of other threads.

    Args:
        scheduler: `BatchScheduler`.
        options: `QueueOptions`.
        call: function from arrays to a list of arrays.
        names: the names of its arguments, for errors.
    """

    def __init__(self, scheduler, options, call, names):
        self._scheduler = scheduler
        self._options = options
        self._call = call
        self._names = names
        self._queue = BatchQueue(options)

    def __call__(self, *inputs):
        """Returns the list of outputs for these inputs.

        Raises:
            ServingError: the inputs cannot be batched, the queue is full, or the batch failed.
        """
        task = Task(inputs, _batch_size(inputs), _deadline())
        for _ in inputs:
            INPUT_SIZE.observe(task.size)
        tasks = self._scheduler.submit(self._queue, task, self._process)
        for task in tasks:  # all of them, even if one fails: what still runs needs the model
            task.done.wait()
        pieces = [task.result() for task in tasks]
        return [_concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _process(self, tasks):
        try:
            results = self._run(tasks)
        except ServingError as error:
            code, message = error.code, error.message
        except Exception as error:
            log.exception("A batch failed")
            code, message = Code.INTERNAL, f"{type(error).__name__}: {error}"
        else:
            for task, result in zip(tasks, results, strict=True):
                task.succeed(result)
            return
        for task in tasks:
            task.fail(code, message)

    def _run(self, tasks):
        """Returns the list of outputs of each task."""
        _begin(tasks)
        size = sum(task.size for task in tasks)
        padding = self._padding(size) if size else 0
        with runtime_errors():
            inputs = [
                self._merge(name, [task.inputs[index] for task in tasks], padding)
                for index, name in enumerate(self._names)
            ]
            RUN_COUNT.add(1)
            outputs = self._call(*inputs)
        for output in outputs:
            _check_output(output, size + padding)
        ends = list(itertools.accumulate(task.size for task in tasks))
        return [
            [output[end - task.size : end] for output in outputs]
            for task, end in zip(tasks, ends, strict=True)
        ]

    def _padding(self, size):
        allowed = self._options.allowed_batch_sizes
        enough = next((enough for enough in allowed if enough >= size), size)
        PADDING_SIZE.observe(enough - size, str(enough))
        PROCESSED_SIZE.observe(enough)
        return enough - size

    def _merge(self, name, arrays, padding):
        if self._options.pad_variable_length_inputs:
            arrays = _pad_to_one_shape(name, arrays)
        elif any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise _failed_precondition(
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off. Set pad_variable_length_inputs to true, or ensure that all "
                "tensors with the same name have equal dimensions starting with the first dim."
            )
        if padding:  # a row of the last task is a valid row
            row = next(array for array in reversed(arrays) if len(array))[:1]
            arrays = [*arrays, np.broadcast_to(row, (padding, *row.shape[1:]))]
        return _concatenate(arrays)


def _batch_size(inputs):
    """Returns the first dimension, which all inputs must share."""
    if not inputs:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    for array in inputs:
        if array.ndim == 0:
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        if len(array) != len(inputs[0]):
            raise invalid_argument(
                "Batching Run() input tensors must have equal 0th-dimension size"
            )
    return len(inputs[0])


def _deadline():
    """Returns the time at which the thread's request must be answered."""
    remaining_ms = request_context.remaining_ms()
    return math.inf if remaining_ms is None else time.monotonic() + remaining_ms / 1000


def _begin(tasks):
    """Gives the thread the last of the tasks' deadlines."""
    now = time.monotonic()
    for task in tasks:
        QUEUING_LATENCY.observe(round(1e6 * (now - task.enqueued)), "")
    seconds = max(task.deadline for task in tasks) - now
    if seconds <= 0:
        raise ServingError(
            Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
        )
    request_context.begin("", None if math.isinf(seconds) else seconds)


def _check_output(output, size):
    if np.ndim(output) == 0:
        raise _failed_precondition("Batched output tensor has 0 dimensions")
    if len(output) != size:
        raise _failed_precondition(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors"
        )


def _concatenate(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _pad_to_one_shape(name, arrays):
    """Returns the arrays padded at the end of every dimension but the first."""
    if len({array.ndim for array in arrays}) > 1:
        raise _failed_precondition(
            f"Tensors with name '{name}' from different tasks have different ranks, which padding "
            "cannot change."
        )
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    return [_pad(array, (len(array), *shape[1:])) for array in arrays]


def _pad(array, shape):
    if array.ndim > _MAX_PADDED_RANK:
        raise invalid_argument("Only tensors with rank from 1 to 6 can be padded.")
    padded = np.empty(shape, array.dtype)
    if padded.size == array.size:
        return array.reshape(shape)
    if array.size == 0:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    padded[...] = array.flat[0]
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _failed_precondition(message):
    return ServingError(Code.FAILED_PRECONDITION, message)
