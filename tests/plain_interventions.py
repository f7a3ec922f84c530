"""Other statistics written out plainly: copies of a network whose BatchNorm buffers are changed."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Mix = Callable[[Tensor, Tensor, str], Tensor]


def batchnorm_names(model: nn.Module) -> list[str]:
    """In the order in which they stand in the network, which is that of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def matched_copy(model: nn.Module, images: np.ndarray, layers: Iterable[str], mix: Mix) -> nn.Module:
    """A copy whose ``layers``, in their order, normalise with ``mix(running, target, "mean" or "var")``.

    After each layer the whole network is run again, so that the next one sees what it will see.
    """
    changed = copy.deepcopy(model).eval()
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


def measured_by_torch(model: nn.Module, images: np.ndarray) -> nn.Module:
    """A copy whose running statistics are those of one batch of images, taken by torch itself in training mode.

    In float64: torch's own float32 is further from it than the engine is.
    """
    network = copy.deepcopy(model).double().train()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    counts = []
    for layer in layers:
        layer.momentum = 1.0
        layer.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].numel() // inputs[0].shape[1]))
    with torch.no_grad():
        network(torch.from_numpy(images))
    for layer, count in zip(layers, counts, strict=True):
        layer.running_var.mul_((count - 1) / count)  # torch stores the unbiased variance
    return network.eval()


def with_statistics(model: nn.Module, estimate: Any) -> nn.Module:
    copied = copy.deepcopy(model)
    for layer, module in copied.named_modules():
        if isinstance(module, nn.BatchNorm2d) and layer in estimate:
            module.running_mean.copy_(estimate[layer].mean)
            module.running_var.copy_(estimate[layer].var)
    return copied
