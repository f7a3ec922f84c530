"""Detectors that read a score off the logits, with nothing to fit."""

from typing import ClassVar

from torch import Tensor

from bnood.evaluation.detectors.detector import Detector, Reads
from bnood.evaluation.scores import energy, max_logit, msp


class MSP(Detector):
    """Maximum softmax probability (Hendrycks & Gimpel 2017)."""

    name: ClassVar[str] = "msp"
    reads: ClassVar[Reads] = "logits"

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return msp(logits)


class Energy(Detector):
    """Energy score (Liu et al. 2020)."""

    name: ClassVar[str] = "energy"
    reads: ClassVar[Reads] = "logits"

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return energy(logits, self.temperature)


class MaxLogit(Detector):
    """Largest logit (Hendrycks et al. 2022)."""

    name: ClassVar[str] = "max_logit"
    reads: ClassVar[Reads] = "logits"

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return max_logit(logits)
