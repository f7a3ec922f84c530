"""The grammar of statistics (listed in the README and in docs/method.md), and how the network then normalises.

Fixed statistics give an :class:`Estimate` for each side, others a batch size and a context. Name new ones in ``KINDS``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from bnood.errors import UserError
from bnood.statistics import LayerStatistics, decide_statistics, read_statistics, use_statistics

FAMILIES = {
    "batch": ("batch:128", "batch:128@0.1", "batch:128@0.5"),
    "recalibrated": ("recalibrated:id", "recalibrated:target", "recalibrated:mixture@0.5"),
}
ONE_BATCH, PHOTOGRAPHS = 1000, 300  # layer forms take the calibration images as one batch, which has to fit into memory
REFERENCE = "id"  # name of the split that recalibrated:id is estimated on
Parts = tuple[tuple[str, int], ...]
_NUMBER, _FORM = r"\d{1,9}(?:\.\d{1,99})?(?:e-?\d{1,3})?", r"(?:first|last):[1-9]\d{0,8}|only:\d{1,9}|mean|variance"


@dataclass(frozen=True)
class Estimate:
    """Fixed statistics, by what they are estimated on; equal estimates are the same statistics."""

    parts: Parts = ()  # adaptation splits and numbers of their images; none: running statistics
    augmented: bool = False  # whether the images pass through the training augmentation
    form: str = ""  # first:K, last:K, only:K, mean or variance; "" for all of all layers
    share: float = 1.0  # lambda of the path from the running statistics

    @property
    def images(self) -> int:
        return sum(count for _, count in self.parts)

    def __str__(self) -> str:
        """``id:5000``, ``id:500+target:svhn:500``, ``target:svhn:500/first:3``; ``running``."""
        parts = "+".join(f"{split}:{count}" for split, count in self.parts) or "running"
        share = "" if self.share == 1 else f"/path:{self.share:g}"
        return f"{'augmented ' if self.augmented else ''}{parts}{self.form and '/' + self.form}{share}"


class Splits(NamedTuple):
    """What statistics can be estimated on."""

    sizes: Mapping[str, int]  # images in each adaptation split, by its name
    most: int  # calibration_images
    matched: bool  # both sides of recalibrated:target get the same number of images (in version 0.1 they did not)
    one_batch: int = ONE_BATCH

    def count(self, split: str) -> int:
        """Images of a split that are used; 0 for one that there is not."""
        return min(self.sizes.get(split, 0), self.most)


@dataclass(frozen=True)
class Condition:
    """One entry of the grammar; the running statistics. Others have a ``pattern`` and ``parse`` what it matches."""

    name: str  # canonical
    batch_size: int = 0  # images in a batch that is normalised together; 0 where the statistics are fixed
    ood_fraction: float | None = None  # of each batch, or of the images behind the statistics; None: sides not mixed
    logits_only: bool = False  # only scores of the logits and figures of the units, and no other detector
    pattern = "running"

    @classmethod
    def parse(cls, found: re.Match[str]) -> "Condition":
        return cls(found[0])

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        """What the ID side and the OOD side of a comparison are normalised with; for fixed statistics."""
        return Estimate(), Estimate()

    def context(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within it the model normalises each batch; for statistics that depend on the batch."""
        return use_statistics(model, "batch")

    def paired(self, splits: Splits) -> bool:
        """Whether what the ID side is normalised with depends on the OOD set that it is compared with."""
        return self.ood_fraction is not None

    def possible(self, splits: Splits, id_set: bool) -> bool:
        """Whether there are the ID images that it needs: scored ones in a mixed batch, else those of a split."""
        return id_set or self.ood_fraction is None


class Batch(Condition):
    """Each batch's own statistics, in batches of one set alone or with a fraction of OOD images."""

    pattern = rf"batch:(\d{{1,9}})(?:@({_NUMBER}))?"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        size, fraction = _checked_size(found[1], found[0]), None if found[2] is None else float(found[2])
        if fraction is None:
            return cls(f"batch:{size}", size)
        if not 0 < fraction < 1:
            raise UserError(f"statistics {found[0]}: the OOD fraction has to lie between 0 and 1; pure is batch:{size}")
        return cls(f"batch:{size}@{fraction:g}", size, fraction)


