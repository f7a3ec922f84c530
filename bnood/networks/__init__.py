"""The project's own networks, for small images: ``model(x)`` gives logits."""

from typing import Literal

from torch import nn

from bnood.errors import UserError
from bnood.networks.norm import Norm
from bnood.networks.plain import MLP, Activation, NormPosition, PlainConvNet
from bnood.networks.residual import ResNet, WideResNet

Architecture = Literal["resnet", "wide_resnet", "mlp", "plain"]

LARGEST = 100_000  # layers, channels, classes: beyond, building alone takes minutes and then fails


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
    """The network by name; the arguments are :class:`bnood.training.classifier.Classifier`'s.

    Raises:
        UserError: for what the network cannot be built with.
    """
    numbers = {"depth": depth, "width": width, "groups": groups, "num_classes": num_classes, "image_size": image_size}
    for name, value in numbers.items():
        least = 2 if name == "num_classes" else 1
        if not isinstance(value, int) or not least <= value <= LARGEST:
            raise UserError(f"model.{name} is {value}; expected a whole number from {least} to {LARGEST}")
    if architecture in ("mlp", "plain"):
        kind = MLP if architecture == "mlp" else PlainConvNet
        return kind(depth, width, norm, groups, num_classes, activation, norm_position, image_size)
    if architecture not in ("resnet", "wide_resnet"):
        raise UserError(f"unknown architecture {architecture!r}: choose resnet, wide_resnet, mlp or plain")
    if (activation, norm_position) != ("relu", "before"):
        given = f"not activation {activation!r} and norm_position {norm_position!r}"
        raise UserError(f"{architecture} has ReLU and its norms before it, {given}: those are for mlp and plain")
    network = ResNet if architecture == "resnet" else WideResNet
    return network(depth, width, norm, groups, num_classes)
