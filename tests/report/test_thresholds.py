"""Thresholds with their reasons, from the documentation of the class that holds them."""

from dataclasses import asdict, fields

from bnood.report.thresholds import field_reasons, thresholds
from bnood.study.claim import ClaimOptions


class Described:
    """Some options: not a field.

    Text before the fields, with a colon: also no field.

    Args:
        one: the first, with ``code`` in it: and a colon.
        two, three: both of them,
            over two lines.

            A further paragraph.
        four : with a space

    Raises:
        error: is no field.
    """


def test_fields_are_read_as_they_are_written() -> None:
    assert field_reasons(Described) == {
        "one": "the first, with “code” in it: and a colon.",
        "two": "both of them, over two lines. A further paragraph.",
        "three": "both of them, over two lines. A further paragraph.",
        "four": "with a space",
    }


def test_a_class_without_documented_fields_has_none() -> None:
    assert field_reasons(type("Bare", (), {})) == {}
    assert field_reasons(type("Said", (), {"__doc__": "One line: nothing more."})) == {}


def test_every_threshold_of_the_verdict_has_its_reason() -> None:
    rows = thresholds(asdict(ClaimOptions(minimum_auroc=0.03)))
    assert [name for name, _, _ in rows] == [field.name for field in fields(ClaimOptions)]
    assert all(len(reason) > 20 for _, _, reason in rows)
    held = {name: (value, reason) for name, value, reason in rows}
    assert held["minimum_auroc"][0] == "0.03" and held["minimum_auroc"][1].startswith("H3, one point of AUROC")
    assert held["places"][0] == "first half, last half, last layer, means, variances"


def test_a_threshold_of_another_version_is_shown_without_a_reason() -> None:
    assert thresholds({"of_old": 1.5}) == [("of_old", "1.5", "")]
    assert thresholds(None) == []
