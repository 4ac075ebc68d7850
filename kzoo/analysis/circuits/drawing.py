"""How a neural circuit diagram is drawn: wires for axes, dashed lines, boxes."""

import re
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
_WIRE, _TENSOR, _TOP, _LEFT = 22, 26, 58, 24
_LETTER, _ROOM = 6.4, 76
_STYLE = """
text { font: 11px sans-serif; fill: #222; } .axis { font-style: italic; }
.learned { font-weight: bold; } .title { fill: #666; }
path { fill: none; stroke: #222; } .group { fill: #eef2f8; } .dash { stroke-dasharray: 6 4; }
.linear { fill: #dcebdd; stroke: #222; }
.nonlinear { fill: #f6e3c5; stroke: #222; } .dot { fill: #222; }
"""
_SIGNS = {"add": "+", "subtract": "−", "multiply": "×", "divide": "÷"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Drawing:
    """Columns from left to right; between two of them one operation."""

    def __init__(self, circuit, metadata):
        self.circuit = circuit
        self.root = ElementTree.Element("svg", xmlns=SVG)
        self.add("metadata").text = metadata
        self.add("style").text = _STYLE
        self.add("title").text = _clean(circuit.name)
        self.back, self.lines, self.front = (self.add("g") for _ in range(3))
        self.height = 0

    def add(self, tag, parent=None, text=None, **attributes):
        parent = self.root if parent is None else parent
        attributes = {
            key.rstrip("_").replace("_", "-"): _clean(value) for key, value in attributes.items()
        }
        element = ElementTree.SubElement(parent, tag, attributes)
        element.text = None if text is None else _clean(text)
        return element

    def text(self):
        live = list(self.circuit.inputs)
        places = self.place(live)
        right = self.labels(_LEFT, places, live)
        bands = []
        for at, operation in enumerate(self.circuit.operations):
            live, gone = self.after(live, at)
            left, before = right, places
            places = self.place(live)
            right = left + max(_ROOM, _LETTER * len(_symbol(operation)) + 40)
            self.pass_by(left, right, before, places, [n for n in live if n != operation.output])
            self.operation(operation, left, right, before, places, gone)
            fresh = self.named(operation, live, at)
            end = self.labels(right, places, fresh)
            bands.append((operation.name, left, end))
            right = end
        self.bands(bands)
        width, height = str(round(right + _LEFT)), str(self.height + 24)
        self.root.attrib.update(width=width, height=height, viewBox=f"0 0 {width} {height}")
        return ElementTree.tostring(self.root, encoding="unicode")

    def after(self, live, at):
        """The tensors that are there after an operation, and those that it used up."""
        operation = self.circuit.operations[at]
        needed = {n for each in self.circuit.operations[at + 1 :] for n in each.inputs}
        needed |= set(self.circuit.outputs)
        used = [live.index(name) for name in operation.inputs if name in live]
        place = min(used, default=len(live))
        live = [*live[:place], operation.output, *live[place:]]
        gone = {name for name in operation.inputs if name not in needed}
        return [name for name in live if name in needed or name == operation.output], gone

    def named(self, operation, live, at):
        """The tensors whose axes are named after an operation: new ones, and all at the end."""
        if at + 1 == len(self.circuit.operations):
            return live
        tensors = self.circuit.tensors
        same = tensors[operation.inputs[0]].axes == tensors[operation.output].axes
        return [] if same else [operation.output]

    def place(self, live):
        """{tensor: heights of its wires}, from top to bottom."""
        places, y = {}, _TOP
        for name in live:
            axes = self.circuit.tensors[name].axes
            places[name] = [y + _WIRE * at for at in range(max(len(axes), 1))]
            y = places[name][-1] + _TENSOR + _WIRE
        self.height = max(self.height, y - _WIRE)
        return places

    def labels(self, left, places, shown):
        """Draws straight wires, the names of some, and what separates the tensors."""
        axes = [axis for name in shown for axis in self.circuit.tensors[name].axes]
        right = left + _LETTER * max([3, *(len(axis.name) for axis in axes)]) + 10
        for number, (name, heights) in enumerate(places.items()):
            of = self.circuit.tensors[name].axes
            for axis, y in zip(of, heights, strict=False):
                self.wire(axis, (left, y), (right, y))
                if name in shown:
                    self.add("text", self.front, axis.name, x=left + 4, y=y - 4, class_="axis")
            if number:
                self.dash((left, heights[0]), (right, heights[0]))
        return right

    def wire(self, axis, start, end):
        (x, y), (to_x, to_y) = start, end
        middle = (x + to_x) / 2
        path = f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"
        size = "" if axis.size is None else axis.size
        self.add("path", self.lines, d=path, data_axis=axis.name, data_size=size)

    def dash(self, start, end):
        """What is above a tensor whose first wire goes from `start` to `end`."""
        (x, y), (to_x, to_y) = start, end
        middle, above = (x + to_x) / 2, (_WIRE + _TENSOR) / 2 + 2
        y, to_y = y - above, to_y - above
        path = f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"
        self.add("path", self.lines, d=path, class_="dash")

    def dot(self, x, y):
        self.add("circle", self.front, cx=x, cy=y, r=3, class_="dot")

    def pass_by(self, left, right, before, after, names):
        for name in names:
            if _TOP not in (before[name][0], after[name][0]):
                self.dash((left, before[name][0]), (right, after[name][0]))
            for axis, y, to_y in zip(
                self.circuit.tensors[name].axes, before[name], after[name], strict=False
            ):
                self.wire(axis, (left, y), (right, to_y))

    def operation(self, operation, left, right, before, after, gone):
        middle = (left + right) / 2
        sources = self.sources(operation, before)
        kept = {index for group in operation.result for index in _group(group)}
        targets = after[operation.output]
        learned = any(self.circuit.tensors[name].constant for name in operation.inputs)
        boxed = [y for index in operation.over for _, y in sources.get(index, ())]
        box = self.box(operation, middle, boxed, sources, targets, learned)
        for axis, group, y in zip(
            self.circuit.tensors[operation.output].axes, operation.result, targets, strict=False
        ):
            self.outgoing(axis, [s for i in _group(group) for s in sources.get(i, ())],
                          left, right, y, (middle, box))  # fmt: skip
        for index, found in sources.items():
            if index not in kept:
                self.ended(found, left, middle, box, operation, learned)
        above = before.get(operation.inputs[0], [_TOP])[0]
        if _TOP not in (above, targets[0]):
            self.dash((left, above), (right, targets[0]))
        for name in {*operation.inputs} - gone:
            for y in before.get(name, ()):
                self.dot(left, y)

    def sources(self, operation, before):
        """{index: [(axis, height)]} of the wires that go in; constants have none."""
        found = {}
        for name, term in zip(operation.inputs, operation.terms, strict=True):
            axes = self.circuit.tensors[name].axes
            for axis, group, y in zip(axes, term, before.get(name, ()), strict=False):
                for index in _group(group):
                    # Axes that are concatenated end in one.
                    if operation.kind == "concatenate" and index not in operation.result:
                        (index,) = operation.over
                    found.setdefault(index, []).append((axis, y))
        return found

    def outgoing(self, axis, found, left, right, y, box):
        found = list(dict.fromkeys(found))
        for source, from_y in found:
            self.wire(source, (left, from_y), (right, y))
        if len(found) > 1:
            self.dot(right, y)
        if not found:
            self.wire(axis, box, (right, y))

    def ended(self, found, left, middle, box, operation, learned):
        """Wires that go no further: summed over together, or into the box."""
        if operation.kind == "rearrange":
            for axis, y in found:
                self.wire(axis, (left, y), (middle, y))
                self.dot(middle, y)
        elif len(found) == 2 and not learned:
            (axis, top), (_, bottom) = sorted(found, key=lambda each: each[1])
            radius = (bottom - top) / 2
            path = f"M{left} {top}H{middle - 8}A{min(radius, 22)} {radius} 0 0 1 {middle - 8} "
            path += f"{bottom}H{left}"
            size = "" if axis.size is None else axis.size
            self.add("path", self.lines, d=path, data_axis=axis.name, data_size=size)
        else:
            for axis, y in found:
                self.wire(axis, (left, y), (middle, box))

    def box(self, operation, x, boxed, sources, targets, learned):
        """Draws what stands for the operation; returns the height of its centre."""
        heights = [y for found in sources.values() for _, y in found]
        if operation.kind == "rearrange" or (operation.kind == "einsum" and not learned):
            return sum(heights) / len(heights) if heights else targets[0]
        symbol = _symbol(operation)
        half = max(_LETTER * len(symbol) / 2 + 6, 12)
        style = "linear" if operation.linear else "nonlinear"
        aside = operation.kind in ("elementwise", "concatenate")
        top, bottom = (min(boxed), max(boxed)) if boxed and not aside else (targets[0] - 20,) * 2
        middle = (top + bottom) / 2
        here = {"data_operation": operation.name, "data_kind": operation.kind, "class_": style}
        if operation.kind == "softmax":
            points = f"{x - 12},{middle} {x + 10},{top - 11} {x + 10},{bottom + 11}"
            self.add("polygon", self.front, points=points, **here)
            self.caption(x, top - 13, symbol, False)
        elif operation.kind == "normalize":
            self.add("ellipse", self.front, cx=x, cy=middle, rx=11, ry=(bottom - top) / 2 + 11,
                     **here)  # fmt: skip
            self.caption(x, top - 13, symbol, False)
        else:
            self.add("rect", self.front, x=x - half, y=top - 9, width=2 * half,
                     height=bottom - top + 18, rx=9 if aside else 0, **here)  # fmt: skip
            self.caption(x, middle + 4, symbol, learned)
        return middle

    def caption(self, x, y, text, learned):
        style = {"class_": "learned"} if learned else {}
        self.add("text", self.front, text, x=x, y=y, text_anchor="middle", **style)

    def bands(self, bands):
        """A tinted band with its name for the operations of each layer."""
        merged = []
        for name, left, right in bands:
            if merged and merged[-1][0] == name:
                merged[-1][2] = right
            else:
                merged.append([name, left, right])
        for name, left, right in merged:
            self.add("rect", self.back, x=left + 2, y=4, width=right - left - 4,
                     height=self.height + 8, rx=4, class_="group")  # fmt: skip
            room = int((right - left) / _LETTER) - 1
            short = name if len(name) <= room else f"{name[: room - 1]}…"
            label = self.add("text", self.front, short, x=left + 6, y=17, class_="title")
            self.add("title", label, name)


def _group(indices):
    return (indices,) if isinstance(indices, int) else indices


def _symbol(operation):
    rule = operation.parameters
    if operation.kind == "einsum":
        return "L"
    if operation.kind == "elementwise":
        numbers = [f"{number:.4g}" for number in rule["operands"] if number is not None]
        sign = _SIGNS.get(rule["function"], rule["function"])
        if operation.linear or sign in _SIGNS.values():
            return " ".join([sign, *numbers])
        return " ".join(["▸", sign, *numbers, "▸"])
    if operation.kind == "window":
        return f"★{rule['size']}" + (f"/{rule['stride']}" if rule["stride"] > 1 else "") + (
            f" d{rule['dilation']}" if rule["dilation"] > 1 else ""
        )  # fmt: skip
    return rule.get("function", operation.kind)


def _clean(value):
    return _NOT_XML.sub("\ufffd", f"{value:g}" if isinstance(value, float) else str(value))
