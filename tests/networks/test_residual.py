"""Residual networks against torchvision's, against counts worked out by hand, and against their own definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional

from bnood.errors import UserError
from bnood.networks.image_classifier import build_model
from bnood.networks.network import Network
from bnood.networks.norm import norm_layer
from bnood.networks.plain import MLP, HiddenLayer, PlainConvNet
from bnood.networks.residual import ResNet, WideResNet

KINDS = {"bn": nn.BatchNorm2d, "ln": nn.GroupNorm, "gn": nn.GroupNorm, "none": nn.Identity}


@pytest.mark.parametrize(
    ("kind", "depth", "width", "published"),
    [(ResNet, 18, 64, 11_173_962), (ResNet, 34, 64, 21_282_122), (WideResNet, 28, 10, 36.5e6)],
)
def test_networks_have_the_published_parameters(kind: type, depth: int, width: int, published: float) -> None:
    """Zagoruyko & Komodakis's table 1 has two digits."""
    with torch.device("meta"):
        counted = sum(p.numel() for p in kind(depth, width).parameters())
    assert counted == pytest.approx(published, rel=0.07 if kind is WideResNet else 0)


def test_resnet18_computes_what_torchvisions_does_behind_its_own_stem() -> None:
    """torchvision's network with the small stem put in, and our weights: the same logits in both modes."""
    ours, theirs = ResNet(18, 64), torchvision.models.resnet18(weights=None, num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):  # at their initial values a swap of two norms would not show
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    weights, needed = iter(ours.state_dict().items()), theirs.state_dict()
    renamed = {name: next(weights)[1] for name in needed}
    assert all(renamed[name].shape == needed[name].shape for name in needed) and next(weights, None) is None
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("norm", ["bn", "ln", "gn", "none"])
@pytest.mark.parametrize(
    ("architecture", "depth", "width", "stages"),
    [
        ("resnet", 18, 8, [(8, 32)] * 2 + [(16, 16)] * 2 + [(32, 8)] * 2 + [(64, 4)] * 2),
        ("resnet", 20, 8, [(8, 32)] * 3 + [(16, 16)] * 3 + [(32, 8)] * 3),
        ("wide_resnet", 10, 2, [(32, 32), (64, 16), (128, 8)]),
    ],
)
def test_shapes_features_and_norms(norm: str, architecture: str, depth: int, width: int, stages: list) -> None:
    model = build_model(architecture, depth, width, norm, groups=4, num_classes=7).eval()  # type: ignore[arg-type]
    x, sizes = torch.randn(3, 3, 32, 32), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append((output.shape[1], output.shape[2])))
    with torch.no_grad():
        outputs = Network(model).outputs(x)
        assert sizes[-len(stages) :] == stages
        assert outputs.logits.shape == (3, 7) and outputs.features.shape == (3, stages[-1][0])
    assert (outputs.features >= 0).all()  # behind the last ReLU
    norms = [m for name, m in model.named_modules() if name.endswith(("norm", "norm1", "norm2", "shortcut.1"))]
    assert norms and all(type(m) is KINDS[norm] for m in norms)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all((m.bias is not None) == (norm == "none") for m in convolutions)


def test_weights_begin_as_he_et_al_describe() -> None:
    for module in ResNet(18, 64).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", 18, 16, "batch"), "there is no 'batch'; expected one of bn, ln, gn, none"),
        (("plain", 2, 4, "bn"), "3 layers or more"),
        (("wide_resnet", 10, 1, "bn", 8, 10, "relu", "after"), "wide_resnet has ReLU and its norms before it"),
        (("wide_resnet", 11, 1, "bn"), r"6 n \+ 4 layers .* not 11"),
    ],
)
def test_shapes_that_no_network_has(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(*arguments)


@pytest.mark.parametrize("model", [ResNet(18, 4), WideResNet(10, 1)])
def test_state_dict_keys_are_those_of_older_checkpoints(model: nn.Module) -> None:
    top = {"conv1", "norm1", "blocks", "head"} if isinstance(model, ResNet) else {"conv1", "norm", "blocks", "head"}
    assert {key.split(".")[0] for key in model.state_dict()} == top


SAMPLES, CHANNELS, GROUPS = 3, 8, 4


def values(units: bool = False) -> Tensor:
    """``[3, 8, 5, 5]`` or ``[3, 8]`` in float64, with a scale and an offset of its own for every sample and channel."""
    shape = (SAMPLES, CHANNELS, 1, 1)
    pixels = torch.randn(SAMPLES, CHANNELS, 5, 5) * (torch.rand(shape) + 1) + torch.randn(shape) * 5
    return (pixels[:, :, 0, 0] if units else pixels).double()


def layer(norm: str, units: bool = False) -> nn.Module:
    return norm_layer(norm, CHANNELS, GROUPS, units).double().train()  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "axes"), [("bn", (0, 3, 4)), ("ln", (1, 2, 3, 4)), ("gn", (2, 3, 4))])
@pytest.mark.parametrize("units", [False, True])
def test_mean_and_variance_are_numpys_over_the_stated_axes(norm: str, axes: tuple[int, ...], units: bool) -> None:
    x = values(units)
    grouped = x.numpy().reshape(SAMPLES, GROUPS, CHANNELS // GROUPS, *((1, 1) if units else (5, 5)))
    mean, var = grouped.mean(axis=axes, keepdims=True), grouped.var(axis=axes, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(layer(norm, units=units)(x).detach().numpy(), expected, atol=1e-9)


UNITS = 8


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_norm_stands_where_it_is_said_to(activation: Any, position: Any) -> None:
    linear, own = nn.Linear(5, UNITS), getattr(functional, activation)
    x = torch.randn(3, 5)
    values = functional.linear(x, linear.weight, linear.bias)
    first, second = (lambda v: functional.layer_norm(v, (UNITS,)), own)[:: 1 if position == "before" else -1]
    torch.testing.assert_close(HiddenLayer(linear, nn.LayerNorm(UNITS), activation, position)(x), second(first(values)))


def test_the_norms_shift_replaces_the_bias_where_it_follows_at_once() -> None:
    for norm, position, bias in (("bn", "before", False), ("bn", "after", True), ("none", "before", True)):
        for network in (MLP(3, 16, norm, norm_position=position), PlainConvNet(5, 8, norm, norm_position=position)):
            assert {layer.linear.bias is not None for layer in network.layers} == {bias}
            assert network.eval()(torch.randn(4, 3, 32, 32)).shape == (4, 10)


def test_weights_begin_as_the_activation_asks() -> None:
    for activation, fan_out in (("sigmoid", True), ("tanh", True), ("relu", False), ("gelu", False)):
        network = MLP(3, 200, "none", 8, 10, activation, image_size=8)  # type: ignore[arg-type]
        for each, inputs in zip(network.layers, (192, 200, 200), strict=True):
            expected = 2 / (inputs + 200) if fan_out else 2 / inputs
            weight = each.linear.weight.detach()
            assert float(weight.var()) == pytest.approx(expected, rel=0.05)
            # Glorot's are uniform: none lies beyond the square root of three standard deviations.
            assert (float(weight.abs().max()) <= math.sqrt(3 * expected)) == fan_out
            assert not each.linear.bias.any()
        assert float(network.head.weight.detach().var()) == pytest.approx(2 / 210, rel=0.1)
