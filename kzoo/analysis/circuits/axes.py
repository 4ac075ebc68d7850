"""Axes while a circuit is traced: which of them are the same, and what they are made of.

An axis of an input is what it is; an axis that a learned layer makes (the units of a `Dense`) has
no meaning yet and takes that of the axis it is joined with. So joining is unification: an `Open`
axis stands for itself until it is joined with another. Sums, products and grids of axes (those of
concatenation, of reshaping and of strided windows) are equal where their parts are.
"""

from dataclasses import dataclass, field
from fractions import Fraction

DERIVED, LEARNED, GUESSED, GIVEN = range(4)


class AxisError(ValueError):
    """Two axes of different meaning or size are joined."""


@dataclass(eq=False)
class Open:
    """An axis of which not everything may be known yet.

    Args:
        name: what it is called as long as it is joined with no axis of a better name.
        size: its length; None for the batch.
        role: "batch", "position" or "feature"; None where either of the last two may be meant.
        rank: what its name is worth: GIVEN by the user, GUESSED for an input, LEARNED or DERIVED.
        origins: {what made it: which of the axes made there it is}; those are never the same.
        forms: {(how, sizes): the parts} it is made of.
    """

    name: str
    size: int | None
    role: str | None = None
    rank: int = DERIVED
    origins: dict = field(default_factory=dict)
    forms: dict = field(default_factory=dict)
    same: "Open | None" = None


def resolve(axis):
    """The axis that stands for all those it has been joined with."""
    while axis.same is not None:
        axis = axis.same
    return axis


def join(first, second, where):
    """Makes two axes the same one.

    Raises:
        AxisError: if they cannot be; names both, and `where` they meet.
    """
    first, second = resolve(first), resolve(second)
    if first is second:
        return first
    reason = _difference(first, second)
    if reason:
        raise AxisError(
            f"{where!r} joins axis {label(first)!r} with axis {label(second)!r}: {reason}. Is a "
            "transpose or a reshape wrong? If they are the same, give inputs' axes names in `axes`."
        )
    for form, parts in second.forms.items():
        for mine, other in zip(first.forms.get(form, ()), parts, strict=False):
            join(mine, other, where)
    if second.rank > first.rank:
        first, second = second, first
    first.role = first.role or second.role
    first.origins = {**second.origins, **first.origins}
    # A single index is its own grid of any scale, which says nothing of it.
    first.forms = {**second.forms, **first.forms} if first.size != 1 else {}
    second.same = first
    return first


def _difference(first, second):
    if first.size != second.size:
        return f"their sizes are {first.size} and {second.size}"
    if first.role and second.role and first.role != second.role:
        return f"one is a {first.role} axis, the other a {second.role} axis"
    if first.rank == second.rank == GIVEN:
        return "they were given different names"
    if any(second.origins.get(made, at) != at for made, at in first.origins.items()):
        return "they are different axes of one tensor"
    if first.forms and second.forms and not first.forms.keys() & second.forms.keys():
        return "their elements are arranged differently"
    return ""


def merge(axes):
    """The axis of all combinations of indices, the last of `axes` the fastest."""
    axes = [axis for axis in map(resolve, axes) if axis.size != 1] or [resolve(axes[0])]
    if len(axes) == 1:
        return axes[0]
    sizes = tuple(axis.size for axis in axes)
    roles = {axis.role for axis in axes}
    role = "feature" if "feature" in roles else roles.pop() if len(roles) == 1 else None
    size = 1
    for each in sizes:
        size *= each
    return Open("", size, role, forms={("product", sizes): axes})


def split(axis, sizes):
    """The axes whose `merge` is `axis`; those of an earlier split into these sizes."""
    axis = resolve(axis)
    large = tuple(size for size in sizes if size != 1)
    if len(large) > 1:
        parts = axis.forms.get(("product", large)) or _parts(axis, large)
        axis.forms[("product", large)] = parts
    else:
        parts = [axis]
    remaining = iter(parts)
    return [next(remaining) if size != 1 else unit() for size in sizes]


def _parts(axis, sizes):
    # What the units of a layer stand for is open until they are used: pixels or channels.
    role = axis.role if axis.rank >= GUESSED else None
    made = object()
    return [
        Open(f"{label(axis)}.{index}", size, role, LEARNED, {made: index})
        for index, size in enumerate(sizes)
    ]


def concatenated(axes):
    """The axis that has the indices of all `axes`, one after the other."""
    roles = {resolve(axis).role for axis in axes}
    sizes = tuple(axis.size for axis in axes)
    role = roles.pop() if len(roles) == 1 else None
    return Open("", sum(sizes), role, forms={("sum", sizes): list(axes)})


def grid(axis, scale, size):
    """The positions along `axis` taken `scale` times as densely, `size` of them.

    Down and up again is back at the axis itself, as a U-Net needs it.
    """
    base = resolve(axis)
    scale = Fraction(scale)
    for form, parts in base.forms.items():
        if form[0] == "grid":
            base, scale = resolve(parts[0]), scale * form[2]
            break
    if scale == 1 and size == base.size:
        return base
    return Open("", size, base.role, forms={("grid", size, scale): [base]})


def unit():
    """An axis with a single index, which may be joined with every other such axis."""
    return Open("1", 1)


def label(axis):
    """What to call an axis: its own name, or a better one made of the names of its parts."""
    axis = resolve(axis)
    described = _description(axis)
    if described is None:
        return axis.name
    (how, *details), parts = described
    names = [label(part) for part in parts]
    if how == "grid":
        return _grid_label(names[0], resolve(parts[0]).size, *details)
    return ("·" if how == "product" else "+").join(names)


def identity(axis):
    """Equal for axes that are the same, also if they have never met."""
    axis = resolve(axis)
    described = _description(axis)
    if described is None:
        return id(axis)
    return (described[0], *map(identity, described[1]))


def _description(axis):
    """The form by which to call an axis; None where its own name is as good."""
    best = max(axis.forms.items(), key=lambda form: _worth_of(form[1]), default=None)
    return None if best is None or (axis.name and _worth_of(best[1]) <= axis.rank) else best


def _worth_of(parts):
    """That of the least known part, see `Open.rank`."""
    parts = list(map(resolve, parts))
    return min(max([part.rank, *map(_worth_of, part.forms.values())]) for part in parts)


def _grid_label(base, base_size, size, scale):
    name = base
    if scale != 1:
        name += f"/{1 / scale}" if scale < 1 else f"·{scale}"
    return name if size == -(-base_size * scale // 1) else f"{name}[{size}]"
