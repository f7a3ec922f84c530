"""Detectors of our own on logits and features; those that read BatchNorm layers are in ``batchnorm.py``."""

from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from bnood.evaluation.detectors.detector import Detector, NotApplicable, import_optional
from bnood.evaluation.scores import SCORES, checked_logits, energy, msp

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
    """MSP of logits divided by a temperature (Guo et al., ICML 2017, section 4.2), fitted on held-out ID images."""

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
    """The T in [0.01, 100] that minimises the mean negative log-likelihood of logits ``[N, K]``, labels ``[N]``."""
    # In b = 1 / T it is convex with the derivative mean(sum_k p_k(b) z_k - z_label): bisection finds its zero.
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


class Clipped(Detector):
    """The energy score of clipped features. A subclass fits the ``limits``, lowest and highest (None: no limit)."""

    needs_head = True
    limits: tuple[Tensor | None, Tensor]
    head: Any

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return energy(features.double().clamp(*self.limits) @ self.head.weight.double().T + self.head.bias.double())


class ReAct(Clipped):
    """Features are clipped at the 90th percentile of all held-out ID activations, pooled (NeurIPS 2021, equation 3)."""

    name = "react"
    fitted_on = "held_out"
    percentile = 90.0

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        self.limits, self.head = (None, torch.tensor(np.percentile(features.double().numpy(), self.percentile))), head

    def record(self) -> dict[str, float]:
        return {"percentile": self.percentile, "threshold": float(self.limits[1])}


class BATSFeatures(Clipped):
    """Each unit is clipped to its mean -+ 3.25 deviations over ID images: BATS as in its authors' ``test_ood.py``."""

    name = "bats_features"
    fitted_on = "train"
    lam = 3.25

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.limits, self.head = (mean - self.lam * std, mean + self.lam * std), head


class Gaussian(Detector):
    """Minus the squared Mahalanobis distance to the mean of all fitting images, by a shrunk covariance, in float64."""

    name = "gaussian"
    fitted_on = "train"

    def __init__(self) -> None:
        import_optional("sklearn.covariance", self.name)  # refuse now, not after the forward passes

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        if len(features) < 2:
            raise NotApplicable("a covariance needs two fitting images")
        library = import_optional("sklearn.covariance", self.name)
        fitted = library.LedoitWolf(store_precision=False).fit(features.double().numpy())
        self.mean, self.factor = fitted.location_, cho_factor(fitted.covariance_, lower=True)

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        centred = features.double().numpy() - self.mean
        return -(centred * cho_solve(self.factor, centred.T).T).sum(axis=1)
