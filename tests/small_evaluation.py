"""A small network with made-up statistics, and sets that differ: enough to check an evaluation without training."""

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.evaluation.conditions import Images
from bnood.training.classifier import Classifier

CLASSES = 5
SIDE = 16


def small_classifier(norm: str = "bn", seed: int = 0) -> Classifier:
    """ResNet-20 of width 8 in evaluation mode; its running statistics are those of no data at all."""
    torch.manual_seed(seed)
    classifier = Classifier(depth=20, width=8, norm=norm, groups=4, num_classes=CLASSES)  # type: ignore[arg-type]
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(100)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        classifier.network.head.weight.mul_(5)  # so that confidences lie on both sides of 0.9
    return classifier.eval()


def small_set(name: str, n: int, seed: int, mean: float = 128, contrast: float = 40, labels: bool = True) -> ImageSet:
    """Random images of a mean and a contrast, no two alike; each image has a brightness and a colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(mean, contrast, (n, SIDE, SIDE, 3)) + rng.normal(0, contrast, (n, 1, 1, 3))
    images = pixels.clip(0, 255).astype(np.uint8)
    return ImageSet(name, images, rng.integers(0, CLASSES, n) if labels else None)


def small_images(n_id: int = 70, ood: tuple[tuple[str, int, int], ...] = (("far", 40, 50), ("near", 31, 33))) -> Images:
    """An evaluation's images; ``ood`` names each set and the sizes of its two halves."""
    sets = {}
    for position, (name, first, second) in enumerate(ood):
        mean, contrast = ((60, 20), (150, 55), (200, 30))[position]
        whole = small_set(name, first + second, 10 + position, mean, contrast)
        sets[name] = (whole.subset(np.arange(first)), whole.subset(np.arange(first, first + second)))
    return Images(small_set("known", n_id, 1), replace(small_set("known", 90, 2), labels=None), sets)


def outputs(network: nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits and features of one batch from a copy of the network in its present mode, so that nothing changes."""
    with torch.no_grad():
        logits, features = copy.deepcopy(network)(torch.from_numpy(images), return_features=True)
    return logits, features


def identities(images: np.ndarray) -> set[bytes]:
    """What tells images apart: their pixels."""
    return {image.tobytes() for image in images}
