"""Energy scores of clipped penultimate features: ReAct, and BATS in the form of its authors' code."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnood.evaluation.detectors.detector import Detector
from bnood.evaluation.scores import energy


class ReAct(Detector):
    """Features are clipped from above at the 90th percentile of all held-out ID activations (NeurIPS 2021, equation 3).

    Images and units are pooled; the network's head makes logits, in float64, of the clipped features.
    """

    name = "react"
    fitted_on = "held_out"
    needs_head = True
    percentile = 90.0

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        self.threshold = float(np.percentile(features.double().numpy(), self.percentile))
        self.head = head

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        clipped = np.minimum(features.double().numpy(), self.threshold)
        return energy(clipped @ self.head.weight.double().numpy().T + self.head.bias.double().numpy())

    def record(self) -> dict[str, float]:
        return {"percentile": self.percentile, "threshold": self.threshold}


class BATSFeatures(Detector):
    """Each unit is clipped to its mean plus or minus 3.25 standard deviations over ID images (Zhu et al. 2022).

    The form of the authors' ``test_ood.py``, with its lambda for CIFAR-10 and ResNet-18; in float64.
    """

    name = "bats_features"
    fitted_on = "train"
    needs_head = True
    lam = 3.25

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.low, self.high, self.head = mean - self.lam * std, mean + self.lam * std, head

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        clipped = features.double().clamp(self.low, self.high)
        return energy(clipped @ self.head.weight.double().T + self.head.bias.double())
