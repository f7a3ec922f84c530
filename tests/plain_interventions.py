"""Interventions written out plainly: a copy of the network, one layer after the other, whole passes each time."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from bnood.training.classifier import Classifier

Mix = Callable[[Tensor, Tensor, str], Tensor]


def tiny_classifier(architecture: str = "wide_resnet", depth: int = 10, width: int = 1, seed: int = 0) -> Classifier:
    """In evaluation mode, with running statistics and affine parameters of no data at all; 7 BatchNorm layers."""
    torch.manual_seed(seed)
    classifier = Classifier(architecture=architecture, depth=depth, width=width, num_classes=5)  # type: ignore[arg-type]
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        classifier.network.head.weight.mul_(5)
    return classifier.eval()


def batchnorm_names(model: nn.Module) -> list[str]:
    """In the order in which they stand in the network, which is that of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def own(running: Tensor, found: Tensor, what: str) -> Tensor:
    """What a matched layer normalises with, for ``mean`` and ``var``."""
    return found


def matched_copy(classifier: Classifier, images: np.ndarray, layers: Iterable[str], mix: Mix = own) -> Classifier:
    """A copy whose ``layers``, in their order, normalise with ``mix(running, matched, "mean" or "var")``.

    After each layer the whole network is run again, so that the next one sees what it will see.
    """
    changed = copy.deepcopy(classifier).eval()
    modules = dict(changed.named_modules())
    for name in layers:
        arrived: list[Tensor] = []
        hook = modules[name].register_forward_pre_hook(lambda layer, inputs, to=arrived: to.append(inputs[0].double()))
        with torch.no_grad():
            changed(torch.from_numpy(images))
        hook.remove()
        found = {"mean": arrived[0].mean(dim=(0, 2, 3)), "var": arrived[0].var(dim=(0, 2, 3), unbiased=False)}
        for what, values in found.items():
            buffer = getattr(modules[name], f"running_{what}")
            buffer.copy_(mix(buffer.double(), values, what))
    return changed


def outputs_of(classifier: Classifier, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits and features in evaluation mode, all images at once."""
    with torch.no_grad():
        logits, features = classifier(torch.from_numpy(images), return_features=True)
    return logits, features
