"""The tables: every value computed again by scikit-learn and NumPy from the rows of the per-image table alone."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from small_evaluation import Cell, Recorded, recorded, small_network, small_set, small_sets
from test_metrics import oracle_metrics

from bnood.errors import UserError
from bnood.evaluation.intervals import interval, set_counts
from bnood.evaluation.metrics import DETECTION_METRICS as DETECTION
from bnood.evaluation.tables import COLUMNS, REPLICATE_COLUMNS, Scored, Tables, Where
from bnood.networks.network import Outputs

RESAMPLES, SEED = 40, 5
OPTIONS: dict[str, Any] = {
    **{"statistics": ("running", "batch:16", "batch:16@0.25", "recalibrated"), "shuffles": 2},
    **{"detectors": ("msp", "energy", "max_logit"), "calibration_images": 64, "forward_batch": 64},
    **{"resamples": RESAMPLES, "seed": SEED},
}


def make(sets: dict[str, Any] | None = None, **changes: Any) -> Recorded:
    return recorded(small_network(seed=7), sets or small_sets(), **{**OPTIONS, **changes})


@pytest.fixture(scope="module")
def made() -> Recorded:
    return make()


def pairs(made: Recorded, row: pd.Series) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The ID and OOD rows that a detection row compares, one pair per shuffle, by the rules of the files."""
    scores = made.found.scores
    same = scores[scores["statistics"] == row["statistics"]]
    ood = same[same["dataset"] == row["dataset"]]
    known = same[same["role"] == "id"]
    beside = known["companion"] == row["dataset"]
    known = known[beside if beside.any() else known["companion"] == ""]
    return [(known[known["shuffle"] == s], ood[ood["shuffle"] == s]) for s in sorted(ood["shuffle"].unique())]


def place(made: Recorded, side: pd.DataFrame) -> np.ndarray:
    """Where images stand in the set that was scored; the table says where in the set that this was chosen from."""
    return np.searchsorted(made.scored[side["dataset"].iloc[0]].index, side["index"])


def test_detection_values_are_scikit_learns_on_the_rows_of_the_per_image_table(made: Recorded) -> None:
    rows = made.found.table[made.found.table["metric"].isin(DETECTION)]
    # running, pure, mixed, recalibrated:id, :target and :mixture, on two sets, three detectors and five metrics each
    assert len(rows) == 6 * 2 * 3 * 5
    assert set(rows["role"]) == {"ood"} and set(rows["comparison"]) == {"ood"}
    for _, row in rows.iterrows():
        joined = pairs(made, row)
        assert len(joined) == (2 if row["statistics"].startswith("batch") else 1)
        values = [oracle_metrics(known[row["detector"]], ood[row["detector"]])[row["metric"]] for known, ood in joined]
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-12)
        assert (row["n_ood"], row["n_id"]) == (len(joined[0][1]), len(joined[0][0]))


def cells_of(made: Recorded, *key: str) -> list[Cell]:
    """By statistics, companion, dataset and role."""
    where = [(c.where.statistics, c.where.companion, c.where.dataset, c.where.role) for c in made.cells]
    return [cell for cell, own in zip(made.cells, where, strict=True) if own == key]


