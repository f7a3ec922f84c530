"""The verdict of a study: every row of every hypothesis is estimated and judged by the same function.

A row is one per hypothesis and family of networks, or network of too few seeds. Its ``estimates`` are of the mean of
the primary sets, then of each set; the first is the headline.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bnood.data.atomic import write_beside
from bnood.errors import UserError
from bnood.evaluation.intervals import Interval, Ratio, Replicates, Unusable
from bnood.study import hypotheses as h
from bnood.study.claim import REASONS, ClaimOptions
from bnood.study.hypotheses import INCONCLUSIVE, NOT_TESTED, REFUTED, SUPPORTED
from bnood.study.measurements import Measurements

COLUMNS = [
    "network", "seed", "hypothesis", "quantity", "dataset", "unit", "effect", "low", "high", "effect_size", "n_seeds",
    "threshold", "direction", "verdict", "role", "level", "reason", "placebo", "threshold_reason",
]  # fmt: skip
HEADLINE = ("quantity", "dataset", "unit", "effect", "low", "high", "threshold", "threshold_reason", "direction",
            "n_seeds", "placebo")  # fmt: skip
PASSED, FAILED = "passed", "failed"
Record = dict[str, Any]


def write_verdict(verdict: Record, folder: Path) -> None:
    """Write ``verdict.json`` (NaN and infinity as null), and ``verdict.csv`` with one row per estimate."""
    rows = [
        row | one | {"role": one["group"] if place else "headline"}
        for row in verdict["rows"]
        for place, one in enumerate(row["estimates"])
    ]
    plain = json.loads(json.dumps(verdict), parse_constant=lambda constant: None)
    table, text = pd.DataFrame(rows, columns=COLUMNS), json.dumps(plain, indent=2) + "\n"
    write_beside(folder / "verdict.json", lambda path: path.write_text(text))
    write_beside(folder / "verdict.csv", lambda path: table.to_csv(path, index=False, float_format="%.6g"))


@dataclass(frozen=True)
class Family:
    """The networks that one verdict is about, and how it is reached."""

    found: Measurements
    accuracies: dict[tuple[str, int], float]  # on validation images, of (network, seed)
    prefix: str  # of the family's network names
    options: ClaimOptions
    needed_seeds: int  # behind a verdict; 1 where one network is judged

    @property
    def network(self) -> str:
        return f"{self.prefix}bn"

    def judge(self) -> list[Record]:
        """H1 to H5; what the networks do not have is "not tested", with the reason."""
        statistics = self.found.names("statistics", network=self.network)
        (class_mix, note), augmented = self._class_mix(), h.AUGMENTED in statistics
        h1 = self._record("H1", NOT_TESTED, "no unit means: the features are not non-negative, or not known")
        if any(self._has(h.UNIT_MAXIMUM, name) for name in self.options.primary_sets):
            h1 = self._judged(h.h1(class_mix, augmented), note)
        h4 = self._record("H4", NOT_TESTED, "no LN and GN networks of equal accuracy")
        if {f"{self.prefix}{at}{norm}" for norm in h.NORMS for at in ("", "bn-at-")} <= {*self.found.names("network")}:
            h4 = self._judged(h.h4(class_mix))
        try:
            bonferroni = 1 - (1 - self.options.level) / len(self.options.places)
            h5 = self._judged(h.h5(statistics, self.options.places), level=bonferroni)
        except Unusable as error:
            h5 = self._record("H5", NOT_TESTED, str(error))
        return [h1, self._judged(h.h2(augmented)), self._judged(h.h3(augmented)), h4, h5]

    def _has(self, quantity: h.Quantity, dataset: str) -> bool:
        return self.found.has(self.network, h.RUNNING, dataset, "ood", quantity.detector, quantity.metric)

    def _class_mix(self) -> tuple[bool, str]:
        """Whether the class-mix control can be used on all primary sets; else the note that says why not."""
        names, effective_n = self.options.primary_sets, [h.Term(1, h.CLASS_MIX_N)]
        if missing := [name for name in names if not self._has(h.CLASS_MIX, name)]:
            return False, f"class mix not available on {missing[0]}"
        known = [name for name in names if self._has(h.CLASS_MIX_N, name)]
        found = [self.found.contrast(effective_n, [name], self.prefix).values.min() for name in known]
        if found and min(found) < self.options.minimum_effective_n:
            return False, f"class mix not available (effective n {min(found):.0f})"
        return True, ""

    def _record(self, name: str, verdict: str, reason: str, note: str = "", estimates: Sequence[Record] = ()) -> Record:
        headline = estimates[0] if estimates else {}
        return {
            "hypothesis": name, "network": self.network, "verdict": verdict, "reason": reason, "note": note,
            "estimates": list(estimates), "seed": None, "verdict_unseen_seeds": None, "statement": h.STATEMENTS[name],
            **{key: headline.get(key) for key in HEADLINE},
        }  # fmt: skip

    def _judged(self, hypothesis: h.Hypothesis, note: str = "", level: float | None = None) -> Record:
        """Judge a hypothesis as docs/hypotheses.md says; ``level`` of its intervals is the claim's unless given."""
        primary, rows, level = self.options.primary_sets, hypothesis.rows, level or self.options.level
        label = primary[0] if len(primary) == 1 else f"mean of {', '.join(primary)}"
        mean = [self.estimate(row, primary, label, level) for row in rows]
        # On each set alone; rows on ID images are the same for all of them.
        names = list(primary) if len(primary) > 1 else []
        names += [name for name in self.found.names("dataset", role="ood") if name not in primary]
        by_set = {name: [self.estimate(row, [name], name, level) for row in rows if not row.on_id] for name in names}

        def rule(estimates: Sequence[Record], group: str = h.DECIDES) -> str:
            return hypothesis.rule([one["verdict"] for one in estimates if one["group"] == group])

        verdict, reason = rule(mean), ""
        per_set = {name: rule(found) for name, found in by_set.items() if name in primary}
        groups = dict.fromkeys(row.group for row in rows)
        opposing = {group: rule(mean, group) for group in groups if group.startswith("against")}
        for parts in (per_set, opposing):
            if {SUPPORTED, REFUTED} <= {verdict, *parts.values()}:
                verdict, reason = INCONCLUSIVE, ", ".join(f"{name} {found}" for name, found in parts.items())
        if verdict == SUPPORTED and any(one["group"] == h.LESS_ACTIVE and one["verdict"] == REFUTED for one in mean):
            verdict, reason = INCONCLUSIVE, "single activations above ID's 99th percentile are rarer than in LN and GN"
        if verdict != INCONCLUSIVE and h.BEYOND in groups:
            controls, beyond = [one for one in mean if one["group"] == h.CONTROL], rule(mean, h.BEYOND)
            failed = any(one["verdict"] == FAILED for one in controls)
            if not any(one["n_seeds"] for one in controls):
                verdict, reason = INCONCLUSIVE, "no control (recalibrated:id) could be estimated"
            elif {verdict, beyond} == {SUPPORTED, REFUTED}:
                verdict, reason = INCONCLUSIVE, f"{verdict}, but {beyond} beyond the control"
            elif failed and verdict == SUPPORTED and beyond != SUPPORTED:
                verdict, reason = INCONCLUSIVE, "the control is not null, and beyond it the effect is not decided"
        if verdict == INCONCLUSIVE and not reason:
            undecided = [one["reason"] for one in mean if (one["group"], one["verdict"]) == (h.DECIDES, INCONCLUSIVE)]
            reason = undecided[0] if undecided and undecided[0] else "its parts go both ways"
        if verdict == SUPPORTED and rows[0].even:  # the headline of H5 is the first place that moves a quantity
            mean.sort(key=lambda one: (one["group"], one["verdict"]) != (h.DECIDES, SUPPORTED))
        estimates = [*mean, *(one for found in by_set.values() for one in found)]
        return self._record(hypothesis.name, verdict, reason, note, estimates)

    def estimate(self, row: h.Row, datasets: Sequence[str], label: str, level: float) -> Record:
        """A row on the mean over sets against its threshold; inconclusive, with the reason, where tables lack it.

        Numbers are then NaN and ``n_seeds`` 0. The verdict of a control is passed, failed or inconclusive.
        """
        refuting: Any = getattr(self.options, row.threshold) if isinstance(row.threshold, str) else row.threshold
        threshold = max(refuting, row.even) if row.even else refuting
        if row.on_id:
            datasets, label = [self.found.id_set], self.found.id_set
        one: Record = {
            "quantity": row.label, "dataset": label, "unit": row.quantity.unit, "group": row.group,
            "direction": row.direction, "threshold": threshold, "level": level, "threshold_reason": "",
            "effect": math.nan, "low": math.nan, "high": math.nan, "effect_size": math.nan, "per_seed": {},
            "n_seeds": 0, "verdict": "", "reason": "", "placebo": "",
        }  # fmt: skip
        try:
            measured = self._measured(row, datasets)
            found = measured.interval(level)
        except Unusable as error:
            return one | {"verdict": INCONCLUSIVE, "reason": str(error)}
        one |= {
            "effect": found.effect, "low": found.low, "high": found.high, "n_seeds": len(measured.seeds),
            "effect_size": measured.effect_size(row.null),
            "per_seed": dict(zip(measured.seeds, map(float, measured.values), strict=True)),
            "threshold_reason": REASONS.get(str(row.threshold), ""),
            "unit": "share of the effect" if row.even else row.quantity.unit,
        }  # fmt: skip
        if threshold is None:
            return one
        limit, placebo = self._placebo(row, datasets)
        # A change that the placebo gives as well is no finding: decisions need the interval beyond it.
        verdict, reason = compare(found, max(threshold, limit), row.direction, refuting - limit)
        undecidable = why_undecidable(measured, found, level, self.needed_seeds)
        equal = row.direction == "small" and found.standard_error == found.effect == 0  # which passes a control
        if undecidable and not equal:
            verdict, reason = INCONCLUSIVE, undecidable
        return one | {"verdict": verdict, "reason": reason, "placebo": placebo}

    def _measured(self, row: h.Row, datasets: Sequence[str]) -> Replicates | Ratio:
        effect = self.found.contrast(row.terms, datasets, self.prefix)
        for norm in row.equal_to:
            effect = effect.only(self._equally_accurate(norm))
        if not row.even:
            return effect
        whole = self.found.contrast(h.change(row.quantity), datasets, self.prefix)
        return Ratio(effect.only(whole.seeds), whole.only(effect.seeds))

    def _equally_accurate(self, norm: str) -> list[int]:
        """Seeds whose ``bn-at-<norm>`` network is as accurate as their ``<norm>`` network."""
        left, right, known = f"{self.prefix}bn-at-{norm}", self.prefix + norm, self.accuracies
        seeds = sorted(seed for name, seed in known if name == left and (right, seed) in known)
        gaps = {seed: known[left, seed] - known[right, seed] for seed in seeds}
        # A difference of exactly the allowed one is rounded up or down: 0.90 - 0.89 > 0.01 in float64.
        kept = [seed for seed in seeds if abs(gaps[seed]) <= self.options.accuracy_gap + 1e-9]
        if not kept:
            shown = ", ".join(f"seed {seed}: {gap:+.3f}" for seed, gap in gaps.items()) or "none is known"
            raise Unusable(f"the accuracies of {left} and {right} differ by more than the allowed gap ({shown})")
        return kept

    def _placebo(self, row: h.Row, datasets: Sequence[str]) -> tuple[float, str]:
        """How far a placebo that excludes 0.5 lies from it, and what is said beside the row; (0, "") without one."""
        wanted = row.quantity.metric == "auroc" and row.direction == "above"
        found = self.found.placebo(self.network, h.TARGET, row.quantity.detector, datasets) if wanted else None
        if found is None:
            return 0.0, ""
        auroc = found.interval(self.options.level)
        shown = f"placebo {auroc.effect:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]"
        return (0.0, shown) if auroc.low <= 0.5 <= auroc.high else (abs(auroc.effect - 0.5), f"{shown}, not 0.5")


