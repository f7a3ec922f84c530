"""The recorder against gradients and moments that are computed by hand, and that training does not notice it."""

import copy

import pytest
import torch
from torch.nn import functional as F

from bnood.lab.recorder import hidden_layers, measure
from bnood.networks.norm import Norm
from bnood.networks.plain import MLP, Activation, PlainConvNet


def batch(n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)


def mlp(norm: Norm = "bn", activation: Activation = "relu") -> MLP:
    return MLP(depth=3, width=16, norm=norm, activation=activation, image_size=8)


def test_gradient_norms_are_those_of_a_training_step() -> None:
    network, (x, y) = mlp(), batch()
    found = measure(network, x, y)
    network.train()
    F.cross_entropy(network(x), y).backward()
    for row, layer in zip(found, hidden_layers(network), strict=True):
        assert layer.linear.weight.grad is not None
        assert row["gradient_norm"] == pytest.approx(float(layer.linear.weight.grad.norm()), rel=1e-5)


def test_pre_activations_are_those_of_evaluation_mode() -> None:
    network, (x, y) = mlp(activation="sigmoid"), batch()
    network.train()(x + 1)  # running averages that differ from the batch's own
    found = measure(network, x, y)[0]
    layer = hidden_layers(network.eval())[0]
    values = layer.norm(layer.linear(x.flatten(1))).detach().double()
    assert found["preactivation_mean"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert found["preactivation_std"] == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    means, stds = values.mean(0), values.std(0, correction=0)
    assert found["offset"] == pytest.approx(float(means.square().mean().sqrt() / stds.square().mean().sqrt()), rel=1e-5)


def test_dead_units_are_off_for_all_images() -> None:
    network, (x, y) = mlp(norm="none"), batch()
    with torch.no_grad():
        hidden_layers(network)[1].linear.bias[:4] = -1e6  # type: ignore[index]
    shares = [row["dead_share"] for row in measure(network, x, y)]
    assert shares[1] >= 4 / 16 and shares[0] < 4 / 16


@pytest.mark.parametrize("norm", ["none", "bn", "ln", "gn"])
def test_training_does_not_notice_a_record(norm: Norm) -> None:
    network, (x, y) = PlainConvNet(depth=3, width=8, norm=norm), batch()
    network.train()
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    measure(network, x, y)
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_values_that_are_not_finite_have_no_dead_share() -> None:
    network, (x, y) = mlp(norm="none"), batch()
    with torch.no_grad():
        hidden_layers(network)[0].linear.bias.fill_(float("nan"))  # type: ignore[union-attr]
    row = measure(network, x, y)[0]
    assert row["dead_share"] != row["dead_share"]
