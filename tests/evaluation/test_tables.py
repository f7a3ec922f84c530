"""The tables: every value computed again by scikit-learn and NumPy from the rows of the per-image table alone."""

import dataclasses
import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from small_evaluation import small_classifier, small_images

from bnood.errors import UserError
from bnood.evaluation.bootstrap import interval, set_counts
from bnood.evaluation.conditions import Cell, ConditionOptions, Conditions, Images
from bnood.evaluation.mitigations import Fitted, Mitigations
from bnood.evaluation.tables import COLUMNS, DRAWS_COLUMNS, Results, ScoredCell, Tables

OPTIONS = ConditionOptions(batch_sizes=(16,), shares=(0.25,), shuffles=2, calibration_images=64, forward_batch=64)
RESAMPLES, SEED = 40, 5
CONDITION = ["statistics", "composition", "batch_size"]


@dataclasses.dataclass
class Made:
    images: Images
    cells: list[Cell]
    tables: Tables
    results: Results

    @property
    def metrics(self) -> pd.DataFrame:
        return self.results.table


def make(
    images: Images,
    cells: list[Cell],
    resamples: int = RESAMPLES,
    seed: int = SEED,
    mitigations: Mitigations | None = None,
) -> Made:
    sets = [images.id_set, *(scored for _, scored in images.ood.values())]
    tables = Tables(sets, resamples, seed, mitigations)
    for cell in cells:
        tables.add(cell)
    return Made(images, cells, tables, tables.results("a-run", "bn", 7))


@pytest.fixture(scope="module")
def made() -> Made:
    images = small_images()
    return make(images, list(Conditions(small_classifier(), images, OPTIONS).cells()))


