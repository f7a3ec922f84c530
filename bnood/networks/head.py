"""Find the head of a network: the linear layer that turns its features into logits.

A layer is the head if ``features @ weight.T + bias``, computed from its input, equals the model's output on a probe
batch. A layer's name or position is no proof: scaling, a softmax or a second classifier may follow it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.outputs import Head

HEAD_TOLERANCE = 1e-5  # of the largest logit
# Averaging before or after the head differs by this much: bfloat16 keeps 8 bits, convolutions on a GPU 10 (TF32).
LOW_PRECISION_TOLERANCE = 2e-2
LISTED_LAYERS = 6


@dataclass(frozen=True)
class FoundHead:
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


class Received(NamedTuple):
    """A layer's input as features ``[N, D]``, and whether they are averages over space."""

    features: Tensor
    averaged: bool


def received_features(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Received | None:
    """A layer's input as features, averaged over all but images and channels; None if it is no tensor ``[N, ...]``.

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
    averaged = x.shape[2:].numel() > 1
    return Received(x.flatten(2).mean(2) if x.ndim > 2 else x, averaged)


def find_head(model: nn.Module, run: Callable[[], Tensor], head_name: str | None) -> FoundHead:
    """The head of a model.

    Args:
        model: in evaluation mode.
        run: one forward pass of a probe batch; gives the logits ``[N, K]``.
        head_name: the layer whose input the features are; None: the last Linear that runs and makes the logits.

    Raises:
        UserError: if no Linear that runs makes the logits, or if the named layer does not run.
    """
    layers = {name: m for name, m in model.named_modules() if _could_be_head(m) or name == head_name}
    ran: dict[str, Received] = {}  # in order of execution

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            received = received_features(name, layer, args, kwargs)
            ran.pop(name, None)  # a layer that runs again counts as its last run
            if received is not None:
                ran[name] = received

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(record(name), with_kwargs=True).remove)
        logits = run()
    if head_name is not None and head_name not in ran:
        raise UserError(
            f"the layer head={head_name!r} is not given a batch [N, ...] of tensors; {_listing(ran, layers)}"
        )
    for name in reversed(ran) if head_name is None else [head_name]:
        layer, (features, averaged) = layers[name], ran[name]
        values = _linear(layer, features, logits)
        if head_name is not None or (values is not None and isinstance(layer, nn.Linear)):
            width = 0 if averaged and values is None else features.shape[1]
            return FoundHead(name, layer, values, logits.shape[1], width)
    raise UserError(
        f"no Linear layer of {type(model).__name__} makes its output {list(logits.shape)}: "
        f"name the layer whose input are the features (head=, on the command line --head); {_listing(ran, layers)}"
    )


def _could_be_head(layer: nn.Module) -> bool:
    is_1x1 = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    return is_1x1 or isinstance(layer, nn.Linear)


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


def _listing(ran: dict[str, Received], layers: dict[str, nn.Module]) -> str:
    """The layers that could be meant, last first."""
    candidates = [name for name in reversed(ran) if _could_be_head(layers[name])]
    if not candidates:
        return "no Linear layer or 1x1 convolution runs"
    shown = []
    for name in candidates[:LISTED_LAYERS]:
        outputs, inputs = getattr(layers[name], "weight").shape[:2]  # noqa: B009
        kind = "Linear" if isinstance(layers[name], nn.Linear) else "1x1 Conv"
        shown.append(f"{name} ({kind} {inputs} to {outputs})")
    more = len(candidates) - len(shown)
    return f"these run, last first: {', '.join(shown)}" + (f" and {more} more" if more else "")
