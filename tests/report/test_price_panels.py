"""How many pairs win and lose is counted in all four ways, by means and by intervals."""

import pandas as pd
import pytest
from synthetic_study import make_shift

from bnood.report.price_panels import _counts, price_picture


def pairs(*cells: tuple[float, float, float, float]) -> pd.DataFrame:
    """Pairs of (change in accuracy, its half width, change in AUROC, its half width)."""
    frame = pd.DataFrame(cells, columns=["mean_accuracy", "half_accuracy", "mean", "half"])
    for end in ("", "_accuracy"):
        frame[f"low{end}"] = frame[f"mean{end}"] - frame[f"half{end}"]
        frame[f"high{end}"] = frame[f"mean{end}"] + frame[f"half{end}"]
    return frame


CELLS = (
    (0.1, 0.05, 0.1, 0.05), (0.1, 0.05, 0.1, 0.2), (0.1, 0.05, 0.1, 0.05), (0.1, 0.05, -0.1, 0.05),
    (0.1, 0.2, -0.1, 0.05), (-0.1, 0.05, 0.1, 0.2), (-0.1, 0.05, -0.1, 0.05), (-0.1, 0.05, -0.1, 0.05),
)  # fmt: skip


def test_all_four_ways_are_counted() -> None:
    said = _counts(pairs(*CELLS))
    assert said == (
        "Of 8 pairs of such a set and an OOD set, both rise in 3, accuracy rises and AUROC falls in 2, accuracy falls "
        "and AUROC rises in 1 and both fall in 2; counted where both 95 % intervals exclude zero, these are 2, 1, 0 "
        "and 2. AUROC alone is above zero by its interval in 2 pairs and below in 4."
    )


@pytest.mark.parametrize("column", ["low", "low_accuracy"])
def test_without_intervals_only_means_are_counted(column: str) -> None:
    assert "interval" not in _counts(pairs(*CELLS).assign(**{column: float("nan")}))


def test_a_change_of_zero_is_neither() -> None:
    assert "both fall in 2 and one of the two does not change in 1;" in _counts(pairs(*CELLS, (0.0, 0.1, 0.1, 0.05)))


def test_the_table_says_that_its_figures_are_changes() -> None:
    found = price_picture(make_shift((0, 1)))
    assert found is not None
    wanted = [f"{name}_change{end}" for name in ("accuracy", "auroc") for end in ("", "_low", "_high")]
    assert [name for name in found.numbers.columns if "change" in name] == wanted
