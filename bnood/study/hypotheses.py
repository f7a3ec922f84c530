"""The hypotheses H1 to H5 as rows: quantity, contrast, direction, threshold. docs/hypotheses.md explains the rules.

Every contrast is paired: one checkpoint, or the networks of one seed (H4), on the same images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bnood.evaluation.intervals import Unusable
from bnood.study.measurements import Quantity, Term

UNIT_MAXIMUM = Quantity("units", "unit_mean_max_ratio", "largest unit mean", "times ID")
ABOVE_P99 = Quantity("units", "share_above_id_p99", "share above ID's 99th percentile", "share of activations")
# The largest unit mean of *ID* images weighted to the classes that are predicted on the set.
CLASS_MIX = Quantity("units", "class_mix_max_ratio", "class mix", "times ID")
CLASS_MIX_N = Quantity("units", "class_mix_effective_n", "effective n of the class mix", "images")
ENERGY = Quantity("energy", "mean", "energy", "nats")
MAX_LOGIT = Quantity("max_logit", "mean", "max logit", "nats")
MSP = Quantity("msp", "mean", "MSP", "probability")
CONFIDENT = Quantity("msp", "share_above_0.9", "share with MSP > 0.9", "share of images")
ACCURACY = Quantity("", "accuracy", "ID accuracy", "share of images")
AUROCS = Quantity("energy", "auroc", "energy AUROC", "AUROC"), Quantity("msp", "auroc", "MSP AUROC", "AUROC")

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
RUNNING, TARGET, ID, AUGMENTED = "running", "recalibrated:target", "recalibrated:id", "recalibrated:augmented"
MIXTURE = "recalibrated:mixture@0.5"
NORMS = ("ln", "gn")
# Groups of rows.
DECIDES, BEYOND, CONTROL, LISTED = "decides", "beyond control", "control", "listed"
LESS_ACTIVE = "single activations"  # takes support away where it is refuted
STATEMENTS = {
    "H1": "On OOD data some penultimate units are abnormally high under running, not under target statistics.",
    "H2": "Max logit, energy and MSP on OOD data are higher under running than under target statistics.",
    "H3": "The mismatch harms detection: AUROC rises and FPR95 falls when it is removed.",
    "H4": "LN and GN nets show less of H1 and less OOD overconfidence than BN nets of equal accuracy.",
    "H5": "Target statistics in some layers, or in means or variances alone, move more than their even share.",
}

Terms = tuple[Term, ...]


@dataclass(frozen=True)
class Row:
    """One effect that a hypothesis rests on: a contrast of one quantity, and where it should lie."""

    label: str  # what is compared, in words; unlike that of any other row of the hypothesis
    quantity: Quantity
    terms: Terms
    direction: str = "any"  # the wanted side of the threshold: above, below; small: within +- it
    threshold: str | float | None = None  # a field of ClaimOptions, a number, or None for what is only listed
    group: str = LISTED  # or another of the groups, or the name of a comparison that must not contradict
    null: float = 0.0  # the value of no effect, for the effect size
    even: float = 0.0  # H5: the part's even share of the whole effect, of which the row is then a share
    equal_to: tuple[str, ...] = ()  # the norms whose equally accurate seeds alone are used

    @property
    def on_id(self) -> bool:
        return all(term.on_id for term in self.terms)


class Hypothesis(NamedTuple):
    name: str
    rule: Callable[[Sequence[str]], str]  # combines the verdicts of the rows that decide
    rows: tuple[Row, ...]


def change(quantity: Quantity, first: str = RUNNING, second: str = TARGET) -> Terms:
    """A quantity under the first statistics minus that under the second."""
    return (Term(1, quantity, first), Term(-1, quantity, second))


def _row(
    q: Quantity, sides: tuple[str, ...], direction: str = "any", threshold: str | float | None = None,
    group: str = LISTED, *, on_id: bool = False, null: float = 0.0,
) -> Row:  # fmt: skip
    """A row of a quantity under one kind of statistics, or under the first minus that under the second."""
    terms = tuple(Term(weight, q, side, on_id=on_id) for weight, side in zip((1, -1), sides, strict=False))
    shown = " - ".join("target" if side == TARGET else side for side in sides)
    return Row(f"{q.name}{' on ID' * on_id}, {shown}", q, terms, direction, threshold, group, null)


def _beyond_id(q: Quantity) -> Row:
    """The change on the set minus the re-estimation's change on ID images."""
    on_id = (Term(-1, q, RUNNING, on_id=True), Term(1, q, ID, on_id=True))
    return Row(f"{q.name}, running - target, OOD - ID", q, (*change(q), *on_id), "above", 0.0)


