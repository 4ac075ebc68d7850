"""One loaded version of a model, executed as TensorFlow Serving does: a plain graph session.

The SavedModel is loaded by the v1 loader into a graph and session of its own, so that no Python of
the model is ever executed. Every pair (signature, outputs) becomes a session callable once; a call
then costs little more than the graph itself.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from kzoo.serving.server import warmup
from kzoo.serving.server.errors import (
    Code,
    ServingError,
    invalid_argument,
    not_found,
    runtime_errors,
)
from kzoo.serving.server.metrics import count_loads
from kzoo.serving.server.session_config import session_config
from kzoo.serving.server.session_run import SessionRun, measured
from kzoo.serving.server.tensors import dtype_name, to_numpy

log = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
_METHOD_NAMES = (
    tf.saved_model.PREDICT_METHOD_NAME,
    tf.saved_model.CLASSIFY_METHOD_NAME,
    tf.saved_model.REGRESS_METHOD_NAME,
)
_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_MAX_PLANS = 256


class _Plan(NamedTuple):
    """How requests for some outputs of a signature are run, found out once.

    Attributes:
        dtypes: {input name: NumPy dtype}, sorted by name.
        outputs: names of the outputs wanted.
        call: function of arrays to the list of fetched ones.
        order: for each argument of `call`, its position among the inputs.
        positions: for each output, its position in what `call` returns.
    """

    dtypes: dict
    outputs: tuple
    call: Callable
    order: list
    positions: list

    def feeds(self, inputs):
        """Returns the arrays sorted by input name; None for what must be looked at closely."""
        if len(inputs) != len(self.dtypes) or any(name not in inputs for name in self.dtypes):
            return None
        feeds = [inputs[name] for name in self.dtypes]
        fit = all(map(_has_dtype, feeds, self.dtypes.values()))
        return feeds if fit else None


def _has_dtype(array, dtype):
    return array.dtype == dtype


class LoadedModel:
    """A servable: a SavedModel version in memory.

    Thread safe. The session is closed when the last reference goes: a request that holds the model
    finishes on it even if it was unloaded meanwhile.

    Args:
        name: the model's name.
        version: its version number.
        path: the version directory.
        options: `ServerOptions`.
        batching: `Batching`, to run requests together; None for each on its own.

    Raises:
        ServingError: the SavedModel cannot be loaded, or a warm-up record failed.
    """

    def __init__(self, name, version, path, options, batching=None):
        self.name = name
        self.version = version
        self.path = path
        self.options = options
        self._plans = {}  # by signature and output filter, as they are asked for
        self._runs = {}  # by the tensors behind them: the same in several signatures, perhaps
        self._lock = threading.Lock()
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config(options))
        weakref.finalize(self, self._session.close)
        meta_graph = _load(self._session, path, options.saved_model_tags.split(","))
        self.signatures = dict(meta_graph.signature_def)
        if not options.xla_cpu_compilation_enabled and _asks_for_xla(meta_graph.graph_def):
            log.warning(
                "{name: %s version: %d} asks for compilation by XLA: TensorFlow Serving refuses "
                "its requests unless --xla_cpu_compilation_enabled is set.",
                name,
                version,
            )
        self._batched = batching.of_version(path) if batching is not None else None
        if options.enable_model_warmup:
            warmup.replay(self, path)

    def signature(self, name):
        """Returns (name, SignatureDef); an empty name means `serving_default`."""
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        return name, self.signatures[name]

    def predict(self, signature_name, inputs, output_filter=()):
        """Runs a signature.

        Args:
            signature_name: empty for `serving_default`.
            inputs: {input name: array}.
            output_filter: names of the wanted outputs; empty for all.

        Returns:
            {output name: array}.

        Raises:
            ServingError: names do not fit the signature, or the graph failed.
        """
        key, signature = self.signature(signature_name)
        if self.options.enable_signature_method_name_check:
            _check_method_name(signature)
        return self.run(key, signature, inputs, output_filter)

    def run(self, key, signature, inputs, output_filter=()):
        """Runs any SignatureDef over the model's graph, also one that the model does not list.

        Args:
            key: what tells the signature from every other one of this model.
            signature: SignatureDef.
            inputs, output_filter: as for `predict`.
        """
        plan = self._plans.get((key, output_filter))
        feeds = None if plan is None else plan.feeds(inputs)
        if feeds is None:
            feeds = _feeds(signature, inputs)
            plan = plan or self._make_plan(key, signature, output_filter)
        with runtime_errors():
            arrays = [feeds[index] for index in plan.order]
            values = [_as_array(value) for value in measured(self.name, plan.call, arrays)]
        return {
            name: values[position]
            for name, position in zip(plan.outputs, plan.positions, strict=True)
        }

    def _make_plan(self, key, signature, output_filter):
        outputs = _output_names(signature, output_filter)
        dtypes = {
            name: tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype
            for name in sorted(signature.inputs)
        }
        with self._lock:
            plan = _Plan(dtypes, outputs, *self._make_callable(signature, outputs))
            if len(self._plans) < _MAX_PLANS:  # a client may ask for outputs in any order
                self._plans[key, output_filter] = plan
        return plan

    def _make_callable(self, signature, names):
        """Returns a function, the order of its arguments, and the positions of the outputs."""
        inputs = [signature.inputs[name].name for name in sorted(signature.inputs)]
        outputs = [signature.outputs[name].name for name in names]
        order = sorted(range(len(inputs)), key=inputs.__getitem__)
        feeds = tuple(inputs[index] for index in order)
        fetches = tuple(sorted(set(outputs)))  # two outputs may be the same tensor
        if (feeds, fetches) not in self._runs:
            self._runs[feeds, fetches] = self._make_run(feeds, fetches)
        return self._runs[feeds, fetches], order, [fetches.index(output) for output in outputs]

    def _make_run(self, feeds, fetches):
        with runtime_errors():
            run = SessionRun(self._session, feeds, fetches)
        return run if self._batched is None else self._batched(run, feeds)


@count_loads
def _load(session, path, tags):
    if not any(tf.io.gfile.exists(os.path.join(path, file)) for file in _SAVED_MODEL_FILES):
        raise not_found(
            "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
            f"{path}. Check that the directory exists and that you have the right permissions "
            "for accessing it."
        )
    try:
        with runtime_errors(), session.graph.as_default():
            return tf.compat.v1.saved_model.loader.load(session, tags, path)
    except (OSError, RuntimeError, ValueError, KeyError, DecodeError) as error:
        raise ServingError(Code.INTERNAL, f"Could not load {path}: {error}") from error


def _asks_for_xla(graph):
    """Whether a function must be compiled, as by `tf.function(jit_compile=True)`."""
    return any(function.attr["_XlaMustCompile"].b for function in graph.library.function)


def _check_method_name(signature):
    if signature.method_name not in _METHOD_NAMES:
        raise ServingError(
            Code.INTERNAL,
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(_METHOD_NAMES)}}}. Was: {signature.method_name}",
        )


def _feeds(signature, inputs):
    """Returns the arrays in the order of the sorted input names, defaults filled in."""
    expected, sent = set(signature.inputs), set(inputs)
    if len(sent) > len(expected) or (len(sent) < len(expected) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(expected)} "
            f"len({{{_join(sent)}}}) != len({{{_join(expected)}}}). "
            f"Sent extra: {{{_join(sent - expected)}}}. "
            f"Missing but required: {{{_join(expected - sent)}}}."
        )
    feeds = []
    for alias in sorted(expected):
        if alias in inputs:
            _check_dtype(len(feeds), inputs[alias], signature.inputs[alias].dtype)
            feeds.append(inputs[alias])
        elif alias in signature.defaults:
            feeds.append(to_numpy(signature.defaults[alias], alias))
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not "
                "found in request and no default value provided. Inputs expected to be in the "
                f"request {{{_join(sent)}}}, or default input alias set: "
                f"{_join(signature.defaults)}"
            )
    if sent - expected:
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {_join(sent & expected)}, "
            f"request input: {_join(sent)}"
        )
    return feeds


def _check_dtype(index, array, dtype):
    sent = tf.as_dtype(array.dtype).as_datatype_enum
    if sent != dtype:
        raise invalid_argument(
            f"Expects arg[{index}] to be {dtype_name(dtype)} but {dtype_name(sent)} is provided"
        )


def _as_array(value):
    """The runtime returns a scalar string as bare bytes."""
    return np.array(value, object) if isinstance(value, bytes) else value


def _output_names(signature, output_filter):
    if not output_filter:
        return tuple(sorted(signature.outputs))
    for index, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{_join(signature.outputs)}}}."
            )
        if alias in output_filter[:index]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
    return tuple(output_filter)


def _join(names):
    return ",".join(sorted(names))
