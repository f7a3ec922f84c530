"""The grammar of statistics: every name, what it means, and the class that says how the network then normalises.

=======================================  ==============================================================================
``running``                              the moving averages of training
``batch:SIZE``                           each batch's own statistics; pure batches, of one set alone
``batch:SIZE@FRACTION``                  the same; FRACTION of every batch are OOD images, the rest ID images
``prior:N``, ``prior:N/batch:SIZE``      running statistics, counted as N images, beside the batch's (Schneider et al.)
``recalibrated:id``                      estimated on clean ID training images, for both sides
``recalibrated:augmented``               the same with the training augmentation: the near-null control
``recalibrated:target``                  each side under statistics of its own adaptation split, of equal size
``recalibrated:mixture@FRACTION``        one set of statistics for both sides, estimated on ID and OOD images
``recalibrated:target/first:K``          target statistics in the first K layers (``last:K``, ``only:K``) ...
``recalibrated:target/mean``             ... or of the means alone (``/variance``)
``path:LAMBDA``                          running + LAMBDA * (target - running)
=======================================  ==============================================================================

``batch`` alone means ``batch:128``, ``batch:128@0.1`` and ``batch:128@0.5``; ``recalibrated`` alone means
``recalibrated:id``, ``:target`` and ``:mixture@0.5``. Layer forms and paths give MSP, energy, the largest logit and
figures of the units, but no other detector.

A condition with fixed statistics gives an :class:`Estimate` for each side of a comparison; a condition that depends on
the batch says how large the batches are, how many of their images are OOD, and which context they run in. To add one,
write a class with a ``parse`` method and name it in ``KINDS``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import nn

from bnood.errors import UserError
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    decide_statistics,
    read_statistics,
    use_statistics,
)

FAMILIES = {
    "batch": ("batch:128", "batch:128@0.1", "batch:128@0.5"),
    "recalibrated": ("recalibrated:id", "recalibrated:target", "recalibrated:mixture@0.5"),
}
# Layer forms take the calibration images as one batch, which has to fit into memory.
ONE_BATCH = 1000
REFERENCE = "id"
"""Name of the split that ``recalibrated:id`` is estimated on."""

_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


@dataclass(frozen=True)
class Estimate:
    """Fixed statistics, by what they are estimated on; equal estimates are the same statistics.

    Attributes:
        parts: name of an adaptation split and number of its images, for each split; none: the running statistics.
        augmented: whether the images pass through the training augmentation.
        form: ``first:K``, ``last:K``, ``only:K``, ``mean`` or ``variance``; "" for all of all layers.
        share: lambda of the path from the running statistics.
    """

    parts: tuple[tuple[str, int], ...] = ()
    augmented: bool = False
    form: str = ""
    share: float = 1.0

    @property
    def images(self) -> int:
        """Number of images that the statistics are estimated on."""
        return sum(count for _, count in self.parts)


class Splits(NamedTuple):
    """What statistics can be estimated on.

    Attributes:
        sizes: images in each adaptation split, by its name.
        most: ``calibration_images``.
        matched: whether both sides of ``recalibrated:target`` get the same number of images (version 0.1 did not).
    """

    sizes: Mapping[str, int]
    most: int
    matched: bool

    def count(self, split: str) -> int:
        return min(self.sizes[split], self.most)


@dataclass(frozen=True)
class Condition:
    """One entry of the grammar.

    Attributes:
        name: canonical.
        batch_size: images in a batch that is normalised together; 0 where the statistics are fixed.
        ood_fraction: of each batch, or of the images behind the statistics; None where sides are not mixed.
    """

    name: str
    batch_size: int = 0
    ood_fraction: float | None = None

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        """What the ID side and the OOD side of a comparison are normalised with; for fixed statistics."""
        raise NotImplementedError

    def alone(self, splits: Splits, id_split: str) -> Estimate | None:
        """What ID images are normalised with that are compared with no OOD set; None where that is no question."""
        return None

    def context(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within it the model normalises each batch; for statistics that depend on the batch."""
        raise NotImplementedError

    def paired(self, splits: Splits) -> bool:
        """Whether what the ID side is normalised with depends on the OOD set that it is compared with."""
        return self.ood_fraction is not None

    @property
    def estimated(self) -> bool:
        """Whether the statistics are estimated beforehand."""
        return self.batch_size == 0

    @property
    def logits_only(self) -> bool:
        """Whether only scores of the logits and figures of the units are wanted, so that no detector is fitted."""
        return False


