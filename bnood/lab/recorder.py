"""What happens inside a plain network: gradients, pre-activations and dead units of every hidden layer.

A *unit* is a column of an MLP's layer, or a channel of a ConvNet's over all pixels. Training does not notice a record:
gradients come from ``torch.autograd.grad``, which leaves ``.grad`` alone, and :func:`bnood.statistics.use_statistics`
leaves BatchNorm's buffers alone.

=================== ===================================================================================================
gradient_norm       Frobenius norm of the loss's gradient on the layer's weight, with batch statistics as in training
dead_share          ReLU: share of units that are off for all probe images, at all pixels
preactivation_mean  mean of the activation's input in evaluation mode (BatchNorm: with running averages)
preactivation_std   its standard deviation over units, images and pixels
offset              root mean square of the units' means, in root mean square standard deviations: how far a unit's
                    inputs lie from zero
=================== ===================================================================================================
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnood.networks.plain import HiddenLayer
from bnood.statistics import has_batchnorm, use_statistics


def hidden_layers(network: nn.Module) -> list[HiddenLayer]:
    """The hidden layers of a plain network, from the input on."""
    return [module for module in network.modules() if isinstance(module, HiddenLayer)]


def measure(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """The quantities of each hidden layer on normalised images ``[N, 3, H, W]``; the network stays as it is."""
    layers = hidden_layers(network)
    with _inputs_of(layers) as inputs, _under(network, "batch"), torch.enable_grad():
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, [layer.linear.weight for layer in layers])
    found = [
        {"gradient_norm": float(gradient.norm())} | _units(layer, values)
        for layer, gradient, values in zip(layers, gradients, inputs, strict=True)
    ]
    with _inputs_of(layers) as inputs, _under(network, "running"), torch.no_grad():
        network(images)
    return [row | _moments(values) for row, values in zip(found, inputs, strict=True)]


def _under(network: nn.Module, statistics: Literal["batch", "running"]) -> AbstractContextManager[Any]:
    """BatchNorm under these statistics; other norms have one mode."""
    return use_statistics(network, statistics) if has_batchnorm(network) else nullcontext()


@contextmanager
def _inputs_of(layers: list[HiddenLayer]) -> Iterator[list[Tensor]]:
    """Collect the activations' inputs of the forward pass inside, in the layers' order."""
    inputs: list[Tensor] = []
    hooks = [
        layer.activation.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].detach()))
        for layer in layers
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _units(layer: HiddenLayer, values: Tensor) -> dict[str, float]:
    """Dead units of a ReLU, from its input ``[N, units, ...]``; NaN where that is not finite."""
    if not isinstance(layer.activation, nn.ReLU):
        return {}
    dead = float((values.amax(dim=_all_but_units(values)) <= 0).double().mean())
    return {"dead_share": dead if bool(values.isfinite().all()) else math.nan}


def _moments(values: Tensor) -> dict[str, float]:
    variances, means = torch.var_mean(values.double(), dim=_all_but_units(values), correction=0)
    spread = float(variances.mean().sqrt())
    offset = float(means.square().mean().sqrt()) / spread if spread > 0 else math.nan
    # All units have as many values: the variance of all is the mean variance plus the variance of the means.
    std = float((variances.mean() + means.var(correction=0)).sqrt())
    return {"preactivation_mean": float(means.mean()), "preactivation_std": std, "offset": offset}


def _all_but_units(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]