def pairs(made: Made, row: pd.Series) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The ID and OOD rows that a detection row compares, one pair per shuffle, by the rules of the files."""
    scores = made.tables.scores()
    same = scores[(scores[CONDITION] == row[CONDITION]).all(axis=1)]
    companion = row["dataset"] if row["composition"].startswith("mixed") else ""
    ood = same[same["dataset"] == row["dataset"]]
    known = same[(same["role"] == "id") & (same["companion"] == companion)]
    return [(known[known["shuffle"] == s], ood[ood["shuffle"] == s]) for s in sorted(ood["shuffle"].unique())]


def by_sklearn(metric: str, inside: np.ndarray, outside: np.ndarray) -> float:
    values = np.r_[inside, outside]
    is_id = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    if metric == "auroc":
        return float(roc_auc_score(is_id, values))
    if metric == "aupr_in":
        return float(average_precision_score(is_id, values))
    if metric == "aupr_out":
        return float(average_precision_score(1 - is_id, -values))
    positive_ood = metric == "fpr95_ood_positive"
    fpr, tpr, _ = roc_curve(
        1 - is_id if positive_ood else is_id, -values if positive_ood else values, drop_intermediate=False
    )
    return float(fpr[np.argmax(tpr >= 0.95)])


DETECTION = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out")


def test_detection_values_are_scikit_learns_on_the_rows_of_the_per_image_table(made: Made) -> None:
    rows = made.metrics[made.metrics["metric"].isin(DETECTION)]
    # running, pure, mixed, recalibrated:id, :target and :mixture, on two sets, three scores and five metrics each
    assert len(rows) == 6 * 2 * 3 * 5
    assert set(rows["role"]) == {"ood"}
    for _, row in rows.iterrows():
        joined = pairs(made, row)
        assert len(joined) == (2 if row["statistics"] == "batch" else 1)
        values = [by_sklearn(row["metric"], known[row["score"]], ood[row["score"]]) for known, ood in joined]
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-12)
        assert (row["n"], row["n_id"]) == (len(joined[0][1]), len(joined[0][0]))


def test_figures_of_a_set_are_numpys_on_its_logits(made: Made) -> None:
    keys = [*CONDITION, "companion", "dataset", "role"]
    for key, rows in made.metrics[~made.metrics["metric"].isin(DETECTION)].groupby(keys, sort=False):
        cells = [cell for cell in made.cells if tuple(getattr(cell, name) for name in keys) == key]
        assert cells and (rows["n"] == len(cells[0].index)).all()
        expected: dict[tuple[str, str], list[float]] = {}
        for cell in cells:
            logits = cell.logits.numpy().astype(np.float64)
            msp, energy = softmax(logits, axis=1).max(axis=1), logsumexp(logits, axis=1)
            found = {
                ("msp", "mean"): msp.mean(),
                ("energy", "mean"): energy.mean(),
                ("max_logit", "mean"): logits.max(axis=1).mean(),
                ("msp", "share_above_0.9"): (msp > 0.9).mean(),
            }
            if cell.role == "id":
                labels = made.images.id_set.labels[cell.index]
                right = logits.argmax(axis=1) == labels
                found["", "accuracy"] = right.mean()
                found["", "nll"] = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
                bins = np.minimum((msp * 15).astype(int), 14)
                found["", "ece"] = sum(
                    abs(right[bins == b].mean() - msp[bins == b].mean()) * (bins == b).mean() for b in set(bins)
                )
            for name, value in found.items():
                expected.setdefault(name, []).append(value)
        actual = {(row["score"], row["metric"]): row["value"] for _, row in rows.iterrows()}
        activations = {name for score, name in actual if score == "penultimate"}
        of_ood = {"class_mix_max_ratio"} if (rows["role"] == "ood").all() else set()
        assert activations == {"unit_mean_spread_ratio", "unit_mean_max_ratio", "share_above_id_p99"} | of_ood
        assert {name for name in actual if name[0] != "penultimate"} == expected.keys()
        for name, values in expected.items():
            assert actual[name] == pytest.approx(np.mean(values), rel=1e-9), (key, name)


def test_activations_are_relative_to_the_id_set_under_running_statistics(made: Made) -> None:
    reference = made.cells[0].features.numpy().astype(np.float64)
    p99 = np.percentile(made.cells[0].features.numpy(), 99, axis=0)
    rows = made.metrics[made.metrics["score"] == "penultimate"]
    own = rows[(rows["statistics"] == "running") & (rows["role"] == "id")].set_index("metric")
    for ratio in ("unit_mean_spread_ratio", "unit_mean_max_ratio"):
        assert (own.loc[ratio, ["value", "low", "high"]] == 1).all()
    assert own.loc["share_above_id_p99", "value"] == pytest.approx(1 / 70)  # of 70 images, the highest alone
    for statistics in ("running", "recalibrated:target"):
        features = next(c for c in made.cells if c.statistics == statistics and c.dataset == "far").features.numpy()
        values = rows[(rows["statistics"] == statistics) & (rows["dataset"] == "far")].set_index("metric")["value"]
        means = features.mean(axis=0, dtype=np.float64)
        assert values["unit_mean_max_ratio"] == pytest.approx(means.max() / reference.mean(axis=0).max())
        spread = means.std(ddof=1) / reference.mean(axis=0).std(ddof=1)
        assert values["unit_mean_spread_ratio"] == pytest.approx(spread)
        assert values["share_above_id_p99"] == pytest.approx((features > p99).mean())
        sorted_into = next(c for c in made.cells if c.statistics == statistics and c.dataset == "far").logits.argmax(1)
        of_id = made.cells[0].logits.argmax(1).numpy()
        mix = [(np.mean(sorted_into.numpy() == label), reference[of_id == label]) for label in set(of_id)]
        expected = sum(share * own.mean(axis=0) for share, own in mix) / sum(share for share, _ in mix)
        assert values["class_mix_max_ratio"] == pytest.approx(expected.max() / reference.mean(axis=0).max(), rel=1e-5)


def test_the_table_per_unit_is_numpys_on_the_first_shuffle(made: Made) -> None:
    units = made.tables.units()
    keys = [*CONDITION, "companion", "dataset", "role"]
    assert list(units.columns) == [*keys, "unit", "mean", "std", "max", "share_above_id_p99"]
    first = [cell for cell in made.cells if cell.shuffle == 0]
    assert len(units) == 32 * len(first)
    for (key, rows), cell in zip(units.groupby(keys, sort=False), first, strict=True):
        assert key == tuple(getattr(cell, name) for name in keys)
        features = cell.features.numpy().astype(np.float64)
        assert rows["unit"].tolist() == list(range(32))
        np.testing.assert_allclose(rows["mean"], features.mean(axis=0))
        np.testing.assert_allclose(rows["std"], features.std(axis=0, ddof=1))
        np.testing.assert_allclose(rows["max"], features.max(axis=0))


@pytest.mark.parametrize(("statistics", "composition"), [("running", ""), ("batch", "pure"), ("batch", "mixed 0.25")])
def test_intervals_are_those_of_a_bootstrap_that_repeats_images(made: Made, statistics: str, composition: str) -> None:
    """A set is resampled by its name and the seed, the same for all conditions and shuffles."""
    of_id = set_counts("known", 70, RESAMPLES, SEED)[1:]
    of_far = set_counts("far", 50, RESAMPLES, SEED)[1:]
    rows = made.metrics[(made.metrics["statistics"] == statistics) & (made.metrics["composition"] == composition)]
    rows = rows[rows["dataset"] == "far"].set_index(["score", "metric"])
    for metric in ("auroc", "fpr95"):
        row = rows.loc["energy", metric]
        joined = pairs(made, row)
        resampled = []
        for draw in range(RESAMPLES):
            values = [
                by_sklearn(
                    metric,
                    np.repeat(known["energy"].to_numpy(), of_id[draw][known["index"]]),
                    np.repeat(ood["energy"].to_numpy(), of_far[draw][ood["index"]]),
                )
                for known, ood in joined
            ]
            resampled.append(np.mean(values))
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
    row, far = rows.loc["msp", "mean"], [ood["msp"].to_numpy() for _, ood in joined]
    counts = [of_far[:, ood["index"]].astype(float) for _, ood in joined]
    means = np.mean([weights @ msp / weights.sum(axis=1) for weights, msp in zip(counts, far, strict=True)], axis=0)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_intervals_hold_their_values_and_follow_from_the_seed(made: Made) -> None:
    many = make(made.images, made.cells, resamples=1000)
    plain = many.metrics[
        ~many.metrics["metric"].isin(["ece", "unit_mean_spread_ratio", "unit_mean_max_ratio", "class_mix_max_ratio"])
    ]
    # The resampled ECE and the largest and the spread of means are biased upwards; all others scatter about the value.
    assert ((plain["low"] <= plain["value"]) & (plain["value"] <= plain["high"])).all()
    assert (plain["high"] > plain["low"]).mean() > 0.9
    pd.testing.assert_frame_equal(make(made.images, made.cells).metrics, made.metrics)
    other = make(made.images, made.cells, seed=SEED + 1).metrics
    assert (other["value"] == made.metrics["value"]).all()
    assert (other["low"] != made.metrics["low"]).mean() > 0.5


def test_the_metrics_have_their_columns_and_name_the_run(made: Made) -> None:
    assert tuple(made.metrics.columns) == COLUMNS
    assert set(made.metrics["run"]) == {"a-run"} and set(made.metrics["norm"]) == {"bn"}
    assert set(made.metrics["seed"]) == {7}
    assert not made.metrics.isna().any().any()
    keys = [name for name in COLUMNS if name not in ("value", "low", "high", "n", "n_id")]
    assert not made.metrics.duplicated(keys).any()


def test_the_per_image_table_has_each_image_of_each_cell(made: Made) -> None:
    scores = made.tables.scores()
    assert len(scores) == sum(len(cell.index) for cell in made.cells)
    assert not scores.duplicated([*CONDITION, "shuffle", "companion", "dataset", "index"]).any()
    assert (scores.loc[scores["role"] == "ood", "label"] == -1).all()
    known = scores[scores["role"] == "id"]
    assert (known["label"].to_numpy() == made.images.id_set.labels[known["index"]]).all()
    predictions = torch.cat([cell.logits for cell in made.cells]).argmax(dim=1)
    assert scores["prediction"].tolist() == predictions.tolist()
    assert (scores[["msp", "energy", "max_logit"]].dtypes == np.float64).all()


def test_an_id_set_without_labels_has_no_accuracy(made: Made) -> None:
    images = dataclasses.replace(made.images, id_set=dataclasses.replace(made.images.id_set, labels=None))
    found = make(images, made.cells[:3]).metrics
    assert not found["metric"].isin(["accuracy", "nll", "ece"]).any()
    assert (found["metric"] == "auroc").sum() == 2 * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_name_set_and_condition(made: Made, value: float) -> None:
    tables = Tables([made.images.id_set, made.images.ood["far"][1]], 10, 0)
    tables.add(made.cells[0])
    logits = made.cells[1].logits.clone()
    logits[3, 2] = value
    with pytest.raises(UserError, match=r"^far under running: .*1 of 50 images.*image 3") as raised:
        tables.add(dataclasses.replace(made.cells[1], logits=logits))
    assert "\n" not in str(raised.value)
    pure = next(cell for cell in made.cells if cell.composition == "pure")
    with pytest.raises(UserError, match=r"^known under batch pure: "):
        tables.add(dataclasses.replace(pure, logits=torch.full_like(pure.logits, value)))


def test_an_ood_set_whose_id_partner_filled_no_batch_has_no_detection_rows() -> None:
    images = small_images(12, (("far", 20, 20),))
    options = dataclasses.replace(OPTIONS, statistics=("batch",), shuffles=1)
    found = make(images, list(Conditions(small_classifier(), images, options).cells())).metrics
    pure = found[found["composition"] == "pure"]
    assert set(pure["dataset"]) == {"far"}
    assert not pure["metric"].isin(DETECTION).any() and ("mean" in set(pure["metric"]))
    assert (found.loc[found["composition"] == "mixed 0.25", "metric"] == "auroc").sum() == 3


def test_a_scored_half_of_one_image_is_no_obstacle() -> None:
    images = small_images(20, (("far", 1, 1),))
    found = make(images, list(Conditions(small_classifier(), images, OPTIONS).cells())).metrics
    far = found[(found["dataset"] == "far") & (found["statistics"] == "running")].set_index(["score", "metric"])
    assert far.loc[("energy", "auroc"), "n"] == 1
    assert not found[["value", "low", "high"]].isna().any().any()


def test_features_are_let_go_once_a_cell_is_scored(made: Made) -> None:
    """Memory must not grow by a set's features with every condition."""
    assert [field.name for field in dataclasses.fields(ScoredCell)] == ["index", "scores", "figures"]
    tables = Tables([made.images.id_set, made.images.ood["far"][1]], 10, 0)
    held = []
    for cell in made.cells[:2]:
        copied = dataclasses.replace(cell, logits=cell.logits.clone(), features=cell.features.clone())
        held += [weakref.ref(copied.features.untyped_storage()), weakref.ref(copied.features), weakref.ref(copied)]
        tables.add(copied)
    del copied
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)
    for scored in (each for cells in tables._cells.values() for each in cells):
        assert all(values.ndim == 1 for values in (*scored.scores.values(), *scored.figures.values()))


