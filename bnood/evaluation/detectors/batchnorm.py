"""Detectors that are about BatchNorm: clipping to its typical set (BATS), distance to its means (NMD)."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector
from bnood.evaluation.scores import energy
from bnood.statistics import BatchNormStatistics, batchnorm_layers, executed_layers


class BATS(Detector):
    """The output of BatchNorm layers is clipped inside the network; ``score`` takes the logits of such a pass.

    The paper's form (Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022): a
    layer's normalised input has mean 0 and standard deviation 1 under the statistics in force, so the output of the
    ``layers`` that run last is clipped to beta -+ lambda |gamma|. Lambda is the code's default for CIFAR-10.
    """

    name = "bats"
    needs = "own_pass"

    def __init__(self, lam: float = 3.25, layers: int = 1) -> None:
        self.lam, self.layers = lam, layers
        self.chosen: set[nn.Module] = set()  # those of a model that run last, found once

    @contextmanager
    def context(self, model: nn.Module) -> Iterator[None]:
        """Within it, the chosen BatchNorm layers clip; ``UserError`` for one that does not call torch's batch_norm."""
        layers = batchnorm_layers(model).values()
        self.chosen = self.chosen.intersection(layers)
        with _Clipping(self.lam, self.layers, self.chosen) as clipping, ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(clipping.enter).remove)
                hooks.callback(layer.register_forward_hook(clipping.leave, always_call=True).remove)
            hooks.callback(model.register_forward_pre_hook(clipping.find, with_kwargs=True).remove)
            yield

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return energy(logits)


class _Clipping(TorchFunctionMode):
    """Clips what ``batch_norm`` returns, not what its layer does: timm's BatchNormAct2d has an activation behind it."""

    def __init__(self, lam: float, count: int, layers: set[nn.Module]) -> None:
        super().__init__()
        self.lam, self.count, self.layers = lam, count, layers
        self.running: Any = None  # the layer that runs now
        self.done = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is not F.batch_norm or self.running not in self.layers:
            return given
        self.done = True
        gamma, beta = self.running.weight, self.running.bias
        width = self.lam * (given.new_ones(given.shape[1]) if gamma is None else gamma.abs())
        centre = torch.zeros_like(width) if beta is None else beta
        low, high = ((centre + side * width).view(-1, *[1] * (given.ndim - 2)) for side in (-1, 1))
        return given.clamp(low, high)

    def enter(self, layer: nn.Module, _: Any) -> None:
        self.running, self.done = layer, False

    def leave(self, layer: nn.Module, *_: Any) -> None:
        self.running = None
        if layer in self.layers and not self.done:
            raise UserError(f"BATS cannot clip a {type(layer).__name__}: it does not call torch's batch_norm")

    def find(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's first pass, one without clipping finds the layers that run last."""
        if not self.layers:
            names = executed_layers(model, None, call=lambda bare, _: bare.forward(*args, **kwargs))
            self.layers.update(batchnorm_layers(model)[name] for name in names[-self.count :])


class NeuralMeanDiscrepancy(Detector):
    """Minus the root mean square of standardised mean discrepancies (Dong et al. 2022 train a classifier on them)."""

    name = "nmd"
    needs = "channel_means"
    reference: BatchNormStatistics | None = None

    def fit(self, running: BatchNormStatistics) -> Self:  # type: ignore[override]
        """Take the network's running statistics, ``read_statistics(model)``, whatever statistics are in force."""
        self.reference = running
        return self

    def score(self, channel_means: Mapping[str, Tensor]) -> np.ndarray:  # type: ignore[override]
        """Scores ``[N]`` float64 from ``{layer: [N, C]}``, :attr:`bnood.networks.network.Outputs.channel_means`."""
        if self.reference is None:
            raise UserError("detector 'nmd' has to be fitted before it scores: call fit(read_statistics(model))")
        squares, channels = torch.zeros(()), 0
        for name, means in channel_means.items():
            if name not in self.reference:
                raise UserError(f"detector 'nmd': layer {name!r} keeps no running statistics")
            running = self.reference[name]
            # A channel that was constant in training has variance 0; the smallest float32 step keeps it finite.
            scale = running.var + torch.finfo(torch.float32).eps
            squares = squares + ((means.double() - running.mean) ** 2 / scale).sum(dim=1)
            channels += means.shape[1]
        return -(squares / channels).sqrt().numpy()
