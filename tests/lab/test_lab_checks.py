"""The checks of the lab, from tables whose effects are known."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from bnood.errors import UserError
from bnood.evaluation.intervals import Unusable
from bnood.lab.checks import Check, check_lab, checks_table, inside
from bnood.lab.seed_figures import LabFigures, replicates
from bnood.lab.thresholds import CheckOptions

SEEDS = (0, 1, 2)
NOISE = {0: -0.01, 1: 0.0, 2: 0.01}
LAYERS = 3
NORMS = ("none", "bn", "ln", "gn")
NETWORKS = [f"{act}-{norm}{end}" for act, end in (("sigmoid", ""), ("relu", ""), ("relu", "-high")) for norm in NORMS]
Known = dict[str, dict[str, float]]

# What the made-up networks do: the logarithm of the first layer's gradient relative to the last's, and so on.
HOLDS: Known = {
    "ratio": {"sigmoid-none": -4.0, "sigmoid-bn": 0.5, "sigmoid-ln": -1.0, "sigmoid-gn": -0.5, "relu-none": 0.0},
    "accuracy": {
        **{"sigmoid-none": 0.1, "sigmoid-bn": 0.5, "sigmoid-ln": 0.4, "sigmoid-gn": 0.45},
        **{"relu-none": 0.5, "relu-bn": 0.51, "relu-ln": 0.5, "relu-gn": 0.5},
    },
    "dead": {"relu-none-high": 0.5, "relu-bn-high": 0.0, "relu-ln-high": 0.1, "relu-gn-high": 0.2},
    "offset_trained": {"sigmoid-bn": 0.1},
}


def tables(known: Known, seeds: tuple[int, ...] = SEEDS, architectures: tuple[str, ...] = ("mlp",)) -> LabFigures:
    """Tables as the lab writes them, in which each network has its known figures, plus the seed's noise."""
    rows: list[dict[str, Any]] = []
    accuracy: list[dict[str, Any]] = []
    for architecture in architectures:
        for name in sorted(NETWORKS):
            for seed in seeds:
                key = {"network": f"{architecture}-{name}", "architecture": architecture, "seed": seed}
                # Each network has noise of its own: seeds that do not differ at all decide nothing.
                noise = NOISE[seed] * (1 + 0.1 * sorted(NETWORKS).index(name))
                for epoch in (0.0, 1.0, 2.0):
                    at = {**key, "step": int(10 * epoch), "epoch": epoch, "layers": LAYERS}
                    trained = epoch == 2
                    # After the first epoch the ratio is another one: it must not count.
                    ratio = known["ratio"].get(name, 0.0) + noise if epoch <= 1 else 9.0
                    for layer in range(1, LAYERS + 1):
                        norm = 10 ** (ratio * (LAYERS - layer) / (LAYERS - 1))
                        dead = known["dead"].get(name, 0.0) * (1 + noise) if trained else 0.0
                        offset = known["offset_trained"].get(name, 2.0) * (1 + noise) if trained else 2.0
                        values = {
                            "gradient_norm": norm,
                            "dead_share": min(1.0, dead * layer / 2),  # its mean over three layers is dead
                            "running_offset": offset if layer == LAYERS else 50.0,
                            "running_mean": 0.3,  # the units' spread is 1.5 untrained and 3 trained
                            "running_std": np.sqrt((3 if trained else 1.5) ** 2 * (1 + offset**2) - 0.09),
                            "linear_offset": 2.0,
                            "preactivation_offset": 0.0,
                        }
                        rows += [{**at, "layer": layer, "quantity": q, "value": v} for q, v in values.items()]
                    if epoch:
                        best = known["accuracy"].get(name, 0.1) + noise * 0.1
                        accuracy.append({**at, "validation_accuracy": best if trained else 0.99})
    return LabFigures(pd.DataFrame(rows), pd.DataFrame(accuracy))


def checked(lab: LabFigures, **options: float) -> dict[str, Check]:
    return {check.check: check for check in check_lab(lab, CheckOptions(**options))}


def changed(**changes: dict[str, float]) -> Known:
    return {name: {**figures, **changes.get(name, {})} for name, figures in HOLDS.items()}


def test_where_all_statements_hold_all_are_supported() -> None:
    found = checked(tables(HOLDS))
    assert {name: check.verdict for name, check in found.items()} == dict.fromkeys("abcdef", "supported")


FAILS = [
    ("a", changed(ratio={"sigmoid-none": -0.2})),
    ("b", changed(ratio={"sigmoid-ln": -4.0})),
    ("b", changed(accuracy={"sigmoid-bn": 0.11})),
    ("c", changed(accuracy={"relu-bn": 0.6})),
    ("c", changed(accuracy={"relu-bn": 0.4})),
    ("d", changed(offset_trained={"sigmoid-bn": 1.9})),
    ("e", changed(dead={"relu-none-high": 0.01})),
    ("e", changed(dead={"relu-ln-high": 0.5})),
    ("f", changed(accuracy={"sigmoid-gn": 0.3})),
    ("f", changed(accuracy={"sigmoid-gn": 0.6})),
    ("f", changed(ratio={"sigmoid-gn": 3.0})),
]


