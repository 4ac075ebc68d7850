"""Layers. Each is used like any Keras layer."""

from kzoo.layers.arcface import ArcFaceHead, purify
from kzoo.layers.basis_layer import BasisLayer, trapezoid_weights
from kzoo.layers.equiangular_head import EquiangularBasisHead, equiangular_vectors
from kzoo.layers.frechet_mean_head import FrechetMeanHead
from kzoo.layers.fused_parallel_conv import FusedParallelConv2D
from kzoo.layers.gdn import GDN, IGDN
from kzoo.layers.generalized_sum_pooling import GeneralizedSumPooling
from kzoo.layers.grassmann import GrassmannClassifier, Orthonormal
from kzoo.layers.grid_coordinates import GridCoordinates
from kzoo.layers.grid_derivatives import GridDerivatives
from kzoo.layers.hard_constraint import HardConstraintLeastSquares, linear_residual
from kzoo.layers.hourglass_mlp import HourglassMLPBlock, RandomLift, ResidualMLPBlock
from kzoo.layers.hypercomplex import PHMConv1D, PHMConv2D, PHMDense
from kzoo.layers.inception_depthwise_conv import InceptionDepthwiseConv2D
from kzoo.layers.integral_conv import DifferentialConv, IntegralConv
from kzoo.layers.layer_scale import LayerScale
from kzoo.layers.mlp_conv import MLPConv2D
from kzoo.layers.physics_moe import PhysicsMoE
from kzoo.layers.poincare import ExpMap0, FeatureClipping, LogMap0, MobiusAdd, TangentActivation
from kzoo.layers.poincare_batch_norm import PoincareBatchNormalization
from kzoo.layers.poincare_dense import HyperbolicMLR, PoincareConv2D, PoincareDense, PoincareMLR
from kzoo.layers.poincare_initializers import PoincareIdentity, PoincareNormal
from kzoo.layers.power_norm import GroupScaling1D, PowerNormalization
from kzoo.layers.prototype_distance import PrototypeDistance
from kzoo.layers.prototype_patches import PrototypePatchSimilarity
from kzoo.layers.quadratic import QuadraticConv2D, QuadraticDense, relinear_multipliers
from kzoo.layers.quadrature_attention import QuadratureAttention
from kzoo.layers.scaled_dense import ScaledDense
from kzoo.layers.scaled_residual import ScaledResidual
from kzoo.layers.sensor_layout import CurvilinearSensorLayout, RectangularSensorLayout
from kzoo.layers.shaped_activation import ShapedActivation, shaping_gains
from kzoo.layers.spatial_transformer import SpatialTransformer
from kzoo.layers.spectral_conv import SpectralConv
from kzoo.layers.tensor_attention import (
    TensorAttention,
    tensor_attention_exact,
    tensor_attention_polynomial,
)
from kzoo.layers.tract import TrActConv2D, TrActDense, TrActPatchEmbed
from kzoo.layers.tversky import TverskyFeatureBank, TverskyProjection, TverskySimilarity
from kzoo.layers.tversky_input_domain import TverskyInputDomainProjection
from kzoo.layers.uncentered_batch_norm import UncenteredBatchNorm
from kzoo.layers.zero_shot_prediction import ZeroShotPrediction

__all__ = [
    "GDN",
    "IGDN",
    "ArcFaceHead",
    "BasisLayer",
    "CurvilinearSensorLayout",
    "DifferentialConv",
    "EquiangularBasisHead",
    "ExpMap0",
    "FeatureClipping",
    "FrechetMeanHead",
    "FusedParallelConv2D",
    "GeneralizedSumPooling",
    "GrassmannClassifier",
    "GridCoordinates",
    "GridDerivatives",
    "GroupScaling1D",
    "HardConstraintLeastSquares",
    "HourglassMLPBlock",
    "HyperbolicMLR",
    "InceptionDepthwiseConv2D",
    "IntegralConv",
    "LayerScale",
    "LogMap0",
    "MLPConv2D",
    "MobiusAdd",
    "Orthonormal",
    "PHMConv1D",
    "PHMConv2D",
    "PHMDense",
    "PhysicsMoE",
    "PoincareBatchNormalization",
    "PoincareConv2D",
    "PoincareDense",
    "PoincareIdentity",
    "PoincareMLR",
    "PoincareNormal",
    "PowerNormalization",
    "PrototypeDistance",
    "PrototypePatchSimilarity",
    "QuadraticConv2D",
    "QuadraticDense",
    "QuadratureAttention",
    "RandomLift",
    "RectangularSensorLayout",
    "ResidualMLPBlock",
    "ScaledDense",
    "ScaledResidual",
    "ShapedActivation",
    "SpatialTransformer",
    "SpectralConv",
    "TangentActivation",
    "TensorAttention",
    "TrActConv2D",
    "TrActDense",
    "TrActPatchEmbed",
    "TverskyFeatureBank",
    "TverskyInputDomainProjection",
    "TverskyProjection",
    "TverskySimilarity",
    "UncenteredBatchNorm",
    "ZeroShotPrediction",
    "equiangular_vectors",
    "linear_residual",
    "purify",
    "relinear_multipliers",
    "shaping_gains",
    "tensor_attention_exact",
    "tensor_attention_polynomial",
    "trapezoid_weights",
]
