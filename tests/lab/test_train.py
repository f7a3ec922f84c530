"""Records against gradients that are computed by hand, and that training does not notice them."""

import copy

import pytest
import torch
from torch.nn import functional as F

from bnood.lab.run import gradient_norms
from bnood.networks.norm import Norm
from bnood.networks.plain import MLP, PlainConvNet

X, Y = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


def test_gradient_norms_are_those_of_a_training_step() -> None:
    network = MLP(depth=3, width=16, norm="bn", image_size=8)
    found = gradient_norms(network, X, Y)
    F.cross_entropy(network.train()(X), Y).backward()
    assert found == pytest.approx([float(layer.linear.weight.grad.norm()) for layer in network.layers], rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "bn", "ln", "gn"])
def test_training_does_not_notice_a_record(norm: Norm) -> None:
    network = PlainConvNet(depth=3, width=8, norm=norm).train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    gradient_norms(network, X, Y)
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
