"""What callers ask of a signature, whole or in chunks of rows."""

import dataclasses
from collections.abc import AsyncIterable, Mapping
from typing import Any

import numpy as np

from kzoo.client.arguments import named_arrays, per_row
from kzoo.client.errors import error
from kzoo.client.tensors import as_input

EXPLAIN_PREFIX = "explain_"
IMAGE_SUFFIX = "_png"
# Integers of a request, of each example, that it may leave to the explanation.
_CHOICES = ("target", "steps")


@dataclasses.dataclass(frozen=True)
class Question:
    """A signature, its inputs and the outputs wanted, before they meet the server's metadata.

    Attributes:
        signature_name: of which.
        inputs: one array, or {input: array}.
        outputs: names wanted, or None for all.
        method: of an explanation its name, None of other signatures.
        options: {input: value} of what an explanation takes besides the model's inputs.
    """

    signature_name: str
    inputs: Any
    outputs: Any = None
    method: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def arrays(self, signature):
        """Returns {input: array of the signature's dtype}; raises InvalidArgument."""
        if self.method is None:
            return named_arrays(self.inputs, signature, list(signature.inputs))
        return self._explanation_arrays(signature)

    def _explanation_arrays(self, signature):
        brought = {name for name, value in self.options.items() if value is not None}
        unknown = sorted(brought - set(signature.inputs))
        if unknown:
            message = f"Method {self.method!r} takes no `{unknown[0]}`."
            raise error("INVALID_ARGUMENT", message)
        choices = [name for name in signature.inputs if name in (*_CHOICES, *self.options)]
        names = [name for name in signature.inputs if name not in choices]
        batch = named_arrays(self.inputs, signature, names)
        for name in choices:
            value = self.options.get(name)
            if name in _CHOICES:
                batch[name] = per_row(name, value, batch)
            else:
                batch[name] = as_input(name, value, signature.inputs[name])
        return batch

    def over(self, batch):
        """Returns the same question about another batch."""
        return dataclasses.replace(self, inputs=batch)

    def rows(self):
        """Returns how many rows all inputs, and the options that are not one for all, have.

        Raises:
            InvalidArgument: one has no rows, or another number of them.
        """
        inputs = self.inputs if isinstance(self.inputs, dict) else {"inputs": self.inputs}
        sizes = {name: _rows(name, value) for name, value in inputs.items()}
        sizes |= {name: len(value) for name, value in self.options.items() if not _is_one(value)}
        if len(set(sizes.values())) != 1:
            message = f"All inputs must have the same number of rows. Received: {sizes}"
            raise error("INVALID_ARGUMENT", message)
        return next(iter(sizes.values()))

    def split(self, chunk):
        """Yields a question per `chunk` rows, at least one; arrays become views."""
        for start in range(0, max(self.rows(), 1), chunk):
            part = slice(start, start + chunk)
            inputs = self.inputs
            yield dataclasses.replace(
                self,
                inputs={name: value[part] for name, value in inputs.items()}
                if isinstance(inputs, dict)
                else inputs[part],
                options={
                    name: value if _is_one(value) else value[part]
                    for name, value in self.options.items()
                },
            )


def explanation(method, inputs, options, outputs):
    """Returns the `Question` of `explain_<method>`."""
    return Question(f"{EXPLAIN_PREFIX}{method}", inputs, outputs, method, options)


def image_explanation(method, images, options, outputs):
    """Returns the `Question` of `explain_<method>_png`, for bytes or a list of bytes."""
    images = np.array([images] if isinstance(images, bytes) else images, object)
    return Question(f"{EXPLAIN_PREFIX}{method}{IMAGE_SUFFIX}", images, outputs, method, options)


async def parts(question, chunk):
    """Yields the questions that a stream sends.

    Args:
        question: a `Question`.
        chunk: rows of each; None if its inputs are an iterable of batches, asynchronous perhaps.
    """
    if chunk is not None:
        for part in question.split(chunk):
            yield part
    elif isinstance(question.inputs, AsyncIterable):
        async for batch in question.inputs:
            yield question.over(batch)
    else:
        for batch in question.inputs:
            yield question.over(batch)


def check_stream(question, chunk, ahead, iterables):
    """Raises InvalidArgument or ValueError for what cannot be streamed.

    Args:
        question, chunk: as for `parts`.
        ahead: how many requests may be under way.
        iterables: types of what batches can be drawn from.
    """
    check_count("ahead", ahead)
    if chunk is not None:
        check_count("chunk", chunk)
        question.rows()
    elif isinstance(question.inputs, dict) or not isinstance(question.inputs, iterables):
        message = "With chunk=None, `inputs` must be an iterable of batches."
        raise error("INVALID_ARGUMENT", f"{message} Received: {type(question.inputs).__name__}")


def check_count(name, value):
    """Raises a ValueError unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")


def concatenated(results, rows, chunk):
    """Returns {output: array} of the results of all chunks together.

    Raises:
        InvalidArgument: an output is not per row; a whole cannot be told from its chunks then.
    """
    for index, result in enumerate(results):
        expected = min(chunk, rows - index * chunk)
        for name, array in result.items():
            if array.shape[:1] != (expected,):
                message = f"Output {name!r} is not one per row: {expected} rows gave the shape "
                advice = "Leave it out of `outputs`, or take the chunks one by one."
                raise error("INVALID_ARGUMENT", f"{message}{array.shape}. {advice}")
    if len(results) == 1:
        return results[0]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def _rows(name, value):
    if _is_one(value) or not hasattr(value, "__getitem__"):
        message = f"`{name}` must be an array or a list to be split into chunks; an iterable of "
        message += f"batches goes with chunk=None. Received: {type(value).__name__}"
        raise error("INVALID_ARGUMENT", message)
    return len(value)


def _is_one(value):
    """Whether it is one value for all rows; without reading what is not yet in memory."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return True
    return getattr(value, "ndim", 1) == 0
