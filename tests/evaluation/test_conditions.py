"""The grammar of statistics: names, what they expand to, what they estimate, and what is refused."""

from typing import Any

import pytest

from bnood.errors import UserError
from bnood.evaluation.comparisons import Pair, Sets
from bnood.evaluation.conditions import Estimate, Splits, in_form, parse_statistics

LAYERS = ["a", "b", "c", "d"]
SPLITS = Splits({"id": 400, "target:far": 300, "target:near": 90}, 200, True)


def names(*given: str) -> list[str]:
    return [condition.name for condition in parse_statistics(given)]


def estimates(name: str, splits: Splits = SPLITS, ood: str = "target:far") -> tuple[Estimate, Estimate]:
    return parse_statistics([name])[-1].estimates(splits, "id", ood)


def test_families_stand_for_their_members_and_running_always_comes_first() -> None:
    assert names("batch") == ["running", "batch:128", "batch:128@0.1", "batch:128@0.5"]
    assert names("recalibrated") == ["running", "recalibrated:id", "recalibrated:target", "recalibrated:mixture@0.5"]
    assert names("batch:64", "running", "batch:64") == ["running", "batch:64"]


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("batch:8@0.50", "batch:8@0.5"),
        ("recalibrated:mixture@1", "recalibrated:mixture@1"),
        ("recalibrated:target/variance", "recalibrated:target/variance"),
        ("path:0.10", "path:0.1"),
        ("prior:16.0/batch:64", "prior:16/batch:64"),
        ("prior:16/batch:128", "prior:16"),
    ],
)
def test_names_are_canonical(given: str, canonical: str) -> None:
    assert names(given)[-1] == canonical
    assert names(canonical)[-1] == canonical


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "expected a list of names"),
        ("batch", "expected a list of names"),
        (["batch:128@1"], "between 0 and 1; pure is batch:128"),
        (["batch:x"], "choose from"),
        (["recalibrated:mixture@1.5"], "above 0 and be at most 1"),
        (["recalibrated:id@0.5"], "choose from"),
        (["recalibrated:id/first:3"], "choose from"),
        (["recalibrated:target/first:0"], "choose from"),
        (["recalibrated:target/mean/first:2"], "choose from"),
        (["prior:16/batch:1"], "at least 2 images"),
    ],
)
def test_what_is_none_of_the_grammar_is_refused_with_the_right_form(given: Any, words: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_statistics(given)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_both_sides_of_target_get_the_same_number_of_images() -> None:
    for ood, count in (("target:far", 200), ("target:near", 90)):
        ours, theirs = estimates("recalibrated:target", ood=ood)
        assert (ours.parts, theirs.parts) == ((("id", count),), ((ood, count),))
        assert estimates("path:0.25", ood=ood) == (Estimate(ours.parts, share=0.25), Estimate(theirs.parts, share=0.25))
        in_layers = estimates("recalibrated:target/first:2", ood=ood)
        assert [each.images for each in in_layers] == [count, count] and in_layers[0].form == "first:2"


def test_version_01_took_all_images_and_layer_forms_take_at_most_what_passes_as_one_batch() -> None:
    ours, theirs = estimates("recalibrated:target", SPLITS._replace(matched=False))
    assert (ours.parts, theirs.parts) == ((("id", 200),), (("target:far", 300),))
    large = Splits({"id": 5000, "target:far": 5000}, 5000, True)
    assert [each.images for each in estimates("recalibrated:target/mean", large)] == [1000, 1000]


@pytest.mark.parametrize(
    ("fraction", "expected"), [("0.5", (200, 200)), ("0.25", (200, 67)), ("0.8", (75, 300)), ("1", (0, 200))]
)
def test_a_mixture_has_its_fraction_as_far_as_the_images_go(fraction: str, expected: tuple[int, int]) -> None:
    ours, theirs = estimates(f"recalibrated:mixture@{fraction}")
    assert ours == theirs
    parts = dict(ours.parts)
    assert (parts.get("id", 0), parts["target:far"]) == expected


def test_layer_forms_choose_layers_in_order_of_execution() -> None:
    sets = Sets("id", pairs=[Pair("b", "c", "a", "d", "x", comparison="placebo")])  # there is none layer by layer
    forms = [parse_statistics([f"recalibrated:target/{form}"])[1] for form in ("mean", "only:1", "first:2")]
    assert [len(sets.pairs_of(form)) for form in forms] == [1, 0, 0]
    assert in_form("first:2", LAYERS) == ["a", "b"]
    assert in_form("last:3", LAYERS) == ["b", "c", "d"]
    assert [in_form(f"only:{k}", LAYERS) for k in range(4)] == [["a"], ["b"], ["c"], ["d"]]
    assert in_form("first:4", LAYERS) == in_form("last:4", LAYERS) == in_form("mean", LAYERS) == LAYERS
    for beyond in ("first:5", "last:5", "only:4"):
        with pytest.raises(UserError, match=f"target/{beyond}: the network runs 4 BatchNorm layers"):
            in_form(beyond, LAYERS)
