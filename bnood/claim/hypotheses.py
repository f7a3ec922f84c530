"""The hypotheses H1-H5 as code: which effects decide each, against which thresholds, and by which rule.

**One effect.** Every effect is paired: the same checkpoint under two statistics on the same images (H1-H3, H5), or the
networks of one seed on the same images (H4). Its interval is that of :mod:`bnood.intervals`, over seeds and images. An
effect wanted above a threshold is supported when its whole interval lies above, refuted when its whole interval lies
below, inconclusive otherwise. A mean alone decides nothing, one seed decides nothing, and where nothing varies, over
seeds or over images, nothing is decided either: such an interval has no width and says nothing.

**Several effects.** A hypothesis that needs several is supported only if all are. (Each is tested at the full level:
requiring all of them is the intersection-union test, which needs no correction.) What refutes it stands at each
hypothesis; where one of several effects is enough to refute, that is not corrected for their number. No correction is
made over the hypotheses: each answers a question of its own.

**Several sets.** The effect of a hypothesis is the mean over the headline sets with equal weight, within each seed and
resample; any other set is listed and decides nothing. The sets are chosen, not sampled, so that nothing is claimed
about others. A mean can hide a contradiction: where some headline sets support a hypothesis and others refute it, or
one contradicts the mean, the hypothesis is *inconclusive*, and the sentence says on which sets it holds and on which
not. The sets can thus take a verdict away, never give one.

**Seeds.** Only the seeds that every side of a comparison has are used; the sentence names the others.

Controls stand beside and decide nothing: "passed" when the interval lies within the tolerance, "failed" when it lies
outside, otherwise "inconclusive". Where a control is not null, the effect on OOD images minus that on ID images, which
is always given, is the better guide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bnood.claim.estimates import (
    FAILED,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Estimate,
    Wanted,
    agreeing,
    estimated,
    every,
    figure,
    not_estimated,
)
from bnood.claim.measurements import Key, Measurements, Quantity
from bnood.claim.options import ClaimOptions
from bnood.intervals import Ratio, Replicates, Unusable, mean_of

UNIT_MAXIMUM = Quantity("penultimate", "unit_mean_max_ratio", "times ID")
ENERGY = Quantity("energy", "mean", "nats")
MAX_LOGIT = Quantity("max_logit", "mean", "nats")
MSP = Quantity("msp", "mean", "probability")
CONFIDENT = Quantity("msp", "share_above_0.9", "share of images")
ACCURACY = Quantity("", "accuracy", "share of images")
MATCHED, REESTIMATED = "recalibrated:target", "recalibrated:id"


@dataclass(frozen=True)
class Evidence:
    """All that the hypotheses are judged by.

    Attributes:
        conditions: of every network, by statistics.
        interventions: of the BatchNorm networks; None if there are none.
        accuracies: of (network, seed), as the equal-accuracy networks were chosen by.
        id_set: name of the in-distribution set.
        other_sets: the OOD sets that are no headline sets.
        options: the thresholds.
    """

    conditions: Measurements
    interventions: Measurements | None
    accuracies: dict[tuple[str, int], float]
    id_set: str
    other_sets: tuple[str, ...]
    options: ClaimOptions

    def key(self, quantity: Quantity, dataset: str, statistics: str = "running", network: str = "bn") -> Key:
        """The key of :mod:`bnood.claim.measurements` for a quantity."""
        role = "id" if dataset == self.id_set else "ood"
        return (network, statistics, dataset, role, quantity.score, quantity.metric)

    def change(self, quantity: Quantity, dataset: str, first: str = "running", second: str = MATCHED) -> Replicates:
        """A quantity under the first statistics minus that under the second, on the same images and checkpoints."""
        return self.conditions.difference(self.key(quantity, dataset, first), self.key(quantity, dataset, second))

    def beyond_id(self, quantity: Quantity, dataset: str) -> Replicates:
        """The change from matched to running on a set, minus that on ID images: the difference in differences."""
        return self.change(quantity, dataset) - self.change(quantity, self.id_set, second=REESTIMATED)


class Part(NamedTuple):
    """One effect that a hypothesis rests on: how it is measured on a set, and what is wanted of it."""

    quantity: str
    unit: str
    of: Callable[[str], Replicates | Ratio]
    threshold: float | None
    wanted: Wanted
    null: float = 0.0
    level: float | None = None

    def estimate(self, datasets: Sequence[str], label: str, level: float) -> Estimate:
        """The estimate on the mean of sets; where the tables do not hold it, an empty one with the reason."""
        level = self.level or level
        try:
            measured = _average([self.of(dataset) for dataset in datasets])
            return estimated(measured, self.quantity, label, self.unit, self.threshold, self.wanted, level, self.null)
        except Unusable as error:
            return not_estimated(str(error), self.quantity, label, self.unit, self.threshold, level)


def _average(measured: Sequence[Replicates | Ratio]) -> Replicates | Ratio:
    """The mean over sets; of ratios, the ratio of the means."""
    ratios = [one for one in measured if isinstance(one, Ratio)]
    if not ratios:
        return mean_of([one for one in measured if isinstance(one, Replicates)])
    return Ratio(mean_of([ratio.numerator for ratio in ratios]), mean_of([ratio.denominator for ratio in ratios]))


@dataclass(frozen=True)
class Hypothesis:
    """A judged hypothesis; ``headline`` is the first of the effects that decide it."""

    hypothesis: str
    statement: str
    verdict: str
    sentence: str
    headline: Estimate
    estimates: tuple[Estimate, ...]
    controls: tuple[Estimate, ...]


Rule = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Judged:
    """The effects that decide a hypothesis, on the mean of the headline sets and on each set."""

    mean: list[Estimate]
    by_set: dict[str, list[Estimate]]
    beside: list[Estimate]
    verdict: str
    clauses: list[str]


def headline_label(options: ClaimOptions) -> str:
    """``mean of svhn, dtd``; the set's own name if there is but one."""
    sets = options.headline_sets
    return sets[0] if len(sets) == 1 else f"mean of {', '.join(sets)}"


