"""Verdicts of the lab on tables whose truth is known."""

import json

import pytest
from scipy.stats import t
from synthetic_lab import ACCURACY, lab_table

from bnood.lab.checks import NOT_TESTED, REFUTED, STATEMENTS, SUPPORTED, UNDECIDED, Check, Records, check_lab
from bnood.lab.options import Thresholds


def checks(**options: object) -> dict[str, Check]:
    found = check_lab(lab_table(**options), 10, Thresholds())  # type: ignore[arg-type]
    return {check.statement: check for check in found}


def about(found: dict[str, Check], *words: str) -> Check:
    (statement,) = [text for text in found if all(word in text for word in words)]
    return found[statement]


def test_what_the_notes_say_is_supported() -> None:
    found = checks()
    assert len(found) == len(STATEMENTS)
    assert {check.verdict for check in found.values()} == {SUPPORTED}


def test_starved_gradient_is_printed_as_a_plain_factor() -> None:
    number = about(checks(), "far less gradient").number
    assert number.startswith("1/") and number.endswith("of the last layer's gradient")
    factor = float(number.split(" ")[0].removeprefix("1/").replace(",", ""))
    assert factor == pytest.approx(10_000, rel=0.05)


def test_interval_is_students_over_seeds() -> None:
    values = Records(lab_table(), 10).gain("sigmoid", "bn")
    check = about(checks(), "BatchNorm lets sigmoid")
    half = t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert (check.low, check.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_learning_is_judged_on_training_accuracy_and_overfitting_is_named() -> None:
    check = about(checks(validation=0.3), "BatchNorm lets sigmoid")
    assert check.verdict == SUPPORTED and "+50" in check.number
    assert "BatchNorm 60 % in training, 30 % in validation, overfitted" in check.note
    assert "overfitted" not in about(checks(validation=0.05), "BatchNorm lets sigmoid").note


@pytest.mark.parametrize(
    ("norm", "accuracy", "statement", "effect"),
    [("ln", 0.1, "LayerNorm lets sigmoid", 0.0), ("gn", 0.9, "GroupNorm", -0.3)],
)
def test_a_norm_elsewhere_than_claimed_is_refuted(norm: str, accuracy: float, statement: str, effect: float) -> None:
    check = about(checks(accuracy=ACCURACY | {norm: accuracy}), statement)
    assert check.verdict == REFUTED and check.effect == pytest.approx(effect, abs=0.02)


def test_networks_that_learn_nothing_are_not_judged() -> None:
    found = checks(accuracy=dict.fromkeys(ACCURACY, 0.1))
    for words in (("BatchNorm lets sigmoid",), ("GroupNorm",)):
        check = about(found, *words)
        assert check.verdict == NOT_TESTED and "none of these networks learns" in check.note


def test_networks_that_were_not_trained_are_not_tested_here() -> None:
    check = about(checks(high=False), "lose units")
    assert check.verdict == NOT_TESTED and "ReLU network with no norm at a high learning rate" in check.note
    assert check.to_json()["effect"] is None
    json.dumps(check.to_json(), allow_nan=False)


def test_one_seed_decides_nothing() -> None:
    found = checks(seeds=(0,))
    assert {check.verdict for check in found.values()} == {UNDECIDED}
    assert all("one seed has no interval" in check.note for check in found.values())


def test_large_difference_with_relu_is_refuted() -> None:
    table = lab_table()
    gained = table["activation"].eq("relu") & table["norm"].eq("bn") & table["quantity"].eq("train_accuracy")
    table.loc[gained, "value"] += 0.2
    (check,) = [one for one in check_lab(table, 10, Thresholds()) if "little difference" in one.statement]
    assert check.verdict == REFUTED
