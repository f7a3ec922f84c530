"""The thresholds of the verdicts, stated before a study is evaluated, each with its reason."""

from dataclasses import dataclass

from bnood.errors import UserError

PLACES = ("first half", "last half", "last layer", "means", "variances")


# Thresholds for what lies between 0 and 1.
SHARES = ("minimum_msp", "minimum_auroc", "minimum_fpr95", "control_accuracy", "accuracy_gap",
          "minimum_confident_share", "minimum_share")  # fmt: skip


@dataclass(frozen=True)
class ClaimOptions:
    """What counts as an effect; a study's config gives these under ``claim:``.

    They are round figures from what a reader would care about. Change them in the config *before* the study is
    evaluated, or say that you changed them afterwards; seeds that had been looked at before belong into ``seen_seeds``.

    Args:
        headline_sets: the OOD sets that the verdicts are about, natural images with equal weight. Any other set of the
            tables (noise, say) is reported beside them and decides nothing: noise is far from every natural image, and
            easy to make as extreme as one likes.
        abnormal: H1, the largest per-unit mean relative to the in-distribution one (1 by definition) above which
            activations count as abnormal. 20 % above normal is more than chance differences between parts of one set.
            It is less than what few classes bring without any mismatch (ID images of one class alone: 2 to 4), so
            that the figure also has to exceed the mix of predicted classes.
        control_unit_ratio: H1, what re-estimation on ID images may change in the same figure: half of the 20 %.
        minimum_msp: H2 and H4, least difference in mean MSP: one point of confidence. Below, no reader would act on it.
        minimum_energy: H2, in nats: the energy score moves by 0.1 when all class evidence is multiplied by 1.1.
        minimum_max_logit: H2, in nats: as the energy, which it dominates.
        minimum_auroc: H3, one point of AUROC: methods in OpenOOD's tables differ by this between seeds alone.
        minimum_fpr95: H3, two points: FPR95 rests on one threshold and is the more variable figure.
        control_accuracy: H3, what re-estimation on ID images may change in ID accuracy: one point.
        accuracy_gap: H4, how far two networks of one seed may differ to count as equally accurate: one point. Seeds
            beyond it are left out of that comparison and named (matching within a caliper); none left is no verdict.
        minimum_unit_ratio: H4, least difference between norms in the figure of H1: half of its 20 %, because a part of
            the effect could be BatchNorm's and still matter.
        minimum_confident_share: H4, least difference in the share of images with MSP > 0.9: two in a hundred.
        minimum_share: H5, the share of the whole effect that a part of the network has to move: a quarter. Below it in
            every part, the effect has no place. A part also has to move more than its even share (a half of the layers:
            a half), which an effect without a place would give it.
        control_intervention: H5, how far ``all`` may be from the matched statistics and ``none`` from the running ones,
            in units of each quantity, where both were scored on as many images; they are the same network, up to how
            the statistics were estimated.
        places: H5, the parts that are asked about; the level is shared among them (Bonferroni). Any of
            ``first half``, ``last half`` (of the BatchNorm layers), ``last layer`` (alone), ``means``, ``variances``.
        level: of confidence of the intervals; verdicts follow from them.
        seen_seeds: the seeds that had been looked at before these thresholds were written; the verdict on the others
            alone is given as well.
    """

    headline_sets: tuple[str, ...] = ("svhn", "dtd", "cifar100")
    abnormal: float = 1.2
    control_unit_ratio: float = 0.1
    minimum_msp: float = 0.01
    minimum_energy: float = 0.1
    minimum_max_logit: float = 0.1
    minimum_auroc: float = 0.01
    minimum_fpr95: float = 0.02
    control_accuracy: float = 0.01
    accuracy_gap: float = 0.01
    minimum_unit_ratio: float = 0.1
    minimum_confident_share: float = 0.02
    minimum_share: float = 0.25
    control_intervention: float = 0.01
    places: tuple[str, ...] = PLACES
    level: float = 0.95
    seen_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # A config file gives lists.
        for name in ("headline_sets", "places"):
            given = getattr(self, name)
            if isinstance(given, str) or not given or len(set(given)) < len(given):
                raise UserError(f"claim.{name} is {given!r}: expected a list of one or more names, each once")
            object.__setattr__(self, name, tuple(given))
        if isinstance(self.seen_seeds, (str, int)) or any(type(seed) is not int for seed in self.seen_seeds):
            raise UserError(
                f"claim.seen_seeds is {self.seen_seeds!r}: expected a list of seeds, empty if none was seen"
            )
        object.__setattr__(self, "seen_seeds", tuple(self.seen_seeds))
        unknown = [place for place in self.places if place not in PLACES]
        if unknown:
            raise UserError(f"claim.places: {', '.join(unknown)} is none of {', '.join(PLACES)}")
        if not 0.5 <= self.level < 1:
            raise UserError(f"claim.level is {self.level}; it has to be from 0.5 up to but not including 1 (0.95, say)")
        if not self.abnormal > 1:
            raise UserError(f"claim.abnormal is {self.abnormal}; it is relative to ID images and has to be above 1")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise UserError(f"claim.{name} is {value}; it has to be a finite number of at least 0")
        for name in SHARES:
            if getattr(self, name) >= 1:
                raise UserError(f"claim.{name} is {getattr(self, name)}; no share can differ by as much as 1")

    @property
    def place_level(self) -> float:
        """The level of each place's interval that gives all of them together ``level`` (Bonferroni)."""
        return 1 - (1 - self.level) / len(self.places)