def test_figures_of_a_set_are_numpys_on_its_logits(made: Recorded) -> None:
    keys = ["statistics", "companion", "dataset", "role"]
    alone = made.found.table[~made.found.table["metric"].isin(DETECTION)]
    assert alone.groupby(keys).ngroups == 3 + 3 + 4 + 3 + (3 + 2) + 4
    for key, rows in alone.groupby(keys, sort=False):
        cells = cells_of(made, *key)
        assert cells and (rows["n_id"] + rows["n_ood"] == len(cells[0].index)).all()
        assert (rows["n_ood"] == 0).all() == (key[3] == "id")
        expected: dict[tuple[str, str], list[float]] = {}
        for cell in cells:
            logits = cell.logits.numpy().astype(np.float64)
            msp, energy = softmax(logits, axis=1).max(axis=1), logsumexp(logits, axis=1)
            means = {"msp": msp, "energy": energy, "max_logit": logits.max(axis=1)}
            found = {(name, "mean"): values.mean() for name, values in means.items()}
            found["msp", "share_above_0.9"] = (msp > 0.9).mean()
            if cell.where.role == "id":
                labels = made.scored["known"].labels[cell.index]
                right = logits.argmax(axis=1) == labels
                found["", "accuracy"] = right.mean()
                found["", "nll"] = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
                bins = np.minimum((msp * 15).astype(int), 14)
                of_bins = [(right[bins == b].mean(), msp[bins == b].mean(), (bins == b).mean()) for b in set(bins)]
                found["", "ece"] = sum(abs(accuracy - mean) * share for accuracy, mean, share in of_bins)
            for name, value in found.items():
                expected.setdefault(name, []).append(value)
        actual = {(row["detector"], row["metric"]): row["value"] for _, row in rows.iterrows()}
        activations = {name for detector, name in actual if detector == "units"}
        of_ood = {"class_mix_effective_n", "class_mix_max_ratio"} if key[3] == "ood" else set()
        assert activations - of_ood == {"unit_mean_spread_ratio", "unit_mean_max_ratio", "share_above_id_p99"}
        assert ("class_mix_effective_n" in activations) == bool(of_ood)
        assert {name for name in actual if name[0] != "units"} == expected.keys()
        for name, values in expected.items():
            assert actual[name] == pytest.approx(np.mean(values), rel=1e-9), (key, name)


