"""The verdict of a study: every row of every hypothesis is estimated and judged by the same function."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bnood.errors import UserError
from bnood.evaluation.intervals import Ratio, Unusable
from bnood.study.claim import REASONS, ClaimOptions
from bnood.study.estimates import (
    FAILED,
    INCONCLUSIVE,
    NOT_TESTED,
    REFUTED,
    SUPPORTED,
    Estimate,
    compare,
    why_undecidable,
)
from bnood.study.hypotheses import (
    BEYOND,
    CONTROL,
    DECIDES,
    LESS_ACTIVE,
    NORMS,
    RUNNING,
    TARGET,
    Hypothesis,
    Row,
    find_places,
    h1,
    h2,
    h3,
    h4,
    h5,
)
from bnood.study.measurements import CLASS_MIX, CLASS_MIX_N, UNIT_MAXIMUM, Measurements
from bnood.training.atomic import write_beside

COLUMNS = (
    "network", "seed", "hypothesis", "quantity", "dataset", "unit", "effect", "low", "high", "effect_size", "n_seeds",
    "threshold", "direction", "verdict", "role", "level", "reason", "placebo", "threshold_reason",
)  # fmt: skip
HEADLINE = (
    "quantity", "dataset", "unit", "effect", "low", "high", "threshold", "threshold_reason", "direction", "n_seeds",
    "placebo",
)  # fmt: skip
ONE_NETWORK = " (this network)"
STATEMENTS = {one.name: one.statement for one in (h1(True, True), h2(True), h3(True), h4(True), h5((), ClaimOptions()))}


@dataclass(frozen=True)
class Judged:
    """One hypothesis judged for one family of networks, or for one network of it.

    Attributes:
        hypothesis, statement: its name and what it states.
        network: the BatchNorm networks that it is about, as in the table's column.
        seed: of the one network that was judged; None for a verdict over seeds.
        verdict: supported, refuted, inconclusive or not tested; " (this network)" follows where there is one network.
        reason: why it is not decided.
        note: what the verdict does without.
        estimates: every row on the mean of the primary sets and on each set; the first is the headline.
        verdict_unseen_seeds: on the seeds that had not been looked at before; None where they are too few.
    """

    hypothesis: str
    statement: str
    network: str
    seed: int | None
    verdict: str
    reason: str
    note: str = ""
    estimates: tuple[Estimate, ...] = ()
    verdict_unseen_seeds: str | None = None

    @property
    def headline(self) -> Estimate | None:
        """The first of the effects that decide it; None where it was not tested."""
        return self.estimates[0] if self.estimates else None

    def to_json(self) -> dict[str, Any]:
        """As ``verdict.json`` holds it; the headline's figures are None where it was not tested."""
        own = {key: value for key, value in vars(self).items() if key != "estimates"}
        estimates = [one.to_json() for one in self.estimates]
        first = estimates[0] if estimates else {}
        return own | {name: first.get(name) for name in HEADLINE} | {"estimates": estimates}


