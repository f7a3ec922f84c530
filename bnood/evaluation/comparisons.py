"""Which images are scored, which ones statistics and detectors are fitted on, and what is compared with what.

Every OOD set and every shifted ID set is halved into an *adaptation split*, which statistics are estimated on, and a
scoring split. The ID set is scored as it is, and its adaptation split are training images; without these it is halved.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.data.corruptions import shifted
from bnood.data.image_set import Images, halves
from bnood.errors import UserError
from bnood.evaluation.conditions import ONE_BATCH, PHOTOGRAPHS, REFERENCE, Condition, Splits
from bnood.evaluation.options import EvaluationOptions

SHIFTED_UNDER = ("running", "recalibrated:id", "recalibrated:target")
ONE_FOR_ALL = ("running", "recalibrated:id", "recalibrated:augmented")  # both sides are normalised alike: no placebo
PLACEBO_SHARE = 0.3


class Pair(NamedTuple):
    """An ID side and an OOD side that are compared, by the names of their sets, and how the table names this."""

    id_name: str  # "" where there is no ID set
    ood_name: str
    id_split: str  # of the adaptation splits
    ood_split: str
    dataset: str
    companion: str = ""
    comparison: str = "ood"


@dataclass
class Sets:
    """The images of an evaluation, by the names of their sets and splits."""

    id_name: str  # "" if there is no ID set
    scored: dict[str, Images] = field(default_factory=dict)  # the ID set first
    roles: dict[str, str] = field(default_factory=dict)  # id or ood; "" for the placebo's parts, which have no rows
    adaptation: dict[str, Images] = field(default_factory=dict)  # what statistics are estimated on; id in random order
    pairs: list[Pair] = field(default_factory=list)  # what is compared
    fitting: Images | None = None  # training images that detectors are fitted on
    held_out: Images | None = None  # ID images that were not trained on and are not scored

    def splits(self, options: EvaluationOptions) -> Splits:
        sizes = {name: len(images) for name, images in self.adaptation.items()}
        one_batch = ONE_BATCH if all(hasattr(images, "images") for images in self.adaptation.values()) else PHOTOGRAPHS
        return Splits(sizes, options.calibration_images, options.calibration == "matched", one_batch)

    def pairs_of(self, condition: Condition) -> list[Pair]:
        """What is compared: shifts under three conditions, the placebo where sides can differ, not layer by layer."""
        placebo = condition.name not in ONE_FOR_ALL and ":" not in getattr(condition, "form", "")
        shifts = condition.name in SHIFTED_UNDER
        return [p for p in self.pairs if (placebo or p.comparison != "placebo") and (shifts or not p.companion)]

    def halve(self, images: Images, role: str, seed: int, split: str) -> None:
        """Score one half of a set, adapt to the other."""
        name = images.name
        _check(images, self.scored)
        first, second = halves(len(images), seed, name=name)
        self.scored[name], self.roles[name], self.adaptation[split] = images.subset(second), role, images.subset(first)


def arranged(
    id_set: Images | None, train_set: Images | None, held_out: Images | None,
    ood_sets: Mapping[str, Images], shifted_sets: Mapping[str, Images], options: EvaluationOptions,
) -> Sets:  # fmt: skip
    """Split the sets and say what is compared; ``UserError`` for too few images, equal names or missing labels."""
    seed = options.seed
    sets = Sets("" if id_set is None else id_set.name)
    if id_set is not None and train_set is not None:
        _check(id_set, {})
        sets.scored[id_set.name], sets.roles[id_set.name] = id_set, "id"
    elif id_set is not None:
        sets.halve(id_set, "id", seed, REFERENCE)
        own = sets.adaptation[REFERENCE]
        sets.adaptation[REFERENCE] = own.subset(np.random.RandomState(seed).permutation(len(own)))
    if train_set is not None:
        order = np.random.RandomState(seed).permutation(len(train_set))
        calibration = order[: options.calibration_images]
        sets.adaptation[REFERENCE] = train_set.subset(calibration)
        sets.fitting = train_set.subset(fitting_images(train_set.labels, order, len(calibration), options.fit_images))
    if held_out is not None and options.held_out_images and len(held_out):
        sets.held_out = held_out.subset(in_proportion(held_out.labels, len(held_out), options.held_out_images, seed))
    for name, images in ood_sets.items():
        sets.halve(images.renamed(name), "ood", seed, f"target:{name}")
        sets.pairs.append(Pair(sets.id_name, name, REFERENCE, f"target:{name}", name))
    made = [name for name in options.shifts if name not in shifted_sets]
    if made and id_set is None:
        raise UserError(f"shift {made[0]!r}: there are no ID images that it could be made of")
    for name, images in {**{name: shifted(id_set, name, seed) for name in made}, **shifted_sets}.items():  # type: ignore[arg-type]
        if images.labels is None:
            raise UserError(f"{name}: the images have no labels; expected labels, since accuracy is what can be won")
        sets.halve(images.renamed(name), "id", seed, f"target:{name}")
        sets.pairs += [Pair(name, ood, f"target:{name}", f"target:{ood}", ood, name) for ood in ood_sets]
    if options.placebo and not sets.id_name:
        raise UserError("the placebo compares ID images with ID images: give an ID set, or placebo false")
    for ood in ood_sets if options.placebo else ():
        _add_placebo(sets, ood, options)
    return sets


def _add_placebo(sets: Sets, ood: str, options: EvaluationOptions) -> None:
    """The placebo of an OOD set: B1 under statistics of A0 against B2 under those of A1, averaged with these swapped.

    A0 and A1 are ID images, each of the size of the OOD adaptation split (at most 30 % of all), B1 and B2 the rest.
    """
    whole = sets.scored[sets.id_name]
    size = min(len(sets.adaptation[f"target:{ood}"]), options.calibration_images, int(PLACEBO_SHARE * len(whole)))
    if size < 2:
        raise UserError(f"{whole.name}: {len(whole)} images are too few for a placebo; expected at least 7")
    order = np.random.RandomState([options.seed, zlib.crc32(b"placebo"), size]).permutation(len(whole))
    rest = order[2 * size :]
    a0, a1, b1, b2 = (f"{whole.name}/placebo-{size}/{part}" for part in ("A0", "A1", "B1", "B2"))
    for name, index in ((a0, order[:size]), (a1, order[size : 2 * size]), (b1, rest[::2]), (b2, rest[1::2])):
        of = sets.adaptation if name in (a0, a1) else sets.scored
        of[name] = whole.subset(np.sort(index)).renamed(name)
    for first, second in ((b1, b2), (b2, b1)):
        sets.roles[first] = ""
        sets.pairs.append(Pair(first, second, a0, a1, ood, comparison="placebo"))


def by_name(sets: Iterable[Images]) -> dict[str, Images]:
    """Sets by their names. Raises ``UserError`` where two have one name."""
    found: dict[str, Images] = {}
    for images in sets:
        _check(images, found)
        found[images.name] = images
    return found


def _check(images: Images, known: Mapping[str, Images]) -> None:
    if (name := images.name) in known:
        once = "expected each set once, under a name (of its file or folder) of its own"
        raise UserError(f"{name}: a set of the name {name!r} is already being evaluated; {once}")
    if len(images) < 2:
        raise UserError(f"{name}: it has {len(images)} image(s); expected at least 2")


def fitting_images(labels: np.ndarray | None, order: np.ndarray, calibration: int, count: int) -> np.ndarray:
    """Which training images detectors are fitted on, sorted: equally many of each class, ``count`` in all (0: all)."""
    candidates = np.concatenate([order[calibration:], order[:calibration]])
    if not 0 < count < len(order):
        return np.sort(candidates)
    # Where n allows, no image serves both detectors and statistics, which have the first in this order.
    candidates = candidates[: max(count, len(order) - calibration)]
    if labels is None:
        return np.sort(candidates[:count])
    of_class = labels[candidates]
    rank = pd.Series(of_class).groupby(of_class).cumcount()  # the first of every class, then the second
    return np.sort(candidates[np.argsort(rank.to_numpy(), kind="stable")[:count]])


def in_proportion(labels: np.ndarray | None, whole: int, count: int, seed: int) -> np.ndarray:
    """At most ``count`` of ``whole`` images, every class in proportion; sorted."""
    count = min(count, whole)
    order = np.random.RandomState(seed).permutation(whole)
    by_class = order if labels is None else order[np.argsort(labels[order], kind="stable")]
    return np.sort(by_class[(2 * np.arange(count) + 1) * whole // (2 * count)])
