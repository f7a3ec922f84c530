"""What pages call a condition; their order and choice are tested with the figures that show them."""

import pytest

from bnood.report.headline_conditions import Condition, names_in_tables, row_label


@pytest.mark.parametrize(
    ("condition", "label"),
    [
        (Condition("running", "", 0), "running"),
        (Condition("recalibrated:target", "", 0), "matched"),
        (Condition("recalibrated:id", "", 0), "recalibrated on ID"),
        (Condition("recalibrated:mixture", "mixed 0.5", 0), "recalibrated on a mixture, half OOD"),
        (Condition("batch", "pure", 128), "batch of 128, pure"),
        (Condition("batch", "mixed 0.5", 64), "batch of 64, half OOD"),
        (Condition("batch", "mixed 0.1", 8), "batch of 8, 10 % OOD"),
        (Condition("new", "pure", 32), "new, pure, batches of 32"),
    ],
)
def test_a_condition_has_a_name_that_can_be_read(condition: Condition, label: str) -> None:
    assert condition.label == label


def test_a_network_without_statistics_names_none() -> None:
    running, matched = Condition("running", "", 0), Condition("recalibrated:target", "", 0)
    assert [row_label(name, running) for name in ("bn", "bn-at-ln", "ln", "gn")] == [
        "bn · running",
        "bn-at-ln · running",
        "ln",
        "gn",
    ]
    assert row_label("bn", matched) == "bn · matched"


def test_the_names_of_the_tables_are_said_where_they_differ() -> None:
    assert "“matched” is recalibrated:target" in names_in_tables(["running", "recalibrated:target"])
    assert "recalibrated:id" not in names_in_tables(["running", "recalibrated:target"])
    assert names_in_tables(["running", "batch"]) == ""
