"""The thresholds of the verdicts, written down before a study is evaluated, each with its reason."""

import math
from dataclasses import dataclass

from bnood.errors import UserError

PLACES = ("first half", "last half", "last layer", "means", "variances")

# Why each threshold is what it is. ``verdict.csv`` repeats the reason beside the effect that it judges.
REASONS = {
    "abnormal": "20 % above ID: more than chance differences between parts of one set",
    "control_unit_ratio": "half of the 20 % that count as abnormal",
    "minimum_msp": "one point of confidence: below it no reader would act",
    "minimum_energy": "in nats: what multiplying all class evidence by 1.1 adds to the energy score",
    "minimum_max_logit": "in nats: as the energy score, which the largest logit dominates",
    "minimum_auroc": "one point: what seeds alone change in published tables",
    "minimum_fpr95": "two points: FPR95 depends on one threshold and varies more than AUROC",
    "control_accuracy": "one point of ID accuracy",
    "accuracy_gap": "one point: networks that differ by more are not equally accurate",
    "minimum_unit_ratio": "half of the 20 % that count as abnormal: part of the effect may be BatchNorm's",
    "minimum_confident_share": "two images in a hundred",
    "minimum_share": "a quarter of the whole effect, and more than the part's even share",
}
FRACTIONS = ("minimum_msp", "minimum_auroc", "minimum_fpr95", "control_accuracy", "accuracy_gap",
             "minimum_confident_share", "minimum_share")  # fmt: skip
LOWEST = {"level": 0.5, "abnormal": 1, "minimum_seeds": 2}  # others are from 0 up


@dataclass(frozen=True)
class ClaimOptions:
    """What counts as an effect. Change it before a study is evaluated, or say that you changed it afterwards.

    Args:
        primary_sets: the OOD sets that the verdicts are about, with equal weight; other sets are only reported.
        abnormal: H1, largest unit mean, relative to ID images, above which a unit is abnormal.
        control_unit_ratio: H1, what re-estimation on ID images may change in that figure on ID images.
        minimum_effective_n: H1, smallest effective number of images (Kish) behind the class-mix control.
        minimum_msp, minimum_energy, minimum_max_logit: H2 (and H4, MSP), smallest difference in the mean that counts.
        minimum_auroc, minimum_fpr95: H3, smallest gain in AUROC, smallest reduction of FPR95.
        control_accuracy: H3, what re-estimation on ID images may change in ID accuracy.
        places: H5, the parts of the network that are asked about; they share the level (Bonferroni).
        minimum_share: H5, part of the whole effect that a part of the network has to move, beyond its even share.
        accuracy_gap: H4, largest difference in accuracy between two networks that count as equally accurate.
        minimum_unit_ratio: H4, smallest difference between norms in the figure of H1.
        minimum_confident_share: H4, smallest difference in the fraction of images with MSP > 0.9.
        seen_seeds: seeds that were looked at before the thresholds were written; the others are also judged alone.
        minimum_seeds: fewer networks than this get one verdict each, with intervals over images alone.
        level: confidence level of the intervals.
    """

    primary_sets: tuple[str, ...] = ("svhn", "dtd", "cifar100")
    abnormal: float = 1.2
    control_unit_ratio: float = 0.1
    minimum_effective_n: float = 50
    minimum_msp: float = 0.01
    minimum_energy: float = 0.1
    minimum_max_logit: float = 0.1
    minimum_auroc: float = 0.01
    minimum_fpr95: float = 0.02
    control_accuracy: float = 0.01
    places: tuple[str, ...] = PLACES
    minimum_share: float = 0.25
    accuracy_gap: float = 0.01
    minimum_unit_ratio: float = 0.1
    minimum_confident_share: float = 0.02
    seen_seeds: tuple[int, ...] = ()
    minimum_seeds: int = 3
    level: float = 0.95

    def __post_init__(self) -> None:
        for name in ("primary_sets", "places"):  # a config file gives lists
            given = getattr(self, name)
            if isinstance(given, str) or not given or len(set(given)) < len(given):
                raise UserError(f"claim.{name} is {given!r}: expected a list of one or more names, each once")
            object.__setattr__(self, name, tuple(given))
        if not isinstance(self.seen_seeds, (tuple, list)) or any(type(seed) is not int for seed in self.seen_seeds):
            raise UserError(f"claim.seen_seeds is {self.seen_seeds!r}: expected a list of seeds, empty if none was")
        object.__setattr__(self, "seen_seeds", tuple(self.seen_seeds))
        if unknown := [place for place in self.places if place not in PLACES]:
            raise UserError(f"claim.places: {', '.join(unknown)} is none of {', '.join(PLACES)}")
        for name, value in vars(self).items():
            low, high = LOWEST.get(name, 0), 1 if name in (*FRACTIONS, "level") else math.inf
            if isinstance(value, int | float) and not low <= value < high:
                raise UserError(f"claim.{name} is {value}; expected a number from {low} to below {high}")
