"""An evaluation of a small network and an invented verdict, for pictures and pages."""

from functools import cache
from typing import Any

from small_evaluation import small_network, small_sets

from bnood.evaluation.evaluate import Evaluation, evaluate

SETS = ("far", "near")
DETECTORS = ("msp", "energy", "react")
STATISTICS = ("running", "batch:16", "recalibrated:id", "recalibrated:target", "recalibrated:target/first:3")


@cache
def evaluated(norm: str = "bn") -> Evaluation:
    """For reading only."""
    return evaluate(
        small_network(norm), **small_sets(), statistics=STATISTICS, detectors=DETECTORS, placebo=True,
        shifts=["noise-3"], resamples=20, calibration_images=30, shuffles=1,
    )  # fmt: skip


def verdict() -> dict[str, Any]:
    """The content of an invented `verdict.json`."""
    rows = [
        ("H1", "Some units are abnormally high on OOD images.", "supported", 0.65, "times ID", ""),
        ("H2", "Outputs are higher accordingly.", "refuted", -0.034, "probability", ""),
        ("H4", "It is BatchNorm's doing.", "not tested", None, None, "no partners"),
    ]
    return {
        "rows": [
            {"hypothesis": name, "statement": statement, "network": "bn", "seed": None, "verdict": verdict,
             "effect": effect, "low": effect and effect - 0.02, "high": effect and effect + 0.02, "unit": unit,
             "reason": reason, "note": "", "quantity": "running minus target", "estimates": []}
            for name, statement, verdict, effect, unit, reason in rows
        ],
        "made": {"commit": "abc"}, "thresholds": {"minimum_msp": 0.01},
        "reasons": {"minimum_msp": "one point of confidence"},
    }  # fmt: skip
