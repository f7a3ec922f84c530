"""ResNets against torchvision's, against counts worked out by hand, and against their own definition."""

import pytest
import torch
import torchvision.models
from torch import nn

from bnood.networks import build_model
from bnood.networks.network import Network
from bnood.networks.residual import ResNet, WideResNet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "published"), [(18, 11_173_962), (34, 21_282_122)])
def test_four_stages_have_torchvisions_parameters_but_for_stem_and_head(depth: int, published: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        ours = ResNet(depth, 64)
    expected = parameters(theirs) - 3 * 64 * (7 * 7 - 3 * 3) - (512 + 1) * (1000 - 10)
    assert parameters(ours) == expected == published


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


def expected_three_stages(depth: int, width: int, classes: int) -> int:
    """Stem, then per block two convolutions and two norms, and a projection with a norm where the width doubles."""
    total, inputs = 27 * width + 2 * width, width
    for outputs in (width, 2 * width, 4 * width):
        for _ in range((depth - 2) // 6):
            total += 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs
            total += 0 if inputs == outputs else inputs * outputs + 2 * outputs
            inputs = outputs
    return total + 4 * width * classes + classes


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_three_stages_count_what_the_paper_describes(depth: int) -> None:
    model = ResNet(depth, 16, num_classes=7)
    assert parameters(model) == expected_three_stages(depth, 16, 7)
    main_path = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(main_path) + 1 == depth  # with the head: what the depth counts


@pytest.mark.parametrize("norm", ["bn", "ln", "gn", "none"])
@pytest.mark.parametrize(("depth", "features"), [(18, 64), (20, 32)])
def test_shapes_and_features(norm: str, depth: int, features: int) -> None:
    model = build_model("resnet", depth, 8, norm, groups=4, num_classes=7).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        outputs = Network(model).outputs(x)
        logits, penultimate = outputs.logits, outputs.features
        assert logits.shape == (3, 7) and penultimate.shape == (3, features) and model.num_features == features
        torch.testing.assert_close(penultimate @ model.head.weight.T + model.head.bias, logits)
        torch.testing.assert_close(model(x), logits)
    assert (penultimate >= 0).all()  # behind the last ReLU
    kinds = {"bn": nn.BatchNorm2d, "ln": nn.GroupNorm, "gn": nn.GroupNorm, "none": nn.Identity}
    norms = [m for name, m in model.named_modules() if name.endswith(("norm1", "norm2", "shortcut.1"))]
    assert norms and all(type(m) is kinds[norm] for m in norms)
    assert all(m.num_groups == {"ln": 1, "gn": 4}[norm] for m in norms if isinstance(m, nn.GroupNorm))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all((m.bias is not None) == (norm == "none") for m in convolutions)


@pytest.mark.parametrize(("depth", "sizes"), [(18, [8, 8, 4, 4, 2, 2, 1, 1]), (20, [8] * 3 + [4] * 3 + [2] * 3)])
def test_the_stem_keeps_the_pixels_and_later_stages_halve_them(depth: int, sizes: list[int]) -> None:
    seen: list[int] = []
    model = ResNet(depth, 4)
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
    model(torch.randn(2, 3, 8, 8))
    assert seen == sizes


@pytest.mark.parametrize("architecture", ["resnet", "wide_resnet"])
def test_without_norm_a_deep_network_begins_as_a_shallow_one_and_learns(architecture: str) -> None:
    depth, width = (56, 8) if architecture == "resnet" else (40, 1)
    model = build_model(architecture, depth, width, "none")  # type: ignore[arg-type]
    x, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 10 and losses[-1] < losses[0] - 0.03


def test_weights_begin_as_he_et_al_describe() -> None:
    model = ResNet(18, 64)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)


def test_mistakes_in_the_shape() -> None:
    with pytest.raises(ValueError, match=r"no ResNet of depth 50 .* choose one of 18, 20, 32, 34, 44, 56, 110"):
        ResNet(50)
    with pytest.raises(ValueError, match="divides 12 channels, not 8"):
        ResNet(18, 12, "gn", groups=8)
    with pytest.raises(ValueError, match="unknown architecture 'vgg': choose resnet, wide_resnet, mlp or plain"):
        build_model("vgg", 16, 1, "bn")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [ResNet(18, 4), WideResNet(10, 1)])
def test_state_dict_keys_are_those_of_older_checkpoints(model: nn.Module) -> None:
    top = {"conv1", "norm1", "blocks", "head"} if isinstance(model, ResNet) else {"conv1", "norm", "blocks", "head"}
    assert {key.split(".")[0] for key in model.state_dict()} == top
