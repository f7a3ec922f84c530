"""A small network with made-up statistics, and sets that differ: enough to check an evaluation without training.

Other statistics are written out plainly: copies of a network whose BatchNorm buffers are changed.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.evaluation import evaluate as engine
from bnood.evaluation.conditions import Estimate
from bnood.evaluation.evaluate import Evaluation
from bnood.evaluation.passes import Passes
from bnood.evaluation.tables import Tables, Where
from bnood.networks.image_classifier import build_model
from bnood.networks.network import Network
from bnood.statistics import BatchNormStatistics

CLASSES = 5
SIDE = 16
Mix = Callable[[Tensor, Tensor, str], Tensor]


class Small(nn.Module):
    """uint8 ``[N, H, W, 3]`` to logits, as the classifiers that are trained here."""

    takes_uint8 = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(((images.to(next(self.network.parameters()).dtype) - 127.5) / 63.75).permute(0, 3, 1, 2))


def small_network(norm: str = "bn", seed: int = 0, plain: bool = False, dropout: bool = False) -> Network:
    """ResNet-20 of width 8, or ``plain`` one with 7 BatchNorm layers; its running statistics are those of no data."""
    torch.manual_seed(seed)
    shape = ("wide_resnet", 10, 1) if plain else ("resnet", 20, 8)
    model = Small(build_model(*shape, norm, 4, CLASSES))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(100)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():  # every class is predicted for some images, and confidences lie on both sides of 0.9
        head, images = model.network.head, torch.from_numpy(small_set("any", 100, 99).images)
        head.weight.mul_(3 / model.eval()(images).std(dim=0).mean())
        head.bias.sub_(model(images).mean(dim=0))
    if dropout:
        model.network.head = nn.Sequential(nn.Dropout(0.5), model.network.head)
    return Network(model.eval(), name="small", norm=norm, seed=seed)


def small_set(name: str, n: int, seed: int, mean: float = 128, contrast: float = 40, labels: bool = True) -> ImageSet:
    """Random images of a mean and a contrast, no two alike; each image has a brightness and a colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(mean, contrast, (n, SIDE, SIDE, 3)) + rng.normal(0, contrast, (n, 1, 1, 3))
    return ImageSet(name, pixels.clip(0, 255).astype(np.uint8), rng.integers(0, CLASSES, n) if labels else None)


def small_sets(n_id: int = 70, ood: tuple[tuple[str, int], ...] = (("far", 100), ("near", 65))) -> dict[str, Any]:
    """The images of an evaluation, as arguments of ``evaluate``; ``ood`` names each set and its size."""
    looks = ((60, 20), (150, 55), (200, 30))
    return {
        "id_set": small_set("known", n_id, 1),
        "train_set": small_set("known", 190, 2),
        "held_out": small_set("held-out", 40, 3),
        "ood_sets": {name: small_set(name, n, 10 + k, *looks[k]) for k, (name, n) in enumerate(ood)},
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


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """With some modules in training mode: afterwards their modes, their buffers and their hooks are as before."""
    model.train()
    model.network.blocks[0].eval()
    flags, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    yield
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(values, state[key]) for key, values in after.items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@dataclass(frozen=True)
class Cell:
    """One set under one condition and shuffle, with the outputs that its scores came from."""

    where: Where
    shuffle: int
    index: np.ndarray
    logits: Tensor
    features: Tensor


@dataclass
class Recorded:
    """An evaluation, and what went through the network."""

    network: Network
    found: Evaluation | None = None
    cells: list[Cell] = field(default_factory=list)  # every set under every condition
    estimated: dict[Estimate, list[bytes]] = field(default_factory=dict)  # the images that went through to make each
    passed: int = 0  # number of images that went through the network in all
    passes: Passes | None = None  # the engine's own
    scored: dict[str, ImageSet] = field(default_factory=dict)

    @property
    def adaptation(self) -> dict[str, ImageSet]:
        return self.passes.adaptation

    def of(self, statistics: str, role: str = "") -> list[Cell]:
        return [c for c in self.cells if c.where.statistics == statistics and role in ("", c.where.role)]

    def pixels(self, cell: Cell) -> np.ndarray:
        return self.scored[cell.where.dataset].images[cell.index]

    def statistics(self, parts: tuple[tuple[str, int], ...]) -> BatchNormStatistics:
        return self.passes.estimates[Estimate(parts)]


def recorded(network: Network, sets: dict[str, Any], **settings: Any) -> Recorded:
    """Evaluate, and record every set's outputs and the images behind every estimate."""
    ran = Recorded(network)
    outputs_of: dict[int, Any] = {}
    making: list[Estimate] = []

    class RecordedTables(Tables):
        def __init__(self, scored: Any, *args: Any) -> None:
            super().__init__(scored, *args)
            ran.scored = dict(scored)

        def summed_up(self, name: str, index: np.ndarray, outputs: Any) -> Any:
            scored = super().summed_up(name, index, outputs)
            outputs_of[id(scored.prediction)] = outputs  # detectors' scores are added to a copy with the same array
            return scored

        def add(self, where: Where, shuffles: Any) -> None:
            new = where not in self._alone
            super().add(where, shuffles)
            for shuffle, each in enumerate(shuffles if new else ()):
                found = outputs_of[id(each.prediction)]
                ran.cells.append(Cell(where, shuffle, each.index, found.logits, found.features))

    class RecordedPasses(Passes):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            ran.passes = self

        def statistics(self, estimate: Estimate) -> BatchNormStatistics:
            making.append(estimate)
            found = super().statistics(estimate)
            making.pop()
            return found

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ran.passed += len(inputs[0])
        if making:
            ran.estimated.setdefault(making[-1], []).extend(image.numpy().tobytes() for image in inputs[0])

    hook = network.model.register_forward_pre_hook(look)
    with patch.object(engine, "Tables", RecordedTables), patch.object(engine, "Passes", RecordedPasses):
        ran.found = engine.evaluate(network, **sets, **settings)
    hook.remove()
    return ran


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
