"""Logits and features of any model: which layer is its head, what is refused, and that nothing stays changed."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.networks.network import Network
from bnood.statistics import read_statistics

IMAGES = torch.rand(4, 3, 32, 32)


class Small(nn.Module):
    """A BatchNorm network whose last layer and output can be chosen."""

    def __init__(self, head: nn.Module | None = None, output: Any = lambda logits: logits) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head, self.output = nn.Linear(8, 5) if head is None else head, output
        self.unused = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        maps = torch.relu(self.norm(self.conv(x)))
        if isinstance(self.head, nn.Linear):
            return self.output(self.head(self.dropout(maps.mean((2, 3)))))
        return self.output(self.head(maps).mean((2, 3)))


def state(model: nn.Module) -> list[Any]:
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), m.training) for m in model.modules()]
    return [hooks, {name: tensor.clone() for name, tensor in model.state_dict().items()}]


def assert_unchanged(model: nn.Module, before: list[Any]) -> None:
    hooks, tensors = state(model)
    assert hooks == before[0] and all(torch.equal(tensors[name], before[1][name]) for name in tensors)


@pytest.mark.parametrize(
    ("build", "head", "width"),
    [
        (torchvision.models.resnet18, "fc", 512),
        (torchvision.models.mobilenet_v2, "classifier.1", 1280),
        (torchvision.models.swin_t, "head", 768),
        (partial(timm.create_model, "lcnet_050"), "classifier", 1280),
    ],
)
def test_features_times_head_are_the_logits_and_the_model_is_left_as_found(build: Any, head: str, width: int) -> None:
    model = build(num_classes=7).train()
    before = state(model)
    network = Network(model)
    assert (network.probe(IMAGES), network.feature_width, network.num_classes) == (head, width, 7)
    assert_unchanged(model, before)
    outputs = Network(model.eval()).outputs(IMAGES)
    assert outputs.features.shape == (4, width) and network.head is not None
    expected = outputs.features @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(outputs.logits, model(IMAGES.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile])
def test_wrappers_are_seen_through_and_channel_means_are_those_of_what_layers_receive(wrap: Any) -> None:
    model = Small().eval()
    wrapped, expected = Network(wrap(model)), Network(model).outputs(IMAGES)
    outputs = wrapped.outputs(IMAGES, channel_means=True)
    assert wrapped.probe(IMAGES) == "head" and wrapped.name == "Small"
    assert torch.equal(outputs.features, expected.features) and expected.channel_means == {}
    assert list(outputs.channel_means) == ["norm"]
    torch.testing.assert_close(outputs.channel_means["norm"], model.conv(IMAGES).mean((2, 3)).detach())


def test_outputs_with_logits_and_models_that_need_a_call() -> None:
    like_hugging_face = Small(output=lambda logits: SimpleNamespace(logits=logits)).eval()
    assert Network(like_hugging_face).outputs(IMAGES).logits.shape == (4, 5)
    in_a_dict = Small(output=lambda logits: {"scores": logits}).eval()
    with pytest.raises(UserError, match=r"Small gives a dict, not logits \[N, K\]: pass call="):
        Network(in_a_dict).outputs(IMAGES)
    assert Network(in_a_dict, call=lambda model, batch: model(batch)["scores"]).outputs(IMAGES).features.shape == (4, 8)


def test_a_convolution_as_head_is_averaged_only_where_that_gives_the_logits() -> None:
    network = Network(Small(nn.Conv2d(8, 5, 1)).eval(), head="head")
    outputs = network.outputs(IMAGES)
    assert network.head is not None
    torch.testing.assert_close(outputs.features @ network.head.weight.T + network.head.bias, outputs.logits)
    bent = Small(nn.Conv2d(8, 5, 1), output=torch.tanh).eval()
    network = Network(bent, head=bent.head)
    outputs = network.outputs(IMAGES)
    assert network.head is None and network.feature_width == 8
    torch.testing.assert_close(outputs.features, torch.relu(bent.norm(bent.conv(IMAGES))).mean((2, 3)).detach())


def test_a_named_head_that_does_not_make_the_logits_gives_features_without_weights() -> None:
    model = Small(output=lambda logits: 2 * logits).eval()
    for head, words in (("unused", "'unused' is not given a batch"), (None, r"output \[4, 5\].*: head, conv$")):
        with pytest.raises(UserError, match=words):
            Network(model, head=head).probe(IMAGES)
    network = Network(model, head="head")
    assert network.outputs(IMAGES).features.shape == (4, 8) and network.head is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_outputs_are_float32_whatever_the_models_type(dtype: torch.dtype) -> None:
    outputs = Network(Small().eval().to(dtype)).outputs(IMAGES, channel_means=True)
    assert {outputs.logits.dtype, outputs.features.dtype, outputs.channel_means["norm"].dtype} == {torch.float32}


def test_uint8_images_reach_the_model_as_it_takes_them() -> None:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    model = Small().eval()
    expected = Network(model).outputs(images.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(Network(model).outputs(images).logits, expected.logits)
    own = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 5))
    own.takes_uint8 = True
    seen = []
    own.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype) or (args[0].float(),))
    Network(own).outputs(images)
    assert set(seen) == {torch.uint8}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda logits: (logits, logits), "gives a tuple, not logits"),
        (lambda logits: logits.log_softmax(1), "gives probabilities or their logarithms, not logits"),
        (lambda logits: logits / 0, "gives NaN or infinite values on the first 4 images"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_and_leave_no_trace(output: Any, message: str) -> None:
    model = Small(output=output).train()
    before, statistics = state(model), read_statistics(model)
    with pytest.raises(UserError, match=message):
        Network(model).outputs(IMAGES)
    assert_unchanged(model, before)
    assert read_statistics(model).distance(statistics)["norm"] == (0, 0)
