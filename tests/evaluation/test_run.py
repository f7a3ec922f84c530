"""Evaluating a run from the files of its sets to the files of its tables, on a small untrained network."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_evaluation import SIDE, identities, outputs, small_network, small_set

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.comparisons import arranged, fitting_images, in_proportion
from bnood.evaluation.detectors.ours import fit_temperature
from bnood.evaluation.evaluate import Evaluation, evaluate
from bnood.evaluation.options import EvaluationOptions, SetOptions
from bnood.evaluation.run import load_run_images

OPTIONS = EvaluationOptions(
    ("running", "batch:16", "batch:16@0.5", "recalibrated"), shuffles=1, calibration_images=32, resamples=20
)
TABLES = ["draws.parquet", "evaluation.json", "layers.csv", "scores.parquet", "table.csv", "units.parquet"]


def save(root: Path, split: str, images: ImageSet) -> None:
    (root / images.name).mkdir(parents=True, exist_ok=True)
    arrays = {"images": images.images} if images.labels is None else {"images": images.images, "labels": images.labels}
    np.savez(root / images.name / f"{split}.npz", **arrays)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a labelled ID set (train, test) and OOD sets of several sizes."""
    folder = tmp_path_factory.mktemp("data")
    save(folder, "train", small_set("known", 100, 1))
    save(folder, "test", small_set("known", 40, 2))
    for position, (name, n) in enumerate({"far": 51, "near": 40, "pair": 2, "lonely": 1}.items()):
        save(folder, "test", small_set(name, n, 20 + position, 60 + 60 * position, labels=name == "near"))
    return folder


def make_run(root: Path, **data: Any) -> Any:
    config = {"in_distribution": "known", "root": str(root), "ood": ["far", "near"], "validation": 30}
    config["image_size"] = SIDE
    return SimpleNamespace(config={"data": config | data, "seed_everything": 4}, name="small")