def test_draws_give_the_intervals_of_the_table(made: Made) -> None:
    table, draws = made.results.table, made.results.draws
    assert tuple(draws.columns) == DRAWS_COLUMNS
    both = [name for name in DRAWS_COLUMNS if name != "draws"]
    pd.testing.assert_frame_equal(draws[both], table[both])
    assert {(len(each), each.dtype) for each in draws["draws"]} == {(RESAMPLES, np.dtype(np.float64))}
    bounds = np.percentile(np.stack(draws["draws"].tolist()), [2.5, 97.5], axis=1)
    np.testing.assert_allclose(table[["low", "high"]].to_numpy().T, bounds, rtol=1e-12)
    exactly = [interval(each) for each in draws["draws"]]
    assert list(zip(table["low"], table["high"], strict=True)) == exactly


def test_differences_are_paired_with_the_same_set_under_running(made: Made) -> None:
    """Computed again from the draws alone: a set's draws minus its own, image by image the same resamples."""
    draws, found = made.results.draws, made.results.differences
    keys = ["dataset", "role", "score", "metric"]
    running = draws[draws["statistics"] == "running"].set_index(keys)
    assert not running.index.duplicated().any()
    others = draws[draws["statistics"] != "running"]
    assert tuple(found.columns) == COLUMNS and len(found) == len(others) > 200
    for (_, row), (_, other) in zip(found.iterrows(), others.iterrows(), strict=True):
        identity = [*CONDITION, "companion", *keys, "n", "n_id"]
        assert row[identity].tolist() == other[identity].tolist()
        before = running.loc[tuple(other[keys])]
        assert row["value"] == other["value"] - before["value"]
        low, high = np.percentile(other["draws"] - before["draws"], [2.5, 97.5])
        assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-12, abs=1e-15)
    beside = found[(found["dataset"] == "known") & (found["companion"] == "far")]
    assert set(beside["statistics"]) == {"batch", "recalibrated:mixture"}