def h1(class_mix: bool, augmented: bool) -> Hypothesis:
    """H1. The largest unit mean has to be abnormal under running statistics and normal under target statistics.

    With ``class_mix`` it also has to exceed the class mix: few predicted classes raise it without any mismatch.
    """
    q = UNIT_MAXIMUM

    def higher(statistics: str, group: str) -> list[Row]:
        mix = (Term(1, q, statistics), Term(-1, CLASS_MIX, statistics))
        rows = [
            _row(q, (statistics, TARGET), "above", 0.0, group),
            _row(q, (statistics,), "above", "abnormal", group, null=1.0),
        ]
        return rows + [Row(f"{q.name}, {statistics} - class mix", q, mix, "above", 0.0, group)] * class_mix

    def unchanged(statistics: str, group: str) -> Row:
        return _row(q, (RUNNING, statistics), "small", "control_unit_ratio", group, on_id=True)

    normal = _row(q, (TARGET,), "below", "abnormal", DECIDES, null=1.0)
    rows = [
        *higher(RUNNING, DECIDES),
        normal,
        *higher(ID, BEYOND),
        replace(normal, label=f"{normal.label} (beyond control)", group=BEYOND),
        unchanged(ID, CONTROL),
        # 1 % of the activations of ID images lie above their 99th percentile by definition.
        _row(ABOVE_P99, (RUNNING,), "above", 0.01, null=0.01),
        _row(ABOVE_P99, (TARGET,)),
        _row(q, (MIXTURE,)),
        _beyond_id(q),
    ]
    if augmented:
        rows += [*higher(AUGMENTED, LISTED), unchanged(AUGMENTED, LISTED)]
    return Hypothesis("H1", every, tuple(rows))


def h2(augmented: bool) -> Hypothesis:
    """H2. Energy, largest logit and MSP on OOD images are all higher under running than under target statistics."""
    rows = []
    for q, minimum in ((ENERGY, "minimum_energy"), (MAX_LOGIT, "minimum_max_logit"), (MSP, "minimum_msp")):
        rows.append(_row(q, (RUNNING, TARGET), "above", minimum, DECIDES))
        for source, beyond, control in ((ID, BEYOND, CONTROL), *[(AUGMENTED, LISTED, LISTED)] * augmented):
            rows.append(_row(q, (source, TARGET), "above", minimum, beyond))
            rows.append(_row(q, (RUNNING, source), "small", minimum, control, on_id=True))
        rows.append(_beyond_id(q))
    return Hypothesis("H2", agreeing, tuple(rows))


def h3(augmented: bool) -> Hypothesis:
    """H3. Under target statistics AUROC rises and FPR95 falls, for the energy score and for MSP."""
    rows = []
    for auroc in AUROCS:
        name = auroc.name.replace("AUROC", "FPR95")
        fpr95 = Quantity(auroc.detector, "fpr95", name, "share of OOD images")
        positive = fpr95._replace(metric="fpr95_ood_positive", name=f"{name} (OOD positive)")
        for source, group in ((RUNNING, DECIDES), (ID, BEYOND), *[(AUGMENTED, LISTED)] * augmented):
            rows.append(_row(auroc, (TARGET, source), "above", "minimum_auroc", group))
            rows.append(_row(fpr95, (source, TARGET), "above", "minimum_fpr95", group))
        rows.append(_row(positive, (RUNNING, TARGET), "above", "minimum_fpr95"))
        rows.append(_row(auroc, (ID, RUNNING), "small", "minimum_auroc", CONTROL))
    accuracy = _row(ACCURACY, (ID, RUNNING), "small", "control_accuracy", CONTROL, on_id=True)
    rows.append(replace(accuracy, label=f"ID accuracy, {ID} - running"))
    return Hypothesis("H3", detection_rule, tuple(rows))


def h4(class_mix: bool) -> Hypothesis:
    """H4. BatchNorm nets show more of H1 and more OOD overconfidence than LN and GN nets of equal accuracy.

    The effect is the mean over LN and GN, which must not contradict each other. Stopping a BatchNorm net early lowers
    its MSP on ID and OOD images alike: their difference is listed.
    """
    judged = ((UNIT_MAXIMUM, "minimum_unit_ratio"), (MSP, "minimum_msp"), (CONFIDENT, "minimum_confident_share"))

    def compared(label: str, pairs: list[tuple[str, str]], group: str, norms: tuple[str, ...]) -> list[Row]:
        """The figures of one comparison; without ``norms`` of equal accuracy they are only listed."""

        def apart(q: Quantity, on_id: bool = False, sign: int = 1) -> Terms:
            sides = [(network, weight) for pair in pairs for network, weight in zip(pair, (sign, -sign), strict=True)]
            return tuple(Term(weight / len(pairs), q, RUNNING, network, on_id) for network, weight in sides)

        activations = LESS_ACTIVE if group == DECIDES else LISTED
        relative = (*apart(MSP), *apart(MSP, on_id=True, sign=-1))
        rows = [
            Row(f"{q.name}, {label}", q, apart(q), *(("above", minimum, group) if norms else ()))
            for q, minimum in judged
        ]
        rows.append(Row(f"{ABOVE_P99.name}, {label}", ABOVE_P99, apart(ABOVE_P99), "above", 0.0, activations))
        rows.append(Row(f"MSP, OOD - ID, {label}", MSP, relative))
        if class_mix:
            mix = (*apart(UNIT_MAXIMUM), *apart(CLASS_MIX, sign=-1))
            rows.append(Row(f"largest unit mean less class mix, {label}", UNIT_MAXIMUM, mix, "above", 0.0))
        if group.startswith("against"):
            accuracy = apart(ACCURACY, on_id=True)
            rows.append(Row(f"ID accuracy, {label}", ACCURACY, accuracy, "small", "accuracy_gap", CONTROL))
        return [replace(row, equal_to=norms) for row in rows]

    rows = compared("bn - ln and gn, equal accuracy", [(f"bn-at-{norm}", norm) for norm in NORMS], DECIDES, NORMS)
    for norm in NORMS:
        rows += compared(f"bn-at-{norm} - {norm}", [(f"bn-at-{norm}", norm)], f"against {norm.upper()}", (norm,))
        rows += compared(f"finished bn - {norm}", [("bn", norm)], LISTED, ())
    return Hypothesis("H4", norm_rule, tuple(rows))