def test_activations_are_relative_to_the_id_set_under_running_statistics(made: Recorded) -> None:
    reference = made.cells[0].features.numpy().astype(np.float64).mean(axis=0)
    rows = made.found.table[made.found.table["detector"] == "units"]
    own = rows[(rows["statistics"] == "running") & (rows["role"] == "id")].set_index("metric")
    assert (own.loc[["unit_mean_spread_ratio", "unit_mean_max_ratio"], ["value", "low", "high"]] == 1).all(axis=None)
    assert own.loc["share_above_id_p99", "value"] == pytest.approx(1 / 70)  # of 70 images, the highest alone
    of_id = made.cells[0].logits.argmax(1).numpy()
    for statistics in ("running", "recalibrated:target"):
        (cell,) = cells_of(made, statistics, "", "far", "ood")
        values = rows[(rows["statistics"] == statistics) & (rows["dataset"] == "far")].set_index("metric")["value"]
        means, sorted_into = cell.features.numpy().mean(axis=0, dtype=np.float64), cell.logits.argmax(1).numpy()
        assert values["unit_mean_max_ratio"] == pytest.approx(means.max() / reference.max())
        assert values["unit_mean_spread_ratio"] == pytest.approx(means.std(ddof=1) / reference.std(ddof=1))
        # Kish: images of a class weigh alike, so that the mix of classes is the OOD set's.
        weights = np.array([(sorted_into == label).mean() / (of_id == label).sum() for label in of_id])
        assert values["class_mix_effective_n"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


@pytest.mark.parametrize("statistics", ["running", "batch:16", "batch:16@0.25"])
def test_intervals_are_those_of_a_bootstrap_that_repeats_images(made: Recorded, statistics: str) -> None:
    """A set is resampled by its name and the seed, the same for all conditions and shuffles."""
    of_id = set_counts("known", 70, RESAMPLES, SEED)[1:]
    of_far = set_counts("far", 50, RESAMPLES, SEED)[1:]
    rows = made.found.table[made.found.table["statistics"] == statistics]
    rows = rows[rows["dataset"] == "far"].set_index(["detector", "metric"])
    for metric in ("auroc", "fpr95"):
        row = rows.loc["energy", metric]
        joined = pairs(made, row)
        resampled = []
        for draw in range(RESAMPLES):
            counts = of_id[draw], of_far[draw]
            sides = [[*zip(pair, counts, strict=True)] for pair in joined]
            drawn = [[np.repeat(side["energy"], of[place(made, side)]) for side, of in pair] for pair in sides]
            resampled.append(np.mean([oracle_metrics(*both)[metric] for both in drawn]))
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
    row, far = rows.loc["msp", "mean"], [ood["msp"].to_numpy() for _, ood in joined]
    counts = [of_far[:, place(made, ood)].astype(float) for _, ood in joined]
    means = np.mean([weights @ msp / weights.sum(axis=1) for weights, msp in zip(counts, far, strict=True)], axis=0)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_table_has_its_columns_and_names_the_run(made: Recorded) -> None:
    table = made.found.table
    assert tuple(table.columns) == COLUMNS
    assert set(table["run"]) == {"small"} and set(table["norm"]) == {"bn"} and set(table["seed"]) == {7}
    changes = ["difference", "difference_low", "difference_high"]
    assert not table.drop(columns=changes).isna().any().any()
    assert (table[changes].isna().all(axis=1) == (table["statistics"] == "running")).all()
    keys = ["statistics", "dataset", "role", "companion", "comparison", "detector", "metric"]
    assert not table.duplicated(keys).any()
    by_statistics = table.groupby("statistics")[["estimator", "n_calibration"]].agg(set)
    assert by_statistics.loc["running"].tolist() == [{""}, {0}]
    assert by_statistics.loc["recalibrated:target"].tolist() == [{"one_pass"}, {64, 50, 32}]


def test_the_per_image_table_has_each_image_of_each_cell(made: Recorded) -> None:
    scores = made.found.scores
    assert len(scores) == sum(len(cell.index) for cell in made.cells)
    assert not scores.duplicated(["statistics", "shuffle", "companion", "dataset", "index"]).any()
    assert (scores.loc[scores["role"] == "ood", "label"] == -1).all()
    known = scores[scores["role"] == "id"]
    given = small_sets()
    assert (known["label"].to_numpy() == given["id_set"].labels[known["index"]]).all()
    far = scores[(scores["dataset"] == "far") & (scores["statistics"] == "running")]["index"]
    assert np.array_equal(given["ood_sets"]["far"].images[far], made.scored["far"].images)
    for key, rows in scores.groupby(["statistics", "companion", "dataset", "role"], sort=False):
        predictions = torch.cat([cell.logits for cell in cells_of(made, *key)]).argmax(dim=1)
        assert rows["prediction"].tolist() == predictions.tolist()
    assert (scores[["msp", "energy", "max_logit"]].dtypes == np.float64).all()


def test_an_id_set_without_labels_has_no_accuracy() -> None:
    sets = small_sets()
    table = make({**sets, "id_set": replace(sets["id_set"], labels=None)}, statistics=("running",)).found.table
    assert not table["metric"].isin(["accuracy", "nll", "ece"]).any()
    assert (table["metric"] == "auroc").sum() == 2 * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_name_set_and_condition(value: float) -> None:
    network = small_network()
    head = network.model.network.head

    def spoil(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(0, torch.tensor([3]), value) if len(logits) == 50 else logits

    network.probe(torch.from_numpy(small_set("any", 8, 1).images))
    head.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"^far under running: .*1 of 50 images.*image 3") as raised:
        recorded(network, small_sets(), **{**OPTIONS, "statistics": ("running",)})
    assert "\n" not in str(raised.value)


def test_an_ood_set_whose_id_partner_filled_no_batch_has_no_detection_rows() -> None:
    found = make(small_sets(12, (("far", 40),)), statistics=("batch:16", "batch:16@0.25"), shuffles=1).found.table
    pure = found[found["statistics"] == "batch:16"]
    assert set(pure["dataset"]) == {"far"}
    assert not pure["metric"].isin(DETECTION).any() and ("mean" in set(pure["metric"]))
    assert (found.loc[found["statistics"] == "batch:16@0.25", "metric"] == "auroc").sum() == 3


def test_a_scored_half_of_one_image_is_no_obstacle() -> None:
    found = make(small_sets(20, (("far", 2),))).found.table
    assert set(found.loc[found["dataset"] == "far", "n_ood"]) == {1}
    assert not found[["value", "low", "high"]].isna().any().any()


def test_features_are_let_go_once_a_set_is_summed_up(made: Recorded) -> None:
    """Memory must not grow by a set's features with every condition."""
    tables = Tables({"known": made.scored["known"]}, {"known": "id"}, 10, 0)
    given = Outputs(made.cells[0].logits.clone(), made.cells[0].features.clone())
    held = [weakref.ref(given.features.untyped_storage()), weakref.ref(given.features), weakref.ref(given)]
    scored = tables.summed_up("known", np.arange(70), given)
    del given
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)
    assert all(values.ndim == 1 for values in (*scored.scores.values(), *scored.figures.values()))


