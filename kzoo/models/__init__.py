"""Architectures, with constructors that read like those of `keras.applications`."""

from kzoo.models.abc_parametrization import ABCParametrization
from kzoo.models.adafnn import AdaFNN
from kzoo.models.cross_stage_partial import cross_stage_partial
from kzoo.models.csp_densenet import CSPDenseNet
from kzoo.models.cspnet import CSPDarkNet53, CSPNet, CSPResNet50, CSPResNeXt50
from kzoo.models.dcdm import DCDMNet
from kzoo.models.densenet import (
    DenseNet,
    DenseNet121,
    DenseNet161,
    DenseNet169,
    DenseNet201,
    DenseNet264,
    DenseNetBC,
)
from kzoo.models.depth_stable_mlp import DepthStableMLP
from kzoo.models.feature_pyramid import feature_pyramid
from kzoo.models.fno import FNO
from kzoo.models.gdn_density import GDNDensity
from kzoo.models.hourglass_mlp import HourglassMLP, ResidualMLP
from kzoo.models.inception_next import (
    InceptionNeXt,
    InceptionNeXtAtto,
    InceptionNeXtBase,
    InceptionNeXtSmall,
    InceptionNeXtTiny,
)
from kzoo.models.inception_resnet import InceptionResNetV1, InceptionResNetV2
from kzoo.models.inception_v4 import InceptionV4
from kzoo.models.majority_vote import MajorityVoteEnsemble
from kzoo.models.memorizing_two_layer import TwoLayerReLU, memorizing_two_layer, xor_two_layer
from kzoo.models.mup import MupParametrization, MupVariable, base_shapes, mup_parametrize
from kzoo.models.network_in_network import NetworkInNetwork
from kzoo.models.neural_operator import to_neural_operator
from kzoo.models.parallel_residual import (
    ParallelResidual,
    SequentialResidual,
    second_order_term,
    to_parallel,
)
from kzoo.models.pf_resnet import ParameterFreeResNet, ResNet50Hybrid, ResNet50Max
from kzoo.models.phc_resnet import PHCResNet
from kzoo.models.pi_hc_moe import PIHCMoE
from kzoo.models.poincare_resnet import PoincareResNet, PoincareResNet20, PoincareResNet32
from kzoo.models.pool_vit import PoolViT
from kzoo.models.preact_resnet import (
    PreActResNet18,
    PreActResNet34,
    PreActResNet50,
    PreActResNet101,
    PreActResNet110,
    PreActResNet152,
    PreActResNet164,
    PreActResNet200,
    PreActResNet1001,
    PreActResNetCIFAR,
)
from kzoo.models.protopnet import ProtoPNet, STProtoPNet, similarity_maps
from kzoo.models.prototype_case_net import PrototypeCaseNet
from kzoo.models.recompute import RecomputeModel
from kzoo.models.residual_conv_net import ResidualConvNet
from kzoo.models.resnet import ResNet18, ResNet34
from kzoo.models.self_attention_tabular import SelfAttentionTabular
from kzoo.models.torch_weights import load_torch_weights, read_state_dict

__all__ = [
    "FNO",
    "ABCParametrization",
    "AdaFNN",
    "CSPDarkNet53",
    "CSPDenseNet",
    "CSPNet",
    "CSPResNeXt50",
    "CSPResNet50",
    "DCDMNet",
    "DenseNet",
    "DenseNet121",
    "DenseNet161",
    "DenseNet169",
    "DenseNet201",
    "DenseNet264",
    "DenseNetBC",
    "DepthStableMLP",
    "GDNDensity",
    "HourglassMLP",
    "InceptionNeXt",
    "InceptionNeXtAtto",
    "InceptionNeXtBase",
    "InceptionNeXtSmall",
    "InceptionNeXtTiny",
    "InceptionResNetV1",
    "InceptionResNetV2",
    "InceptionV4",
    "MajorityVoteEnsemble",
    "MupParametrization",
    "MupVariable",
    "NetworkInNetwork",
    "PHCResNet",
    "PIHCMoE",
    "ParallelResidual",
    "ParameterFreeResNet",
    "PoincareResNet",
    "PoincareResNet20",
    "PoincareResNet32",
    "PoolViT",
    "PreActResNet18",
    "PreActResNet34",
    "PreActResNet50",
    "PreActResNet101",
    "PreActResNet110",
    "PreActResNet152",
    "PreActResNet164",
    "PreActResNet200",
    "PreActResNet1001",
    "PreActResNetCIFAR",
    "ProtoPNet",
    "PrototypeCaseNet",
    "RecomputeModel",
    "ResNet18",
    "ResNet34",
    "ResNet50Hybrid",
    "ResNet50Max",
    "ResidualConvNet",
    "ResidualMLP",
    "STProtoPNet",
    "SelfAttentionTabular",
    "SequentialResidual",
    "TwoLayerReLU",
    "base_shapes",
    "cross_stage_partial",
    "feature_pyramid",
    "load_torch_weights",
    "memorizing_two_layer",
    "mup_parametrize",
    "read_state_dict",
    "second_order_term",
    "similarity_maps",
    "to_neural_operator",
    "to_parallel",
    "xor_two_layer",
]
