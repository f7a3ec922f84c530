"""Detectors of pytorch-ood (optional extra ``bnood[detectors]``) on stored outputs, with the library's settings.

Every score is the library's on the same tensors with the sign turned. Left out: VRA (clips small activations where the
authors' code sets them to 0), WeightedEBO (trained with OOD images), ASH and SCALE (they change feature maps).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnood.evaluation.detectors.detector import Detector, NotApplicable, import_optional
from bnood.networks.network import Head

# Elements of the largest intermediate tensor in scoring (128 MiB in float32), and in fitting fDBD (1 GiB).
_ELEMENTS, _PAIRS_OF_CLASSES = 2**25, 2**28


def _fdbd(classes: int, width: int) -> dict[str, Any]:
    """No setting; the library compares all pairs of classes in one tensor ``[K, K, D]``."""
    if classes * classes * width > _PAIRS_OF_CLASSES:
        size = f"{4 * classes * classes * width / 2**30:.1f} GiB, 1 at most"
        raise NotApplicable(f"fdbd compares {classes} x {classes} classes in {width} features: {size}")
    return {}


# Settings of K classes and D features. ViM: the paper's dimension of the principal space, half the features where there
# are fewer than 768. DICE: the paper's fraction of contributions that is masked out.
_SETTINGS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "vim": lambda classes, width: {"d": 1000 if width >= 2048 else 512 if width >= 768 else width // 2},
    "dice": lambda classes, width: {"p": 0.9 if classes <= 100 else 0.7},
    "fdbd": _fdbd,
}
_LOGITS = {"reads": "logits", "fitted_on": "nothing"}
_BY_CLASS = {"class_conditional": True, "needs_labels": True}
_LAYER, _TENSORS = ({"needs_head": True, "head_as": each} for each in ("layer", "tensors"))
# The attributes of FromPytorchOOD by which each detector differs from one of features, fitted on training images.
LIBRARY: dict[str, dict[str, Any]] = {
    "entropy": {"class_name": "Entropy", **_LOGITS},
    "gen": {"class_name": "GEN", **_LOGITS},  # Liu et al., CVPR 2023
    "klmatching": {"class_name": "KLMatching", "reads": "logits", **_BY_CLASS},  # Hendrycks et al., ICML 2022
    "openmax": {"class_name": "OpenMax", "reads": "logits", **_BY_CLASS},  # Bendale & Boult, CVPR 2016
    "knn": {"class_name": "KNN"},  # Sun et al., ICML 2022
    "mahalanobis": {"class_name": "Mahalanobis", **_BY_CLASS},  # Lee et al., NeurIPS 2018, in float32
    "rmd": {"class_name": "RMD", **_BY_CLASS},  # Ren et al. 2021
    "vim": {"class_name": "ViM", **_TENSORS},  # Wang et al., CVPR 2022
    "she": {"class_name": "SHE", **_LAYER, **_BY_CLASS},  # Zhang et al., ICLR 2023
    "nci": {"class_name": "NCI", **_LAYER, **_BY_CLASS},  # Liu & Qin, CVPR 2025
    "dice": {"class_name": "DICE", "makes_cube": True, **_TENSORS},  # Sun & Li, ECCV 2022
    "nnguide": {"class_name": "NNGuide", **_LAYER},  # Park et al., ICCV 2023
    "fdbd": {"class_name": "fDBD", **_LAYER},  # Liu & Qin, ICML 2024
}


class FromPytorchOOD(Detector):
    """The detector that :data:`LIBRARY` describes under this name. Raises ``UserError`` if the library is missing."""

    fitted_on = "train"
    class_name: str  # in pytorch_ood.detector
    head_as: Literal["layer", "tensors"]  # whether it takes the last layer as a module or as its tensors w and b
    makes_cube = False  # whether scoring makes a tensor [N, K, D]: then fewer images at a time

    def __init__(self, name: str) -> None:
        self.name = name
        vars(self).update(LIBRARY[name])
        import_optional("pytorch_ood.detector", name)  # refuse now, not after the forward passes

    def _arguments(self, head: Head) -> dict[str, Any]:
        classes, width = head.weight.shape
        settings = _SETTINGS[self.name](classes, width) if self.name in _SETTINGS else {}
        if self.head_as == "tensors":
            return {"w": head.weight, "b": head.bias, **settings}
        layer = nn.utils.skip_init(nn.Linear, width, classes)  # draws no random numbers
        layer.load_state_dict({"weight": head.weight, "bias": head.bias})
        return {"head": layer.requires_grad_(False), **settings}

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        arguments = self._arguments(head) if self.needs_head else {}
        library = getattr(import_optional("pytorch_ood.detector", self.name), self.class_name)
        self._library = library(**{"model" if self.reads == "logits" else "encoder": None}, **arguments)
        if self.fitted_on == "nothing":
            return
        if len(features) <= (most := arguments.get("d", 0)):
            raise NotApplicable(f"{self.name} needs more than {most} fitting images, and has {len(features)}")
        if labels is None:  # the library's way to say that all images are in-distribution
            labels = torch.zeros(len(logits), dtype=torch.int64)
        try:
            read = {"features": features, "logits": logits}[self.reads]
            getattr(self._library, f"fit_{self.reads}")(read, labels)
        except (ValueError, RuntimeError) as error:  # too few images, or a matrix that cannot be inverted
            raise NotApplicable(f"{self.name}: {' '.join(str(error).split())}") from error

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        if not self._is_fitted:
            self.fit()
        read = {"features": features, "logits": logits}[self.reads]
        predict = getattr(self._library, f"predict_{self.reads}")
        rows = max(1, _ELEMENTS // (read.shape[1] * (logits.shape[1] if self.makes_cube else 1)))
        return -torch.cat([predict(part) for part in read.split(rows)])