def test_a_difference_of_means_is_the_mean_of_each_images_own_difference(made: Made) -> None:
    """Of the ID accuracy under recalibrated:id: the bootstrap of each image's own difference is the oracle."""
    scores = made.tables.scores()
    known = scores[(scores["dataset"] == "known") & (scores["companion"] == "")]
    right = {name: (part["prediction"] == part["label"]).to_numpy(float) for name, part in known.groupby("statistics")}
    change = right["recalibrated:id"] - right["running"]
    assert change.any()
    resampled = set_counts("known", 70, RESAMPLES, SEED)[1:].astype(float) @ change / 70
    found = made.results.differences.set_index(["statistics", "dataset", "companion", "metric"])
    row = found.loc["recalibrated:id", "known", "", "accuracy"]
    expected = (change.mean(), *np.percentile(resampled, [2.5, 97.5]))
    assert (row["value"].item(), row["low"].item(), row["high"].item()) == pytest.approx(expected, abs=1e-12)


def test_draws_do_not_depend_on_the_other_sets_nor_their_order(made: Made) -> None:
    images = made.images
    turned = dataclasses.replace(images, ood={name: images.ood[name] for name in ("near", "far")})
    alone = dataclasses.replace(images, ood={"near": images.ood["near"]})
    keys = [*CONDITION, "companion", "dataset", "role", "score", "metric"]
    expected = made.results.draws.set_index(keys)["draws"]
    for other in (turned, alone):
        cells = [cell for cell in made.cells if cell.dataset in (*other.ood, "known")]
        found = make(other, cells).results.draws.set_index(keys)["draws"]
        assert len(found) > 50
        for key in found[found.index.get_level_values("dataset") == "near"].index:
            np.testing.assert_array_equal(found[key], expected[key])
    assert not np.array_equal(set_counts("near", 40, RESAMPLES, SEED), set_counts("far", 40, RESAMPLES, SEED))