def load(run: Any, sets: SetOptions | None = None, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(**load_run_images(run, sets or SetOptions(), EvaluationOptions(**options)))


def evaluated(run: Any, sets: SetOptions | None = None, options: EvaluationOptions = OPTIONS) -> Evaluation:
    return evaluate(small_network(seed=4), options=options, **load_run_images(run, sets or SetOptions(), options))


@pytest.fixture(scope="module")
def evaluation(root: Path) -> Evaluation:
    return evaluated(make_run(root))


@pytest.mark.parametrize("split", ["test", "val"])
def test_calibration_scoring_held_out_and_training_images_are_kept_apart(root: Path, split: str) -> None:
    images = load(make_run(root), SetOptions(id_split=split))
    whole = identities(np.load(root / "known" / "train.npz")["images"])
    test = np.load(root / "known" / "test.npz")
    train, scored, held_out = (identities(each.images) for each in (images.train_set, images.id_set, images.held_out))
    assert len(train) == 70 and train < whole
    assert not (train & scored or train & held_out or scored & held_out)
    if split == "test":
        assert np.array_equal(images.id_set.images, test["images"])
        assert np.array_equal(images.id_set.labels, test["labels"])
        assert train | held_out == whole and len(held_out) == 30
    else:
        assert (len(scored), len(held_out)) == (24, 6) and train | scored | held_out == whole
    sets = arranged(images.id_set, images.train_set, images.held_out, images.ood_sets, {}, OPTIONS)
    assert identities(sets.adaptation["id"].images) < train and len(sets.adaptation["id"]) == 32
    halves = [identities(each.images) for each in (sets.adaptation["target:far"], sets.scored["far"])]
    assert [*map(len, halves)] == [25, 26]
    assert halves[0] | halves[1] == identities(np.load(root / "far" / "test.npz")["images"])


def test_fitting_images_are_balanced_and_not_those_of_the_statistics_where_n_allows() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    order = np.random.RandomState(0).permutation(100)
    chosen = fitting_images(labels, order, 40, 45)  # of class 2, the others among the 60 are too few
    assert np.bincount(labels[chosen]).tolist() == [18, 15, 12] and not set(chosen) & set(order[:40])
    assert sorted(fitting_images(labels, order, 40, 0)) == list(range(100))
    assert len(set(fitting_images(labels, order, 40, 80))) == 80
    kept = in_proportion(labels, 100, 10, 0)  # the held-out images keep the classes' proportion
    assert np.bincount(labels[kept]).tolist() == [5, 3, 2] and len(set(kept)) == 10


def test_an_id_set_that_was_trained_on_as_a_whole_is_refused(root: Path) -> None:
    run = make_run(root, in_distribution=str(root / "known" / "train.npz"))  # every split is the whole file
    with pytest.raises(UserError, match=r"train.npz has no test images of its own, small was trained on them"):
        load(run)


def test_the_record_says_how_the_tables_came_about(evaluation: Evaluation) -> None:
    record = evaluation.record
    assert record["run"] == "small" and record["id"] == {"name": "known", "n": 40}
    assert record["ood"] == {"far": {"adaptation": 25, "scored": 26}, "near": {"adaptation": 20, "scored": 20}}
    assert record["options"]["resamples"] == 20 and record["options"]["statistics"] == OPTIONS.statistics
    estimates = {"id:32": 32, "id:25": 25, "id:20": 20, "target:far:25": 25, "target:near:20": 20}
    assert record["estimator_images"] == {**estimates, "id:25+target:far:25": 50, "id:20+target:near:20": 40}
    assert record["detectors"].keys() == {"react", "temperature"} and record["held_out"] == 30
    assert record["notes"] == evaluation.notes == []
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["machine"] and json.dumps(record, allow_nan=False)
    assert set(evaluation.table["seed"]) == {4} and set(evaluation.table["run"]) == {"small"}


def test_react_and_temperature_are_fitted_on_held_out_images(root: Path, evaluation: Evaluation) -> None:
    held_out, fitted = load(make_run(root)).held_out, evaluation.record["detectors"]
    logits, features = outputs(small_network(seed=4).model, held_out.images)
    assert fitted["react"]["threshold"] == pytest.approx(np.percentile(features.double().numpy(), 90), rel=1e-4)
    assert fitted["temperature"]["temperature"] == pytest.approx(fit_temperature(logits, held_out.labels), rel=1e-3)


@pytest.mark.parametrize(
    ("split", "wanted", "held_out", "scored"),
    [("test", 1000, 30, 40), ("test", 10, 10, 40), ("val", 15, 15, 15), ("val", 16, 6, 24), ("val", 3, 3, 27)],
)
def test_how_many_images_are_held_out(root: Path, split: str, wanted: int, held_out: int, scored: int) -> None:
    options = replace(OPTIONS, held_out_images=wanted)
    images = load(make_run(root), SetOptions(id_split=split), held_out_images=wanted)
    sets = arranged(images.id_set, images.train_set, images.held_out, images.ood_sets, {}, options)
    assert (len(sets.held_out), len(images.id_set)) == (held_out, scored)
    assert len(identities(sets.held_out.images)) == held_out


def test_written_files_read_back_equal(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = evaluation.write(tmp_path / "runs" / "small" / "ood")
    assert set(TABLES) | {"report.html", "figures"} == {path.name for path in folder.iterdir()}
    scores, draws, units = (pd.read_parquet(folder / f"{name}.parquet") for name in ("scores", "draws", "units"))
    for column in scores:
        np.testing.assert_array_equal(scores[column], evaluation.scores[column])  # NaN where NaN was
    assert list(draws.columns) == list(evaluation.replicates.columns)
    np.testing.assert_array_equal(*(np.stack(each["replicates"].tolist()) for each in (draws, evaluation.replicates)))
    pd.testing.assert_frame_equal(units, evaluation.units, check_dtype=False)
    texts = evaluation.table.select_dtypes(["object", "string"]).columns
    table = pd.read_csv(folder / "table.csv").fillna(dict.fromkeys(texts, ""))
    pd.testing.assert_frame_equal(table, evaluation.table, check_dtype=False, rtol=1e-5)
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["id"] == evaluation.record["id"] and record["notes"] == []
    assert f"<title>{record['run']}</title>" in (folder / "report.html").read_text()
