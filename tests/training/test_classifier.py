"""The LightningModule: its normalisation, optimizer, schedule and settings."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from tiny_runs import SIZE
from torchmetrics.classification import MulticlassCalibrationError

from bnood.training.classifier import Classifier, calibration_sums


def classifier(**changes: Any) -> Classifier:
    return Classifier(**({"depth": 20, "width": 8, "groups": 4} | changes)).eval()


def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8))


def test_forward_normalises_each_channel_by_its_constants() -> None:
    model, images = classifier(), pixels()
    model.image_mean.copy_(torch.tensor([10.0, 20.0, 30.0]))
    model.image_std.copy_(torch.tensor([2.0, 4.0, 8.0]))
    expected = (images.numpy().astype(np.float32) - [10, 20, 30]) / [2, 4, 8]
    with torch.no_grad():
        by_hand = model.network(torch.from_numpy(expected.transpose(0, 3, 1, 2).astype(np.float32)))
        assert torch.allclose(model(images), by_hand, atol=1e-5)
    assert by_hand.shape == (5, 10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_calibration_sums_match_torchmetrics_and_sklearn(scale: float) -> None:
    logits, labels = torch.randn(300, 7) * scale, torch.randint(0, 7, (300,))
    count, confidence, right, nll = calibration_sums(logits, labels).double().unbind(dim=1)
    probabilities = logits.softmax(dim=1)
    expected = float(MulticlassCalibrationError(7, n_bins=15)(probabilities, labels))
    assert float((confidence - right).abs().sum()) / 300 == pytest.approx(expected, abs=1e-5)
    assert (int(count.sum()), int(right.sum())) == (300, int((logits.argmax(1) == labels).sum()))
    exact = log_loss(labels, logits.double().softmax(dim=1), labels=range(7))
    if scale < 100:  # beyond, sklearn clips probabilities
        assert float(nll.sum()) / 300 == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("decay_norm", [True, False])
def test_weight_decay_spares_norm_parameters_and_biases_by_choice(decay_norm: bool) -> None:
    model = classifier(decay_norm=decay_norm, weight_decay=0.3, learning_rate=0.7, momentum=0.8)
    model.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    optimizer = model.configure_optimizers()["optimizer"]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for module in model.network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and name == "weight"
            assert decay[id(parameter)] == (0.3 if weight or decay_norm else 0.0)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in optimizer.param_groups)


def test_gradient_clipping_bounds_the_norm_by_choice() -> None:
    for bound, expected in ((0.0, 5.0), (2.0, 2.0)):
        model = classifier(clip_gradient_norm=bound)
        bias = model.network.head.bias
        bias.grad = torch.tensor([3.0, 4.0] + 8 * [0.0])
        model.configure_gradient_clipping(None)
        assert float(bias.grad.norm()) == pytest.approx(expected, rel=1e-4)