@pytest.mark.parametrize(("letter", "known"), FAILS)
def test_where_a_part_fails_its_check_is_refuted(letter: str, known: Known) -> None:
    assert checked(tables(known))[letter].verdict == "refuted"


def test_the_interval_is_students_over_seeds() -> None:
    (untrained, _) = checked(tables(HOLDS))["a"].estimates["mlp"]
    noise = 0.01 * (1 + 0.1 * sorted(NETWORKS).index("sigmoid-none"))
    values = np.array([-4 - noise, -4, -4 + noise])
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert (untrained.effect, untrained.low, untrained.high) == pytest.approx((-4.0, low, high))
    assert untrained.per_seed == pytest.approx(dict(enumerate(values)))
    dead = checked(tables(HOLDS))["e"].estimates["mlp"][0]
    assert dead.effect == pytest.approx(0.5)


def test_centre_and_spread_are_told_apart() -> None:
    controls = {one.quantity: one for one in checked(tables(HOLDS))["d"].controls["mlp"]}
    centre = controls["the units' means alone, log10 of their root mean square, change"]
    assert centre.effect == pytest.approx(np.log10(0.1 * 3 / (2 * 1.5)), abs=0.02) and centre.verdict == ""
    spread = controls["the units' standard deviations alone, the same"]
    assert spread.effect == pytest.approx(np.log10(2))


def test_one_seed_decides_nothing() -> None:
    found = checked(tables(HOLDS, seeds=(1,)))
    assert {check.verdict for check in found.values()} == {"inconclusive"}
    assert "one seed only, so that there is no interval over seeds" in found["a"].sentence


def test_nets_that_are_all_at_chance_decide_about_accuracy() -> None:
    lab = tables(HOLDS)
    stuck = lab.accuracy["network"].isin(["mlp-sigmoid-none", "mlp-sigmoid-ln"])
    accuracy = lab.accuracy.assign(validation_accuracy=lab.accuracy["validation_accuracy"].mask(stuck, 0.1))
    check = checked(lab._replace(accuracy=accuracy))["b"]
    assert check.verdict == "refuted"
    assert check.notes == ["Of LN: gain, every seed gave exactly the same figure"]


def test_an_effect_at_its_threshold_is_inconclusive() -> None:
    check = checked(tables(HOLDS), starved=4.0)["a"]
    assert check.verdict == "inconclusive"
    assert check.notes[0].startswith("Not decided: log10(first / last gradient), untrained")
    assert check.notes[0].endswith(", because the interval contains -4") and f" {check.notes[0]}." in check.sentence


def test_architectures_that_go_both_ways_are_inconclusive() -> None:
    mlp, plain = tables(HOLDS), tables(changed(ratio={"sigmoid-none": 0.0}), architectures=("plain",))
    lab = LabFigures(*(pd.concat([one, other]) for one, other in zip(mlp[:2], plain[:2], strict=True)))
    check = checked(lab)["a"]
    assert check.by_architecture() == {"mlp": "supported", "plain": "refuted"} and check.verdict == "inconclusive"


def test_diverged_seeds_have_no_trained_figures() -> None:
    lab = tables(HOLDS)._replace(diverged=frozenset({("mlp-relu-none-high", 2)}))
    check = checked(lab)["e"]
    assert set(check.estimates["mlp"][0].per_seed) == {0, 1}
    assert set(check.estimates["mlp"][1].per_seed) == {0, 1} and "Seeds without a figure: 2" in check.sentence
    assert checked(lab)["a"].verdict == "supported"


def test_what_the_lab_lacks_is_said() -> None:
    lab = tables(HOLDS)
    without = [frame[~frame["network"].str.endswith("high")] for frame in lab[:2]]
    check = checked(LabFigures(*without))["e"]
    assert check.verdict == "inconclusive" and "the lab has no dead_share of mlp-relu-none-high" in check.sentence
    assert math.isnan(check.estimates["mlp"][0].effect)


def test_the_table_has_every_estimate_and_control() -> None:
    checks = check_lab(tables(HOLDS), CheckOptions())
    table = checks_table(checks)
    total = sum(
        len(found) for check in checks for group in (check.estimates, check.controls) for found in group.values()
    )
    assert len(table) == total and set(table["role"]) == {"estimate", "control"}
    first = table.iloc[0]
    assert (first["check"], first["architecture"], first["check_verdict"]) == ("a", "mlp", "supported")
    assert first["per_seed"].split()[1] == "1:-4" and first["effect"] == pytest.approx(-4)
    assert (table.loc[table["role"] == "control", "verdict"] == "").all()


def test_between_two_others_whichever_is_higher() -> None:
    low, middle, high = (replicates(pd.Series([value, value + 0.1], index=[0, 1])) for value in (0.0, 0.3, 1.0))
    for one, other in ((low, high), (high, low)):
        assert inside(middle, one, other, -1).values == pytest.approx([0.3, 0.3])
        assert inside(middle, one, other, 1).values == pytest.approx([0.7, 0.7])


def test_what_cannot_be_checked() -> None:
    with pytest.raises(Unusable, match="no seed has a figure"):
        replicates(pd.Series([float("nan")], index=[0]))
    with pytest.raises(UserError, match=r"checks\.level is 1"):
        CheckOptions(level=1)
    with pytest.raises(UserError, match=r"checks\.lost is -1"):
        CheckOptions(lost=-1)