def h5(statistics: Sequence[str], wanted: Sequence[str]) -> Hypothesis:
    """H5. Target statistics in a part of the network move more than that part's even share of the effect.

    The part's share is (running - part) / (running - target), a ratio of means over seeds with Fieller's interval at
    the Bonferroni level of the number of places. A place is supported when its interval lies above both the minimum and
    its even share (k of L layers: k / L; means or variances: 1/2), refuted when it lies below the minimum. The last
    ``only`` form among the ``statistics`` gives the number of layers; raises ``Unusable`` for fewer than two.
    """
    evaluated = [int(name.rpartition(":")[2]) for name in statistics if name.startswith(f"{TARGET}/only:")]
    if max(evaluated, default=0) < 1:
        raise Unusable("a single BatchNorm layer has no parts" if evaluated else "no layer forms were evaluated")
    layers = max(evaluated) + 1
    half = layers // 2
    known = {  # label, layer form, even share
        "first half": (f"first {half} of {layers} layers", f"first:{half}", half / layers),
        "last half": (f"last {layers - half} of {layers} layers", f"last:{layers - half}", (layers - half) / layers),
        "last layer": ("last layer alone", f"only:{layers - 1}", 1 / layers),
        "means": ("means alone", "mean", 0.5),
        "variances": ("variances alone", "variance", 0.5),
    }
    places = [(label, f"{TARGET}/{form}", even) for label, form, even in map(known.__getitem__, wanted)]
    shares, listed = list[Row](), list[Row]()
    for q in (UNIT_MAXIMUM, ENERGY, MAX_LOGIT):
        listed.append(Row(f"{q.name}: running - target", q, change(q), "above", 0.0))
        listed.append(Row(f"{q.name}: running - {ID}", q, change(q, RUNNING, ID)))
        for label, form, even in places:
            moved = change(q, RUNNING, form)
            shares.append(Row(f"{q.name}: {label}", q, moved, "above", "minimum_share", DECIDES, even=even))
            listed.append(Row(f"{q.name}: running - {label}", q, moved))
    return Hypothesis("H5", place_rule, (*shares, *listed))


def every(verdicts: Sequence[str]) -> str:
    """Supported if all are, refuted if any is: each is a necessary part of the statement."""
    if verdicts and all(verdict == SUPPORTED for verdict in verdicts):
        return SUPPORTED
    return REFUTED if REFUTED in verdicts else INCONCLUSIVE


def agreeing(verdicts: Sequence[str]) -> str:
    """Supported if all are; refuted if any is and none is supported; where they go both ways, inconclusive."""
    verdict = every(verdicts)
    return INCONCLUSIVE if verdict == REFUTED and SUPPORTED in verdicts else verdict


def detection_rule(verdicts: Sequence[str]) -> str:
    """Of AUROC and FPR95 of each detector in turn (H3), the detectors agreeing.

    A detector is supported when both are, refuted when the gain in AUROC is and FPR95 is not shown to gain.
    """

    def of_detector(auroc: str, fpr95: str) -> str:
        if auroc == REFUTED and fpr95 != SUPPORTED:
            return REFUTED
        return SUPPORTED if auroc == fpr95 == SUPPORTED else INCONCLUSIVE

    return agreeing(list(map(of_detector, verdicts[::2], verdicts[1::2])))


def norm_rule(verdicts: Sequence[str]) -> str:
    """Of the largest unit mean, the mean MSP and the confident share (H4): one of the first two has to be refuted."""
    return INCONCLUSIVE if REFUTED in verdicts and REFUTED not in verdicts[:2] else every(verdicts)


def place_rule(verdicts: Sequence[str]) -> str:
    """Of all places for each of three quantities in turn (H5): a quantity needs one place that moves it."""
    count = len(verdicts) // 3
    each = [{*verdicts[k * count : (k + 1) * count]} for k in range(3)]
    return agreeing([SUPPORTED if SUPPORTED in own else REFUTED if own == {REFUTED} else INCONCLUSIVE for own in each])
