"""Plain networks: what stands in them, in which order, and how they begin."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bnood.networks.plain import MLP, HiddenLayer, PlainConvNet

UNITS = 8
NUMPY_ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}


@pytest.mark.parametrize("activation", list(NUMPY_ACTIVATIONS))
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_norm_stands_where_it_is_said_to(activation: str, position: str) -> None:
    linear = nn.Linear(5, UNITS).double()
    built = HiddenLayer(linear, nn.LayerNorm(UNITS).double(), activation, position)  # type: ignore[arg-type]
    x = torch.randn(3, 5).double()
    own = NUMPY_ACTIVATIONS[activation]
    values = x.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()

    def norm(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(axis=1, keepdims=True)) / np.sqrt(v.var(axis=1, keepdims=True) + 1e-5)

    expected = own(norm(values)) if position == "before" else norm(own(values))
    np.testing.assert_allclose(built(x).detach().numpy(), expected, atol=1e-9)


def test_the_norms_shift_replaces_the_bias_where_it_follows_at_once() -> None:
    for norm, position, bias in (("bn", "before", False), ("bn", "after", True), ("none", "before", True)):
        for network in (MLP(3, 16, norm, norm_position=position), PlainConvNet(5, 8, norm, norm_position=position)):
            assert {layer.linear.bias is not None for layer in network.layers} == {bias}
            assert network.eval()(torch.randn(4, 3, 32, 32)).shape == (4, 10)


def test_the_plain_convnet_halves_its_images_at_the_thirds() -> None:
    network = PlainConvNet(10, 4, "none")
    sizes, x = [], torch.randn(1, 3, 32, 32)
    for each in network.layers:
        x = each(x)
        sizes.append(x.shape[-1])
    assert sizes == [32] * 3 + [16] * 3 + [8] * 4


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
