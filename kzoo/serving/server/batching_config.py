"""BatchingParameters: how requests are merged, read from protobuf's text format."""

import dataclasses
import itertools
import logging
import os

import tensorflow as tf

from kzoo.serving.server import text_proto
from kzoo.serving.server.errors import invalid_argument
from kzoo.serving.server.messages import BatchingParameters

VERSION_FILE = "batching_params.pbtxt"

log = logging.getLogger(__name__)


def of_server(options):
    """Returns the BatchingParameters that `ServerOptions` ask for.

    Raises:
        ServingError: the file cannot be read or parsed.
    """
    if options.batching_parameters_file:
        return text_proto.read(options.batching_parameters_file, BatchingParameters())
    parameters = BatchingParameters()
    parameters.thread_pool_name.value = "model_server_batch_threads"
    return parameters


def of_version(path):
    """Returns the BatchingParameters in a version's folder, None where there are none.

    Raises:
        ServingError: the file cannot be read or parsed.
    """
    file = os.path.join(path, VERSION_FILE)
    return text_proto.read(file, BatchingParameters()) if tf.io.gfile.exists(file) else None


def thread_pool(parameters):
    """Returns the scheduler's (number of threads, name).

    Raises:
        ServingError: the number is not positive.
    """
    threads = _value(parameters, "num_batch_threads", os.cpu_count() or 1)
    if threads < 1:
        raise invalid_argument(f"num_batch_threads must be positive; was {threads}")
    return threads, _value(parameters, "thread_pool_name", "batch_threads")


@dataclasses.dataclass(frozen=True)
class QueueOptions:
    """How the batches of a model are formed; the defaults are TensorFlow Serving's.

    Args:
        max_batch_size: the most rows of a task, and of a batch unless tasks are split.
        batch_timeout_seconds: how long a batch waits to be filled.
        max_enqueued_batches: batches that may wait for a thread, the open one included.
        enable_large_batch_splitting: tasks may be cut into pieces, for different batches.
        max_execution_batch_size: the most rows of a batch.
        allowed_batch_sizes: batches are padded up to the first that is enough; empty for any size.
        pad_variable_length_inputs: tasks of different shapes are padded to one.
    """

    max_batch_size: int = 1000
    batch_timeout_seconds: float = 0.0
    max_enqueued_batches: int = 10
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 1000
    allowed_batch_sizes: tuple = ()
    pad_variable_length_inputs: bool = False


def queue_options(parameters):
    """Returns the `QueueOptions` of BatchingParameters.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words, for values out of range.
    """
    size = _value(parameters, "max_batch_size", QueueOptions.max_batch_size)
    split = parameters.enable_large_batch_splitting.value
    enqueued = _value(parameters, "max_enqueued_batches", QueueOptions.max_enqueued_batches)
    options = QueueOptions(
        max_batch_size=size,
        batch_timeout_seconds=parameters.batch_timeout_micros.value / 1e6,
        # Without splitting 0 means 1, for the sake of old files.
        max_enqueued_batches=1 if enqueued == 0 and not split else enqueued,
        enable_large_batch_splitting=split,
        max_execution_batch_size=(
            _value(parameters, "max_execution_batch_size", size) if split else size
        ),
        allowed_batch_sizes=tuple(parameters.allowed_batch_sizes),
        pad_variable_length_inputs=parameters.pad_variable_length_inputs,
    )
    _check_allowed_sizes(options)
    _check_positive("input_batch_size_limit", options.max_batch_size)
    _check_timeout(parameters.batch_timeout_micros.value)
    _check_positive("max_enqueued_batches", options.max_enqueued_batches)
    _check_positive("max_execution_batch_size", options.max_execution_batch_size)
    _check_execution_size(options)
    return options


def _value(parameters, name, default):
    return getattr(parameters, name).value if parameters.HasField(name) else default


def _check_allowed_sizes(options):
    sizes = options.allowed_batch_sizes
    if sizes and sizes[-1] != options.max_batch_size:
        raise invalid_argument(
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; expected {options.max_batch_size}"
        )
    if any(left >= right for left, right in itertools.pairwise(sizes)):
        # Against the message's documentation, but TensorFlow Serving starts with such a file.
        log.warning("allowed_batch_sizes entries must be monotonically increasing: %s", sizes)


def _check_positive(name, value):
    if value < 1:
        raise invalid_argument(f"{name} must be positive; was {value}")


def _check_timeout(micros):
    if micros < 0:
        raise invalid_argument(f"batch_timeout_micros must be non-negative; was {micros}")


def _check_execution_size(options):
    if options.max_batch_size < options.max_execution_batch_size:
        # The figures stand behind the full stop in TensorFlow's text, too.
        raise invalid_argument(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater "
            "than or equal to max_execution_batch_size."
            f"1{options.max_batch_size}{options.max_execution_batch_size}"
        )
