"""An evaluation of a small network, for pictures and pages."""

from functools import cache

from small_evaluation import small_network, small_sets

from bnood.evaluation.evaluate import Evaluation, evaluate

SETS = ("far", "near")
DETECTORS = ("msp", "energy", "react")
STATISTICS = ("running", "batch:16", "recalibrated:id", "recalibrated:target", "recalibrated:target/first:3")


@cache
def evaluated(norm: str = "bn") -> Evaluation:
    return evaluate(
        small_network(norm), **small_sets(), statistics=STATISTICS, detectors=DETECTORS, placebo=True,
        shifts=["noise-3"], resamples=20, calibration_images=30, shuffles=1,
    )  # fmt: skip
