"""ReAct's picture: what its sentence says of all seeds and norms."""

import dataclasses

import pandas as pd
import pytest
from synthetic_study import make_study

from bnood.report.study_tables import StudyTables
from bnood.report.unit_panels import RATIO, _unit_sentence, unit_picture

FIGURES = {  # network, seed, set, statistics
    ("bn", 0, "svhn", "running"): 3.0,
    ("bn", 1, "svhn", "running"): 2.0,
    ("bn", 0, "svhn", "recalibrated:target"): 1.0,
    ("bn", 1, "svhn", "recalibrated:target"): 0.8,
    ("ln", 0, "svhn", "running"): 1.5,
    ("ln", 1, "svhn", "running"): 1.7,
    ("ln", 0, "noise", "running"): 2.0,
    ("ln", 1, "noise", "running"): 2.8,
    ("bn-at-ln", 0, "svhn", "running"): 9.0,
}


def numbers(kept: tuple[str, ...] = ("bn", "ln", "bn-at-ln"), seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    rows = [(*key, value) for key, value in FIGURES.items() if key[0] in kept and key[1] in seeds]
    return pd.DataFrame(rows, columns=["network", "seed", "set", "statistics", RATIO])


def test_all_seeds_and_the_networks_without_statistics_are_said() -> None:
    said = _unit_sentence(numbers())
    assert "under running and then under matched statistics," in said
    assert "2.50 (2.00 to 3.00) and 0.90 (0.80 to 1.00) on svhn; means over the seeds, their range in" in said
    assert said.endswith("Networks that keep no statistics: at most 2.40 (2.00 to 2.80) in ln (on noise).")
    assert "9.0" not in said, "a network that was stopped early is no other norm"


@pytest.mark.parametrize(
    ("kept", "seeds", "says"),
    [
        (("bn",), (0,), "In bn the largest per-unit mean is, under running and then under matched statistics, as a "
         "multiple of that on ID images: 3.00 and 1.00 on svhn."),
        (("ln",), (0,), "In ln the largest per-unit mean is as a multiple of that on ID images: 1.50 on svhn; 2.00 on "
         "noise."),
    ],
)  # fmt: skip
def test_one_seed_has_no_range_and_one_norm_no_other(kept: tuple[str, ...], seeds: tuple[int, ...], says: str) -> None:
    assert _unit_sentence(numbers(kept, seeds)) == says


def test_the_first_network_may_keep_none_itself() -> None:
    other = numbers(("ln",)).assign(network="gn")
    said = _unit_sentence(pd.concat([numbers(("ln",)), other]))
    assert said.endswith("Others: at most 2.40 (2.00 to 2.80) in gn (on noise).")


def test_titles_name_statistics_only_where_there_are_some() -> None:
    study: StudyTables = make_study(seeds=(0,), n=30)
    found = unit_picture(dataclasses.replace(study, layers=None))
    assert found is not None
    titles = {panel.choice: {other.title for other in found.seen(panel.choice)} for panel in found.panels}
    assert {"svhn under running statistics", "svhn under matched statistics"} <= titles["bn, seed 0"]
    assert titles["ln, seed 0"] == {"svhn", "dtd", "cifar100", "noise"}
    assert set(found.numbers["statistics"]) == {"running", "matched"}