def compare(found: Interval, threshold: float, direction: str, refuting: float) -> tuple[str, str]:
    """The verdict on an interval, and why it is inconclusive; ``above`` is refuted below ``refuting`` alone."""
    low, high = found.low, found.high
    if direction == "small":
        if -threshold <= low and high <= threshold:
            return PASSED, ""
        outside = low > threshold or high < -threshold
        return (FAILED, "") if outside else (INCONCLUSIVE, f"the interval contains +-{threshold:g}")
    if low > threshold:
        return (SUPPORTED if direction == "above" else REFUTED), ""
    if high < (threshold if direction == "below" else min(threshold, refuting)):
        return (SUPPORTED if direction == "below" else REFUTED), ""
    if high < threshold:
        return INCONCLUSIVE, f"the interval is below {threshold:g}, but not below {refuting:g}"
    return INCONCLUSIVE, f"the interval contains {threshold:g}"


def why_undecidable(measured: Replicates | Ratio, found: Interval, level: float, seeds: int) -> str:
    """Why no verdict may follow from an interval, whatever it is; "" if one may. It needs this many ``seeds``."""
    if len(measured.seeds) < seeds:
        return f"{len(measured.seeds)} seed(s) only; a verdict over seeds needs {seeds}"
    if isinstance(measured, Ratio):
        whole = measured.denominator.interval(level)
        away = "not above" if whole.high < 0 else "not distinguishable from"
        return "" if whole.low > 0 else f"the whole effect is {away} 0"
    if found.standard_error == 0:
        return "the two sides are equal everywhere" if found.effect == 0 else "neither seeds nor images vary"
    return ""


