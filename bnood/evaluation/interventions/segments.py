"""A network cut into segments, so that what lies below a change is computed once and not for every change.

The segments of a network with ``stages()`` (:mod:`bnood.networks`) are the normalisation of the images, its stages and
its head; any other network is one segment, and everything works as well, only slower. What arrives at a segment is its
*state*: one tensor that holds all images of a set.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.features import check_gives_features
from bnood.statistics import (
    BatchNormStatistics,
    Decide,
    LayerStatistics,
    batchnorm_layers,
    decide_statistics,
    use_statistics,
)
from bnood.training.classifier import Classifier


@dataclass(frozen=True)
class Outputs:
    """What comes out of the last segment.

    Attributes:
        logits: float32 ``[n, K]``, on the CPU.
        features: float32 ``[n, D]``, penultimate, on the CPU.
    """

    logits: Tensor
    features: Tensor

    def at(self, index: np.ndarray) -> "Outputs":
        """Of some images only: their numbers, or which of all."""
        chosen = torch.from_numpy(index)
        return Outputs(self.logits[chosen], self.features[chosen])


class Segments:
    """A network as a list of functions, and how to run parts of it under given statistics.

    Args:
        model: called as ``model(images, return_features=True)``, with BatchNorm layers.
        example: one uint8 image ``[1, H, W, 3]`` or more, to see where its layers and its work are.
        chunk: images at a time where the batch does not matter: few, so that activations stay in the processor's cache.

    Attributes:
        layers: names of the BatchNorm layers in the order in which the network runs them.
        segment_of: the segment that a layer lies in.
        shares: each segment's share of the network's multiply-adds in convolutions and linear layers.
        passed: images that were run so far, in images through the whole network.
        matching: the part of ``passed`` that statistics were measured on.

    Raises:
        UserError: if the network can't be called so, has no BatchNorm layer, or runs one twice in a forward pass, for
            its statistics would then be those of two inputs.
    """

    def __init__(self, model: nn.Module, example: Tensor, chunk: int = 50) -> None:
        check_gives_features(model)
        self.model, self.chunk = model, chunk
        self.passed, self.matching = 0.0, 0.0
        self._functions = _functions(model)
        batchnorm_layers(model)
        self.layers, self.segment_of, self.shares = self._explore(example.to(self._device))

    def __len__(self) -> int:
        return len(self._functions)

    @property
    def _device(self) -> torch.device:
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    def to_device(self, images: Any) -> Tensor:
        """uint8 images ``[n, H, W, 3]`` as the state of the first segment."""
        return torch.as_tensor(images).to(self._device)

    def advance(self, state: Tensor, segment: int, statistics: BatchNormStatistics | None = None) -> Tensor:
        """The state at the next segment, where the layers of this one use ``statistics``; others: running."""
        with use_statistics(self.model, _or_running(statistics)):
            return cast(Tensor, self._run(state, range(segment, segment + 1)))

    def finish(self, state: Tensor, segment: int, statistics: BatchNormStatistics | None = None) -> Outputs:
        """From the state at a segment through all that follow; layers without ``statistics`` use the running ones."""
        with use_statistics(self.model, _or_running(statistics)):
            return _on_cpu(self._run(state, range(segment, len(self))))

    def measure(
        self, state: Tensor, segments: Sequence[int], decide: Decide, layers: Collection[str]
    ) -> tuple[Any, dict[str, LayerStatistics]]:
        """Run segments and let ``decide`` choose what each of ``layers`` normalises with (``decide_statistics``).

        All images pass as one batch. Returns the state behind the segments, and for each of ``layers`` that lies there
        the statistics of its input.
        """
        before = self.passed
        inside = [name for name in layers if self.segment_of[name] in segments]
        seen: dict[str, LayerStatistics] = {}

        def look(name: str, statistics: LayerStatistics) -> LayerStatistics | None:
            if not torch.isfinite(statistics.mean).all() or not torch.isfinite(statistics.var).all():
                raise UserError(f"layer {name!r} received NaN or infinite values: it cannot be matched to them")
            seen[name] = LayerStatistics(statistics.mean.cpu(), statistics.var.cpu(), statistics.count)
            return decide(name, statistics)

        with decide_statistics(self.model, look, inside):
            result = self._run(state, segments, len(state))
        self.matching += self.passed - before
        return result, seen

    def in_batches(self, images: Tensor, size: int, decide: Decide | None = None) -> Outputs:
        """All segments in batches of ``size``, each normalised by its own statistics or what ``decide`` makes of them.

        ``images``: uint8 ``[n, H, W, 3]``, n a multiple of ``size``.
        """
        own = use_statistics(self.model, "batch")
        with own if decide is None else decide_statistics(self.model, decide):
            return _on_cpu(self._run(images, range(len(self)), size))

    def _run(self, state: Tensor, segments: Sequence[int], batch: int | None = None) -> Any:
        results = []
        with torch.inference_mode():
            for part in state.split(batch or self.chunk):
                result: Any = part
                for segment in segments:
                    result = self._functions[segment](result)
                results.append(result)
        self.passed += len(state) * sum(self.shares[segment] for segment in segments)
        if isinstance(results[0], Tensor):
            return torch.cat(results) if len(results) > 1 else results[0]
        return tuple(torch.cat(part) for part in zip(*results, strict=True))

    def _explore(self, example: Tensor) -> tuple[tuple[str, ...], dict[str, int], list[float]]:
        """Run the example segment by segment, and note which layers run where, and how much work that is."""
        names = {layer: name for name, layer in batchnorm_layers(self.model).items()}
        work = [0.0] * len(self)
        order: list[str] = []
        segment_of: dict[str, int] = {}
        segment = 0

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if module in names:
                order.append(names[module])
                segment_of[names[module]] = segment
            elif isinstance(module, nn.Conv2d | nn.Linear):
                # One multiply-add per element of the output and weight of its channel.
                work[segment] += output.numel() * module.weight[0].numel()

        handles = [module.register_forward_hook(look) for module in self.model.modules()]
        try:
            with use_statistics(self.model, "running"), torch.inference_mode():
                state: Any = example
                for segment in range(len(self)):
                    state = self._functions[segment](state)
        finally:
            for handle in handles:
                handle.remove()
        for name in names.values():
            if order.count(name) != 1:
                raise UserError(
                    f"layer {name!r} runs {order.count(name)} times in a forward pass; interventions need exactly one"
                )
        total = sum(work)
        shares = [part / total for part in work] if total else [1 / len(self)] * len(self)
        return tuple(order), segment_of, shares


def _functions(model: nn.Module) -> list[Callable[[Any], Any]]:
    """The network's segments: the first takes uint8 images, the last gives logits and penultimate features."""
    network: Any = getattr(model, "network", None)
    if not isinstance(model, Classifier) or not hasattr(network, "stages"):
        return [lambda images: model(images, return_features=True)]

    def head(features: Tensor) -> tuple[Tensor, Tensor]:
        return network.head(features), features

    return [model.normalise, *network.stages(), head]


def _or_running(statistics: BatchNormStatistics | None) -> BatchNormStatistics:
    return BatchNormStatistics({}) if statistics is None else statistics


def _on_cpu(outputs: tuple[Tensor, Tensor]) -> Outputs:
    logits, features = outputs
    return Outputs(logits.float().cpu(), features.float().cpu())
