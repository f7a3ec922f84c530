"""What a detector is: from a network's outputs to one score per image, **higher = more in-distribution**."""

import importlib
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from bnood.errors import UserError
from bnood.networks.outputs import Head

IMAGES_PER_CLASS = 20


class NotApplicable(UserError):
    """The detector cannot be used on these images; a table shows the message in place of a number."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not applicable: {reason}")


class Detector(ABC):
    """A post-hoc detector. A subclass sets the attributes, ``_score`` and, if it is fitted, ``_fit``.

    Attributes:
        name: as in tables, configurations and on the command line.
        needs: ``"features"`` (logits and features), ``"channel_means"`` (spatial means of every BatchNorm layer's
            input, collected in the same pass) or ``"own_pass"`` (changes the network, so needs one more pass).
        reads: which of the two ``"features"`` detectors look at.
        fitted_on: ``"nothing"``, ``"train"`` (images that the network was trained on) or ``"held_out"`` (ID images that
            it was not trained on).
        class_conditional: needs at least ``IMAGES_PER_CLASS`` fitting images of every class; set ``needs_labels`` too.
        needs_labels: ``fit`` needs the labels of the fitting images.
        needs_head: ``fit`` needs weight and bias of the network's last linear layer.
    """

    name: str
    needs: Literal["features", "channel_means", "own_pass"] = "features"
    reads: Literal["features", "logits"] = "features"
    fitted_on: Literal["nothing", "train", "held_out"] = "nothing"
    class_conditional: bool = False
    needs_labels: bool = False
    needs_head: bool = False

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
            features: float32 ``[N, D]``; may be None, as the logits, where ``fitted_on`` is ``"nothing"``.
            logits: float32 ``[N, K]``.
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
        known = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        if self.fitted_on != "nothing":
            if features is None or logits is None or len(features) == 0:
                wanted = "training images" if self.fitted_on == "train" else "held-out in-distribution images"
                raise UserError(f"detector {self.name!r} is fitted on {wanted}, and none were given")
            self._check(features, logits, known, head)
            features, logits = features.detach(), logits.detach()
        self._fit(features, logits, known, head)
        self._is_fitted = True
        return self

    def score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        """Scores ``[N]`` float64 of images with features ``[N, D]`` and logits ``[N, K]``, higher = more ID.

        Raises ``UserError`` if ``fit`` was not called before, :class:`NotApplicable` if the detector gives NaN.
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

    def _fit(self, features: Any, logits: Any, labels: Tensor | None, head: Head | None) -> None:
        """Called with checked arguments, those of :meth:`fit`; keeps no reference to features and logits."""
        return None

    @abstractmethod
    def _score(self, features: Tensor, logits: Tensor) -> Tensor | np.ndarray:
        """Scores ``[N]``, higher = more ID."""

    def _check(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        what = f"detector {self.name!r} needs"
        if labels is None and self.needs_labels:
            raise UserError(f"{what} the labels of its fitting images, and they have none")
        if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
            shapes = f"{list(features.shape)} and {list(logits.shape)}"
            raise UserError(f"{what} features [N, D] and logits [N, K] of the same images, not {shapes}")
        classes, width = logits.shape[1], features.shape[1]
        if head is not None and head.weight.shape != (classes, width):
            shapes = f"{list(head.weight.shape)}; expected {[classes, width]} (classes, features)"
            raise UserError(f"{what} a head that fits the outputs, but its weight is {shapes}")
        if self.reads == "features" and width == 0:
            raise NotApplicable("the network's head takes feature maps, so there are no features")
        if not torch.isfinite(features).all():
            raise UserError(f"{what} features without NaN or infinity: has training diverged?")
        if labels is None:
            return
        if labels.shape != (len(logits),) or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{what} one label from 0 to {classes - 1} for each of {len(logits)} images")
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
