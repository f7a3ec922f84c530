"""Statistics that are decided upon layer by layer, while the images pass."""

import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from unchanged import untouched

from bnood.errors import UserError
from bnood.statistics import LayerStatistics, decide_statistics, use_statistics

NAMES = ["1", "4", "7", "10"]


def chain() -> nn.Sequential:
    """Four BatchNorm layers in evaluation mode, with running statistics and affine parameters of no data at all."""
    widths = (3, 6, 5, 4, 6)
    blocks = [(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*(module for block in blocks for module in block))
    for name in NAMES:
        model[int(name)].running_mean.normal_(0, 0.3)
        model[int(name)].running_var.uniform_(0.5, 2)
        nn.init.uniform_(model[int(name)].weight, 0.5, 1.5)
        nn.init.normal_(model[int(name)].bias, 0, 0.2)
    return model.eval()


def images() -> Tensor:
    return torch.randn(22, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 0.5 - 1


@torch.no_grad()
def matched_copy(model: nn.Sequential, x: Tensor, layers: Iterable[str]) -> nn.Sequential:
    """A copy whose ``layers``, in order, hold what reaches them; the network is run again for each."""
    changed = copy.deepcopy(model)
    for name in layers:
        arrived = changed[: int(name)](x).double()
        layer: _BatchNorm = changed[int(name)]
        layer.running_mean.copy_(arrived.mean(dim=(0, 2, 3)))
        layer.running_var.copy_(arrived.var(dim=(0, 2, 3), unbiased=False))
    return changed


def test_each_layer_is_asked_before_it_runs_and_only_those_that_were_named() -> None:
    model, x, asked = chain(), images(), []

    def take(name: str, found: LayerStatistics) -> LayerStatistics:
        asked.append(name)
        return found

    with decide_statistics(model, take, NAMES[1:3]), torch.no_grad():
        found = model(x)
    assert asked == NAMES[1:3]
    torch.testing.assert_close(found, matched_copy(model, x, NAMES[1:3])(x).detach(), rtol=1e-4, atol=1e-4)


def test_none_leaves_the_running_statistics() -> None:
    model, x, seen = chain(), images(), []
    with torch.no_grad():
        expected = model(x)
        with decide_statistics(model, lambda name, found: seen.append(name)):
            assert torch.equal(model(x), expected)
    assert seen == NAMES
    with (
        pytest.raises(UserError, match="no BatchNorm layer '7x'"),
        decide_statistics(model, lambda name, found: found, ["7x"]),
    ):
        pass


def test_everything_is_restored_on_errors_and_nested() -> None:
    model = chain().train()

    def fail(name: str, found: LayerStatistics) -> LayerStatistics:
        if name == "4":
            raise ArithmeticError(name)
        return found

    with untouched(model), pytest.raises(ArithmeticError):  # noqa: SIM117
        with use_statistics(model, "batch"), decide_statistics(model, fail):
            model(images())
