"""Time and memory of a circuit: products of axes, as text and as numbers."""

import math
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """A sum of products of axes.

    Args:
        terms: {names of axes, sorted: how often their product is counted}.
        value: the number for one example; with a batch it is that many times as large.
    """

    terms: dict
    value: int = 0

    @classmethod
    def of(cls, axes, times=1):
        """The product of the sizes of `axes`."""
        names = tuple(sorted(axis.name for axis in axes if axis.size != 1))
        value = times * math.prod(axis.size or 1 for axis in axes)
        return cls({names: times} if times else {}, value)

    def __add__(self, other):
        terms = Counter(self.terms)
        terms.update(other.terms)
        return Count(dict(terms), self.value + other.value)

    def __int__(self):
        return self.value

    def __str__(self):
        """The products of most axes first: "batch · m · n + 2 · batch · n"."""
        products = sorted(self.terms.items(), key=lambda term: (-len(term[0]), term[0]))
        return " + ".join(_product(names, times) for names, times in products) or "0"


@dataclass(frozen=True)
class OperationComplexity:
    """Multiply-adds of an operation and the memory of its output, in elements."""

    name: str
    kind: str
    multiply_adds: Count
    memory: Count


@dataclass(frozen=True)
class Complexity:
    """What a forward pass costs, for one example.

    Multiply-adds are those of sums of products, as `kzoo.analysis.multiply_adds` counts them: what
    is done element by element is left out. Memory is in elements, without weights; windows, slices
    and other orders and shapes of a tensor take none, as they show elements that are there already.

    Args:
        operations: one `OperationComplexity` for each operation.
        multiply_adds: their sum.
        peak_memory: the most elements that are there at a time, if each is dropped after its last
            use; inputs and outputs stay to the end.
        peak_at: name of the operation at which it is.
    """

    operations: tuple[OperationComplexity, ...]
    multiply_adds: Count
    peak_memory: Count
    peak_at: str

    @classmethod
    def of(cls, circuit):
        rows = tuple(_row(circuit, operation) for operation in circuit.operations)
        total = sum((row.multiply_adds for row in rows), Count({}))
        return cls(rows, total, *_peak(circuit, rows))

    def __str__(self):
        """A table: operation, kind, multiply-adds, memory; the total and the peak below it."""
        lines = [("operation", "kind", "multiply-adds", "memory")]
        lines += [
            (each.name, each.kind, _both(each.multiply_adds), _both(each.memory))
            for each in self.operations
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        total = f"total: {_both(self.multiply_adds)}"
        return "\n".join([*rows, total, f"peak, at {self.peak_at}: {_both(self.peak_memory)}"])


def _product(names, times):
    powers = Counter(names)
    factors = [name if power == 1 else f"{name}^{power}" for name, power in powers.items()]
    return " · ".join([str(times)] * (times != 1 or not names) + factors)


def _both(count):
    return f"{count} = {count.value:,}" if count.terms else "0"


def _row(circuit, operation):
    products = 0
    if operation.kind == "einsum":
        products = len(operation.inputs) - 1
    axes = circuit.axes_of(operation).values()
    memory = Count({})
    if not _is_view(circuit, operation):
        memory = Count.of(circuit.tensors[operation.output].axes)
    return OperationComplexity(operation.name, operation.kind, Count.of(axes, products), memory)


def _is_view(circuit, operation):
    """Whether the output shows elements that are there already."""
    if operation.kind != "rearrange":
        return operation.kind in ("slice", "window")
    # One that repeats elements, as up-sampling does, makes more of them.
    before, after = (
        Count.of(circuit.tensors[name].axes).value
        for name in (operation.inputs[0], operation.output)
    )
    return before == after


def _peak(circuit, rows):
    """The most memory at a time, and where: a pass with each tensor dropped after its last use."""
    storage = {name: name for name in circuit.inputs}
    last = dict.fromkeys((*circuit.inputs, *circuit.outputs), len(rows))
    for at, operation in enumerate(circuit.operations):
        sources = [storage[name] for name in operation.inputs if name in storage]
        is_view = sources and _is_view(circuit, operation)
        storage[operation.output] = sources[0] if is_view else operation.output
        for name in (*sources, storage[operation.output]):
            last[name] = max(last.get(name, 0), at)
    for name in circuit.outputs:
        last[storage.get(name, name)] = len(rows)
    live = {name: Count.of(circuit.tensors[name].axes) for name in circuit.inputs}
    peak, peak_at = sum(live.values(), Count({})), "inputs"
    for at, (operation, row) in enumerate(zip(circuit.operations, rows, strict=True)):
        if storage[operation.output] == operation.output:
            live[operation.output] = row.memory
        now = sum(live.values(), Count({}))
        if now.value > peak.value:
            peak, peak_at = now, operation.name
        live = {name: count for name, count in live.items() if last[name] > at}
    return peak, peak_at