def test_replicates_give_the_intervals_of_the_table(made: Recorded) -> None:
    table, replicates = made.found.table, made.found.replicates
    assert tuple(replicates.columns) == REPLICATE_COLUMNS
    both = [name for name in REPLICATE_COLUMNS if name != "replicates"]
    pd.testing.assert_frame_equal(replicates[both], table[both])
    assert {(len(each), each.dtype) for each in replicates["replicates"]} == {(RESAMPLES, np.dtype(np.float64))}
    bounds = np.percentile(np.stack(replicates["replicates"].tolist()), [2.5, 97.5], axis=1)
    np.testing.assert_allclose(table[["low", "high"]].to_numpy().T, bounds, rtol=1e-12)
    assert list(zip(table["low"], table["high"], strict=True)) == [interval(each) for each in replicates["replicates"]]


def test_differences_are_paired_with_the_same_set_under_running(made: Recorded) -> None:
    """Computed again from the replicates alone: a set's minus its own, image by image the same resamples."""
    replicates, table = made.found.replicates, made.found.table
    keys = ["dataset", "role", "detector", "metric"]
    running = replicates[replicates["statistics"] == "running"].set_index(keys)
    assert not running.index.duplicated().any()
    others = replicates[replicates["statistics"] != "running"]
    assert len(others) > 200
    for index, other in others.iterrows():
        before, row = running.loc[tuple(other[keys])], table.loc[index]
        if other["metric"] == "class_mix_max_ratio" and tuple(other[keys]) not in running.index:
            continue
        assert row["difference"] == other["value"] - before["value"]
        low, high = np.percentile(other["replicates"] - before["replicates"], [2.5, 97.5])
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high), rel=1e-12, abs=1e-15)
    beside = table[(table["dataset"] == "known") & (table["companion"] == "far")]
    assert set(beside["statistics"]) == {"batch:16@0.25", "recalibrated:target", "recalibrated:mixture@0.5"}


def test_results_do_not_depend_on_the_other_sets_nor_their_order(made: Recorded) -> None:
    sets = small_sets()
    turned = {**sets, "ood_sets": {name: sets["ood_sets"][name] for name in ("near", "far")}}
    alone = {**sets, "ood_sets": {"near": sets["ood_sets"]["near"]}}
    keys = ["statistics", "companion", "dataset", "role", "detector", "metric"]
    expected = made.found.replicates.set_index(keys)["replicates"]
    for other in (turned, alone):
        found = make(other).found.replicates.set_index(keys)["replicates"]
        assert len(found) > 50
        for key, values in found.items():
            np.testing.assert_array_equal(values, expected[key])
    assert not np.array_equal(set_counts("near", 40, RESAMPLES, SEED), set_counts("far", 40, RESAMPLES, SEED))


def test_a_control_that_one_shuffle_lacks_has_no_row() -> None:
    tables = Tables({"far": small_set("far", 4, 1)}, {"far": "ood"}, 2, 0)
    control, mean, index = ("units", "class_mix_max_ratio"), ("msp", "mean"), np.arange(4)
    both, lacking = (
        Scored("far", index, index, {}, {name: np.full(3, value) for name in names})
        for value, names in ((1.0, (control, mean)), (2.0, (mean,)))
    )
    tables.add(Where("running", "", 0, "far", "ood"), [both, lacking])
    (row,) = tables.results({}, {}, ["running"])[0].to_dict("records")
    assert (row["detector"], row["metric"], row["value"]) == ("msp", "mean", 1.5)
