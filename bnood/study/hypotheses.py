"""The hypotheses H1 to H5 as tables of rows: quantity, contrast, direction, threshold.

**One row.** Every contrast is paired: one checkpoint under two statistics on the same images (H1-H3, H5), or the
networks of one seed on the same images (H4). A row that is wanted above its threshold is supported when its whole
interval lies above, refuted when it lies below, inconclusive otherwise. A mean alone decides nothing.

**Several rows.** The rule of a hypothesis combines its deciding rows. Supported needs all of them, each at the full
level (intersection-union test, no correction needed). No correction is made over hypotheses.

**Several sets.** A verdict is about the mean over the primary OOD sets. Where one set contradicts another or the mean,
it is inconclusive. Other sets are listed and decide nothing.

**Controls.** Re-estimation on ID images should change little on ID images. What is left beyond it is
``recalibrated:id - recalibrated:target`` on the same OOD images. Where that contrast says the opposite by the same
rule, the verdict is inconclusive; also where a control failed and the effect is not supported beyond it, and where no
control could be estimated.

:func:`bnood.study.verdict.judge` applies all of this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bnood.evaluation.intervals import Unusable
from bnood.study.claim import ClaimOptions
from bnood.study.estimates import Direction, agreeing, detection_rule, every, norm_rule, place_rule
from bnood.study.measurements import (
    ABOVE_P99,
    ACCURACY,
    CLASS_MIX,
    CONFIDENT,
    ENERGY,
    MAX_LOGIT,
    MSP,
    UNIT_MAXIMUM,
    UNIT_SPREAD,
    Quantity,
    Term,
)

RUNNING, TARGET, ID, AUGMENTED = "running", "recalibrated:target", "recalibrated:id", "recalibrated:augmented"
MIXTURE = "recalibrated:mixture@0.5"
NORMS = ("ln", "gn")
PLACED = {"largest unit mean": UNIT_MAXIMUM, "energy": ENERGY, "max logit": MAX_LOGIT}
# Groups of rows.
DECIDES, BEYOND, CONTROL, LISTED = "decides", "beyond control", "control", "listed"
LESS_ACTIVE = "single activations"  # takes support away where it is refuted

Terms = tuple[Term, ...]
Rule = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Row:
    """One effect that a hypothesis rests on.

    Attributes:
        label: what is compared, in words; unlike that of any other row of the hypothesis.
        quantity: gives the unit.
        terms: the contrast.
        direction: the side of the threshold that is wanted.
        threshold: a field of :class:`ClaimOptions`, a number, or None for a figure that is only reported.
        group: decides; beyond control, control or listed; or the name of a comparison that must not contradict.
        null: the value of no effect, for the effect size.
        whole: the denominator, where the effect is a fraction of a whole one.
        even: fraction of the whole that a part moves if the effect is spread evenly.
        level: confidence level; None for the claim's.
        on_id: measured on the ID images.
        seeds_of: the norm whose equally accurate seeds alone are used; "" for all seeds.
        detector: of a placebo that limits what counts as a change; "" for none.
    """

    label: str
    quantity: Quantity
    terms: Terms
    direction: Direction = "any"
    threshold: str | float | None = None
    group: str = DECIDES
    null: float = 0.0
    whole: Terms = ()
    even: float = 0.0
    level: float | None = None
    on_id: bool = False
    seeds_of: tuple[str, ...] = ()
    detector: str = ""


class Hypothesis(NamedTuple):
    """A statement, the rule that combines its deciding rows, and its rows."""

    name: str
    statement: str
    rule: Rule
    rows: tuple[Row, ...]


def value(quantity: Quantity, statistics: str = RUNNING, network: str = "bn") -> Terms:
    """A quantity as it is."""
    return (Term(1, quantity, statistics, network),)


def change(quantity: Quantity, first: str = RUNNING, second: str = TARGET, on_id: bool = False) -> Terms:
    """A quantity under the first statistics minus that under the second."""
    return (Term(1, quantity, first, on_id=on_id), Term(-1, quantity, second, on_id=on_id))


def _beyond_id(quantity: Quantity) -> Terms:
    """The difference in differences: the change on the set minus the re-estimation's change on ID images."""
    on_id = (Term(-1, quantity, RUNNING, on_id=True), Term(1, quantity, ID, on_id=True))
    return (*change(quantity), *on_id)


