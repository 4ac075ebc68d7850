"""The Examples of `classify` and `regress`: features by name, as both transports send them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from kzoo.client.errors import error

_INT64 = np.iinfo(np.int64)


class ClassScore(NamedTuple):
    """A class of an Example: its label, empty if the model names none, and its score, else 0."""

    label: str
    score: float


def check_examples(examples):
    """Returns [{name: (kind, values)}] for a list of dicts; see `features`."""
    if isinstance(examples, Mapping | str | bytes) or not isinstance(examples, Iterable):
        message = "`examples` must be a list of dicts, one per Example."
        raise error("INVALID_ARGUMENT", f"{message} Received: {type(examples).__name__}")
    return [features(example, f"examples[{index}]") for index, example in enumerate(examples)]


def features(example, argument):
    """Returns {name: (kind, values)} of an Example: kind "bytes", "float" or "int64", and a list.

    Args:
        example: {name: value, list or array}. Strings are sent as UTF-8, booleans as 0 and 1,
            floats as 32 bits; of arrays the elements in row-major order. Numbers of which one is
            a float are floats.
        argument: what to call it in an error.

    Raises:
        InvalidArgument: it is no dict, or a value is or mixes what no feature can hold.
    """
    if not isinstance(example, Mapping):
        message = f"`{argument}` must be a dict of features."
        raise error("INVALID_ARGUMENT", f"{message} Received: {type(example).__name__}")
    try:
        return {_name(name): _feature(value) for name, value in example.items()}
    except (TypeError, ValueError, OverflowError) as problem:
        message = f"`{argument}` must have values of bytes, str, int, bool or float"
        raise error("INVALID_ARGUMENT", f"{message}, of one kind each. {problem}") from None


def _name(name):
    if not isinstance(name, str):
        raise TypeError(f"Received: the name {name!r}")
    return name


def _feature(value):
    items = np.array(value, object).ravel().tolist()
    if any(isinstance(item, str | bytes) for item in items):
        return "bytes", list(map(_to_bytes, items))
    numbers = np.asarray(value).ravel()
    if not items or (numbers.dtype.kind in "biu" and _fits(numbers)):
        return "int64", numbers.astype(np.int64).tolist()
    # NumPy makes floats of whole numbers that no integer type holds together.
    if numbers.dtype.kind != "f" or all(isinstance(item, int) for item in items):
        raise TypeError(f"Received: {value!r}")
    with np.errstate(over="ignore"):
        return "float", numbers.astype(np.float32).tolist()


def _fits(numbers):
    return int(numbers.max()) <= _INT64.max


def _to_bytes(item):
    if not isinstance(item, str | bytes):
        raise TypeError(f"Received: {item!r} among strings")
    return item.encode() if isinstance(item, str) else bytes(item)
