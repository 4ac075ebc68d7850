"""Neural circuit diagrams as SVG files, and what such a file says about its circuit.

The circuit itself, without its weights, is in the picture's `<metadata>` as JSON.
"""

import json
from xml.etree import ElementTree

from kzoo.analysis.circuits.drawing import SVG, Drawing

_FORMAT = "kzoo circuit 1"


def draw(circuit):
    """Returns the text of a circuit's diagram."""
    return Drawing(circuit, json.dumps(describe(circuit))).text()


def read(text):
    """Returns the description of a circuit, as it stands in its diagram.

    Raises:
        ValueError: if `text` is no such diagram.
    """
    refused = "`text` must be an SVG file that `Circuit.svg` wrote."
    if not isinstance(text, str) or "<!" in text:
        # Such diagrams have no declarations; those of others may expand without end.
        raise ValueError(refused)
    try:
        found = ElementTree.fromstring(text).find(f"{{{SVG}}}metadata")
        data = json.loads(found.text)
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(refused) from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(refused)
    return data


def describe(circuit):
    """All of a circuit but its weights, as JSON knows it."""
    return {
        "format": _FORMAT,
        "name": circuit.name,
        "inputs": circuit.inputs,
        "outputs": circuit.outputs,
        "axes": [(axis.name, axis.size) for axis in circuit.axes.values()],
        "tensors": [
            (each.name, [axis.name for axis in each.axes], each.constant)
            for each in circuit.tensors.values()
        ],
        "operations": [vars(each) for each in circuit.operations],
    }
