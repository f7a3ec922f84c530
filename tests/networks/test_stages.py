"""The stages of a network: one after the other they are its forward pass up to the penultimate features."""

import pytest
import torch
from torch import nn

from bnood.networks.resnet import ResNet
from bnood.networks.wide_resnet import WideResNet


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize(
    ("build", "blocks"), [(lambda norm: ResNet(20, 4, norm, 4), 9), (lambda norm: WideResNet(10, 1, norm), 3)]
)
def test_composed_they_give_the_features(build: object, blocks: int, norm: str) -> None:
    model: nn.Module = build(norm).eval()  # type: ignore[operator]
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        logits, features = model(x, return_features=True)
        state = x
        for stage in model.stages():  # type: ignore[operator]
            state = stage(state)
    assert torch.equal(state, features) and state.shape == (3, model.num_features)
    assert torch.equal(model.head(features), logits)  # type: ignore[operator]
    assert len(model.stages()) == blocks + 2  # type: ignore[operator]


@pytest.mark.parametrize("model", [ResNet(18, 4), WideResNet(10, 1)])
def test_checkpoints_keep_their_names(model: nn.Module) -> None:
    top = {"conv1", "norm1", "blocks", "head"} if isinstance(model, ResNet) else {"conv1", "norm", "blocks", "head"}
    assert {key.split(".")[0] for key in model.state_dict()} == top
