"""From outcomes to the table of effects: against NumPy on images that are resampled one by one."""

import numpy as np
import pytest
import torch

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.bootstrap import resample_counts, set_counts
from bnood.evaluation.interventions.effects import COLUMNS, KEYS, Effects, Outcome, Place
from bnood.evaluation.interventions.segments import Outputs
from bnood.evaluation.metrics import auroc, fpr95_ood_positive, fpr_at_tpr
from bnood.evaluation.scores import energy, msp

RESAMPLES = 30
NONE, ALL = Place("none"), Place("all")
PURE, MIXED = Place("batch", "8", 8, 1.0), Place("batch", "8", 8, 0.5)
LABELS = np.random.default_rng(1).integers(0, 4, 50)


def image_set(name: str, n: int, labels: np.ndarray | None = None) -> ImageSet:
    return ImageSet(name, np.zeros((n, 1, 1, 3), np.uint8), labels)


def made(n: int, seed: int, level: float = 0.0) -> Outputs:
    rng = np.random.default_rng(seed)
    logits = rng.normal(level, 2, (n, 4)).astype(np.float32)
    return Outputs(torch.from_numpy(logits), torch.from_numpy(rng.gamma(2, 1 + level, (n, 6)).astype(np.float32)))


def collected(*outcomes: Outcome) -> Effects:
    effects = Effects(image_set("known", 50, LABELS), [image_set("far", 30)], RESAMPLES, seed=0)
    for outcome in outcomes:
        effects.add(outcome)
    return effects


KNOWN, FAR = np.arange(50), np.arange(30)
BEFORE = {"known": made(50, 0, 1.0), "far": made(30, 1)}
AFTER = {"known": made(50, 2, 1.5), "far": made(30, 3)}
NONES = [Outcome(NONE, "", "known", KNOWN, BEFORE["known"]), Outcome(NONE, "", "far", FAR, BEFORE["far"])]
ALLS = [Outcome(ALL, "", "known", KNOWN, AFTER["known"]), Outcome(ALL, "", "far", FAR, AFTER["far"])]


def drawn(name: str, n: int, resample: int) -> np.ndarray:
    """The images of a resample, each as often as it was drawn; resample 0 is the set itself."""
    return np.repeat(np.arange(n), set_counts(name, n, RESAMPLES, 0)[resample])


def test_values_changes_and_intervals_equal_numpy_on_the_images_that_were_drawn() -> None:
    effects = collected(*NONES, *ALLS)
    table, draws = effects.table(), effects.draws()
    assert table.columns.tolist() == COLUMNS and draws.columns.tolist() == [*KEYS, "draws"]

    def by_hand(outputs: dict[str, Outputs], metric: str, resample: int) -> float:
        far, known = drawn("far", 30, resample), drawn("known", 50, resample)
        if metric == "mean":
            return float(energy(outputs["far"].logits)[far].mean())
        if metric in ("auroc", "fpr95", "fpr95_ood_positive"):
            function = {"auroc": auroc, "fpr95": fpr_at_tpr, "fpr95_ood_positive": fpr95_ood_positive}[metric]
            return function(energy(outputs["known"].logits)[known], energy(outputs["far"].logits)[far])
        units = outputs["far"].features.double().numpy()[far].mean(axis=0)
        # The reference is the in-distribution set under none, in both.
        normal = BEFORE["known"].features.double().numpy()[known].mean(axis=0)
        if metric == "unit_mean_max_ratio":
            return float(units.max() / normal.max())
        return float(units.std(ddof=1) / normal.std(ddof=1))

    for score, metric in [("energy", m) for m in ("mean", "auroc", "fpr95", "fpr95_ood_positive")] + [
        ("penultimate", m) for m in ("unit_mean_max_ratio", "unit_mean_spread_ratio")
    ]:
        chosen = (table.kind == "all") & (table.dataset == "far") & (table.score == score) & (table.metric == metric)
        (row,) = table[chosen].itertuples()
        values = np.array([by_hand(AFTER, metric, r) for r in range(RESAMPLES + 1)])
        before = np.array([by_hand(BEFORE, metric, r) for r in range(RESAMPLES + 1)])
        np.testing.assert_allclose(draws.draws[row.Index], values[1:], rtol=1e-6)
        assert row.value == pytest.approx(values[0])
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(values[1:], [0.025, 0.975])))
        assert row.change == pytest.approx(values[0] - before[0])
        change = tuple(np.quantile((values - before)[1:], [0.025, 0.975]))
        assert (row.change_low, row.change_high) == pytest.approx(change)
        assert (row.role, row.n, row.n_id) == (
            "ood",
            30,
            50 if metric in ("auroc", "fpr95", "fpr95_ood_positive") else 0,
        )


