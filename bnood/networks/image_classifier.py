"""The project's own networks by name, and with the normalisation constants of their images."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.norm import Norm
from bnood.networks.plain import MLP, Activation, NormPosition, PlainConvNet
from bnood.networks.residual import ResNet, WideResNet

Architecture = Literal["resnet", "wide_resnet", "mlp", "plain"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]

LARGEST = 100_000  # layers, channels, classes: beyond, building alone takes minutes and then fails


def build_model(
    architecture: Architecture, depth: int, width: int, norm: Norm, groups: int = 8, num_classes: int = 10,
    activation: Activation = "relu", norm_position: NormPosition = "before", image_size: int = 32,
) -> nn.Module:  # fmt: skip
    """A network for float ``[N, 3, H, W]``, built by arguments of ``training.classifier.Classifier``; or UserError."""
    numbers = {"depth": depth, "width": width, "groups": groups, "num_classes": num_classes, "image_size": image_size}
    for name, value in numbers.items():
        least = 2 if name == "num_classes" else 1
        if not isinstance(value, int) or not least <= value <= LARGEST:
            raise UserError(f"model.{name} is {value}; expected a whole number from {least} to {LARGEST}")
    chosen = {architecture: Architecture, norm: Norm, activation: Activation, norm_position: NormPosition}
    for choice, known in chosen.items():
        if choice not in get_args(known):
            raise UserError(f"model: there is no {choice!r}; expected one of {', '.join(get_args(known))}")
    if architecture in ("mlp", "plain"):
        kind = MLP if architecture == "mlp" else PlainConvNet
        return kind(depth, width, norm, groups, num_classes, activation, norm_position, image_size)
    if (activation, norm_position) != ("relu", "before"):
        given = f"activation {activation!r} and norm_position {norm_position!r} are for mlp and plain"
        raise UserError(f"{architecture} has ReLU and its norms before it: {given}")
    network = ResNet if architecture == "resnet" else WideResNet
    return network(depth, width, norm, groups, num_classes)


# The settings of a training that decide which network is built.
NETWORK_SETTINGS = tuple(signature(build_model).parameters)


def build_network(settings: Mapping[str, Any]) -> nn.Module:
    """The network that a training's settings (section ``model`` of its config) describe; UserError if there is none."""
    try:
        return build_model(**{name: settings[name] for name in NETWORK_SETTINGS if name in settings})
    except TypeError as error:  # settings that are missing
        raise UserError(f"model: {error}") from error


class ImageClassifier(nn.Module):
    """uint8 images in, logits out; every set is normalised by the constants of the ID training images.

    ``memory_format`` ``auto`` takes what was measured to be fastest: contiguous for ``gn`` on a CPU, where GroupNorm is
    slow in channels_last, and channels_last everywhere else.
    """

    takes_uint8 = True
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, network: nn.Module, norm: Norm = "bn", memory_format: MemoryFormat = "auto") -> None:
        super().__init__()
        self.network, self.norm, self.memory_format = network, norm, memory_format
        self.register_buffer("image_mean", torch.full((3,), 127.5))
        self.register_buffer("image_std", torch.full((3,), 63.75))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[N, H, W, 3]`` -> logits ``[N, K]``."""
        mean, std = (each.repeat(images.shape[1] * images.shape[2]) for each in (self.image_mean, self.image_std))
        rows = images.flatten(1).to(mean.dtype, copy=True)  # long rows: 3 times as fast as channels one by one
        scaled = rows.sub_(mean).div_(std).view(images.shape)
        return self.network(scaled.permute(0, 3, 1, 2).contiguous(memory_format=self.torch_memory_format()))

    def torch_memory_format(self) -> torch.memory_format:
        """The layout that the network's activations have on the device where it is now."""
        slow = self.norm == "gn" and self.image_mean.device.type == "cpu"
        if self.memory_format == "contiguous" or (self.memory_format == "auto" and slow):
            return torch.contiguous_format
        return torch.channels_last
