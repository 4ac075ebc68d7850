"""Neural circuit diagrams: a model as tensors with named axes, to run, to count and to draw."""

from kzoo.analysis.circuits.axes import AxisError
from kzoo.analysis.circuits.circuit import circuit_of
from kzoo.analysis.circuits.complexity import Complexity
from kzoo.analysis.circuits.ir import Circuit

__all__ = ["AxisError", "Circuit", "Complexity", "circuit_of"]
