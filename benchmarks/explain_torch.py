"""The two networks of `benchmarks.explain` in PyTorch, of the same shape as in Keras."""

import torch
from torch import nn

# Of keras.applications, and so of kzoo.
_EPSILON = 1.001e-5


class PreActUnit(nn.Module):
    """BN-ReLU-Conv-BN-ReLU-Conv beside a skip path, as in `kzoo.models.PreActResNetCIFAR`.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
        first: whether it is the network's first unit, whose skip path takes the first BN-ReLU, too.
    """

    def __init__(self, inputs, outputs, stride, first):
        super().__init__()
        self.before = _bn_relu(inputs)
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            _bn_relu(outputs),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.project = inputs != outputs
        self.from_activation = first or self.project
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if self.project else nn.Identity()
        )

    def forward(self, x):
        first = self.before(x)
        return self.skip(first if self.from_activation else x) + self.residual(first)


class Bottleneck(nn.Module):
    """1x1-3x3-1x1 with biases and the stride in front, as in `keras.applications.ResNet50`."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride),
            _bn_relu(width),
            nn.Conv2d(width, width, 3, 1, 1),
            _bn_relu(width),
            nn.Conv2d(width, 4 * width, 1),
            nn.BatchNorm2d(4 * width, _EPSILON),
        )
        self.skip = nn.Identity()
        if inputs != 4 * width or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width, _EPSILON)
            )

    def forward(self, x):
        return torch.relu(self.skip(x) + self.residual(x))


class Classifier(nn.Module):
    """Features, global average pooling and a linear layer."""

    def __init__(self, features, channels, classes):
        super().__init__()
        self.features = features
        self.top = nn.Linear(channels, classes)

    def forward(self, x):
        return self.top(self.features(x).mean((2, 3)))


def resnet_20():
    units, channels = [], 16
    for stage, width in enumerate((16, 32, 64)):
        for unit in range(3):
            stride = 2 if stage and not unit else 1
            units.append(PreActUnit(channels, width, stride, first=not units))
            channels = width
    stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    return Classifier(nn.Sequential(stem, *units, _bn_relu(channels)), channels, 10)


def resnet_50():
    stem = [nn.Conv2d(3, 64, 7, 2, 3), _bn_relu(64), nn.MaxPool2d(3, 2, 1)]
    units, channels = [], 64
    for stage, (count, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for unit in range(count):
            units.append(Bottleneck(channels, width, 2 if stage and not unit else 1))
            channels = 4 * width
    return Classifier(nn.Sequential(*stem, *units), channels, 1000)


def _bn_relu(channels):
    return nn.Sequential(nn.BatchNorm2d(channels, _EPSILON), nn.ReLU())


NETWORKS = {"ResNet-20": resnet_20, "ResNet-50": resnet_50}
