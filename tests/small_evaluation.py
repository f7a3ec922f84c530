"""A small network with made-up statistics, and sets that differ: enough to check an evaluation without training."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.networks import build_model
from bnood.networks.network import Network

CLASSES = 5
SIDE = 16


class Small(nn.Module):
    """uint8 ``[N, H, W, 3]`` to logits, as the classifiers that are trained here."""

    takes_uint8 = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(((images.float() - 127.5) / 63.75).permute(0, 3, 1, 2))


def small_network(
    norm: str = "bn",
    seed: int = 0,
    architecture: str = "resnet",
    depth: int = 20,
    width: int = 8,
    dropout: bool = False,
    name: str = "small",
) -> Network:
    """ResNet-20 of width 8 in evaluation mode; its running statistics are those of no data at all."""
    torch.manual_seed(seed)
    model = Small(build_model(architecture, depth, width, norm, 4, CLASSES))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(100)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        model.network.head.weight.mul_(5)  # so that confidences lie on both sides of 0.9
    if dropout:
        model.network.head = nn.Sequential(nn.Dropout(0.5), model.network.head)
    return Network(model.eval(), name=name, norm=norm, seed=seed)


def small_set(name: str, n: int, seed: int, mean: float = 128, contrast: float = 40, labels: bool = True) -> ImageSet:
    """Random images of a mean and a contrast, no two alike; each image has a brightness and a colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(mean, contrast, (n, SIDE, SIDE, 3)) + rng.normal(0, contrast, (n, 1, 1, 3))
    images = pixels.clip(0, 255).astype(np.uint8)
    return ImageSet(name, images, rng.integers(0, CLASSES, n) if labels else None)


def small_sets(n_id: int = 70, ood: tuple[tuple[str, int], ...] = (("far", 100), ("near", 64))) -> dict[str, Any]:
    """The images of an evaluation, as arguments of ``evaluate``; ``ood`` names each set and its size."""
    looks = ((60, 20), (150, 55), (200, 30))
    sets = {name: small_set(name, n, 10 + k, *looks[k]) for k, (name, n) in enumerate(ood)}
    return {
        "id_set": small_set("known", n_id, 1),
        "train_set": small_set("known", 190, 2),
        "held_out": small_set("held-out", 40, 3),
        "ood_sets": sets,
    }


def outputs(network: nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits and features of one batch from a copy of the network in its present mode, so that nothing changes."""
    model, features = copy.deepcopy(network), []
    model.get_submodule("network.head").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    return logits, features[0]


def identities(images: np.ndarray) -> set[bytes]:
    """What tells images apart: their pixels."""
    return {image.tobytes() for image in images}
