"""BatchNorm subclasses with a forward of their own, half precision, and many networks: what runs, and what is left."""

import copy
import os

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from torch import Tensor, nn
from unchanged import untouched

from bnood.errors import UserError
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    bake,
    decide_statistics,
    estimate_statistics,
    read_statistics,
    use_statistics,
)


class Plain(nn.BatchNorm2d):
    """Hands its buffers to torch whenever it trains, tracked or not; its momentum decays with use."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
            self.momentum *= 0.5
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class InPlace(nn.BatchNorm2d):
    """Written out by hand; moves its averages in place, and counts calls in evaluation mode too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, self.last_shape = self.running_mean, self.running_var, x.shape
        self.calls += 1
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(0.1 * mean)
                self.running_var.mul_(0.9).add_(0.1 * var)
        scale = self.weight / (var + self.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


class Ghost(nn.BatchNorm2d):
    """Statistics of two halves of the channels' places, in buffers twice as long; evaluation averages them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.running_mean, self.running_var = torch.zeros(2 * channels), torch.ones(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.training or not self.track_running_stats:
            parts = x.reshape(n // 2, 2 * c, h, w)
            weight, bias = self.weight.repeat(2), self.bias.repeat(2)
            parts = F.batch_norm(parts, self.running_mean, self.running_var, weight, bias, True, 0.1, self.eps)
            return parts.view(n, c, h, w)
        mean, var = (buffer.view(2, c).mean(0) for buffer in (self.running_mean, self.running_var))
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.1, self.eps)


class Observer(nn.Module):
    """Not a norm at all, and writes its buffer in evaluation mode, as quantization's observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.largest.copy_(x.max())
        return x


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Plain, InPlace, Ghost])
def test_buffers_written_by_subclasses_are_as_before(kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), Observer(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(8, 3, 6, 6) * 3 + 5
    trained = copy.deepcopy(model).train()(x)
    with untouched(model), torch.no_grad():
        with use_statistics(model, "batch"):
            torch.testing.assert_close(model(x), trained)
            model(x)
        found = estimate_statistics(model, [x], method="sequential")
        with use_statistics(model, found), use_statistics(model, "batch"), use_statistics(model, found):
            recalibrated = model(x)
        with decide_statistics(model, lambda name, statistics: statistics):
            torch.testing.assert_close(model(x), recalibrated)
        with use_statistics(model, read_statistics(model)):
            own = model(x)
    torch.testing.assert_close(own, copy.deepcopy(model).eval()(x))
    oracle = F.batch_norm(model[0](x), None, None, training=True)
    torch.testing.assert_close(recalibrated, model[4](oracle.relu()), rtol=1e-4, atol=1e-5)


def network_outputs(dtype: torch.dtype, kind: type[nn.Module] = nn.BatchNorm2d) -> tuple[nn.Module, Tensor]:
    """A network whose first BatchNorm sees variances that float16 cannot hold, and its input."""
    model = nn.Sequential(nn.Conv2d(3, 8, 5), kind(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[0].weight.mul_(8)
    return model.eval().to(dtype), (torch.rand(32, 3, 12, 12) * 255).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_use_float32_statistics(dtype: torch.dtype) -> None:
    model, x = network_outputs(dtype)
    twin = copy.deepcopy(model).float()
    target = estimate_statistics(twin, [x.float()])
    assert (target["1"].var > 65504).all()
    with untouched(model), torch.no_grad():
        with use_statistics(twin, target):
            expected = twin(x.float())
        with use_statistics(model, target), use_statistics(model, "batch"), use_statistics(model, target):
            assert model[1].running_var.dtype == torch.float32
            given = model(x)
        with use_statistics(model, estimate_statistics(model, [x, x], method="sequential")):
            estimated = model(x)
    for found in (given, estimated):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-3 if dtype == torch.float16 else 2e-2)
    with use_statistics(model, target):
        model(x).square().sum().backward()
    assert model[1].weight.grad is not None and model[1].weight.grad.dtype == dtype


def test_float16_that_cannot_hold_the_statistics_is_refused() -> None:
    model, x = network_outputs(torch.float16, InPlace)
    target = estimate_statistics(copy.deepcopy(model).float(), [x.float()])
    standard, _ = network_outputs(torch.float16)
    refused = pytest.raises(UserError, match=r"layer '1' is in float16.*65504")
    with untouched(model), refused, use_statistics(model, target):
        pass
    with untouched(standard), pytest.raises(UserError, match="layer '1' is in float16"):
        bake(standard, target)


FAMILIES = ("densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2")
FAMILIES += ("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5")
TIMM = ("test_byobnet", "test_coatnet", "test_efficientnet", "test_maxvit", "test_resnet", "resnet10t", "ghostnet_050")
TIMM += ("lcnet_035", "tinynet_e", "levit_128s", "mobileone_s0", "repvgg_a0", "skresnet18", "regnetx_002")


def every_batchnorm_network() -> list[str]:
    """All of torchvision's with BNOOD_SLOW=1 (some minutes, 3 GB), one per family without."""
    if not os.environ.get("BNOOD_SLOW"):
        return [f"torchvision:{name}" for name in FAMILIES] + [f"timm:{name}" for name in TIMM]
    skipped = ("alexnet", "convnext", "squeezenet", "swin", "vit")
    names = [name for name in torchvision.models.list_models(module=torchvision.models) if not name.startswith(skipped)]
    without = {name for name in names if name.startswith("vgg") and not name.endswith("bn")}
    return [f"torchvision:{name}" for name in names if name not in without] + [f"timm:{name}" for name in TIMM]


def random_network(name: str) -> tuple[nn.Module, Tensor]:
    library, model_name = name.split(":")
    size = {"inception_v3": 80, "maxvit_t": 224, "levit_128s": 224}.get(model_name, 64)
    options = {"init_weights": False} if model_name in ("googlenet", "inception_v3") else {}
    if library == "torchvision":
        return torchvision.models.get_model(model_name, weights=None, **options), torch.randn(2, 3, size, size)
    model = timm.create_model(model_name)
    size = model.default_cfg["input_size"][-1] if model_name.startswith(("test_coat", "test_max")) else size
    return model, torch.randn(2, 3, size, size)


@pytest.mark.filterwarnings("ignore:evaluation did not run")
@pytest.mark.parametrize("name", every_batchnorm_network())
def test_networks_are_left_bit_for_bit_as_they_were(name: str) -> None:
    model, x = random_network(name)
    if name == "timm:test_resnet":
        model = convert_sync_batchnorm(model)
    check_network(model, x)


def test_instance_norm_split_and_half_frozen_networks_are_left_as_they_were() -> None:
    mixed = torchvision.models.resnet18(weights=None, num_classes=5).train()
    mixed.bn1 = nn.InstanceNorm2d(64, affine=True, track_running_stats=True)
    mixed.layer1.eval().requires_grad_(False)
    with pytest.warns(UserWarning, match=r"'bn1' \(InstanceNorm2d\) keep fixed"):
        check_network(mixed, torch.randn(2, 3, 32, 32))
    split = convert_splitbn_model(timm.create_model("test_resnet"))
    with pytest.warns(UserWarning, match=r"did not run '.*aux_bn"):
        check_network(split, torch.randn(4, 3, 64, 64))


@torch.no_grad()
def check_network(model: nn.Module, x: Tensor) -> None:
    """All contexts give finite outputs, the estimate gives what the batch's own statistics give, nothing changes."""
    with untouched(model):
        with use_statistics(model, "running"):
            running = model(x)
        with use_statistics(model, "batch"):
            batch = model(x)
        found = estimate_statistics(model, [x])
        with use_statistics(model, found):
            estimated = model(x)
        with use_statistics(model, BatchNormStatistics(dict(list(found.items())[:2]))):
            model(x)
    assert torch.isfinite(torch.stack([running, batch, estimated])).all()
    assert not torch.equal(running, estimated)


def baked_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), Ghost(4)).eval()


def test_baked_statistics_survive_saving_and_give_the_outputs_of_the_context() -> None:
    model, x = baked_model(), torch.randn(8, 3, 6, 6) + 2
    target = estimate_statistics(model, [x])
    with use_statistics(model, target), torch.no_grad():
        expected = model(x)
        with pytest.raises(UserError, match="inside use_statistics"):
            bake(model, target)
    weights = {key: value.clone() for key, value in model.state_dict().items() if "running" not in key}
    buffer = model[1].running_mean
    assert bake(model, target) is None
    fresh = baked_model()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), expected) and torch.equal(fresh(x), expected)
    assert model[1].running_mean is buffer
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())


def test_statistics_that_cannot_be_baked_change_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    good = LayerStatistics(torch.ones(3), torch.ones(3), 1)
    for name, message in (("1", "layer '1' has no buffers"), ("2", "no BatchNorm layer '2'")):
        with untouched(model), pytest.raises(UserError, match=message):
            bake(model, BatchNormStatistics({"0": good, name: good}))
    with pytest.raises(UserError, match="only BatchNormStatistics"):
        bake(model, "running")  # type: ignore[arg-type]
