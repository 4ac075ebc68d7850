"""Architectures, with constructors that read like those of `keras.applications`."""

from kzoo.models.densenet import (
    DenseNet,
    DenseNet121,
    DenseNet161,
    DenseNet169,
    DenseNet201,
    DenseNet264,
    DenseNetBC,
)
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
from kzoo.models.recompute import RecomputeModel

__all__ = [
    "DenseNet",
    "DenseNet121",
    "DenseNet161",
    "DenseNet169",
    "DenseNet201",
    "DenseNet264",
    "DenseNetBC",
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
    "RecomputeModel",
    "STProtoPNet",
    "similarity_maps",
]
