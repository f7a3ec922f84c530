"""Detectors that read a score off the logits."""

from typing import Any

import numpy as np
from torch import Tensor

from bnood.evaluation.detectors.detector import Detector
from bnood.evaluation.scores import SCORES, checked_logits, msp

# Where every image is classified rightly, the likelihood grows without end as T falls, and the lowest is taken.
_LOWEST, _HIGHEST = 0.01, 100.0


class LogitScore(Detector):
    """One of :data:`bnood.evaluation.scores.SCORES` (MSP, energy, largest logit), with nothing to fit."""

    reads = "logits"

    def __init__(self, name: str) -> None:
        self.name = name

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return SCORES[self.name](logits)


class Temperature(Detector):
    """MSP of logits divided by a temperature (Guo et al., ICML 2017, section 4.2); no prediction changes.

    The temperature minimises the negative log-likelihood of held-out labelled ID images.
    """

    name = "temperature"
    reads = "logits"
    fitted_on = "held_out"
    needs_labels = True

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        self.temperature = fit_temperature(logits, labels.numpy())

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return msp(checked_logits(logits) / self.temperature)

    def record(self) -> dict[str, float]:
        return {"temperature": self.temperature}


def fit_temperature(logits: Tensor | np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.01, 100] that minimises the mean negative log-likelihood of logits ``[N, K]``, labels ``[N]``.

    In b = 1 / T the likelihood is convex with the derivative mean(sum_k p_k(b) z_k - z_label), whose sign is halved
    down to the last digit.
    """
    z = checked_logits(logits).numpy()
    z = z - z[np.arange(len(z)), labels][:, None]

    def slope(inverse: float) -> float:
        scaled = inverse * z
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((weights * z).sum(axis=1) / weights.sum(axis=1)).mean())

    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
