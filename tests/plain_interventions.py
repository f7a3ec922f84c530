"""Layer forms written out plainly: a copy of the network, one layer after the other, whole passes each time."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

Mix = Callable[[Tensor, Tensor, str], Tensor]


def batchnorm_names(model: nn.Module) -> list[str]:
    """In the order in which they stand in the network, which is that of the forward pass."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def own(running: Tensor, found: Tensor, what: str) -> Tensor:
    """What a layer with target statistics normalises with, for ``mean`` and ``var``."""
    return found


def matched_copy(model: nn.Module, images: np.ndarray, layers: Iterable[str], mix: Mix = own) -> nn.Module:
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
