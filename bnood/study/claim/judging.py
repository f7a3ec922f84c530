"""What the hypotheses are judged by, and how effects become a verdict and a sentence.

The rules are stated at the head of :mod:`bnood.study.claim.hypotheses`.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bnood.evaluation.intervals import Ratio, Replicates, Unusable, mean_of
from bnood.study.claim.estimates import (
    FAILED,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Estimate,
    Wanted,
    estimated,
    figure,
    not_estimated,
)
from bnood.study.claim.measurements import Key, Measurements, Quantity
from bnood.study.claim.options import ClaimOptions

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
        train_accuracies: of (network, seed), on training images as they were logged; empty where not known.
    """

    conditions: Measurements
    interventions: Measurements | None
    accuracies: dict[tuple[str, int], float]
    id_set: str
    other_sets: tuple[str, ...]
    options: ClaimOptions
    train_accuracies: dict[tuple[str, int], float] = field(default_factory=dict)

    def only(self, seeds: Collection[int]) -> "Evidence":
        """The evidence of these seeds alone."""
        return replace(
            self,
            conditions=self.conditions.only(seeds),
            interventions=None if self.interventions is None else self.interventions.only(seeds),
            accuracies={key: value for key, value in self.accuracies.items() if key[1] in seeds},
            train_accuracies={key: value for key, value in self.train_accuracies.items() if key[1] in seeds},
        )

    def key(self, quantity: Quantity, dataset: str, statistics: str = "running", network: str = "bn") -> Key:
        """The key of :mod:`bnood.study.claim.measurements` for a quantity."""
        role = "id" if dataset == self.id_set else "ood"
        return (network, statistics, dataset, role, quantity.score, quantity.metric)

    def value(self, quantity: Quantity, dataset: str, statistics: str = "running", network: str = "bn") -> Replicates:
        """A quantity of a set under some statistics."""
        return self.conditions.get(*self.key(quantity, dataset, statistics, network))

    def change(self, quantity: Quantity, dataset: str, first: str = "running", second: str = MATCHED) -> Replicates:
        """A quantity under the first statistics minus that under the second, on the same images and checkpoints."""
        return self.conditions.difference(self.key(quantity, dataset, first), self.key(quantity, dataset, second))

    def beyond_id(self, quantity: Quantity, dataset: str) -> Replicates:
        """The change from matched to running on a set, minus that on ID images: the difference in differences."""
        return self.change(quantity, dataset) - self.change(quantity, self.id_set, second=REESTIMATED)

    def measured(self, quantity: Quantity, **where: object) -> bool:
        """Whether the tables hold a quantity at all, where other keys have given values."""
        return quantity.metric in self.conditions.names("metric", score=quantity.score, **where)


class Part(NamedTuple):
    """One effect that a hypothesis rests on: how it is measured on a set, and what is wanted of it.

    ``refuting`` is what the interval has to lie below for a refutation, where that is not the threshold.
    """

    quantity: str
    unit: str
    of: Callable[[str], Replicates | Ratio]
    threshold: float | None
    wanted: Wanted
    null: float = 0.0
    level: float | None = None
    refuting: float | None = None

    def estimate(self, datasets: Sequence[str], label: str, level: float) -> Estimate:
        """The estimate on the mean of sets; where the tables do not hold it, an empty one with the reason."""
        level = self.level or level
        try:
            measured = _average([self.of(dataset) for dataset in datasets])
            return estimated(
                measured, self.quantity, label, self.unit, self.threshold, self.wanted, level, self.null, self.refuting
            )
        except Unusable as error:
            return not_estimated(str(error), self.quantity, label, self.unit, self.threshold, level, self.wanted)


def _average(measured: Sequence[Replicates | Ratio]) -> Replicates | Ratio:
    """The mean over sets; of ratios, the ratio of the means."""
    ratios = [one for one in measured if isinstance(one, Ratio)]
    if not ratios:
        return mean_of([one for one in measured if isinstance(one, Replicates)])
    return Ratio(mean_of([ratio.numerator for ratio in ratios]), mean_of([ratio.denominator for ratio in ratios]))


@dataclass(frozen=True)
class Hypothesis:
    """A judged hypothesis; ``headline`` is the first of the effects that decide it.

    ``verdict_unseen_seeds`` is the verdict on the seeds that had not been looked at before the thresholds were written;
    None where there are fewer than two of them.
    """

    hypothesis: str
    statement: str
    verdict: str
    sentence: str
    headline: Estimate
    estimates: tuple[Estimate, ...]
    controls: tuple[Estimate, ...]
    verdict_unseen_seeds: str | None = None


Rule = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Judged:
    """The effects that decide a hypothesis, on the mean of the headline sets and on each set.

    ``others`` holds the rule's verdict on each set that is no headline set.
    """

    mean: list[Estimate]
    by_set: dict[str, list[Estimate]]
    beside: list[Estimate]
    verdict: str
    clauses: list[str]
    others: dict[str, str]

    def contradicted(self, clause: str) -> "Judged":
        """Inconclusive, for the reason that ``clause`` gives."""
        return replace(self, verdict=INCONCLUSIVE, clauses=[clause, *self.clauses])


@dataclass(frozen=True)
class Beyond:
    """The effects beyond the control, and their verdict by the hypothesis' own thresholds and rule."""

    estimates: list[Estimate]
    verdict: str


def headline_label(options: ClaimOptions) -> str:
    """``mean of svhn, dtd``; the set's own name if there is but one."""
    sets = options.headline_sets
    return sets[0] if len(sets) == 1 else f"mean of {', '.join(sets)}"


