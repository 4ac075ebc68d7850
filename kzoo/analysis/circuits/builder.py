"""Adds operations to a trace, joining their axes as it goes."""

import itertools
import math
from fractions import Fraction

import numpy as np

from kzoo.analysis.circuits import axes as axes_of
from kzoo.analysis.circuits.axes import LEARNED, Open, join, resolve
from kzoo.analysis.circuits.trace import Trace, Value


class Builder(Trace):
    """A trace with the operations that layers are made of; each returns its output."""

    def einsum(self, name, inputs, terms, result, made=None):
        """Sums products; `made` are axes of the output that come from weights, by index."""
        axes = dict(made or {})
        for value, term in zip(inputs, terms, strict=True):
            for index, axis in zip(term, value.axes, strict=True):
                axes[index] = join(axes[index], axis, name) if index in axes else axis
        over = [index for index in axes if index not in result]
        return self.emit("einsum", name, inputs, terms, result, [axes[i] for i in result], over)

    def elementwise(self, name, function, *operands, **options):
        """A function of each element; numbers stand for themselves, axes align from the right."""
        values = [each for each in operands if isinstance(each, Value)]
        rank = max(len(value.axes) for value in values)
        axes = [None] * rank
        for value in values:
            for at, axis in enumerate(value.axes, rank - len(value.axes)):
                axes[at] = _broadcast(axes[at], axis, name)
        terms = [range(rank - len(value.axes), rank) for value in values]
        numbers = [None if isinstance(each, Value) else float(each) for each in operands]
        return self.emit(
            "elementwise", name, values, terms, range(rank), axes,
            function=function, operands=numbers, options=options,
        )  # fmt: skip

    def with_constant(self, name, function, x, value, label, axes=None):
        """`x` with a constant, as `elementwise`; its axes are those of `x` from the right."""
        value = np.asarray(value)
        if axes is None:
            axes = range(len(x.axes) - value.ndim, len(x.axes))
        kept = [at for at, size in zip(axes, value.shape, strict=True) if size != 1]
        if not kept:
            return self.elementwise(name, function, x, value.item())
        constant = self.constant(label, np.squeeze(value), [x.axes[at] for at in kept])
        result = range(len(x.axes))
        return self.emit(
            "elementwise", name, [x, constant], [result, kept], result, x.axes,
            function=function, operands=[None, None], options={},
        )  # fmt: skip

    def along(self, kind, name, x, axes, **parameters):
        """A softmax or normalization over `axes` (numbers) of `x`."""
        result = range(len(x.axes))
        over = sorted(axis % len(x.axes) for axis in axes)
        return self.emit(kind, name, [x], [result], result, x.axes, over, **parameters)

    def reduce(self, name, function, x, axes, keepdims=False):
        over = sorted(axis % len(x.axes) for axis in axes)
        result = [index for index in range(len(x.axes)) if index not in over]
        kept = [x.axes[index] for index in result]
        y = self.emit(
            "reduce", name, [x], [range(len(x.axes))], result, kept, over, function=function
        )
        return self.insert_units(name, y, over) if keepdims else y

    def window(self, name, x, axis, size, stride, dilation, padding, fill="zero"):
        """Replaces an axis by two: the places of a sliding window, and the offsets in it."""
        (low, high), length = padding, x.shape[axis]
        count = (length + low + high - (size - 1) * dilation - 1) // stride + 1
        offsets = Open(f"{name}.k{axis}", size, None, LEARNED, {(name, "window"): axis})
        places = axes_of.grid(x.axes[axis], Fraction(1, stride), count)
        axes = [*x.axes[:axis], places, offsets, *x.axes[axis + 1 :]]
        rank = len(x.axes)
        result = [*range(axis), rank, rank + 1, *range(axis + 1, rank)]
        return self.emit(
            "window", name, [x], [range(rank)], result, axes, [axis], size=size, stride=stride,
            dilation=dilation, padding=[low, high], count=count, fill=fill,
        )  # fmt: skip

    def fold(self, name, x, places, offsets, stride, low, length):
        """The transpose of `window`: one axis of `length` for the axes of places and offsets."""
        rank = len(x.axes)
        axes = [axis for at, axis in enumerate(x.axes) if at != offsets]
        axes[places] = axes_of.grid(x.axes[places], stride, length)
        result = [index for index in range(rank) if index != offsets]
        result[places] = rank
        return self.emit(
            "fold", name, [x], [range(rank)], result, axes, [places, offsets],
            stride=stride, low=low, length=length,
        )  # fmt: skip

    def pad(self, name, x, axis, low, high, fill="zero"):
        if not low and not high:
            return x
        axes = list(x.axes)
        axes[axis] = axes_of.grid(x.axes[axis], 1, x.shape[axis] + low + high)
        result = range(len(axes))
        return self.emit(
            "pad", name, [x], [result], result, axes, [axis], padding=[low, high], fill=fill
        )

    def slice(self, name, x, axis, start, stop, step, made=None):
        size = len(range(start, stop, step))
        if size == x.shape[axis] and step > 0:
            return x
        axes = list(x.axes)
        old = resolve(axes[axis])
        text = f"{axes_of.label(old)}[{start}:{stop}{f':{step}' if step != 1 else ''}]"
        axes[axis] = made or Open(text, size, old.role, LEARNED)
        result = range(len(axes))
        # A backward slice that reaches the first element has no stop.
        bounds = [start, None if stop < 0 else stop, step]
        return self.emit("slice", name, [x], [result], result, axes, [axis], bounds=bounds)

    def concatenate(self, name, values, axis):
        rank = len(values[0].axes)
        axis %= rank
        axes = list(values[0].axes)
        for value in values[1:]:
            for at in set(range(rank)) - {axis}:
                axes[at] = join(axes[at], value.axes[at], name)
        axes[axis] = axes_of.concatenated([value.axes[axis] for value in values])
        # Each input has an index of its own along the axis, so that none seems shared.
        terms = [[*range(axis), rank + at, *range(axis + 1, rank)] for at, _ in enumerate(values)]
        return self.emit("concatenate", name, values, terms, range(rank), axes, [axis])

    def rearrange(self, name, x, groups, result, sizes, axes):
        """Splits, permutes, repeats and merges axes: groups of indices in, groups out."""
        return self.emit("rearrange", name, [x], [groups], result, axes, sizes=list(sizes))

    def transpose(self, name, x, order):
        order = [axis % len(x.axes) for axis in order]
        if order == sorted(order):
            return x
        groups = [(index,) for index in range(len(order))]
        return self.rearrange(
            name, x, groups, [(i,) for i in order], x.shape, [x.axes[i] for i in order]
        )

    def insert_units(self, name, x, positions):
        """Gives the output axes of size 1 at `positions`."""
        rank = len(x.axes)
        result, axes = [(i,) for i in range(rank)], list(x.axes)
        for new, at in enumerate(sorted(positions), rank):
            result.insert(at, (new,))
            axes.insert(at, axes_of.unit())
        sizes = [*x.shape, *[1] * len(positions)]
        return self.rearrange(name, x, [(i,) for i in range(rank)], result, sizes, axes)

    def remove_units(self, name, x, positions):
        groups = [(index,) for index in range(len(x.axes))]
        kept = [i for i in range(len(x.axes)) if i not in positions]
        result = [(i,) for i in kept]
        return self.rearrange(name, x, groups, result, x.shape, [x.axes[i] for i in kept])

    def repeat(self, name, x, factors):
        """Repeats each index along an axis: {axis: times}."""
        groups = [(index,) for index in range(len(x.axes))]
        result, axes, sizes = list(groups), list(x.axes), list(x.shape)
        for axis, times in factors.items():
            result[axis] = (axis, len(sizes))
            sizes.append(times)
            axes[axis] = axes_of.grid(x.axes[axis], times, x.shape[axis] * times)
        return self.rearrange(name, x, groups, result, sizes, axes)

    def reshape(self, name, x, shape):
        """Splits and merges axes so that the shape is `shape`, whose batch is None."""
        if tuple(shape[:1]) != x.shape[:1]:
            raise ValueError(f"{name!r} reshapes the batch axis: {x.shape} to {tuple(shape)}")
        pairs = _matched(x.axes[1:], shape[1:])
        if any(len(old) > 1 and len(new) > 1 for old, new in pairs):
            between = [[math.prod(new)] if len(old) > 1 else new for old, new in pairs]
            x = self.reshape(name, x, [None, *itertools.chain(*between)])
            return self.reshape(name, x, shape)
        groups, result, sizes, axes = [(0,)], [(0,)], [None], [x.axes[0]]
        for old, new in pairs:
            parts = axes_of.split(old[0], new) if len(old) == 1 and new else old or _units(new)
            indices = tuple(range(len(sizes), len(sizes) + len(parts)))
            each = [(index,) for index in indices]
            sizes += [part.size for part in parts]
            groups += [indices] if len(old) == 1 else each if old else []
            result += [indices] if len(new) == 1 else each if new else []
            axes += [axes_of.merge(parts)] if len(new) == 1 else parts if new else []
        return self.rearrange(name, x, groups, result, sizes, axes)


def _broadcast(known, axis, name):
    if known is None or known.size == 1:
        return axis
    return known if axis.size == 1 else join(known, axis, name)


def _matched(axes, shape):
    """Pairs of runs of axes and sizes of the same product, as short as they can be."""
    axes, shape, pairs = list(axes), list(shape), []
    while axes or shape:
        old, new = ([axes.pop(0)] if axes else []), ([shape.pop(0)] if shape else [])
        while _count(old) != math.prod(new):
            if _count(old) < math.prod(new):
                old.append(axes.pop(0))
            else:
                new.append(shape.pop(0))
        pairs.append((old, new))
    return pairs


def _units(sizes):
    return [axes_of.unit() for _ in sizes]


def _count(axes):
    return math.prod(axis.size for axis in axes)
