"""What is collected while a circuit is traced: tensors, operations, constants, axes."""

import itertools
from dataclasses import dataclass

import numpy as np

from kzoo.analysis.circuits import axes as axes_of
from kzoo.analysis.circuits.axes import GIVEN, GUESSED, LEARNED, Open, resolve
from kzoo.analysis.circuits.ir import Axis, Circuit, Operation, Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor while it is traced."""

    name: str
    axes: tuple[Open, ...]
    constant: bool = False

    @property
    def shape(self):
        return tuple(axis.size for axis in self.axes)


class Trace:
    """Collects tensors, operations and constants; `circuit` makes a circuit of them.

    Args:
        name: of the model.
        named: {name of an input: names of its axes} that the user gave.
    """

    def __init__(self, name, named):
        self.name = name
        self.given = {"batch": Open("batch", None, "batch", GIVEN)}
        self.named = named
        self.values = {}
        self.operations = []
        self.constants = {}
        self.learned = {}

    def input(self, name, shape, several):
        """A tensor that comes from outside, with the axes' names that were given or guessed."""
        if None in shape[1:]:
            raise ValueError(
                f"All sizes but that of the batch must be known. Received: input {name!r} of "
                f"shape {shape}"
            )
        if name in self.named:
            axes = self._given_axes(name, shape)
        else:
            prefix = f"{name}." if several else ""
            axes = [
                Open(prefix + guess, size, role, GUESSED, {name: at})
                for at, (guess, role, size) in enumerate(_guesses(shape))
            ]
        return self._add(name, [self.given["batch"], *axes])

    def _given_axes(self, name, shape):
        names = self.named[name]
        names = names.split() if isinstance(names, str) else list(names)
        if len(names) != len(shape) - 1:
            raise ValueError(
                f"`axes` of {name!r} must be {len(shape) - 1} names, without the batch. "
                f"Received: {names}"
            )
        for each, size in zip(names, shape[1:], strict=True):
            known = self.given.setdefault(each, Open(each, size, None, GIVEN))
            if known.size != size:
                raise axes_of.AxisError(
                    f"`axes` calls two axes {each!r}, of sizes {known.size} and {size}, the second "
                    f"an axis of input {name!r}"
                )
        return [self.given[each] for each in names]

    def constant(self, name, value, axes=None):
        """A weight or another array; `axes` of None are new ones without a meaning."""
        value = np.asarray(value)
        # bfloat16 is no type of NumPy's own: it goes through float32.
        if value.dtype.kind not in "biuf":
            value = value.astype("float32")
        if axes is None:
            axes = [Open(f"{name}.{at}", size) for at, size in enumerate(value.shape)]
        made = self._add(name, axes, constant=True)
        self.constants[made.name] = value
        return made

    def learned_axis(self, layer, part, size):
        """The axis that a layer makes; one axis however often the layer is called."""
        key = (id(layer), part)
        if key not in self.learned:
            name = f"{layer.name}.{part}" if part else layer.name
            self.learned[key] = Open(name, size, None, LEARNED, {id(layer): part})
        return self.learned[key]

    def _add(self, name, axes, constant=False):
        names = itertools.chain([name], (f"{name}:{n}" for n in itertools.count(2)))
        name = next(each for each in names if each not in self.values)
        self.values[name] = Value(name, tuple(axes), constant)
        return self.values[name]

    def emit(self, kind, name, inputs, terms, result, axes, over=(), **parameters):
        output = self._add(name, axes)
        self.operations.append(
            Operation(
                name,
                kind,
                tuple(each.name for each in inputs),
                output.name,
                tuple(tuple(term) for term in terms),
                tuple(result),
                tuple(over),
                parameters,
            )
        )
        return output

    def circuit(self, inputs, outputs):
        """What was built, with every axis under its final name."""
        names = _Names()
        tensors = {
            value.name: Tensor(value.name, tuple(map(names.of, value.axes)), value.constant)
            for value in self.values.values()
        }
        return Circuit(
            self.name,
            tuple(value.name for value in inputs),
            tuple(value.name for value in outputs),
            tensors,
            tuple(self.operations),
            self.constants,
        )


class _Names:
    """Names for axes: different axes of one name get numbers."""

    def __init__(self):
        self.known = {"1": None}

    def of(self, axis):
        axis = resolve(axis)
        if axis.size == 1 and not axis.rank:
            return Axis("1", 1)
        plain = axes_of.label(axis)
        identity = axes_of.identity(axis)
        for number in itertools.count(1):
            name = plain if number == 1 else f"{plain}#{number}"
            if self.known.setdefault(name, identity) == identity:
                return Axis(name, axis.size)


def _guesses(shape):
    spatial = {3: ["positions"], 4: ["height", "width"], 5: ["depth", "height", "width"]}
    names = spatial.get(len(shape), [f"axis{at}" for at in range(1, len(shape) - 1)])
    pairs = [(name, "position") for name in names] + [("features", "feature")]
    if len(shape) in (4, 5):
        pairs[-1] = ("channels", "feature")
    return [(name, role, size) for (name, role), size in zip(pairs, shape[1:], strict=False)]