def judge(
    draws: pd.DataFrame, networks: pd.DataFrame, options: ClaimOptions | None = None, study: str = "", made: Any = None
) -> Record:  # fmt: skip
    """Judge H1 to H5 for every family of BatchNorm networks; the verdict as this module's first lines describe it.

    A family is all networks whose names share a prefix, or have none: ``resnet18 bn``, ``resnet18 bn-at-ln``. ``draws``
    are all networks' ``draws.parquet``; ``networks`` has an accuracy in [0, 1] or NaN per network and seed; ``made`` is
    versions, commit, machine and command. Raises ``UserError`` for tables that :class:`Measurements` does not take, and
    if a primary set was not evaluated.
    """
    found, options = Measurements(draws), options or ClaimOptions()
    sets = found.names("dataset", role="ood")
    if missing := [name for name in options.primary_sets if name not in sets]:
        raise UserError(f"claim.primary_sets: {', '.join(missing)} was not evaluated; OOD sets are {', '.join(sets)}")
    known = networks.dropna(subset="accuracy")
    accuracies = dict(zip(zip(known["network"], known["seed"], strict=True), known["accuracy"], strict=True))
    rows: list[Record] = []
    for prefix in found.families():
        family = Family(found, accuracies, prefix, options, options.minimum_seeds)
        seeds = found.seeds(family.network)
        if len(seeds) < options.minimum_seeds:
            for seed in seeds:
                for row in replace(family, found=found.only([seed]), needed_seeds=1).judge():
                    suffix = "" if row["verdict"] == NOT_TESTED else " (this network)"
                    rows.append(row | {"seed": seed, "verdict": row["verdict"] + suffix})
            continue
        judged = family.judge()
        unseen = [seed for seed in seeds if seed not in options.seen_seeds]
        if len(unseen) >= options.minimum_seeds:
            alone = judged if unseen == seeds else replace(family, found=found.only(unseen)).judge()
            judged = [row | {"verdict_unseen_seeds": one["verdict"]} for row, one in zip(judged, alone, strict=True)]
        rows += judged
    return {"study": study, "made": made or {}, "thresholds": asdict(options), "reasons": REASONS, "rows": rows}
