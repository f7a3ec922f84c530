"""Find the head of a network: the linear layer that turns its features into logits.

A layer is the head if ``features @ weight.T + bias``, computed from its input, equals the model's output on a probe
batch. A layer's name or position is no proof: scaling, a softmax or a second classifier may follow it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.outputs import Head

HEAD_TOLERANCE = 1e-5  # of the largest logit
# Averaging before or after the head differs by this much: bfloat16 keeps 8 bits, convolutions on a GPU 10 (TF32).
LOW_PRECISION_TOLERANCE = 2e-2
LISTED_LAYERS = 6


class FoundHead(NamedTuple):
    """The layer whose input the features are.

    Attributes:
        name: of the layer.
        layer: itself.
        values: its weight and bias; None where the logits are not this linear function of the features.
        num_classes: K.
        feature_width: D; 0 where the layer takes feature maps that cannot be averaged.
    """

    name: str
    layer: nn.Module
    values: Head | None
    num_classes: int
    feature_width: int


def received_features(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A layer's input as features ``[N, D]``, averaged over space; None if it is no tensor ``[N, ...]``.

    Raises:
        UserError: if the input has another width than the layer takes.
    """
    x = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(x, Tensor) or x.ndim < 2:
        return None
    channels_first = x.ndim > 3 and not isinstance(layer, nn.Linear)
    x = x if channels_first else x.movedim(-1, 1)
    width = getattr(layer, "in_channels" if channels_first else "in_features", x.shape[1])
    if x.shape[1] != width:
        raise UserError(
            f"layer {name!r} takes {width} features but receives {x.shape[1]}: "
            "are the images of another size than the network was built for?"
        )
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def find_head(model: nn.Module, run: Callable[[], Tensor], head_name: str | None) -> FoundHead:
    """The head of a model in evaluation mode.

    Args:
        model: the network.
        run: one forward pass of a probe batch; gives the logits ``[N, K]``.
        head_name: the layer whose input the features are; None: the last Linear that runs and makes the logits.

    Raises:
        UserError: if no Linear that runs makes the logits, or if the named layer does not run.
    """
    layers = {name: layer for name, layer in model.named_modules() if _kind(layer) or name == head_name}
    ran: dict[str, tuple[Tensor, bool]] = {}  # features and whether they are averages, in order of execution

    def record(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ran.pop(name, None)  # a layer that runs again counts as its last run
        features = received_features(name, layer, args, kwargs)
        if features is not None:
            given: Tensor = args[0] if args else next(iter(kwargs.values()))
            ran[name] = features, given.numel() > features.numel()

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(record, name), with_kwargs=True).remove)
        logits = run()
    for name in reversed(ran) if head_name is None else {head_name} & ran.keys():
        layer, (features, averaged) = layers[name], ran[name]
        values = _linear(layer, features, logits)
        if head_name is not None or (values is not None and isinstance(layer, nn.Linear)):
            width = 0 if averaged and values is None else features.shape[1]
            return FoundHead(name, layer, values, logits.shape[1], width)
    known = [f"{name} ({_kind(layers[name])})" for name in reversed(ran) if _kind(layers[name])]
    more = f" and {len(known) - LISTED_LAYERS} more" if len(known) > LISTED_LAYERS else ""
    listing = f"these run, last first: {', '.join(known[:LISTED_LAYERS])}{more}" if known else "no such layer runs"
    if head_name is not None:
        raise UserError(f"the layer head={head_name!r} is not given a batch [N, ...] of tensors; {listing}")
    raise UserError(
        f"no Linear layer of {type(model).__name__} makes its output {list(logits.shape)}: "
        f"name the layer whose input are the features (head=, on the command line --head); {listing}"
    )


def _kind(layer: nn.Module) -> str:
    """A layer that could be the head, in words; else nothing."""
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features} to {layer.out_features}"
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return f"1x1 Conv {layer.in_channels} to {layer.out_channels}"
    return ""


def _linear(layer: nn.Module, features: Tensor, logits: Tensor) -> Head | None:
    """The layer's weight and bias, if they turn the features into the logits."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or len(features) != len(logits):
        return None
    weight = weight.detach().flatten(1)
    if weight.shape != (logits.shape[1], features.shape[1]):
        return None
    found = nn.functional.linear(features, weight, bias)
    low = torch.finfo(found.dtype).bits < 32 or (found.is_cuda and isinstance(layer, nn.Conv2d))
    atol = (LOW_PRECISION_TOLERANCE if low else HEAD_TOLERANCE) * max(1.0, float(logits.abs().max()))
    if not torch.allclose(found.float(), logits.float(), rtol=0, atol=atol):
        return None
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return Head(weight.to("cpu", torch.float32), bias.to("cpu", torch.float32))
