"""An image classifier as a plain module: the normalisation constants of its images, and a network."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks import build_model
from bnood.networks.norm import Norm

MemoryFormat = Literal["auto", "channels_last", "contiguous"]

# The settings of a training that decide which network is built.
NETWORK_SETTINGS = tuple(signature(build_model).parameters)


class ImageClassifier(nn.Module):
    """uint8 images in, logits out; every set is normalised by the constants of the ID training images.

    Args:
        network: takes float ``[N, 3, H, W]`` and gives logits ``[N, K]``.
        norm: its norm layers, by name.
        memory_format: ``auto`` takes what was measured to be fastest: contiguous for ``gn`` on a CPU, where
            GroupNorm is slow in channels_last, and channels_last everywhere else.
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
        scaled = (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std
        return self.network(scaled.permute(0, 3, 1, 2).contiguous(memory_format=self.torch_memory_format()))

    def torch_memory_format(self) -> torch.memory_format:
        """The layout that the network's activations have on the device where it is now."""
        slow = self.norm == "gn" and self.image_mean.device.type == "cpu"
        if self.memory_format == "contiguous" or (self.memory_format == "auto" and slow):
            return torch.contiguous_format
        return torch.channels_last


def build_network(settings: Mapping[str, Any]) -> nn.Module:
    """The network that a training's settings (section ``model`` of its config) describe; UserError if there is none."""
    try:
        return build_model(**{name: settings[name] for name in NETWORK_SETTINGS if name in settings})
    except TypeError as error:  # settings that are missing
        raise UserError(f"model: {error}") from error
