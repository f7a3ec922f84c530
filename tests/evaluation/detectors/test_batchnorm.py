"""BATS against networks whose forward pass is written out with the clipping in it; NMD by hand."""

from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.detectors.batchnorm import BATS, NeuralMeanDiscrepancy
from bnood.evaluation.scores import energy
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    bake,
    estimate_statistics,
    read_statistics,
    use_statistics,
)

LAM = 0.7
IMAGES = torch.randn(6, 3, 9, 9)
BOTH = ("first", "last")


class Net(nn.Module):
    """The layer that is defined first runs last, as in networks whose layers are not listed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm2d(5)
        self.first = nn.BatchNorm2d(4)
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)])
        self.fc = nn.Linear(5, 3)
        for layer in (self.first, self.last):
            nn.init.normal_(layer.weight)  # negative weights too
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.convs[0](x)).relu()
        return self.fc(self.last(self.convs[1](x)).relu().mean((2, 3)))

    def written_out(self, x: Tensor, clipped: tuple[str, ...], batch: bool = False) -> Tensor:
        for conv, name in zip(self.convs, BOTH, strict=True):
            x, layer = conv(x), getattr(self, name)
            of_batch = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            mean, var = of_batch if batch else (layer.running_mean, layer.running_var)
            x = (x - mean.view(1, -1, 1, 1)) / (var + layer.eps).sqrt().view(1, -1, 1, 1)
            x = x.clamp(-LAM, LAM) if name in clipped else x
            x = (x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.mark.parametrize(("layers", "clipped"), [(1, ("last",)), (2, BOTH), (9, BOTH)])
@torch.no_grad()
def test_the_chosen_layers_are_clipped_in_the_order_in_which_they_run(model: Net, layers: int, clipped: Any) -> None:
    detector = BATS(LAM, layers)
    with detector.context(model):
        found = [model(IMAGES) for _ in range(2)]
    wanted = model.written_out(IMAGES, clipped)
    for each in found:
        torch.testing.assert_close(each, wanted)
    assert not torch.allclose(wanted, model.written_out(IMAGES, ()))
    np.testing.assert_allclose(detector.score(torch.zeros(6, 0), found[0]), energy(wanted), rtol=1e-6)


@torch.no_grad()
def test_the_statistics_in_force_decide_where_it_clips(model: Net) -> None:
    with use_statistics(model, "batch"), BATS(LAM, 2).context(model):
        torch.testing.assert_close(model(IMAGES), model.written_out(IMAGES, BOTH, batch=True))
    target = estimate_statistics(model, [IMAGES])
    with use_statistics(model, target), BATS(LAM, 2).context(model):
        given = model(IMAGES)
    bake(model, target)
    torch.testing.assert_close(model.written_out(IMAGES, BOTH), given)


@torch.no_grad()
def test_an_infinite_lambda_is_the_energy_score_and_the_model_is_left_as_it_was(model: Net) -> None:
    before, statistics = model(IMAGES), read_statistics(model)
    with BATS(float("inf")).context(model):
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=0)
    with pytest.raises(ZeroDivisionError), BATS(LAM, 2).context(model):
        model(IMAGES)
        raise ZeroDivisionError
    torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=0)
    assert read_statistics(model).distance(statistics).keys() == statistics.keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_an_activation_behind_the_norm_in_the_same_layer_follows_the_clipping() -> None:
    layer = timm.layers.BatchNormAct2d(3, act_layer=nn.SiLU).eval()
    nn.init.normal_(layer.weight)
    bound = LAM * layer.weight.abs().view(1, -1, 1, 1)
    normed = F.batch_norm(IMAGES, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    model = nn.Sequential(layer)
    detector, passes = BATS(LAM), list[int]()
    model.register_forward_pre_hook(lambda module, args: passes.append(1))
    layer.register_forward_pre_hook(lambda module, args: passes.append(10))
    for expected in (21, 11):  # the layers that run last are found once, by a pass of their own
        with detector.context(model):
            torch.testing.assert_close(model(IMAGES), F.silu(normed.clamp(-bound, bound)))
        assert sum(passes) == expected
        passes.clear()


def test_what_cannot_be_clipped_is_refused() -> None:
    class OwnNorm(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return input - self.running_mean.view(1, -1, 1, 1)

    own = nn.Sequential(OwnNorm(3))
    with pytest.raises(UserError, match="cannot clip a OwnNorm"), BATS().context(own):
        own(IMAGES)


def test_neural_mean_discrepancy_by_hand() -> None:
    reference = BatchNormStatistics(
        {
            "a": LayerStatistics(torch.tensor([1.0, 0.0]).double(), torch.tensor([4.0, 1.0]).double(), 1),
            "b": LayerStatistics(torch.tensor([2.0]).double(), torch.tensor([0.25]).double(), 1),
        }
    )
    detector = NeuralMeanDiscrepancy()
    with pytest.raises(UserError, match="has to be fitted"):
        detector.score({"a": torch.ones(2, 2)})
    # Discrepancies of the second image: 2, 2, 1; divided by the standard deviations 2, 1, 0.5: 1, 2, 2.
    means = {"a": torch.tensor([[1.0, 0.0], [3.0, 2.0]]), "b": torch.tensor([[2.0], [3.0]])}
    found = detector.fit(reference).score(means)
    np.testing.assert_allclose(found, [0, -np.sqrt(9 / 3)], rtol=1e-6)
    assert found.dtype == np.float64
    with pytest.raises(UserError, match="'c' keeps no running statistics"):
        detector.score({"c": torch.ones(2, 1)})