def test_mitigations_are_scored_under_running_only(made: Made) -> None:
    head = small_classifier().network.head
    weight, bias = (each.detach().double().numpy() for each in (head.weight, head.bias))
    found = make(made.images, made.cells, mitigations=Mitigations(Fitted(90, 0.3, 4.0, 9), weight, bias))
    scores = found.tables.scores()
    running = scores["statistics"] == "running"
    for cell in made.cells[:3]:
        rows = scores[running & (scores["dataset"] == cell.dataset)]
        logits = np.minimum(cell.features.numpy().astype(np.float64), 0.3) @ weight.T + bias
        np.testing.assert_allclose(rows["react"], logsumexp(logits, axis=1), rtol=1e-12)
        cooled = softmax(cell.logits.numpy().astype(np.float64) / 4, axis=1).max(axis=1)
        np.testing.assert_allclose(rows["msp_temperature"], cooled, rtol=1e-12)
        assert (rows["react"] < rows["energy"]).mean() != 0.5  # clipped somewhere, so that it is another score
    assert scores.loc[~running, ["react", "msp_temperature"]].isna().all(axis=None)
    table = found.metrics[found.metrics["score"].isin(["react", "msp_temperature"])]
    assert set(table["statistics"]) == {"running"}
    assert (table.groupby(["score", "dataset"]).size() == [6, 1, 6, 6, 1, 6]).all()  # known comes second by name
    row = table.set_index(["score", "dataset", "metric"]).loc["react", "far", "auroc"]
    inside, outside = (scores[running & (scores["dataset"] == name)]["react"] for name in ("known", "far"))
    assert row["value"] == pytest.approx(by_sklearn("auroc", inside.to_numpy(), outside.to_numpy()), abs=1e-12)
    # All else stays as it is without them.
    rest = found.metrics[~found.metrics["score"].isin(["react", "msp_temperature"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, made.metrics)
    assert not found.results.differences["score"].isin(["react", "msp_temperature"]).any()