def judge_parts(evidence: Evidence, parts: Sequence[Part], rule: Rule) -> Judged:
    """Estimate all parts on the headline mean and on every set, and apply the rule as the hypotheses' head says."""
    options, label = evidence.options, headline_label(evidence.options)
    mean = [part.estimate(options.headline_sets, label, options.level) for part in parts]
    by_set = {
        name: [part.estimate([name], name, options.level) for part in parts]
        for name in (options.headline_sets if len(options.headline_sets) > 1 else ())
    }
    others = {name: [part.estimate([name], name, options.level) for part in parts] for name in evidence.other_sets}
    verdict, clauses = rule([one.verdict for one in mean]), []
    verdicts = {name: rule([one.verdict for one in found]) for name, found in by_set.items()}
    if {SUPPORTED, REFUTED} <= {verdict, *verdicts.values()}:
        clauses.append("It depends on the set: " + _listed(verdicts) + ".")
        verdict = INCONCLUSIVE
    clauses += _why_open(mean) if verdict == INCONCLUSIVE else []
    beside = [one for found in others.values() for one in found]
    return Judged(
        mean, by_set, beside, verdict, clauses, {k: rule([one.verdict for one in v]) for k, v in others.items()}
    )


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
    everything = [one.quantity for one in estimates]
    return [
        f"Not decided: {'; '.join(_together(names, everything))}, because {reason}."
        for reason, names in by_reason.items()
    ]


def _together(names: Sequence[str], everything: Sequence[str]) -> list[str]:
    """``energy: all 5`` in place of ``energy: first half``, ``energy: means``, ... where none of them is missing."""
    found: list[str] = []
    for name in names:
        group, colon, _ = name.partition(": ")
        whole = [each for each in everything if colon and each.startswith(f"{group}: ")]
        short = f"{group}: all {len(whole)}" if len(whole) > 1 and set(whole) <= {*names} else name
        found += [short] * (short not in found)
    return found


def concluded(
    name: str,
    statement: str,
    judged: Judged,
    sentence: str,
    estimates: Sequence[Estimate] = (),
    controls: Sequence[Estimate] = (),
    beyond: Beyond | None = None,
) -> Hypothesis:
    """Put verdict and sentence together: figures, seeds, what contradicts, what is open, which controls failed.

    ``controls`` and ``beyond`` take a verdict away, as the hypotheses' head says.
    """
    first = judged.verdict
    if beyond is not None:
        judged = _controlled(judged, beyond, controls)
    failed = [f"{one.quantity} on {one.dataset} {figure(one)}" for one in controls if one.verdict == FAILED]
    after = []
    if failed:
        after.append(f"The control is not null: {'; '.join(failed)}.")
    if beyond is not None and (failed or judged.verdict != first):
        left = "; ".join(f"{one.quantity} {figure(one)}" for one in beyond.estimates)
        after.append(f"Beyond the control, on the same OOD images: {left}.")
    dropped = sorted(frozenset().union(*(one.dropped for one in judged.mean)))
    if dropped:
        after.append(f"Left out, because they are not in all that is compared: seeds {', '.join(map(str, dropped))}.")
    if judged.others:
        after.append(f"Beside, deciding nothing: {_listed(judged.others)}.")
    seeds = {one.n_seeds for one in judged.mean if one.n_seeds}
    count = f"{min(seeds)} seed{'s' * (min(seeds) > 1)}" if seeds else "no seed"
    clauses = [f"{sentence} ({count}, {100 * judged.mean[0].level:.3g} % intervals).", *judged.clauses, *after]
    listed = [*judged.mean[1:], *(one for found in judged.by_set.values() for one in found), *judged.beside, *estimates]
    return Hypothesis(
        name, statement, judged.verdict, " ".join(clauses), judged.mean[0], tuple(listed), tuple(controls)
    )


def _controlled(judged: Judged, beyond: Beyond, controls: Sequence[Estimate]) -> Judged:
    """Take a verdict away that the control contradicts, or that has no control."""
    if judged.verdict == INCONCLUSIVE:
        return judged
    if all(math.isnan(one.effect) for one in controls):
        return judged.contradicted(
            f"The effect is {judged.verdict}, but its control ({REESTIMATED}) could not be estimated, so that nothing "
            "is concluded."
        )
    if {judged.verdict, beyond.verdict} == {SUPPORTED, REFUTED}:
        return judged.contradicted(
            f"The effect is {judged.verdict}, but by the same thresholds {beyond.verdict} beyond the control, so that "
            "nothing is concluded."
        )
    failed = any(one.verdict == FAILED for one in controls)
    if failed and judged.verdict == SUPPORTED and beyond.verdict != SUPPORTED:
        return judged.contradicted(
            "The effect is supported, but the control is not null, and beyond the control the effect is not decided, "
            "so that nothing is concluded."
        )
    return judged


def list_beside(evidence: Evidence, parts: Sequence[Part], each_set: bool = True) -> list[Estimate]:
    """Estimates that decide nothing: on the headline mean (all parts, first), and on each set."""
    options = evidence.options
    found = [part.estimate(options.headline_sets, headline_label(options), options.level) for part in parts]
    names = (*options.headline_sets, *evidence.other_sets) if len(options.headline_sets) > 1 else evidence.other_sets
    return found + [part.estimate([name], name, options.level) for name in names for part in parts if each_set]


def on_id(evidence: Evidence, parts: Sequence[Part]) -> list[Estimate]:
    """Estimates on the in-distribution images."""
    return [part.estimate([evidence.id_set], evidence.id_set, evidence.options.level) for part in parts]