def h1(class_mix: bool, augmented: bool) -> Hypothesis:
    """H1. The largest unit mean has to be abnormal under running statistics and normal under target statistics.

    With ``class_mix`` it also has to exceed the class mix (the figure of ID images weighted to the predicted classes):
    few predicted classes raise it without any mismatch. Target statistics pin mean and variance of every channel, so
    "normal under target" holds partly by construction; those of a mixture are listed for comparison. ``augmented``:
    whether statistics of augmented training images were evaluated.
    """
    q = UNIT_MAXIMUM

    def higher(statistics: str, group: str) -> list[Row]:
        mix = (Term(1, q, statistics), Term(-1, CLASS_MIX, statistics))
        rows = [
            Row(f"largest unit mean, {statistics} - target", q, change(q, statistics), "above", 0.0, group),
            Row(f"largest unit mean, {statistics}", q, value(q, statistics), "above", "abnormal", group, 1.0),
        ]
        return rows + [Row(f"largest unit mean, {statistics} - class mix", q, mix, "above", 0.0, group)] * class_mix

    def unchanged(statistics: str, group: str) -> Row:
        return Row(f"largest unit mean on ID, running - {statistics}", q, change(q, RUNNING, statistics, on_id=True),
                   "small", "control_unit_ratio", group, on_id=True)  # fmt: skip

    normal = Row("largest unit mean, target", q, value(q, TARGET), "below", "abnormal", DECIDES, 1.0)
    rows = [
        *higher(RUNNING, DECIDES),
        normal,
        *higher(ID, BEYOND),
        replace(normal, label=f"{normal.label} (beyond control)", group=BEYOND),
        unchanged(ID, CONTROL),
        # 1 % of the activations of ID images lie above their 99th percentile by definition.
        Row("share above ID's 99th percentile, running", ABOVE_P99, value(ABOVE_P99), "above", 0.01, LISTED, 0.01),
        Row("share above ID's 99th percentile, target", ABOVE_P99, value(ABOVE_P99, TARGET), group=LISTED),
        Row("spread over units, running", UNIT_SPREAD, value(UNIT_SPREAD), group=LISTED),
        Row("spread over units, target", UNIT_SPREAD, value(UNIT_SPREAD, TARGET), group=LISTED),
        Row(f"largest unit mean, {MIXTURE}", q, value(q, MIXTURE), group=LISTED),
        Row("largest unit mean, running - target, OOD - ID", q, _beyond_id(q), "above", 0.0, LISTED),
    ]  # fmt: skip
    if augmented:
        rows += [*higher(AUGMENTED, LISTED), unchanged(AUGMENTED, LISTED)]
    statement = "On OOD data some penultimate units are abnormally high under running, not under target statistics."
    return Hypothesis("H1", statement, every, tuple(rows))


def h2(augmented: bool) -> Hypothesis:
    """H2. Energy, largest logit and MSP on OOD images are all higher under running than under target statistics."""
    rows = []
    for q, minimum in ((ENERGY, "minimum_energy"), (MAX_LOGIT, "minimum_max_logit"), (MSP, "minimum_msp")):
        rows.append(Row(f"{q.name}, running - target", q, change(q), "above", minimum))
        for source, beyond, control in ((ID, BEYOND, CONTROL), *[(AUGMENTED, LISTED, LISTED)] * augmented):
            rows += [
                Row(f"{q.name}, {source} - target", q, change(q, source), "above", minimum, beyond),
                Row(f"{q.name} on ID, running - {source}", q, change(q, RUNNING, source, on_id=True), "small", minimum,
                    control, on_id=True),
            ]  # fmt: skip
        rows.append(Row(f"{q.name}, running - target, OOD - ID", q, _beyond_id(q), "above", 0.0, LISTED))
    statement = "Max logit, energy and MSP on OOD data are higher under running than under target statistics."
    return Hypothesis("H2", statement, agreeing, tuple(rows))


