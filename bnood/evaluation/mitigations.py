"""What is done against overconfidence without touching BatchNorm: ReAct's clipping, and a temperature.

Both are fitted on labelled in-distribution images that are neither trained on nor scored, under running statistics, and
on nothing else: no OOD image takes part (choosing a percentile or a temperature by OOD results would be leakage).

- **ReAct** (Sun, Guo & Li 2021, equation 3): penultimate activations are clipped at c, the 90th percentile of all
  activations (images and units pooled) on in-distribution images; the network's own head makes logits of them, and the
  score is their energy.
- **Temperature** (Guo et al. 2017, section 4.2): logits are divided by the T > 0 that minimises the negative
  log-likelihood; the score is the MSP. T changes confidences, not predicted classes.
"""

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.scores import checked_logits, energy, msp

MITIGATED_SCORES = ("react", "msp_temperature")
PERCENTILE = 90.0
# The temperatures that are looked at. Where every image is classified rightly, the likelihood grows without end as T
# falls, and the lowest is taken.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.01, 100.0


def react_threshold(features: np.ndarray, percentile: float = PERCENTILE) -> float:
    """The ``percentile`` of all activations of in-distribution images, features ``[N, D]``.

    Raises ``UserError`` for no features, NaN among them, or a percentile outside (0, 100].

    >>> react_threshold(np.array([[0.0, 1.0], [2.0, 3.0]]), percentile=50)
    1.5
    """
    if not 0 < percentile <= 100:
        raise UserError(f"ReAct's percentile has to lie above 0 and be at most 100 (90, say), not {percentile}")
    if features.size == 0 or np.isnan(features).any():
        raise UserError(f"ReAct's threshold needs features without NaN, not {list(features.shape)}: has it diverged?")
    return float(np.percentile(features.astype(np.float64, copy=False), percentile))


def clipped_logits(features: np.ndarray, threshold: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Logits ``[N, K]`` float64 of features ``[N, D]`` clipped from above, by a head ``[K, D]`` and ``[K]``.

    >>> clipped_logits(np.array([[1.0, 9.0]]), 2.0, np.array([[1.0, 1.0], [0.0, -1.0]]), np.array([0.0, 0.5])).tolist()
    [[3.0, -1.5]]
    """
    return np.minimum(features.astype(np.float64, copy=False), threshold) @ weight.T + bias


def fit_temperature(logits: Tensor | np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.01, 100] that minimises the mean negative log-likelihood of logits ``[N, K]``, labels ``[N]``.

    In b = 1 / T the likelihood is convex with the derivative mean(sum_k p_k(b) z_k - z_label), whose sign is halved
    down to the last digit. Raises ``UserError`` for labels that do not fit, and as ``checked_logits``.
    """
    z, wanted = checked_logits(logits).detach().cpu().numpy(), np.asarray(labels)
    if wanted.shape != (len(z),) or len(z) == 0 or wanted.min() < 0 or wanted.max() >= z.shape[1]:
        raise UserError(
            f"a temperature needs one label from 0 to {z.shape[1] - 1} for each of {len(z)} images, at least one"
        )
    z = z - z[np.arange(len(z)), wanted][:, None]

    def slope(inverse: float) -> float:
        scaled = inverse * z
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((weights * z).sum(axis=1) / weights.sum(axis=1)).mean())

    low, high = np.log(1 / _HIGHEST_TEMPERATURE), np.log(1 / _LOWEST_TEMPERATURE)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


@dataclass(frozen=True)
class Fitted:
    """The settings that were chosen on the tuning images, as they stand in ``evaluation.json``."""

    percentile: float
    threshold: float
    temperature: float
    tuning_images: int


@dataclass(frozen=True)
class Mitigations:
    """ReAct and a temperature for one network, fitted once; see the module's text.

    Attributes:
        fitted: the threshold and the temperature.
        weight: float64 ``[K, D]`` of the network's head.
        bias: float64 ``[K]``.
    """

    fitted: Fitted
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, head: nn.Linear, features: Tensor, logits: Tensor, labels: np.ndarray, percentile: float = PERCENTILE
    ) -> "Mitigations":
        """From the tuning images' features ``[N, D]``, logits ``[N, K]`` and labels ``[N]``, on any device.

        Raises ``UserError`` where ``react_threshold`` and ``fit_temperature`` do.
        """
        fitted = Fitted(
            percentile,
            react_threshold(features.detach().cpu().numpy(), percentile),
            fit_temperature(logits, labels),
            len(labels),
        )
        weight = head.weight.detach().cpu().double().numpy()
        bias = np.zeros(len(weight)) if head.bias is None else head.bias.detach().cpu().double().numpy()
        return cls(fitted, weight, bias)

    def scores(self, logits: Tensor, features: Tensor) -> dict[str, np.ndarray]:
        """``MITIGATED_SCORES`` ``[N]`` float64 of images with logits ``[N, K]`` and features ``[N, D]``, on the CPU."""
        clipped = clipped_logits(features.detach().numpy(), self.fitted.threshold, self.weight, self.bias)
        cooled = checked_logits(logits).numpy() / self.fitted.temperature
        return dict(zip(MITIGATED_SCORES, (energy(clipped), msp(cooled)), strict=True))

    def record(self) -> dict[str, float]:
        """What ``evaluation.json`` says of them."""
        return asdict(self.fitted)
