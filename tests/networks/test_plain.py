"""Plain networks: what stands in them, in which order, and how they begin."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from bnood.networks.plain import MLP, HiddenLayer, PlainConvNet

UNITS = 8


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_norm_stands_where_it_is_said_to(activation: Any, position: Any) -> None:
    linear, own = nn.Linear(5, UNITS), getattr(functional, activation)
    x = torch.randn(3, 5)
    values = functional.linear(x, linear.weight, linear.bias)
    first, second = (lambda v: functional.layer_norm(v, (UNITS,)), own)[:: 1 if position == "before" else -1]
    built = HiddenLayer(linear, nn.LayerNorm(UNITS), activation, position)
    torch.testing.assert_close(built(x), second(first(values)))


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
