"""Detectors of pytorch-ood (optional extra ``bnood[detectors]``), on stored outputs.

The library's detectors run without a network on features (``fit_features``, ``predict_features``) or logits
(``fit_logits``, ``predict_logits``). Its scores are larger for OOD images; here their sign is turned. Nothing is
recomputed: every score equals the library's on the same tensors. Papers are named in the library's documentation.

Left out: VRA (clips small activations where the authors' code sets them to 0), WeightedEBO (its weights are trained
with OOD images; without them it is the energy score), ASH and SCALE (they change feature maps, not features).
"""

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector, FittedOn, NotApplicable, import_optional
from bnood.networks.outputs import Head

# Elements of the largest intermediate tensor in scoring (128 MiB in float32), and in fitting fDBD (1 GiB).
_ELEMENTS, _PAIRS_OF_CLASSES = 2**25, 2**28


class FromPytorchOOD(Detector):
    """A detector of pytorch-ood; keyword arguments are the settings of its class, with the library's defaults.

    Attributes:
        library_class: the class in ``pytorch_ood.detector``.
        memory: whether scoring makes a tensor ``[N, K, D]``: then fewer images at a time.

    Raises:
        UserError: if the library is missing, or a setting is not one of its class.
    """

    library_class: ClassVar[str]
    memory: ClassVar[bool] = False

    def __init__(self, **settings: Any) -> None:
        known = set(inspect.signature(self._class()).parameters) - {"model", "encoder", "head", "w", "b"}
        if unknown := set(settings) - known:
            raise UserError(
                f"detector {self.name!r} has no setting {min(unknown)!r}; it has: {', '.join(sorted(known)) or 'none'}"
            )
        self.settings = settings
        self._library: Any = None

    def _class(self) -> Any:
        return getattr(import_optional("pytorch_ood.detector", self.name), self.library_class)

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        """Arguments of the library's class, apart from ``model`` or ``encoder``, which stay None."""
        return {}

    def _build(self, head: Head | None) -> Any:
        absent = {"model": None} if self.reads == "logits" else {"encoder": None}
        return self._class()(**absent, **(self._arguments(head) | self.settings))

    def _fit_head(self, head: Head | None) -> None:
        self._library = self._build(head)

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        library = self._build(head)
        if labels is None:  # the library's way to say that all images are in-distribution
            labels = torch.zeros(len(logits), dtype=torch.int64)
        try:
            if self.reads == "logits":
                library.fit_logits(logits, labels)
            else:
                library.fit_features(features, labels)
        except (ValueError, RuntimeError) as error:  # too few images, or a matrix that cannot be inverted
            raise NotApplicable(f"{self.name}: {' '.join(str(error).split())}") from error
        self._library = library

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        if self._library is None:
            self._library = self._build(None)
        predict = self._library.predict_logits if self.reads == "logits" else self._library.predict_features
        read = logits if self.reads == "logits" else features
        rows = max(1, _ELEMENTS // (read.shape[1] * (logits.shape[1] if self.memory else 1)))
        return -torch.cat([predict(part) for part in read.split(rows)])


class _WithHead(FromPytorchOOD):
    """For library classes that take the last layer as a module."""

    needs_head: ClassVar[bool] = True

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        assert head is not None
        layer = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        layer.load_state_dict({"weight": head.weight, "bias": head.bias})
        return {"head": layer.requires_grad_(False)}


class _Trained(FromPytorchOOD):
    fitted_on: ClassVar[FittedOn] = "train"


class _PerClass(_Trained):
    class_conditional: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True


class Entropy(FromPytorchOOD):
    """Entropy of the softmax."""

    name, library_class, reads = "entropy", "Entropy", "logits"


class GEN(FromPytorchOOD):
    """Generalised entropy (Liu et al., CVPR 2023)."""

    name, library_class, reads = "gen", "GEN", "logits"


class KLMatching(_PerClass):
    """KL divergence to the nearest class's typical softmax (Hendrycks et al., ICML 2022)."""

    name, library_class, reads = "klmatching", "KLMatching", "logits"


class OpenMax(_PerClass):
    """Probability of an unknown class, from distances of logits to class centres (Bendale & Boult, CVPR 2016)."""

    name, library_class, reads = "openmax", "OpenMax", "logits"


class KNN(_Trained):
    """Distance to the k-th nearest training image (Sun et al., ICML 2022)."""

    name, library_class = "knn", "KNN"


class Mahalanobis(_PerClass):
    """Distance to the nearest class mean under one covariance (Lee et al., NeurIPS 2018), in the library's float32."""

    name, library_class = "mahalanobis", "Mahalanobis"


class RMD(_PerClass):
    """Mahalanobis distance relative to that of one Gaussian for all classes (Ren et al., 2021)."""

    name, library_class = "rmd", "RMD"


class GMM(_PerClass):
    """Likelihood under one Gaussian for each class."""

    name, library_class, memory = "gmm", "GMM", True


class SHE(_WithHead, _PerClass):
    """Inner product with the predicted class's mean feature (Zhang et al., ICLR 2023)."""

    name, library_class = "she", "SHE"


class NCI(_WithHead, _PerClass):
    """Angle between centred features and the predicted class's weights (Liu & Qin, CVPR 2025)."""

    name, library_class = "nci", "NCI"


class NNGuide(_WithHead, _Trained):
    """Energy guided by the nearest training images (Park et al., ICCV 2023)."""

    name, library_class = "nnguide", "NNGuide"


class FDBD(_WithHead, _Trained):
    """Distance to decision boundaries (Liu & Qin, ICML 2024).

    Raises ``NotApplicable`` where the library's tensor ``[K, K, D]`` of the differences between classes exceeds 1 GiB.
    """

    name, library_class = "fdbd", "fDBD"

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        assert head is not None
        classes, width = head.weight.shape
        if classes * classes * width > _PAIRS_OF_CLASSES:
            raise NotApplicable(
                f"fdbd compares {classes} x {classes} classes in {width} features: "
                f"{4 * classes * classes * width / 2**30:.1f} GiB, 1 at most"
            )
        return super()._arguments(head)


class LTS(_WithHead):
    """Energy of logits scaled by the share of the largest activations (Djurisic et al., 2024)."""

    name, library_class = "lts", "LTS"


class _WithWeights(_Trained):
    """For library classes that take the last layer as tensors."""

    needs_head: ClassVar[bool] = True

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        assert head is not None
        return {"w": head.weight, "b": head.bias}


class ViM(_WithWeights):
    """Virtual logit of the features' residual (Wang et al., CVPR 2022).

    ``d``, the dimension of the principal space, is the paper's: 1000 for at least 2048 features, 512 for at least 768;
    half the features below that.
    """

    name, library_class = "vim", "ViM"

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        assert head is not None
        width = head.weight.shape[1]
        return super()._arguments(head) | {"d": 1000 if width >= 2048 else 512 if width >= 768 else width // 2}


class DICE(_WithWeights):
    """Energy of a head that keeps its largest contributions (Sun & Li, ECCV 2022).

    ``p``, the fraction that is masked out, is 0.9 for up to 100 classes and 0.7 for more, as in the paper.
    """

    name, library_class, memory = "dice", "DICE", True

    def _arguments(self, head: Head | None) -> dict[str, Any]:
        assert head is not None
        return super()._arguments(head) | {"p": 0.9 if len(head.weight) <= 100 else 0.7}
