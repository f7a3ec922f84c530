"""Display names and printed numbers."""

import math

from bnood.report.names import change, display, number, scale


def test_display_names_and_numbers() -> None:
    names = ("batch:128", "batch:128@0.1", "recalibrated:mixture@0.5", "my_own_set")
    shown = ["batch of 128, pure", "batch of 128, 10 % OOD", "mixture, 50 % OOD", "my own set"]
    assert [display(name).replace("\u00a0", " ") for name in names] == shown
    assert number(0.9146, scale("auroc", "energy")) == "91.5\u00a0%"
    assert change(-0.0234, -0.03, -0.01, scale("auroc", "msp")) == "\u22122.3 [\u22123.0, \u22121.0] points"
    assert scale("mean", "energy") == scale("unit_mean_max_ratio", "units") == 1
    assert number(8.4785, 1) == "8.48" and change(0.5, math.nan, math.nan, 1) == "+0.50"
    assert number(math.nan, 100) == change(math.nan, 0, 0, 1) == "\u2013"
