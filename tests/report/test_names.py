"""Display names and printed numbers."""

import math

import pytest

from bnood.report.names import change, display, number, scale


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("batch:128", "batch of 128, pure"),
        ("batch:128@0.1", "batch of 128, 10 % OOD"),
        ("recalibrated:mixture@0.5", "mixture, 50 % OOD"),
        ("my_own_set", "my own set"),
    ],
)
def test_display_names_of_the_grammar(name: str, shown: str) -> None:
    assert display(name).replace("\u00a0", " ") == shown


def test_numbers_are_in_per_cent_points_or_as_they_are() -> None:
    assert number(0.9146, scale("auroc", "energy")) == "91.5\u00a0%"
    assert change(-0.0234, -0.03, -0.01, scale("auroc", "msp")) == "\u22122.3 [\u22123.0, \u22121.0] points"
    assert scale("mean", "energy") == scale("unit_mean_max_ratio", "units") == 1
    assert number(8.4785, 1) == "8.48" and change(0.5, math.nan, math.nan, 1) == "+0.50"
    assert number(math.nan, 100) == change(math.nan, 0, 0, 1) == "\u2013"
