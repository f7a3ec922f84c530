"""What a detector is: from a network's outputs to one score per image, **higher = more in-distribution**."""

import importlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from bnood.errors import UserError
from bnood.networks.network import Head

IMAGES_PER_CLASS = 20


class NotApplicable(UserError):
    """The detector cannot be used on these images; a table shows the message in place of a number."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not applicable: {reason}")


class Detector:
    """A post-hoc detector. A subclass sets the attributes, ``_score`` and, if it is fitted, ``_fit``.

    What ``needs`` says: ``"features"`` (with the logits), ``"channel_means"`` (spatial means of every BatchNorm layer's
    input, collected in the same pass) or ``"own_pass"`` (changes the network in its ``context(model)``: one more pass).
    """

    name: str  # as in tables, configurations and on the command line
    needs: Literal["features", "channel_means", "own_pass"] = "features"
    reads: Literal["features", "logits"] = "features"  # which of the two a detector on "features" looks at
    fitted_on: Literal["nothing", "train", "held_out"] = "nothing"  # held_out: ID images that were not trained on
    class_conditional: bool = False  # needs IMAGES_PER_CLASS fitting images of every class; set needs_labels too
    needs_labels: bool = False  # of the fitting images
    needs_head: bool = False  # weight and bias of the network's last linear layer

    _is_fitted = False

    def check_given(self, images: bool, labels: bool, head: bool) -> None:
        """Refuse to be fitted without the images, labels or head that this detector needs."""
        what = f"detector {self.name!r}"
        if self.needs_head and not head:
            raise UserError(
                f"{what} needs a last linear layer that makes the logits of the features: name it with head=, if any"
            )
        if self.fitted_on != "nothing" and not (images and (labels or not self.needs_labels)):
            kind = "training images (--train)" if self.fitted_on == "train" else "ID images held out of training"
            lack = "those given have no labels of the network's classes" if images else "none were given"
            raise UserError(f"{what} is fitted on {'labelled ' * self.needs_labels}{kind}, and {lack}")

    def fit(
        self, features: Tensor | None = None, logits: Tensor | None = None,
        labels: Tensor | np.ndarray | None = None, head: Head | None = None,
    ) -> Self:  # fmt: skip
        """Choose the detector's parameters on in-distribution images.

        Takes float32 features ``[N, D]`` and logits ``[N, K]``, int64 labels ``[N]`` and the network's last linear
        layer, as far as needed. Raises :class:`NotApplicable` if it cannot be fitted on these images.
        """
        known = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        given = features is not None and logits is not None and len(features) > 0
        self.check_given(given, known is not None, head is not None)
        if self.fitted_on != "nothing":
            assert features is not None and logits is not None
            self._check(features, logits, known)
            features, logits = features.detach(), logits.detach()
        self._fit(features, logits, known, head)
        self._is_fitted = True
        return self

    def score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        """Scores ``[N]`` float64, higher = more ID; :class:`NotApplicable` for NaN, ``UserError`` for another shape."""
        if not self._is_fitted and (self.fitted_on != "nothing" or self.needs_head):
            raise UserError(f"detector {self.name!r} has to be fitted before it scores: call fit(...)")
        with torch.no_grad():
            scores = np.asarray(self._score(features.detach().clone(), logits.detach().clone()), dtype=np.float64)
        if scores.shape != (len(logits),):
            raise UserError(f"detector {self.name!r} gives scores {list(scores.shape)} for {len(logits)} images")
        if np.isnan(scores).any():
            raise NotApplicable(f"{self.name} gives NaN for {np.isnan(scores).sum()} of {len(scores)} images")
        return scores

    def record(self) -> dict[str, float]:
        """What was fitted, for the evaluation's record."""
        return {}

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        """Called with the arguments of :meth:`fit`, labels as a tensor; keeps no reference to the outputs."""

    def _score(self, features: Tensor, logits: Tensor) -> Tensor | np.ndarray:
        """Scores ``[N]``, higher = more ID."""
        raise NotImplementedError

    def _check(self, features: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        if self.reads == "features" and features.shape[1] == 0:
            raise NotApplicable("the network's head takes feature maps, so there are no features")
        if not torch.isfinite(features).all():
            raise UserError(f"detector {self.name!r} needs features without NaN or infinity: has training diverged?")
        if self.class_conditional and labels is not None:
            smallest = int(torch.bincount(labels, minlength=logits.shape[1]).min())
            if smallest < IMAGES_PER_CLASS:
                raise NotApplicable(f"{smallest} per class (needs {IMAGES_PER_CLASS} fitting images of every class)")


def import_optional(module: str, detector: str) -> Any:
    """A module of the optional extra; raises ``UserError`` with the pip command where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = f"detector {detector!r} needs {error.name or module}, which is not installed"
        raise UserError(f"{missing}: pip install 'bnood[detectors]' (pytorch-ood and scikit-learn)") from error