@dataclass
class Verdict:
    """The verdict of a study.

    Attributes:
        rows: H1 to H5 for each family of BatchNorm networks, or for each network where there are too few seeds.
        options: the thresholds.
        study: its name.
        made: versions, commit, machine and command.
    """

    rows: tuple[Judged, ...]
    options: ClaimOptions
    study: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``verdict.json``: plain lists, mappings, strings and finite numbers (None for others)."""
        thresholds = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.options).items()}
        head = {"study": self.study, "made": self.made, "thresholds": thresholds, "reasons": REASONS}
        return head | {"rows": [row.to_json() for row in self.rows]}

    def table(self) -> pd.DataFrame:
        """One row per estimate, columns :data:`COLUMNS`; role is headline (the first effect) or the row's group."""
        rows = []
        for row in self.rows:
            for place, one in enumerate(row.estimates):
                known = vars(row) | vars(one) | {"n_seeds": one.n_seeds, "role": "headline" if not place else one.group}
                rows.append({name: known[name] for name in COLUMNS})
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def write(self, folder: Path) -> None:
        """Write ``verdict.json`` and ``verdict.csv`` into a study's folder. Raises ``UserError`` if it can't."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        write_beside(folder / "verdict.json", lambda path: path.write_text(text))
        write_beside(folder / "verdict.csv", lambda path: self.table().to_csv(path, index=False, float_format="%.6g"))

    def as_hint(self) -> "Verdict":
        """The effects without verdicts, for the demo: one small network per norm is a hint, not evidence."""
        rows = []
        for row in self.rows:
            estimates = tuple(replace(one, verdict="", reason="") for one in row.estimates)
            rows.append(replace(row, verdict="", reason="", estimates=estimates, verdict_unseen_seeds=None))
        return replace(self, rows=tuple(rows))


@dataclass(frozen=True)
class Evidence:
    """What one family of networks is judged by.

    Attributes:
        found: the measurements of all networks.
        accuracies: validation accuracy of (network, seed).
        family: prefix of the family's network names.
        needed_seeds: smallest number of seeds behind a verdict; 1 where one network is judged.
    """

    found: Measurements
    accuracies: dict[tuple[str, int], float]
    family: str
    options: ClaimOptions
    needed_seeds: int

    def only(self, seeds: Collection[int], needed_seeds: int) -> "Evidence":
        """The evidence of these seeds alone."""
        return replace(self, found=self.found.only(seeds), needed_seeds=needed_seeds)

    @property
    def network(self) -> str:
        return f"{self.family}bn"

    def other_sets(self) -> list[str]:
        """The OOD sets that are not primary."""
        return [name for name in self.found.names("dataset", role="ood") if name not in self.options.primary_sets]

    def equally_accurate(self, norm: str) -> list[int]:
        """Seeds whose ``bn-at-<norm>`` network is as accurate as their ``<norm>`` network. Raises ``Unusable``."""
        left, right, known = f"{self.family}bn-at-{norm}", self.family + norm, self.accuracies
        seeds = sorted(seed for name, seed in known if name == left and (right, seed) in known)
        if not seeds:
            raise Unusable(f"no seed has an accuracy of both {left} and {right}")
        gaps = {seed: known[left, seed] - known[right, seed] for seed in seeds}
        # A difference of exactly the allowed one is rounded up or down: 0.90 - 0.89 > 0.01 in float64.
        kept = [seed for seed in seeds if abs(gaps[seed]) <= self.options.accuracy_gap + 1e-9]
        if not kept:
            shown = ", ".join(f"seed {seed}: {gap:+.3f}" for seed, gap in gaps.items())
            raise Unusable(f"the accuracies of {left} and {right} differ by more than the allowed gap ({shown})")
        return kept


def estimate(row: Row, evidence: Evidence, datasets: Sequence[str], label: str) -> Estimate:
    """A row on the mean over sets, against its threshold; inconclusive, with the reason, where the tables lack it."""
    options = evidence.options
    level = row.level or options.level
    refuting = getattr(options, row.threshold) if isinstance(row.threshold, str) else row.threshold
    threshold = None if refuting is None else max(refuting, row.even) if row.even else refuting
    if row.on_id:
        datasets, label = [evidence.found.id_set], evidence.found.id_set
    reason, verdict, placebo = "", "", ""
    try:
        measured: Any = evidence.found.contrast(row.terms, datasets, evidence.family)
        for norm in row.seeds_of:
            measured = measured.only(evidence.equally_accurate(norm))
        if row.whole:
            whole = evidence.found.contrast(row.whole, datasets, evidence.family)
            common = set(measured.seeds) & set(whole.seeds)
            measured = Ratio(measured.only(common), whole.only(common))
        found = measured.interval(level)
    except Unusable as error:
        return Estimate(
            row.label, label, row.quantity.unit, math.nan, math.nan, math.nan, math.nan, {}, threshold, row.direction,
            INCONCLUSIVE, level, str(error), row.group,
        )  # fmt: skip
    if threshold is not None and refuting is not None:
        limit, placebo = _placebo(row, evidence, datasets)
        # A change that the placebo gives as well is no finding: decisions need the interval beyond it.
        verdict, reason = compare(found, max(threshold, limit), row.direction, refuting - limit)
        equal = found.standard_error == 0 and found.effect == 0
        undecidable = why_undecidable(measured, found, level, evidence.needed_seeds)
        if undecidable and not (row.direction == "small" and equal):  # what is exactly equal passes a control
            verdict, reason = INCONCLUSIVE, undecidable
    per_seed = {seed: float(v) for seed, v in zip(measured.seeds, measured.values, strict=True)}
    unit = "share of the effect" if row.whole else row.quantity.unit
    return Estimate(
        row.label, label, unit, found.effect, found.low, found.high, measured.effect_size(row.null), per_seed,
        threshold, row.direction, verdict, level, reason, row.group, placebo, REASONS.get(str(row.threshold), ""),
        measured.dropped,
    )  # fmt: skip


def _placebo(row: Row, evidence: Evidence, datasets: Sequence[str]) -> tuple[float, str]:
    """How far a placebo that excludes 0.5 lies from it, and what is said beside the row; (0, "") without one."""
    found = evidence.found.placebo(evidence.network, TARGET, row.detector, datasets) if row.detector else None
    if found is None:
        return 0.0, ""
    auroc = found.interval(evidence.options.level)
    shown = f"placebo {auroc.effect:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]"
    return (abs(auroc.effect - 0.5), f"{shown}, not 0.5") if not auroc.low <= 0.5 <= auroc.high else (0.0, shown)


def judge_hypothesis(hypothesis: Hypothesis, evidence: Evidence, note: str = "") -> Judged:
    """Judge a hypothesis as the head of :mod:`bnood.study.hypotheses` says."""
    primary, rows = evidence.options.primary_sets, hypothesis.rows
    label = primary[0] if len(primary) == 1 else f"mean of {', '.join(primary)}"
    mean = [estimate(row, evidence, primary, label) for row in rows]
    # On each set alone; rows on ID images are the same for all of them.
    names = [*(primary if len(primary) > 1 else ()), *evidence.other_sets()]
    by_set = {name: [estimate(row, evidence, [name], name) for row in rows if not row.on_id] for name in names}

    def rule(estimates: Sequence[Estimate], group: str = DECIDES) -> str:
        return hypothesis.rule([one.verdict for one in estimates if one.group == group])

    verdict, reason = rule(mean), ""
    per_set = {name: rule(found) for name, found in by_set.items() if name in primary}
    opposing = {group: rule(mean, group) for group in dict.fromkeys(row.group for row in rows) if "against" in group}
    rarer = any(one.group == LESS_ACTIVE and one.verdict == REFUTED for one in mean)
    for parts in (per_set, opposing):
        if {SUPPORTED, REFUTED} <= {verdict, *parts.values()}:
            verdict, reason = INCONCLUSIVE, ", ".join(f"{name} {found}" for name, found in parts.items())
    if verdict == SUPPORTED and rarer:
        verdict, reason = INCONCLUSIVE, "single activations above ID's 99th percentile are rarer than in LN and GN"
    if verdict != INCONCLUSIVE and any(row.group == BEYOND for row in rows):
        controls, beyond = [one for one in mean if one.group == CONTROL], rule(mean, BEYOND)
        failed = any(one.verdict == FAILED for one in controls)
        if all(math.isnan(one.effect) for one in controls):
            verdict, reason = INCONCLUSIVE, "no control (recalibrated:id) could be estimated"
        elif {verdict, beyond} == {SUPPORTED, REFUTED}:
            verdict, reason = INCONCLUSIVE, f"{verdict}, but {beyond} beyond the control"
        elif failed and verdict == SUPPORTED and beyond != SUPPORTED:
            verdict, reason = INCONCLUSIVE, "the control is not null, and beyond it the effect is not decided"
    if verdict == INCONCLUSIVE and not reason:
        reason = next((one.reason for one in mean if one.group == DECIDES and one.verdict == INCONCLUSIVE), "")
        reason = reason or "its parts go both ways"
    listed = [*mean, *(one for found in by_set.values() for one in found)]
    return Judged(hypothesis.name, hypothesis.statement, evidence.network, None, verdict, reason, note, tuple(listed))


def judge_family(evidence: Evidence) -> list[Judged]:
    """H1 to H5 for one family; what the networks do not have is "not tested", with the reason."""
    found, network, primary = evidence.found, evidence.network, evidence.options.primary_sets
    statistics = found.names("statistics", network=network)
    augmented = "recalibrated:augmented" in statistics
    class_mix, note = _class_mix(evidence)

    def not_tested(name: str, reason: str) -> Judged:
        return Judged(name, STATEMENTS[name], network, None, NOT_TESTED, reason)

    has_units = any(
        found.has(network, RUNNING, name, "ood", UNIT_MAXIMUM.detector, UNIT_MAXIMUM.metric) for name in primary
    )
    judged = [
        judge_hypothesis(h1(class_mix, augmented), evidence, note)
        if has_units
        else not_tested("H1", "no unit means: the features are not non-negative, or not known"),
        judge_hypothesis(h2(augmented), evidence),
        judge_hypothesis(h3(augmented), evidence),
    ]
    kinds = {f"{evidence.family}{kind}" for norm in NORMS for kind in (norm, f"bn-at-{norm}")}
    if kinds <= set(found.names("network")):
        judged.append(judge_hypothesis(h4(class_mix), evidence))
    else:
        judged.append(not_tested("H4", "no LN and GN networks of equal accuracy"))
    try:
        places = find_places(statistics, evidence.options.places)
        judged.append(judge_hypothesis(h5(places, evidence.options), evidence))
    except Unusable as error:
        judged.append(not_tested("H5", str(error)))
    return judged


def _class_mix(evidence: Evidence) -> tuple[bool, str]:
    """Whether the class-mix control can be used on all primary sets; else the note that says why not."""
    found, network = evidence.found, evidence.network
    smallest = math.inf
    for name in evidence.options.primary_sets:
        if not found.has(network, RUNNING, name, "ood", CLASS_MIX.detector, CLASS_MIX.metric):
            return False, f"class mix not available on {name}"
        key = (network, RUNNING, name, "ood", CLASS_MIX_N.detector, CLASS_MIX_N.metric)
        if found.has(*key):
            smallest = min(smallest, float(found.get(*key).values.min()))
    if smallest < evidence.options.minimum_effective_n:
        return False, f"class mix not available (effective n {smallest:.0f})"
    return True, ""


def judge(
    draws: pd.DataFrame,
    networks: pd.DataFrame,
    options: ClaimOptions | None = None,
    study: str = "",
    made: dict[str, Any] | None = None,
) -> Verdict:
    """Judge H1 to H5 for every family of BatchNorm networks.

    A family is all networks whose names share a prefix: ``resnet18 bn``, ``resnet18 ln``, ``resnet18 bn-at-ln``; in
    a study of one family there is no prefix.

    Args:
        draws: all networks' ``draws.parquet``, pooled.
        networks: one row per network and seed with its accuracy in [0, 1]; NaN where it is not known.
        options, study, made: as in :class:`Verdict`.

    Raises:
        UserError: if a table is empty, lacks a column or holds a run twice, or a primary set was not evaluated.
    """
    options = options or ClaimOptions()
    found = Measurements(draws)
    sets = found.names("dataset", role="ood")
    if missing := [name for name in options.primary_sets if name not in sets]:
        raise UserError(f"claim.primary_sets: {', '.join(missing)} was not evaluated; OOD sets are {', '.join(sets)}")
    known = networks.dropna(subset="accuracy")[["network", "seed", "accuracy"]]
    accuracies = {(name, int(seed)): float(accuracy) for name, seed, accuracy in known.itertuples(index=False)}
    rows: list[Judged] = []
    for network in found.names("network"):
        family = network.removesuffix("bn")
        if family == network or (family and not family.endswith(" ")):
            continue
        seeds = found.seeds(network)
        evidence = Evidence(found, accuracies, family, options, options.minimum_seeds)
        if len(seeds) < options.minimum_seeds:
            for seed in seeds:
                for one in judge_family(evidence.only([seed], 1)):
                    suffix = "" if one.verdict == NOT_TESTED else ONE_NETWORK
                    rows.append(replace(one, seed=seed, verdict=one.verdict + suffix))
            continue
        judged = judge_family(evidence)
        unseen = [seed for seed in seeds if seed not in options.seen_seeds]
        if len(unseen) >= options.minimum_seeds:
            alone = judged if unseen == list(seeds) else judge_family(evidence.only(unseen, options.minimum_seeds))
            judged = [replace(a, verdict_unseen_seeds=b.verdict) for a, b in zip(judged, alone, strict=True)]
        rows += judged
    return Verdict(tuple(rows), options, study, made or {})