@dataclass(frozen=True)
class Running(Condition):
    pattern: ClassVar[str] = "running"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        return cls("running")

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        return Estimate(), Estimate()

    @property
    def estimated(self) -> bool:
        return False


@dataclass(frozen=True)
class Batch(Condition):
    pattern: ClassVar[str] = rf"batch:(\d+)(?:@({_NUMBER}))?"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        size = _checked_size(found[1], found[0])
        if found[2] is None:
            return cls(f"batch:{size}", size)
        fraction = float(found[2])
        if not 0 < fraction < 1:
            raise UserError(f"statistics {found[0]}: the OOD fraction has to lie between 0 and 1; pure is batch:{size}")
        return cls(f"batch:{size}@{fraction:g}", size, fraction)

    def context(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        return use_statistics(model, "batch")


@dataclass(frozen=True)
class Prior(Condition):
    prior: float = 0.0
    pattern: ClassVar[str] = rf"prior:({_NUMBER})(?:/batch:(\d+))?"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        size = _checked_size(found[2] or "128", found[0])
        if not math.isfinite(float(found[1])):
            raise UserError(f"statistics {found[0]}: the prior counts as so many images; expected a finite number")
        name = f"prior:{float(found[1]):g}" + (f"/batch:{size}" if size != 128 else "")
        return cls(name, size, prior=float(found[1]))

    def context(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        running = read_statistics(model)
        weight = self.batch_size / (self.prior + self.batch_size)

        def mixed(name: str, own: LayerStatistics) -> LayerStatistics:
            source = running[name]
            mean, var = source.mean.to(own.mean), source.var.to(own.var)
            return LayerStatistics(mean.lerp(own.mean, weight), var.lerp(own.var, weight), own.count)

        return decide_statistics(model, mixed)


@dataclass(frozen=True)
class Recalibrated(Condition):
    source: str = "id"
    form: str = ""
    pattern: ClassVar[str] = (
        rf"recalibrated:(id|augmented|target|mixture)(?:@({_NUMBER}))?(?:/((?:first|last|only):\d+|mean|variance))?"
    )

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        source, fraction, form = found[1], found[2], found[3] or ""
        if (source == "mixture") != (fraction is not None):
            rule = "needs its OOD fraction" if source == "mixture" else "has no fraction, only a mixture has one"
            raise UserError(f"statistics {found[0]}: it {rule}, as in recalibrated:mixture@0.5")
        if form and source != "target":
            raise UserError(f"statistics {found[0]}: only target takes a layer form, as in recalibrated:target/{form}")
        if re.fullmatch(r"(first|last):0+", form):
            raise UserError(f"statistics {found[0]}: {form} is no layer; first and last count from 1")
        if fraction is None:
            return cls(f"recalibrated:{source}{form and '/' + form}", source=source, form=form)
        if not 0 < float(fraction) <= 1:
            raise UserError(f"statistics {found[0]}: the OOD fraction has to lie above 0 and be at most 1")
        return cls(f"recalibrated:mixture@{float(fraction):g}", 0, float(fraction), source)

    @property
    def logits_only(self) -> bool:
        return bool(self.form)

    def paired(self, splits: Splits) -> bool:
        return self.source == "mixture" or (self.source == "target" and (splits.matched or bool(self.form)))

    def alone(self, splits: Splits, id_split: str) -> Estimate | None:
        if self.source != "target" or id_split not in splits.sizes:
            return None
        count = splits.count(id_split)
        return Estimate(((id_split, min(count, ONE_BATCH) if self.form else count),), form=self.form)

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        if self.source in ("id", "augmented"):
            own = Estimate(((REFERENCE, splits.count(REFERENCE)),), self.source == "augmented")
            return own, own
        if self.source == "mixture":
            assert self.ood_fraction is not None
            both = Estimate(_mixture(self.ood_fraction, splits, id_split, ood_split))
            return both, both
        counts = splits.count(id_split) if id_split in splits.sizes else 0, splits.sizes[ood_split]
        if splits.matched or self.form:
            equal = min(count for count in (*counts, splits.most) if count)
            counts = (min(equal, ONE_BATCH),) * 2 if self.form else (equal,) * 2
        ours, theirs = (
            Estimate(((split, count),), form=self.form)
            for split, count in zip((id_split, ood_split), counts, strict=True)
        )
        return ours, theirs


@dataclass(frozen=True)
class Path(Condition):
    share: float = 1.0
    pattern: ClassVar[str] = rf"path:({_NUMBER})"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        share = float(found[1])
        if not 0 <= share <= 1:
            raise UserError(f"statistics {found[0]}: lambda has to lie between 0 (running) and 1 (target)")
        return cls(f"path:{share:g}", share=share)

    @property
    def logits_only(self) -> bool:
        return True

    def paired(self, splits: Splits) -> bool:
        return splits.matched

    def alone(self, splits: Splits, id_split: str) -> Estimate | None:
        own = Recalibrated("", source="target").alone(splits, id_split)
        return None if own is None else Estimate(own.parts, share=self.share)

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        ours, theirs = Recalibrated("", source="target").estimates(splits, id_split, ood_split)
        return Estimate(ours.parts, share=self.share), Estimate(theirs.parts, share=self.share)


KINDS = (Running, Batch, Prior, Recalibrated, Path)


def parse_statistics(names: Sequence[str]) -> list[Condition]:
    """The conditions that names of the grammar ask for, each once, ``running`` first.

    Raises:
        UserError: for no names, or one that is none of the grammar's, with the form that would be right.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"statistics are {names!r}; expected a list of names, such as running, batch, recalibrated")
    expanded = ["running", *(name for given in names for name in FAMILIES.get(given, (given,)))]
    return list({condition.name: condition for condition in map(_parse, expanded)}.values())


def _parse(name: str) -> Condition:
    for kind in KINDS:
        if found := re.fullmatch(kind.pattern, name):
            return kind.parse(found)
    raise UserError(
        f"statistics {name}: choose from running, batch, batch:SIZE, batch:SIZE@OODFRACTION, recalibrated, "
        "recalibrated:id, :augmented, :target, :mixture@OODFRACTION, :target/first:K, /last:K, /only:K, /mean, "
        "/variance, path:LAMBDA, prior:N, prior:N/batch:SIZE"
    )


def _checked_size(text: str, name: str) -> int:
    if int(text) < 2:
        raise UserError(f"statistics {name}: batch statistics need at least 2 images in a batch")
    return int(text)


def _mixture(fraction: float, splits: Splits, id_split: str, ood_split: str) -> tuple[tuple[str, int], ...]:
    """As many ID and OOD images as make up the OOD fraction, and the splits allow."""
    if fraction == 1:
        return ((ood_split, splits.count(ood_split)),)
    id_images = splits.count(id_split)
    ood = min(splits.sizes[ood_split], max(1, round(id_images * fraction / (1 - fraction))))
    known = min(id_images, max(1, round(ood * (1 - fraction) / fraction)))
    return (id_split, known), (ood_split, ood)


def in_form(form: str, layers: Sequence[str]) -> list[str]:
    """The layers, of those that run in order of execution, that take target statistics in a layer form.

    Raises:
        UserError: for a position or a number beyond the layers that there are.
    """
    kind, _, number = form.partition(":")
    if kind in ("mean", "variance"):
        return list(layers)
    count = int(number)
    if count >= len(layers) + (kind != "only"):
        last = f"{len(layers) - 1}, counted from 0" if kind == "only" else f"{len(layers)}"
        raise UserError(
            f"recalibrated:target/{form}: the network runs {len(layers)} BatchNorm layers; the most is {last}"
        )
    if kind == "only":
        return [layers[count]]
    return list(layers[:count] if kind == "first" else layers[len(layers) - count :])


def mixed_form(form: str, running: BatchNormStatistics, name: str, own: LayerStatistics) -> LayerStatistics:
    """What a layer in a layer form normalises with, given its input's own statistics."""
    if form not in ("mean", "variance"):
        return own
    source = running[name]
    mean, var = (own.mean, source.var.to(own.var)) if form == "mean" else (source.mean.to(own.mean), own.var)
    return LayerStatistics(mean, var, own.count)