def judge_parts(evidence: Evidence, parts: Sequence[Part], rule: Rule) -> Judged:
    """Estimate all parts on the headline mean and on every set, and apply the rule of the module's head."""
    options, label = evidence.options, headline_label(evidence.options)
    mean = [part.estimate(options.headline_sets, label, options.level) for part in parts]
    by_set = {
        name: [part.estimate([name], name, options.level) for part in parts]
        for name in (options.headline_sets if len(options.headline_sets) > 1 else ())
    }
    beside = [part.estimate([name], name, options.level) for name in evidence.other_sets for part in parts]
    verdict, clauses = rule([one.verdict for one in mean]), []
    verdicts = {name: rule([one.verdict for one in found]) for name, found in by_set.items()}
    if {SUPPORTED, REFUTED} <= {verdict, *verdicts.values()}:
        clauses.append("It depends on the set: " + _listed(verdicts) + ".")
        verdict = INCONCLUSIVE
    clauses += _why_open(mean) if verdict == INCONCLUSIVE else []
    return Judged(mean, by_set, beside, verdict, clauses)


def _listed(verdicts: dict[str, str]) -> str:
    return ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())


def _why_open(estimates: Sequence[Estimate]) -> list[str]:
    """Which effects are not decided, and why; effects with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for one in estimates:
        if one.verdict == INCONCLUSIVE:
            by_reason.setdefault(one.reason, []).append(one.quantity)
    if len(by_reason) == 1 and len(next(iter(by_reason.values()))) == len(estimates):
        return [f"Not decided: {next(iter(by_reason))}."]
    return [f"Not decided: {'; '.join(names)}, because {reason}." for reason, names in by_reason.items()]


def concluded(
    name: str,
    statement: str,
    judged: Judged,
    sentence: str,
    estimates: Sequence[Estimate] = (),
    controls: Sequence[Estimate] = (),
    beyond: Sequence[Estimate] = (),
) -> Hypothesis:
    """Put the sentence together: the figures, how many seeds, what contradicts, what is open, which controls failed.

    ``beyond`` is what is left of the effects where a control failed: those of ``estimates`` less the control.
    """
    seeds = {one.n_seeds for one in judged.mean if one.n_seeds}
    count = f"{min(seeds)} seed{'s' * (min(seeds) > 1)}" if seeds else "no seed"
    clauses = [f"{sentence} ({count}, {100 * judged.mean[0].level:.3g} % intervals).", *judged.clauses]
    failed = [f"{one.quantity} on {one.dataset} {figure(one)}" for one in controls if one.verdict == FAILED]
    if failed:
        clauses.append(f"The control is not null: {'; '.join(failed)}.")
        clauses += [f"Beyond that: {'; '.join(f'{one.quantity} {figure(one)}' for one in beyond)}."] if beyond else []
    dropped = sorted(frozenset().union(*(one.dropped for one in judged.mean)))
    if dropped:
        clauses.append(f"Left out, because they are not in all that is compared: seeds {', '.join(map(str, dropped))}.")
    listed = [*judged.mean[1:], *(one for found in judged.by_set.values() for one in found), *judged.beside, *estimates]
    return Hypothesis(
        name, statement, judged.verdict, " ".join(clauses), judged.mean[0], tuple(listed), tuple(controls)
    )


def list_beside(evidence: Evidence, parts: Sequence[Part], each_set: bool = True) -> list[Estimate]:
    """Estimates that decide nothing: on the headline mean (all parts, first), and on each set."""
    options = evidence.options
    found = [part.estimate(options.headline_sets, headline_label(options), options.level) for part in parts]
    names = (*options.headline_sets, *evidence.other_sets) if len(options.headline_sets) > 1 else evidence.other_sets
    return found + [part.estimate([name], name, options.level) for name in names for part in parts if each_set]


def on_id(evidence: Evidence, parts: Sequence[Part]) -> list[Estimate]:
    """Estimates on the in-distribution images."""
    return [part.estimate([evidence.id_set], evidence.id_set, evidence.options.level) for part in parts]


def h1(evidence: Evidence) -> Hypothesis:
    """H1: some penultimate units are abnormally high on OOD images under running statistics, not under matched ones.

    Supported when the largest per-unit mean is above ``abnormal`` under running, below it under matched, and their
    difference is above 0; refuted when any of the three is.
    """
    options, conditions = evidence.options, evidence.conditions
    name = "largest unit mean"

    def under(statistics: str) -> Callable[[str], Replicates]:
        return lambda dataset: conditions.get(*evidence.key(UNIT_MAXIMUM, dataset, statistics))

    unit = UNIT_MAXIMUM.unit
    parts = [
        Part(f"{name}, running - matched", unit, lambda d: evidence.change(UNIT_MAXIMUM, d), 0.0, "above"),
        Part(f"{name}, running", unit, under("running"), options.abnormal, "above", null=1.0),
        Part(f"{name}, matched", unit, under(MATCHED), options.abnormal, "below", null=1.0),
    ]
    beyond = Part(
        f"{name}, running - matched, OOD - ID", unit, lambda d: evidence.beyond_id(UNIT_MAXIMUM, d), 0.0, "above"
    )
    control = Part(
        f"{name}, running - recalibrated:id",
        unit,
        lambda d: evidence.change(UNIT_MAXIMUM, d, second=REESTIMATED),
        options.control_unit_ratio,
        "small",
    )
    judged, beside = judge_parts(evidence, parts, every), list_beside(evidence, [beyond])
    controls = on_id(evidence, [control])
    difference, running, matched = judged.mean
    sentence = (
        f"On the {difference.dataset} the largest unit's mean activation is {figure(running)} times the ID figure "
        f"under running statistics and {figure(matched)} times under matched ones, a difference of "
        f"{figure(difference)}, where above {options.abnormal:g} is abnormal; on ID images re-estimation changes it by "
        f"{figure(controls[0])}"
    )
    statement = "On OOD data some penultimate units are abnormally high under running statistics, not under matched."
    return concluded("H1", statement, judged, sentence, beside, controls, beside[:1])


def h2(evidence: Evidence) -> Hypothesis:
    """H2: energy, largest logit and MSP on OOD images are higher under running than under matched statistics.

    Supported when all three differences are above their minimum; refuted when any is below and none above; where they
    go both ways, inconclusive.
    """
    options = evidence.options
    outputs = {
        "energy": (ENERGY, options.minimum_energy),
        "max logit": (MAX_LOGIT, options.minimum_max_logit),
        "MSP": (MSP, options.minimum_msp),
    }

    def parts(label: str, of: Callable[[Quantity, str], Replicates], wanted: Wanted, zero: bool = False) -> list[Part]:
        return [
            Part(f"{name}, {label}", q.unit, partial(of, q), 0.0 if zero else minimum, wanted)
            for name, (q, minimum) in outputs.items()
        ]

    judged = judge_parts(evidence, parts("running - matched", evidence.change, "above"), agreeing)
    beside = list_beside(evidence, parts("running - matched, OOD - ID", evidence.beyond_id, "above", zero=True))
    reestimated = parts("running - recalibrated:id", lambda q, d: evidence.change(q, d, second=REESTIMATED), "small")
    controls = on_id(evidence, reestimated)
    shown = ", ".join(
        f"{name} by {figure(one)} ({one.verdict})" for name, one in zip(outputs, judged.mean, strict=True)
    )
    unmoved = ", ".join(f"{name} {figure(one)}" for name, one in zip(outputs, controls, strict=True))
    sentence = (
        f"On the {judged.mean[0].dataset} running statistics raise {shown} over matched ones; on ID images, over "
        f"re-estimated ones: {unmoved}"
    )
    statement = "Max logit, energy score and MSP on OOD data are higher under running than under matched statistics."
    return concluded("H2", statement, judged, sentence, beside, controls, beside[: len(outputs)])


def h3(evidence: Evidence) -> Hypothesis:
    """H3: without the mismatch detection is better: AUROC rises and FPR95 falls, for MSP and for energy.

    For each score, supported when both are above their minimum and refuted when the gain in AUROC is below it. Both
    scores supported: supported; any refuted and none supported: refuted. A gain below 0 is harm, and is said to be.
    """
    options = evidence.options

    def gain(score: str, metric: str, first: str, second: str) -> Callable[[str], Replicates]:
        quantity = Quantity(score, metric, "share of images")
        return lambda dataset: evidence.change(quantity, dataset, first, second)

    parts, beside, reestimated = [], [], []
    for score, name in (("energy", "energy"), ("msp", "MSP")):
        parts += [
            Part(f"{name} AUROC, matched - running", "AUROC", gain(score, "auroc", MATCHED, "running"),
                 options.minimum_auroc, "above"),
            Part(f"{name} FPR95, running - matched", "share of OOD images", gain(score, "fpr95", "running", MATCHED),
                 options.minimum_fpr95, "above"),
        ]  # fmt: skip
        beside += [
            Part(f"{name} FPR95 (OOD positive), running - matched", "share of ID images",
                 gain(score, "fpr95_ood_positive", "running", MATCHED), options.minimum_fpr95, "above"),
            Part(f"{name} AUROC, matched - recalibrated:id", "AUROC", gain(score, "auroc", MATCHED, REESTIMATED),
                 options.minimum_auroc, "above"),
        ]  # fmt: skip
        reestimated.append(
            Part(f"{name} AUROC, recalibrated:id - running", "AUROC", gain(score, "auroc", REESTIMATED, "running"),
                 options.minimum_auroc, "small")
        )  # fmt: skip
    accuracy = Part(
        "ID accuracy, recalibrated:id - running",
        ACCURACY.unit,
        lambda d: evidence.change(ACCURACY, d, REESTIMATED, "running"),
        options.control_accuracy,
        "small",
    )
    judged = judge_parts(evidence, parts, _detection_rule)
    controls = on_id(evidence, [accuracy]) + list_beside(evidence, reestimated, each_set=False)
    shown = "; ".join(
        f"{name}'s AUROC by {figure(judged.mean[place])} and lower its FPR95 by {figure(judged.mean[place + 1])}"
        for name, place in (("energy", 0), ("MSP", 2))
    )
    harmed = [name for name, place in (("energy", 0), ("MSP", 2)) if judged.mean[place].high < 0]
    harm = f"; for {' and '.join(harmed)} matching does not help but harms" if harmed else ""
    sentence = (
        f"On the {judged.mean[0].dataset} matched statistics raise {shown} (negative: the opposite){harm}; "
        f"re-estimation on ID images changes ID accuracy by {figure(controls[0])}"
    )
    statement = "The mismatch harms detection: AUROC rises and FPR95 falls when it is removed."
    return concluded("H3", statement, judged, sentence, list_beside(evidence, beside), controls)


def _detection_rule(verdicts: Sequence[str]) -> str:
    """Of AUROC and FPR95 of each score in turn; see :func:`h3`."""
    by_score = []
    for auroc, fpr95 in zip(verdicts[::2], verdicts[1::2], strict=True):
        by_score.append(REFUTED if auroc == REFUTED else INCONCLUSIVE if fpr95 == REFUTED else every([auroc, fpr95]))
    return agreeing(by_score)
