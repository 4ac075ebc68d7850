"""Aggregators: the gradients of several objectives, the rows of a Jacobian, to one update."""

from kzoo.ops.aggregation.aggregator import Aggregator, Weighting, gramian
from kzoo.ops.aggregation.aligned_mtl import AlignedMTL
from kzoo.ops.aggregation.cagrad import CAGrad
from kzoo.ops.aggregation.dual_cone import DualProj, UPGrad
from kzoo.ops.aggregation.fixed import Constant, Mean, RandomWeights
from kzoo.ops.aggregation.graddrop import GradDrop
from kzoo.ops.aggregation.imtl_g import IMTLG
from kzoo.ops.aggregation.mgda import MGDA
from kzoo.ops.aggregation.nash_mtl import NashMTL
from kzoo.ops.aggregation.pcgrad import PCGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "Aggregator",
    "AlignedMTL",
    "CAGrad",
    "Constant",
    "DualProj",
    "GradDrop",
    "Mean",
    "NashMTL",
    "PCGrad",
    "RandomWeights",
    "UPGrad",
    "Weighting",
    "gramian",
]
