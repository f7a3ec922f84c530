"""One effect with its interval, what that says about its threshold, and rules that combine several verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bnood.evaluation.intervals import Interval, Ratio, Replicates

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_TESTED = "supported", "refuted", "inconclusive", "not tested"
PASSED, FAILED = "passed", "failed"
Direction = Literal["above", "below", "small", "any"]


@dataclass(frozen=True)
class Estimate:
    """An effect: its mean over seeds, its interval, and its verdict.

    Attributes:
        quantity: what is compared, in words.
        dataset: the set, or "mean of ...".
        effect, low, high: in ``unit``; NaN where nothing could be estimated (``reason`` says why).
        effect_size: Cohen's d_z over seeds; NaN for one seed and where the seeds do not differ.
        per_seed: each seed's own effect.
        threshold: what it is compared with; None for a figure that is only reported.
        direction: the side of the threshold that the hypothesis needs: above, below, small (within +- it) or any.
        verdict: supported, refuted or inconclusive; of a control passed, failed or inconclusive; "" without threshold.
        level: confidence level of the interval.
        reason: why it is inconclusive.
        group: its part in the hypothesis, as in :class:`bnood.study.hypotheses.Row`.
        placebo: the placebo's AUROC, where there is one.
        threshold_reason: why the threshold is what it is.
        dropped: seeds that one side of the comparison lacks.
    """

    quantity: str
    dataset: str
    unit: str
    effect: float
    low: float
    high: float
    effect_size: float
    per_seed: dict[int, float]
    threshold: float | None
    direction: Direction
    verdict: str
    level: float
    reason: str = ""
    group: str = ""
    placebo: str = ""
    threshold_reason: str = ""
    dropped: frozenset[int] = field(default=frozenset())

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    def to_json(self) -> dict[str, Any]:
        """As ``verdict.json`` holds it; what is not a finite number is None."""
        own = {name: finite(value) for name, value in vars(self).items() if name not in ("per_seed", "dropped")}
        per_seed = {str(seed): finite(value) for seed, value in self.per_seed.items()}
        return own | {"per_seed": per_seed, "n_seeds": self.n_seeds}


def finite(value: Any) -> Any:
    """The value, but None in place of NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(found: Interval, threshold: float, direction: Direction, refuting: float) -> tuple[str, str]:
    """The verdict on an interval and, where that is inconclusive, why.

    With ``above``, the whole interval has to lie below ``refuting`` for a refutation.
    """
    if direction == "small":
        if -threshold <= found.low and found.high <= threshold:
            return PASSED, ""
        outside = found.low > threshold or found.high < -threshold
        return (FAILED, "") if outside else (INCONCLUSIVE, f"the interval contains +-{threshold:g}")
    if found.low > threshold:
        return (SUPPORTED if direction == "above" else REFUTED), ""
    if direction == "below" and found.high < threshold:
        return SUPPORTED, ""
    if direction == "above" and found.high < min(threshold, refuting):
        return REFUTED, ""
    if found.high < threshold:
        return INCONCLUSIVE, f"the interval is below {threshold:g}, but not below {refuting:g}"
    return INCONCLUSIVE, f"the interval contains {threshold:g}"


def why_undecidable(measured: Replicates | Ratio, found: Interval, level: float, seeds: int) -> str:
    """Why no verdict may follow from the interval of ``measured`` at ``level``, whatever it is; "" if one may.

    ``seeds`` is the smallest number of seeds that a verdict needs.
    """
    if len(measured.seeds) < seeds:
        return f"{len(measured.seeds)} seed(s) only; a verdict over seeds needs {seeds}"
    if isinstance(measured, Ratio):
        whole = measured.denominator.interval(level)
        if whole.low > 0:
            return ""
        return f"the whole effect is {'not above' if whole.high < 0 else 'not distinguishable from'} 0"
    if found.standard_error == 0:
        return "the two sides are equal everywhere" if found.effect == 0 else "neither seeds nor images vary"
    return ""


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
    """Of AUROC and FPR95 of each detector in turn (H3).

    For a detector: supported when both are; refuted when the gain in AUROC is and FPR95 is not shown to gain. Both
    detectors supported: supported; any refuted and none supported: refuted.
    """
    by_detector = []
    for auroc, fpr95 in zip(verdicts[::2], verdicts[1::2], strict=True):
        contradictory = {auroc, fpr95} == {SUPPORTED, REFUTED}
        undecided = contradictory or (auroc != REFUTED and fpr95 == REFUTED)
        by_detector.append(INCONCLUSIVE if undecided else REFUTED if auroc == REFUTED else every([auroc, fpr95]))
    return agreeing(by_detector)


def norm_rule(verdicts: Sequence[str]) -> str:
    """Of the largest unit mean, the mean MSP and the confident share (H4): one of the first two has to be refuted."""
    return every(verdicts) if REFUTED in verdicts[:2] or REFUTED not in verdicts else INCONCLUSIVE


def place_rule(verdicts: Sequence[str]) -> str:
    """Of all places for each of three quantities in turn (H5): a quantity needs one place that moves it."""
    count = len(verdicts) // 3
    by_quantity = [verdicts[start : start + count] for start in range(0, len(verdicts), count)]
    return agreeing([_at_least_one(places) for places in by_quantity])


def _at_least_one(verdicts: Sequence[str]) -> str:
    if SUPPORTED in verdicts:
        return SUPPORTED
    return REFUTED if all(verdict == REFUTED for verdict in verdicts) else INCONCLUSIVE
