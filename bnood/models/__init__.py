"""Networks for small images: ``model(x)`` gives logits, ``model(x, return_features=True)`` also the features."""

from typing import Literal

from torch import nn

from bnood.models.norm import Norm
from bnood.models.resnet import ResNet
from bnood.models.wide_resnet import WideResNet

Architecture = Literal["resnet", "wide_resnet"]


def build_model(
    architecture: Architecture, depth: int, width: int, norm: Norm, groups: int = 8, num_classes: int = 10
) -> nn.Module:
    """The network by name. ``width``: channels of the first stage (ResNet) or widening factor (WideResNet)."""
    if architecture == "resnet":
        return ResNet(depth, width, norm, groups, num_classes)
    if architecture == "wide_resnet":
        return WideResNet(depth, width, norm, groups, num_classes)
    raise ValueError(f"unknown architecture {architecture!r}: choose resnet or wide_resnet")
