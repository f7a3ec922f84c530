"""What a detector is: fitted on a network's outputs, it gives one score per image, **higher = more in-distribution**.

Outputs are stored once per image set and condition, float32 on the CPU, so a detector costs no forward pass
(``needs = "features"``), unless it says so: ``"channel_means"`` are the spatial means of every BatchNorm layer's input,
collected in the same pass on request, and ``"own_pass"`` changes the network itself and needs one more pass.
"""

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from bnood.errors import UserError
from bnood.networks.outputs import Head

Needs = Literal["features", "channel_means", "own_pass"]
Reads = Literal["features", "logits"]
FittedOn = Literal["nothing", "train", "held_out"]
IMAGES_PER_CLASS = 20


class NotApplicable(UserError):
    """The detector cannot be used on these images; a table shows the message in place of a number."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not applicable: {reason}")


class Detector(ABC):
    """A post-hoc detector. A subclass sets the attributes, ``_score`` and, if it is fitted, ``_fit``.

    Attributes:
        name: as in tables, configurations and on the command line.
        needs: ``"features"`` (logits and features), ``"channel_means"`` or ``"own_pass"``.
        reads: which of the two ``"features"`` detectors look at.
        fitted_on: ``"nothing"``, ``"train"`` (images that the network was trained on) or ``"held_out"`` (ID images that
            it was not trained on).
        class_conditional: needs at least ``IMAGES_PER_CLASS`` fitting images of every class.
        needs_labels: ``fit`` needs the labels of the fitting images.
        needs_head: ``fit`` needs weight and bias of the network's last linear layer.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = "features"
    reads: ClassVar[Reads] = "features"
    fitted_on: ClassVar[FittedOn] = "nothing"
    class_conditional: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False

    _is_fitted = False

    def fit(
        self,
        features: Tensor | None = None,
        logits: Tensor | None = None,
        labels: Tensor | np.ndarray | None = None,
        head: Head | None = None,
    ) -> Self:
        """Choose the detector's parameters on in-distribution images; no OOD image ever takes part.

        Args:
            features: float32 ``[N, D]``; may be None where ``fitted_on`` is ``"nothing"``.
            logits: float32 ``[N, K]``; may be None where ``fitted_on`` is ``"nothing"``.
            labels: int64 ``[N]``, 0 to K - 1.
            head: the network's last linear layer.

        Raises:
            UserError: if something that the detector needs is missing or does not fit.
            NotApplicable: if the detector cannot be fitted on these images, for instance for too few of a class.
        """
        if self.needs_head and head is None:
            raise UserError(
                f"detector {self.name!r} needs weight and bias of the network's last linear layer: give head="
            )
        if self.fitted_on == "nothing":
            self._fit_head(head)
        else:
            if features is None or logits is None or len(features) == 0:
                wanted = "training images" if self.fitted_on == "train" else "held-out in-distribution images"
                raise UserError(f"detector {self.name!r} is fitted on {wanted}, and none were given")
            if labels is None and (self.needs_labels or self.class_conditional):
                raise UserError(f"detector {self.name!r} needs the labels of its fitting images, and they have none")
            self._check_shapes(features, logits, head)
            known = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
            if known is not None:
                self._check_labels(known, logits)
            self._fit(features.detach(), logits.detach(), known, head)
        self._is_fitted = True
        return self

    def score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        """Scores ``[N]`` float64 of images with features ``[N, D]`` and logits ``[N, K]``, higher = more ID.

        Raises:
            UserError: if ``fit`` was not called before.
            NotApplicable: if the detector gives NaN.
        """
        if not self._is_fitted and (self.fitted_on != "nothing" or self.needs_head):
            raise UserError(f"detector {self.name!r} has to be fitted before it scores: call fit(...)")
        with torch.no_grad():
            scores = np.asarray(self._score(features.detach(), logits.detach()), dtype=np.float64)
        if np.isnan(scores).any():
            raise NotApplicable(f"{self.name} gives NaN for {np.isnan(scores).sum()} of {len(scores)} images")
        return scores

    def record(self) -> dict[str, float]:
        """What was fitted, for the evaluation's record; empty where no single number says it."""
        return {}

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        """Called with checked arguments where ``fitted_on`` is not ``"nothing"``; keeps no reference to them."""
        raise NotImplementedError

    def _fit_head(self, head: Head | None) -> None:
        """Called where ``fitted_on`` is ``"nothing"``; most detectors have nothing to keep then."""
        return None

    @abstractmethod
    def _score(self, features: Tensor, logits: Tensor) -> Tensor | np.ndarray:
        """Scores ``[N]``, higher = more ID."""

    def _check_shapes(self, features: Tensor, logits: Tensor, head: Head | None) -> None:
        if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
            raise UserError(
                f"detector {self.name!r} needs features [N, D] and logits [N, K] of the same images,"
                f" not {list(features.shape)} and {list(logits.shape)}"
            )
        if head is not None and head.weight.shape != (logits.shape[1], features.shape[1]):
            raise UserError(
                f"the head's weight is {list(head.weight.shape)}, but the outputs need"
                f" {[logits.shape[1], features.shape[1]]} (classes, features)"
            )
        if self.reads == "features" and features.shape[1] == 0:
            raise NotApplicable("the network's head takes feature maps, so there are no features")
        if not torch.isfinite(features).all():
            raise UserError(f"detector {self.name!r} needs features without NaN or infinity: has training diverged?")

    def _check_labels(self, labels: Tensor, logits: Tensor) -> None:
        classes = logits.shape[1]
        if labels.shape != (len(logits),) or labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"detector {self.name!r} needs one label from 0 to {classes - 1} for each of {len(logits)} images"
            )
        smallest = int(torch.bincount(labels, minlength=classes).min())
        if self.class_conditional and smallest < IMAGES_PER_CLASS:
            raise NotApplicable(f"{smallest} per class (needs {IMAGES_PER_CLASS} fitting images of every class)")


def import_optional(module: str, detector: str) -> Any:
    """A module of the optional extra; raises ``UserError`` with the pip command where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"detector {detector!r} needs {error.name or module}, which is not installed:"
            " pip install 'bnood[detectors]' (pytorch-ood and scikit-learn)"
        ) from error
