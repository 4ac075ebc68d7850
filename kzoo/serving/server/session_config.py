"""The TensorFlow session that a version runs in, as the `--tensorflow_*` flags ask for it."""

import functools
import logging

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

from kzoo.serving.server import text_proto
from kzoo.serving.server.errors import invalid_argument

log = logging.getLogger(__name__)

_MIXED_PRECISION = "bfloat16"


@functools.lru_cache(maxsize=8)
def session_config(options):
    """Returns the ConfigProto of the sessions of a server; the file is read once.

    `--tensorflow_session_config_file` comes first, the other flags override it. Number of threads
    and GPU memory are decided by the first session of a process, here as in TensorFlow Serving.
    The sessions carry no metadata: a process can have one session per name and version, and here
    may have several servers.

    Args:
        options: `ServerOptions`.

    Raises:
        ServingError: the file cannot be read or parsed, or the numbers of threads exclude each
            other.
    """
    config = config_pb2.ConfigProto()
    if options.tensorflow_session_config_file:
        text_proto.read(options.tensorflow_session_config_file, config)
    config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    config.intra_op_parallelism_threads, config.inter_op_parallelism_threads = _threads(options)
    _set_mixed_precision(config, options.mixed_precision)
    return config


def _threads(options):
    """Returns the threads inside an operation and for operations; 0 leaves it to TensorFlow."""
    both = options.tensorflow_session_parallelism
    intra = options.tensorflow_intra_op_parallelism
    inter = options.tensorflow_inter_op_parallelism
    if both > 0 and intra > 0 and inter > 0:
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    return (intra, inter) if intra > 0 or inter > 0 else (both, both)


def _set_mixed_precision(config, mode):
    if mode == _MIXED_PRECISION:
        rewriting = config.graph_options.rewrite_options
        rewriting.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    elif mode:
        log.warning("%s auto mixed precision is not supported. Valid option: bfloat16", mode)