def h3(augmented: bool) -> Hypothesis:
    """H3. Under target statistics AUROC rises and FPR95 falls, for the energy score and for MSP."""
    rows = []
    for detector, name in (("energy", "energy"), ("msp", "MSP")):
        auroc, fpr95 = Quantity(detector, "auroc", "", "AUROC"), Quantity(detector, "fpr95", "", "share of OOD images")
        ood_positive = fpr95._replace(metric="fpr95_ood_positive")
        for source, group in ((RUNNING, DECIDES), (ID, BEYOND), *[(AUGMENTED, LISTED)] * augmented):
            rows += [
                Row(f"{name} AUROC, target - {source}", auroc, change(auroc, TARGET, source), "above", "minimum_auroc",
                    group, detector=detector),
                Row(f"{name} FPR95, {source} - target", fpr95, change(fpr95, source), "above", "minimum_fpr95", group),
            ]  # fmt: skip
        rows += [
            Row(f"{name} FPR95 (OOD positive), running - target", ood_positive, change(ood_positive), "above",
                "minimum_fpr95", LISTED),
            Row(f"{name} AUROC, {ID} - running", auroc, change(auroc, ID, RUNNING), "small", "minimum_auroc", CONTROL),
        ]  # fmt: skip
    rows.append(
        Row(f"ID accuracy, {ID} - running", ACCURACY, change(ACCURACY, ID, RUNNING, on_id=True), "small",
            "control_accuracy", CONTROL, on_id=True)
    )  # fmt: skip
    statement = "The mismatch harms detection: AUROC rises and FPR95 falls when it is removed."
    return Hypothesis("H3", statement, detection_rule, tuple(rows))


def h4(class_mix: bool) -> Hypothesis:
    """H4. BatchNorm nets show more of H1 and more OOD overconfidence than LN and GN nets of equal accuracy.

    Everything under running statistics (LN and GN keep none); the effect is the mean over LN and GN. LN and GN must
    not contradict each other, and single activations above ID's 99th percentile must not be rarer in BatchNorm nets.

    A BatchNorm net is made as accurate by stopping it early, which by itself lowers its MSP on ID and OOD images
    alike: MSP on OOD images relative to ID images of the same net is listed.
    """
    judged = ((UNIT_MAXIMUM, "minimum_unit_ratio"), (MSP, "minimum_msp"), (CONFIDENT, "minimum_confident_share"))

    def apart(q: Quantity, pairs: Sequence[tuple[str, str]], on_id: bool = False, sign: float = 1.0) -> Terms:
        weight = sign / len(pairs)
        return tuple(
            term
            for left, right in pairs
            for term in (Term(weight, q, RUNNING, left, on_id), Term(-weight, q, RUNNING, right, on_id))
        )

    def others(label: str, pairs: list[tuple[str, str]], seeds: tuple[str, ...], activations: str) -> list[Row]:
        relative = (*apart(MSP, pairs), *apart(MSP, pairs, on_id=True, sign=-1.0))
        mix = (*apart(UNIT_MAXIMUM, pairs), *apart(CLASS_MIX, pairs, sign=-1.0))
        return [
            Row(f"share above ID's 99th percentile, {label}", ABOVE_P99, apart(ABOVE_P99, pairs), "above", 0.0,
                activations, seeds_of=seeds),
            Row(f"MSP, OOD - ID, {label}", MSP, relative, group=LISTED, seeds_of=seeds),
            *[Row(f"largest unit mean less class mix, {label}", UNIT_MAXIMUM, mix, "above", 0.0, LISTED,
                  seeds_of=seeds)] * class_mix,
        ]  # fmt: skip

    equal = [(f"bn-at-{norm}", norm) for norm in NORMS]
    label = "bn - ln and gn, equal accuracy"
    rows = [
        Row(f"{q.name}, {label}", q, apart(q, equal), "above", minimum, seeds_of=NORMS) for q, minimum in judged
    ] + others(label, equal, NORMS, LESS_ACTIVE)
    for norm in NORMS:
        pairs, label = [(f"bn-at-{norm}", norm)], f"bn-at-{norm} - {norm}"
        rows += [
            Row(f"{q.name}, {label}", q, apart(q, pairs), "above", minimum, f"against {norm.upper()}", seeds_of=(norm,))
            for q, minimum in judged
        ] + others(label, pairs, (norm,), LISTED)
        rows.append(
            Row(f"ID accuracy, {label}", ACCURACY, apart(ACCURACY, pairs, on_id=True), "small", "accuracy_gap", CONTROL,
                on_id=True, seeds_of=(norm,))
        )  # fmt: skip
        finished, label = [("bn", norm)], f"finished bn - {norm}"
        rows += [Row(f"{q.name}, {label}", q, apart(q, finished), group=LISTED) for q, _ in judged]
        rows += others(label, finished, (), LISTED)
    statement = "LN and GN nets show less of H1 and less OOD overconfidence than BN nets of equal accuracy."
    return Hypothesis("H4", statement, norm_rule, tuple(rows))


