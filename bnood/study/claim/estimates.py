"""One effect with its interval and what it says about its threshold; rules that put several together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bnood.evaluation.intervals import Interval, Ratio, Replicates

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
PASSED, FAILED = "passed", "failed"
Wanted = Literal["above", "below", "small", "any"]
# Decimal places in sentences and tables, by unit.
DECIMALS = {"times ID": 2, "nats": 2, "share of the effect": 2}


@dataclass(frozen=True)
class Estimate:
    """An effect: its mean over seeds, its interval over seeds and images, and its verdict.

    Attributes:
        quantity: what is compared, in words.
        dataset: the set, or "mean of ...".
        unit: of effect, low and high.
        effect, low, high: NaN where nothing could be estimated (``reason`` says why).
        effect_size: Cohen's d_z over seeds; NaN for one seed, or where the seeds do not differ.
        per_seed: each seed's own effect.
        threshold: what it is held against; None for a figure that is only reported.
        verdict: supported, refuted or inconclusive; of a control passed, failed or inconclusive; "" without threshold.
        level: of the interval.
        reason: why it is inconclusive; else "".
        wanted: the side of the threshold that the statement names: above, below, small (within +- it) or any.
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
    verdict: str
    level: float
    reason: str = ""
    dropped: frozenset[int] = field(default=frozenset())
    wanted: Wanted = "any"

    @property
    def n_seeds(self) -> int:
        return len(self.per_seed)

    def to_json(self) -> dict[str, Any]:
        """As ``verdict.json`` holds it; what is not a finite number is None."""
        return {
            "quantity": self.quantity,
            "dataset": self.dataset,
            "unit": self.unit,
            "effect": finite(self.effect),
            "low": finite(self.low),
            "high": finite(self.high),
            "effect_size": finite(self.effect_size),
            "per_seed": {str(seed): finite(value) for seed, value in self.per_seed.items()},
            "n_seeds": self.n_seeds,
            "threshold": self.threshold,
            "wanted": self.wanted,
            "verdict": self.verdict,
            "level": self.level,
            "reason": self.reason,
        }


def estimated(
    measured: Replicates | Ratio,
    quantity: str,
    dataset: str,
    unit: str,
    threshold: float | None,
    wanted: Wanted,
    level: float,
    null: float = 0.0,
    refuting: float | None = None,
) -> Estimate:
    """The estimate of a measured effect, held against its threshold.

    ``wanted`` is ``above`` or ``below`` the threshold, ``small`` (within +- the threshold, for controls), or ``any``
    (only reported). ``null`` is what no effect would be, for the effect size. ``refuting``, with ``above``: the value
    that the whole interval has to lie below for a refutation, where that is not the threshold itself.
    """
    found = measured.interval(level)
    verdict = "" if threshold is None else _side(found, threshold, wanted)
    if threshold is not None and refuting is not None and verdict == REFUTED and found.high >= refuting:
        verdict = INCONCLUSIVE
    reason = ""
    if threshold is not None:
        equal = found.standard_error == 0 and found.effect == 0
        # What is exactly equal passes a control, however few the seeds.
        reason = "" if wanted == "small" and equal else _undecidable(measured, found, level)
        if reason:
            verdict = INCONCLUSIVE
        elif verdict == INCONCLUSIVE:
            reason = _why_between(found, threshold, wanted)
    per_seed = {seed: float(value) for seed, value in zip(measured.seeds, measured.values, strict=True)}
    size = measured.effect_size(null)
    return Estimate(
        quantity, dataset, unit, found.effect, found.low, found.high, size, per_seed, threshold, verdict, level,
        reason, measured.dropped, wanted,
    )  # fmt: skip


def not_estimated(
    reason: str,
    quantity: str,
    dataset: str,
    unit: str,
    threshold: float | None,
    level: float,
    wanted: Wanted = "any",
) -> Estimate:
    """In place of an estimate, where the tables do not hold what it needs: inconclusive, with the reason."""
    nan = math.nan
    return Estimate(
        quantity, dataset, unit, nan, nan, nan, nan, {}, threshold, INCONCLUSIVE, level, reason, wanted=wanted
    )


def _side(found: Interval, threshold: float, wanted: Wanted) -> str:
    if wanted == "small":
        if -threshold <= found.low and found.high <= threshold:
            return PASSED
        return FAILED if found.low > threshold or found.high < -threshold else INCONCLUSIVE
    if found.low > threshold:
        return SUPPORTED if wanted == "above" else REFUTED
    if found.high < threshold:
        return REFUTED if wanted == "above" else SUPPORTED
    return INCONCLUSIVE


def _why_between(found: Interval, threshold: float, wanted: Wanted) -> str:
    if wanted != "small" and found.high < threshold:
        return f"the interval is below {threshold:g}, but not below what would refute it"
    return f"the interval contains {'+-' if wanted == 'small' else ''}{threshold:g}"


def _undecidable(measured: Replicates | Ratio, found: Interval, level: float) -> str:
    """Why no verdict may follow from this interval, whatever it is; "" if one may."""
    if len(measured.seeds) == 1:
        return "one seed only, so that the interval is over images and not over seeds"
    if isinstance(measured, Ratio):
        whole = measured.denominator.interval(level)
        if whole.low <= 0:
            side = "not above 0" if whole.high < 0 else "not distinguishable from 0"
            return f"the whole effect is {side} ({interval_text(whole.effect, whole.low, whole.high, 2)})"
        return ""
    if found.standard_error == 0 and found.effect != 0:
        return "neither seeds nor images vary"
    if found.standard_error == 0:
        return "the two sides are equal in every seed and resample"
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


def at_least_one(verdicts: Sequence[str]) -> str:
    """Supported if any is, refuted if all are."""
    if SUPPORTED in verdicts:
        return SUPPORTED
    return REFUTED if verdicts and all(verdict == REFUTED for verdict in verdicts) else INCONCLUSIVE


def figure(estimate: Estimate) -> str:
    """``0.97 [0.81, 1.12]``; ``not estimated`` where it could not be."""
    if math.isnan(estimate.effect):
        return "not estimated"
    return interval_text(estimate.effect, estimate.low, estimate.high, DECIMALS.get(estimate.unit, 3))


def directed(estimate: Estimate, up: str, down: str) -> tuple[str, str]:
    """The word for the sign of an effect, and the effect with its interval, turned so that it is not negative.

    ``("lower", "0.42 [-0.19, 1.02]")`` of -0.42 [-1.02, 0.19]; the first of the words where nothing was estimated.
    """
    if not estimate.effect < 0:
        return up, figure(estimate)
    decimals = DECIMALS.get(estimate.unit, 3)
    return down, interval_text(-estimate.effect, -estimate.high, -estimate.low, decimals)


def against_minimum(estimate: Estimate) -> str:
    """What an effect that was wanted above a minimum says about it: ``smaller than the minimum of 0.1``, say."""
    minimum = f"minimum of {estimate.threshold:g}"
    if estimate.verdict == SUPPORTED:
        return f"more than the {minimum}"
    if estimate.verdict == INCONCLUSIVE:
        return f"not decided against the {minimum}"
    return f"in the opposite direction; {minimum}" if estimate.high < 0 else f"smaller than the {minimum}"


def interval_text(effect: float, low: float, high: float, decimals: int) -> str:
    """``0.97 [0.81, 1.12]``, without a negative zero."""
    shown = [f"{round(number, decimals) + 0.0:.{decimals}f}" for number in (effect, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def finite(number: float) -> float | None:
    """The number if it is finite, else None, which JSON has instead."""
    return float(number) if math.isfinite(number) else None