@dataclass(frozen=True)
class Prior(Condition):
    """Running statistics, counted as ``prior`` images, beside the batch's (Schneider et al. 2020)."""

    prior: float = 0.0
    pattern = rf"prior:({_NUMBER})(?:/batch:(\d{{1,9}}))?"

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
            mean, var = running[name].mean.to(own.mean), running[name].var.to(own.var)
            return LayerStatistics(mean.lerp(own.mean, weight), var.lerp(own.var, weight), own.count)

        return decide_statistics(model, mixed)


@dataclass(frozen=True)
class Recalibrated(Condition):
    """Statistics estimated on training images, on each side's own images or on a mixture; perhaps in some layers."""

    source: str = "target"
    form: str = ""
    share: float = 1.0
    pattern = rf"recalibrated:(id|augmented|target(?:/({_FORM}))?|mixture@({_NUMBER}))"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        source = re.split("[/@]", found[1])[0]
        form, fraction = found[2] or "", None if found[3] is None else float(found[3])
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"statistics {found[0]}: the OOD fraction has to lie above 0 and be at most 1")
        name = f"recalibrated:{source}" + (f"@{fraction:g}" if fraction else "") + (f"/{form}" if form else "")
        return cls(name, ood_fraction=fraction, logits_only=bool(form), source=source, form=form)

    def paired(self, splits: Splits) -> bool:
        return self.source == "mixture" or (self.source == "target" and (splits.matched or bool(self.form)))

    def possible(self, splits: Splits, id_set: bool) -> bool:
        return self.source == "target" or self.ood_fraction == 1 or REFERENCE in splits.sizes

    def estimates(self, splits: Splits, id_split: str, ood_split: str) -> tuple[Estimate, Estimate]:
        if self.ood_fraction is not None:
            return (Estimate(_mixture(self.ood_fraction, splits, id_split, ood_split)),) * 2
        if self.source != "target":
            return (Estimate(((REFERENCE, splits.count(REFERENCE)),), augmented=self.source == "augmented"),) * 2
        ours, theirs = splits.count(id_split), splits.sizes[ood_split]
        if splits.matched or self.form:
            most = min(splits.most, splits.one_batch) if self.form else splits.most
            ours = theirs = min(count for count in (ours, theirs, most) if count)
        known, other = ((id_split, ours),), ((ood_split, theirs),)
        return Estimate(known, form=self.form, share=self.share), Estimate(other, form=self.form, share=self.share)


class Path(Recalibrated):
    """Running statistics plus a share of the way to the target's."""

    pattern = rf"path:({_NUMBER})"

    @classmethod
    def parse(cls, found: re.Match[str]) -> Condition:
        share = float(found[1])
        if not 0 <= share <= 1:
            raise UserError(f"statistics {found[0]}: lambda has to lie between 0 (running) and 1 (target)")
        return cls(f"path:{share:g}", logits_only=True, share=share)


KINDS: tuple[type[Condition], ...] = (Condition, Batch, Prior, Recalibrated, Path)


def parse_statistics(names: Sequence[str]) -> list[Condition]:
    """The conditions that names ask for, each once, ``running`` first; ``UserError`` with the right form for others."""
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


def _mixture(fraction: float, splits: Splits, id_split: str, ood_split: str) -> Parts:
    """As many ID and OOD images as make up the OOD fraction, and the splits allow."""
    if fraction == 1:
        return ((ood_split, splits.count(ood_split)),)
    id_images = splits.count(id_split)
    ood = min(splits.sizes[ood_split], max(1, round(id_images * fraction / (1 - fraction))))
    return (id_split, min(id_images, max(1, round(ood * (1 - fraction) / fraction)))), (ood_split, ood)


def in_form(form: str, layers: list[str]) -> list[str]:
    """The layers, of those that run in order of execution, that take target statistics in a layer form."""
    kind, _, number = form.partition(":")
    k, most = int(number or 0), len(layers) - (kind == "only")
    if k > most:
        raise UserError(f"recalibrated:target/{form}: the network runs {len(layers)} BatchNorm layers; {most} at most")
    return {"first": layers[:k], "last": layers[len(layers) - k :], "only": layers[k : k + 1]}.get(kind, layers)