def h5(places: Sequence["Place"], claim: ClaimOptions) -> Hypothesis:
    """H5. Target statistics in a part of the network move more than that part's even share of the effect.

    The part's share is (running - part) / (running - target), a ratio of means over seeds with Fieller's interval at
    the Bonferroni level of the number of places. It has a meaning only where the whole effect is above 0 at that level.
    A place is supported when its interval lies above both the minimum and its even share (k of L layers: k / L; means
    or variances: 1/2), refuted when it lies below the minimum.
    """
    level, rows = claim.place_level, []
    for name, q in PLACED.items():
        rows += [
            Row(f"{name}: {place.label}", q, change(q, RUNNING, place.statistics), "above", "minimum_share",
                whole=change(q), even=place.even, level=level)
            for place in places
        ]  # fmt: skip
    for name, q in PLACED.items():
        rows.append(Row(f"{name}: running - target", q, change(q), "above", 0.0, LISTED, level=level))
        rows.append(Row(f"{name}: running - {ID}", q, change(q, RUNNING, ID), group=LISTED, level=level))
        rows += [
            Row(f"{name}: running - {place.label}", q, change(q, RUNNING, place.statistics), group=LISTED, level=level)
            for place in places
        ]
    statement = "Target statistics in some layers, or in means or variances alone, move more than their even share."
    return Hypothesis("H5", statement, place_rule, tuple(rows))


class Place(NamedTuple):
    """A part of the network that gets target statistics, and the share of an evenly spread effect that it has."""

    label: str
    statistics: str
    even: float = 0.5


def find_places(statistics: Sequence[str], wanted: Sequence[str]) -> list[Place]:
    """The places of :data:`bnood.study.claim.PLACES` among the layer forms that were evaluated.

    The last ``only`` form gives the number of layers. Where a sweep left out the exact half, the nearest count stands
    for it; the label gives the numbers.

    Raises:
        Unusable: if the forms that a place needs were not evaluated.
    """
    counts: dict[str, list[int]] = {"only": [], "first": [], "last": []}
    for name in statistics:
        form, _, count = name.removeprefix(f"{TARGET}/").partition(":")
        if name.startswith(f"{TARGET}/") and form in counts:
            counts[form].append(int(count))
    if not counts["only"]:
        raise Unusable("no layer forms were evaluated")
    layers = max(counts["only"]) + 1
    half = {"first": layers // 2, "last": layers - layers // 2}

    def part(form: str) -> Place:
        strict = [count for count in counts[form] if 0 < count < layers]
        if not strict:
            raise Unusable(f"no {TARGET}/{form}:K was evaluated")
        count = min(strict, key=lambda count: (abs(count - half[form]), count))
        return Place(f"{form} {count} of {layers} layers", f"{TARGET}/{form}:{count}", count / layers)

    found = {
        "first half": lambda: part("first"),
        "last half": lambda: part("last"),
        "last layer": lambda: Place("last layer alone", f"{TARGET}/only:{layers - 1}", 1 / layers),
        "means": lambda: Place("means alone", f"{TARGET}/mean"),
        "variances": lambda: Place("variances alone", f"{TARGET}/variance"),
    }
    return [found[name]() for name in wanted]