def test_every_energy_one_higher_is_a_change_of_exactly_one_with_no_width() -> None:
    higher = Outputs(BEFORE["far"].logits + 1, BEFORE["far"].features)
    table = collected(*NONES, Outcome(ALL, "", "far", FAR, higher)).table()
    (row,) = table[(table.kind == "all") & (table.score == "energy")].itertuples()
    assert (row.change, row.change_low, row.change_high) == pytest.approx((1, 1, 1), abs=1e-6)
    assert row.high - row.low > 0.3


def test_in_distribution_images_have_an_accuracy_and_ood_images_none() -> None:
    table = collected(*NONES, *ALLS).table()
    (row,) = table[(table.kind == "all") & (table.metric == "accuracy")].itertuples()
    right = AFTER["known"].logits.argmax(dim=1).numpy() == LABELS
    assert (row.dataset, row.role, row.value) == ("known", "id", pytest.approx(right.mean()))
    assert "auroc" not in set(table[table.role == "id"].metric)
    assert set(table[table.role == "ood"].groupby("kind").size()) == {3 + 2 + 2 * 3}


def test_a_part_of_a_set_is_compared_with_the_same_part_under_none() -> None:
    part, id_part = np.array([7, 3, 20, 11]), np.array([5, 40, 1])
    ids = Outcome(PURE, "", "known", id_part, AFTER["known"].at(id_part))
    table = collected(*NONES, ids, Outcome(PURE, "", "far", part, AFTER["far"].at(part))).table()
    rows = table[(table.kind == "batch") & (table.dataset == "far") & (table.score == "msp")].set_index("metric")
    after, before = (msp(outputs["far"].logits)[part] for outputs in (AFTER, BEFORE))
    assert rows.change["mean"] == pytest.approx(float(after.mean() - before.mean()))
    id_after, id_before = (msp(outputs["known"].logits)[id_part] for outputs in (AFTER, BEFORE))
    assert rows.change["auroc"] == pytest.approx(auroc(id_after, after) - auroc(id_before, before))
    assert (rows.n["auroc"], rows.n_id["auroc"]) == (4, 3)
    assert rows.share["auroc"] == 1.0 and rows.position["auroc"] == 8.0


def test_mixed_batches_are_told_from_the_images_that_were_in_them() -> None:
    half, other = np.arange(25), np.arange(25, 50)
    table = collected(
        *NONES,
        Outcome(PURE, "", "known", other, AFTER["known"].at(other)),
        Outcome(MIXED, "far", "known", half, AFTER["known"].at(half)),
        Outcome(MIXED, "", "far", FAR, AFTER["far"]),
    ).table()
    (row,) = table[(table.share == 0.5) & (table.score == "msp") & (table.metric == "auroc")].itertuples()
    assert row.value == pytest.approx(auroc(msp(AFTER["known"].logits)[half], msp(AFTER["far"].logits)))
    assert set(table[(table.share == 0.5) & (table.role == "id")].companion) == {"far"}


def test_what_comes_before_none_waits_for_it() -> None:
    sooner = collected(ALLS[0], NONES[0], ALLS[1], NONES[1]).table()
    later = collected(*NONES, *ALLS).table()
    keys = ["kind", "dataset", "score", "metric"]
    first, second = (table.sort_values(keys).reset_index(drop=True) for table in (sooner, later))
    assert first.equals(second) and len(first) == 2 * (6 + 11)


def test_draws_are_those_of_the_set_whatever_other_sets_there_are() -> None:
    effects = Effects(image_set("known", 50, LABELS), [image_set("else", 12), image_set("far", 30)], RESAMPLES, seed=0)
    for outcome in NONES:
        effects.add(outcome)
    draws, alone = effects.draws(), collected(*NONES).draws()
    assert np.array_equal(np.stack(draws.draws), np.stack(alone.draws))
    assert not np.array_equal(set_counts("far", 30, 5, 0)[1:], resample_counts(30, 5, 0))


def test_logits_that_are_not_finite_name_set_and_intervention() -> None:
    broken = Outputs(torch.full((30, 4), torch.nan), BEFORE["far"].features)
    with pytest.raises(UserError, match="far under only layer3: logits are NaN"):
        collected(*NONES, Outcome(Place("only", "layer3", 3), "", "far", FAR, broken))
    with pytest.raises(UserError, match="far under all: logits are NaN"):
        collected(*NONES, Outcome(ALL, "", "far", FAR, broken))
