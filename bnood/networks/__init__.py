"""The project's own networks, for small images: ``model(x)`` gives logits."""

from typing import Literal

from torch import nn

from bnood.networks.hidden_layer import Activation, NormPosition
from bnood.networks.mlp import MLP
from bnood.networks.norm import Norm
from bnood.networks.plain_convnet import PlainConvNet
from bnood.networks.residual import ResNet, WideResNet

Architecture = Literal["resnet", "wide_resnet", "mlp", "plain"]


def build_model(
    architecture: Architecture,
    depth: int,
    width: int,
    norm: Norm,
    groups: int = 8,
    num_classes: int = 10,
    activation: Activation = "relu",
    norm_position: NormPosition = "before",
    image_size: int = 32,
) -> nn.Module:
    """The network by name.

    Args:
        architecture: ``resnet``, ``wide_resnet``, ``mlp`` or ``plain`` (a ConvNet without shortcuts).
        depth: the network's own count of layers; for ``mlp`` and ``plain`` its hidden layers.
        width: channels of the first stage (ResNet), widening factor (WideResNet), units (MLP) or channels (plain).
        norm: see :mod:`bnood.networks.norm`.
        groups: groups of ``gn``; has to divide the channels or units.
        num_classes: K, the number of logits.
        activation: ``sigmoid``, ``relu``, ``tanh`` or ``gelu``, for ``mlp`` and ``plain``; decides their initialisation
            too. Residual networks have ReLU.
        norm_position: ``before`` or ``after`` the activation, for ``mlp`` and ``plain``.
        image_size: side of the square images, which ``mlp`` alone has to know.

    Raises:
        ValueError: for what the network cannot be built with.
    """
    if architecture == "mlp":
        return MLP(depth, width, norm, groups, num_classes, activation, norm_position, image_size)
    if architecture == "plain":
        return PlainConvNet(depth, width, norm, groups, num_classes, activation, norm_position)
    if architecture not in ("resnet", "wide_resnet"):
        raise ValueError(f"unknown architecture {architecture!r}: choose resnet, wide_resnet, mlp or plain")
    if (activation, norm_position) != ("relu", "before"):
        raise ValueError(
            f"{architecture} has ReLU and its norms before it, not activation {activation!r} and norm_position "
            f"{norm_position!r}: choose the architecture mlp or plain for those"
        )
    network = ResNet if architecture == "resnet" else WideResNet
    return network(depth, width, norm, groups, num_classes)
