"""ReAct (Sun, Guo & Li, NeurIPS 2021, equation 3): the energy score of clipped penultimate activations."""

from typing import ClassVar

import numpy as np
from torch import Tensor

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector, FittedOn
from bnood.evaluation.scores import energy
from bnood.networks.outputs import Head


class ReAct(Detector):
    """Activations are clipped from above at a percentile of all activations, images and units pooled.

    The percentile (90 in the paper) is taken over held-out ID images; the network's head makes logits, in float64, of
    the clipped features. Raises ``UserError`` for a percentile outside (0, 100].
    """

    name: ClassVar[str] = "react"
    fitted_on: ClassVar[FittedOn] = "held_out"
    needs_head: ClassVar[bool] = True

    def __init__(self, percentile: float = 90.0) -> None:
        if not 0 < percentile <= 100:
            raise UserError(f"ReAct's percentile has to lie above 0 and be at most 100 (90, say), not {percentile}")
        self.percentile = percentile

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        self.threshold = react_threshold(features.numpy(), self.percentile)
        self.head = head

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        assert self.head is not None
        weight, bias = self.head.weight.double().numpy(), self.head.bias.double().numpy()
        return energy(clipped_logits(features.numpy(), self.threshold, weight, bias))

    def record(self) -> dict[str, float]:
        return {"percentile": self.percentile, "threshold": self.threshold}


def react_threshold(features: np.ndarray, percentile: float = 90.0) -> float:
    """The ``percentile`` of all activations of in-distribution images, features ``[N, D]``.

    >>> react_threshold(np.array([[0.0, 1.0], [2.0, 3.0]]), percentile=50)
    1.5
    """
    return float(np.percentile(features.astype(np.float64, copy=False), percentile))


def clipped_logits(features: np.ndarray, threshold: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Logits ``[N, K]`` float64 of features ``[N, D]`` clipped from above, by a head ``[K, D]`` and ``[K]``.

    >>> clipped_logits(np.array([[1.0, 9.0]]), 2.0, np.array([[1.0, 1.0], [0.0, -1.0]]), np.array([0.0, 0.5])).tolist()
    [[3.0, -1.5]]
    """
    return np.minimum(features.astype(np.float64, copy=False), threshold) @ weight.T + bias
