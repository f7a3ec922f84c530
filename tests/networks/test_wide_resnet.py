"""Wide residual networks against counts worked out by hand and the block's definition."""

import pytest
import torch
from torch import nn

from bnood.networks import build_model
from bnood.networks.network import Network
from bnood.networks.residual import PreActivationBlock, WideResNet


def expected_parameters(depth: int, k: int, classes: int) -> int:
    """Zagoruyko & Komodakis's table 1: every block two norms (of its inputs, of its outputs) and two convolutions."""
    total, inputs = 27 * 16, 16
    for outputs in (16 * k, 32 * k, 64 * k):
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += 0 if inputs == outputs else inputs * outputs
            inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(
    ("depth", "k", "published"), [(40, 2, 2.2e6), (40, 1, 0.6e6), (16, 4, 2.75e6), (28, 10, 36.5e6)]
)
def test_parameters_are_the_papers(depth: int, k: int, published: float) -> None:
    with torch.device("meta"):
        model = WideResNet(depth, k)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == expected_parameters(depth, k, 10)
    assert counted == pytest.approx(published, rel=0.07)


@pytest.mark.parametrize("norm", ["bn", "ln", "gn", "none"])
def test_shapes_and_features(norm: str) -> None:
    model = build_model("wide_resnet", 10, 2, norm, groups=4, num_classes=7).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 3, 32, 32)
    sizes: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        outputs = Network(model).outputs(x)
        logits, penultimate = outputs.logits, outputs.features
        sizes = sizes[-3:]  # the first pass finds the head
        assert sizes == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
        assert logits.shape == (3, 7) and penultimate.shape == (3, 128) and model.num_features == 128
        torch.testing.assert_close(penultimate @ model.head.weight.T + model.head.bias, logits)
        torch.testing.assert_close(model(x), logits)
    assert (penultimate >= 0).all() and torch.isfinite(logits).all()


@pytest.mark.parametrize(("inputs", "stride"), [(4, 2), (8, 1)])
def test_the_shortcut_branches_off_after_the_first_relu_only_where_shapes_change(inputs: int, stride: int) -> None:
    """With the branch's last convolution at zero the block is its shortcut."""
    block = PreActivationBlock(inputs, 8, stride, "ln", 8)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, inputs, 6, 6)
    if inputs == 8:
        assert torch.equal(block(x), x)
    else:
        activated = torch.relu(nn.functional.layer_norm(x, x.shape[1:]))
        expected = nn.functional.conv2d(activated, block.shortcut.weight, stride=2)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("depth", [4, 11, 18, -2])
def test_depths_that_no_wide_resnet_has(depth: int) -> None:
    with pytest.raises(ValueError, match=f"6 n \\+ 4 layers .* not {depth}"):
        WideResNet(depth)
