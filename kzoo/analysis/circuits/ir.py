"""The circuit: tensors whose axes have names, and the operations between them."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from kzoo.analysis.circuits import svg as picture
from kzoo.analysis.circuits.complexity import Complexity
from kzoo.analysis.circuits.run import execute

_LINEAR = ("einsum", "fold", "rearrange", "concatenate", "slice")


@dataclass(frozen=True)
class Axis:
    """A wire: the name of an axis and its size, None for the batch."""

    name: str
    size: int | None

    def __str__(self):
        return self.name


@dataclass(frozen=True)
class Tensor:
    """A tuple of axes; the `constant` ones are weights and the like, and no inputs."""

    name: str
    axes: tuple[Axis, ...]
    constant: bool = False

    def __str__(self):
        return " ".join(map(str, self.axes)) or "1"


@dataclass(frozen=True)
class Operation:
    """One operation: which indices of its inputs it reads, and which of its output it writes.

    Args:
        name: of the layer it belongs to.
        kind: "einsum", "elementwise", "reduce", "softmax", "normalize", "window", "fold",
            "rearrange", "concatenate", "slice", "pad" or "gather".
        inputs: names of the tensors it reads.
        output: name of the tensor it makes.
        terms: for each input, an index (a number) for each axis; for a "rearrange" a group of
            indices, as an axis may be split.
        result: the same of the output. An index of both is one the operation is broadcast over,
            except those in `over`.
        over: indices along which the operation works: those it sums, normalizes or windows.
        parameters: what else `kzoo.analysis.circuits.run` needs; JSON-able.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    terms: tuple[tuple, ...]
    result: tuple
    over: tuple[int, ...] = ()
    parameters: dict = field(default_factory=dict)

    @property
    def linear(self):
        """Whether it is linear, or affine, in each of its inputs alone."""
        if self.kind in ("window", "pad"):
            return self.parameters["fill"] == "zero"
        if self.parameters.get("function") == "divide":
            return self.parameters["operands"][1] is not None
        linear = ("add", "subtract", "negative", "multiply", "sum", "mean")
        return self.kind in _LINEAR or self.parameters.get("function") in linear


@dataclass(frozen=True)
class Circuit:
    """A model as tensors with named axes and the operations between them.

    Args:
        name: of the model.
        inputs, outputs: names of tensors, in the model's order.
        tensors: {name: Tensor}.
        operations: in an order in which they can be run.
        constants: {name: array} of the constant tensors; those that a circuit read from a picture
            lacks are no part of it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    operations: tuple[Operation, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __str__(self):
        """One line for each operation: its name, kind and the axes that go in and out."""
        lines = []
        for each in self.operations:
            function = each.parameters.get("function", "")
            sources = ", ".join(str(self.tensors[name]) for name in each.inputs)
            kind = f"{each.kind} {function}".strip()
            lines.append(f"{each.name}: {kind}: {sources} -> {self.tensors[each.output]}")
        return "\n".join(lines)

    @property
    def axes(self):
        """All axes, by name, in the order in which they appear."""
        return {axis.name: axis for each in self.tensors.values() for axis in each.axes}

    def axes_of(self, operation):
        """{index: Axis} of the indices of an operation that are axes of their own."""
        found = {}
        names = (*operation.inputs, operation.output)
        for name, term in zip(names, (*operation.terms, operation.result), strict=True):
            for index, axis in zip(term, self.tensors[name].axes, strict=True):
                if not isinstance(index, int):
                    index = index[0] if len(index) == 1 else None
                # An axis of size 1 is broadcast against the one that is longer.
                if index is not None and (index not in found or found[index].size == 1):
                    found[index] = axis
        return found

    def broadcast_axes(self, operation):
        """The axes over which an operation is repeated: those it leaves as they are."""
        axes = self.axes_of(operation)
        data = [not self.tensors[name].constant for name in operation.inputs]
        inside = {i for term in itertools.compress(operation.terms, data) for i in term}
        kept = [index for index in operation.result if index in inside]
        return tuple(axes[index] for index in kept if index in axes and index not in operation.over)

    def run(self, inputs):
        """Runs the circuit with NumPy; no layer of the model is called.

        Args:
            inputs: array of the shape of the model's input; a list or tuple of them, or {name:
                array}, where there are several.

        Returns:
            The model's output, a NumPy array; a list of them where there are several.

        Raises:
            ValueError: for another number of inputs or other sizes than those of the circuit, or
                where it lacks constants.
        """
        values = {**self.constants, **self._named(inputs)}
        missing = [each.name for each in self.tensors.values() if each.constant]
        missing = [name for name in missing if name not in values]
        if missing:
            raise ValueError(
                "A circuit read from a picture has no weights. Pass `constants` to `from_svg`. "
                f"Missing: {', '.join(missing)}"
            )
        outputs = execute(self.operations, values, self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _named(self, inputs):
        if isinstance(inputs, dict) and inputs.keys() != set(self.inputs):
            raise ValueError(
                f"`inputs` must have the keys {', '.join(self.inputs)}. "
                f"Received: {', '.join(map(str, inputs))}"
            )
        if isinstance(inputs, dict):
            inputs = [inputs[name] for name in self.inputs]
        elif not isinstance(inputs, list | tuple):
            inputs = [inputs]
        if len(inputs) != len(self.inputs):
            raise ValueError(f"`inputs` must be {len(self.inputs)} arrays. Received: {len(inputs)}")
        named = dict(zip(self.inputs, map(np.asarray, inputs), strict=True))
        for name, value in named.items():
            sizes = [axis.size for axis in self.tensors[name].axes]
            if len(sizes) != value.ndim or any(
                size not in (None, length) for size, length in zip(sizes, value.shape, strict=True)
            ):
                expected = ", ".join(f"{a}={a.size or 'any'}" for a in self.tensors[name].axes)
                raise ValueError(
                    f"`inputs` {name!r} must have the axes {expected}. Received: shape "
                    f"{value.shape}"
                )
        return named

    def complexity(self):
        """Multiply-adds and memory of each operation, see `Complexity`."""
        return Complexity.of(self)

    def svg(self):
        """Draws the neural circuit diagram.

        From left to right; each axis is a wire with its name, dashed lines are between the tensors
        that are there at the same time. Operations stand in boxes over the axes they work on, and
        the axes they are broadcast over pass by. Bold: with weights. Dots: copied or shared axes.
        Triangles: softmax; circles: normalization; stars: windows; arcs: sums of products.

        Returns:
            The text of an SVG file, which `from_svg` reads.
        """
        return picture.draw(self)

    @classmethod
    def from_svg(cls, text, constants=None):
        """The circuit of a diagram that `svg` drew.

        Args:
            text: of the file.
            constants: {name: array}, those of the circuit drawn, which a picture has not; without
                them the circuit cannot be run.

        Raises:
            ValueError: if it is not such a diagram.
        """
        data = picture.read(text)
        try:
            return cls(**_fields(data), constants=dict(constants or {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("The circuit in the metadata of `text` is broken.") from error


def _fields(data):
    """The fields of the circuit that `kzoo.analysis.circuits.svg.describe` described."""
    axes = {name: Axis(name, size) for name, size in data["axes"]}
    tensors = {
        name: Tensor(name, tuple(axes[each] for each in names), constant)
        for name, names, constant in data["tensors"]
    }
    operations = tuple(
        Operation(**{key: _tuples(value) for key, value in each.items()})
        for each in data["operations"]
    )
    names = {key: tuple(data[key]) for key in ("inputs", "outputs")}
    return {"name": data["name"], "tensors": tensors, "operations": operations, **names}


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
