"""Evaluating a run from the files of its sets to the files of its tables, on a small untrained network."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from limits import files_up_to
from small_evaluation import CLASSES, SIDE, identities, outputs, small_classifier, small_set

from bnood.data.image_set import ImageSet
from bnood.errors import UserError, one_line_errors
from bnood.evaluation.conditions import ConditionOptions
from bnood.evaluation.evaluate import Evaluation, SetOptions, evaluate, load_evaluation_images, write_evaluation
from bnood.evaluation.mitigations import fit_temperature
from bnood.training.run_folder import Run

OPTIONS = ConditionOptions(
    batch_sizes=(16,), shares=(0.5,), shuffles=1, calibration_images=32, forward_batch=50, estimator="sequential"
)
FILES = ["differences.csv", "draws.parquet", "evaluation.json", "scores.parquet", "table.csv", "units.parquet"]


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


def make_run(root: Path, **data: Any) -> Run:
    config = {
        "in_distribution": "known",
        "root": str(root),
        "ood": ["far", "near"],
        "validation": 30,
        "batch_size": 16,
        "image_size": SIDE,
    }
    everything = {"data": config | data, "model": {"norm": "bn"}, "seed_everything": 4}
    return Run(Path("runs/small"), everything, {}, small_classifier())


@pytest.fixture(scope="module")
def evaluation(root: Path) -> Evaluation:
    run = make_run(root)
    return evaluate(run, load_evaluation_images(run, SetOptions(), 0), OPTIONS, resamples=20)


@pytest.mark.parametrize("split", ["test", "val"])
def test_calibration_scoring_and_training_images_are_kept_apart(root: Path, split: str) -> None:
    images = load_evaluation_images(make_run(root), SetOptions(id_split=split), 0)
    train = identities(np.load(root / "known" / "train.npz")["images"])
    test = np.load(root / "known" / "test.npz")
    calibration, scored = identities(images.id_calibration.images), identities(images.id_set.images)
    assert len(images.id_calibration) == 70 and calibration < train
    assert not calibration & scored
    if split == "test":
        assert np.array_equal(images.id_set.images, test["images"])
        assert np.array_equal(images.id_set.labels, test["labels"])
        assert images.tuning is not None and len(images.tuning) == 30  # all that were held out
        assert calibration | identities(images.tuning.images) == train
    else:
        assert images.tuning is not None and (len(images.id_set), len(images.tuning)) == (24, 6)
        tuning = identities(images.tuning.images)
        assert not tuning & scored and calibration | scored | tuning == train
    for name, sizes in {"far": (25, 26), "near": (20, 20)}.items():
        first, second = (identities(half.images) for half in images.ood[name])
        assert (len(first), len(second)) == sizes
        assert not first & second
        assert first | second == identities(np.load(root / name / "test.npz")["images"])


def test_the_halves_and_the_calibration_images_follow_from_the_seed(root: Path) -> None:
    first, again, other = (load_evaluation_images(make_run(root), SetOptions(), seed) for seed in (0, 0, 1))
    for found, same in ((again, True), (other, False)):
        assert np.array_equal(found.id_calibration.images, first.id_calibration.images) == same
        assert np.array_equal(found.ood["far"][0].images, first.ood["far"][0].images) == same


def test_fewer_images_are_scored_on_request(root: Path) -> None:
    images = load_evaluation_images(make_run(root), SetOptions(id_count=12, ood_count=11, ood=("far",)), 0)
    assert len(images.id_set) == 12 and list(images.ood) == ["far"]
    assert tuple(len(half) for half in images.ood["far"]) == (5, 6)
    test = np.load(root / "known" / "test.npz")
    known = {image.tobytes(): label for image, label in zip(test["images"], test["labels"], strict=True)}
    assert [known[image.tobytes()] for image in images.id_set.images] == images.id_set.labels.tolist()
    more = load_evaluation_images(make_run(root), SetOptions(id_count=10_000, ood_count=10_000), 0)
    assert len(more.id_set) == 40 and sum(len(half) for half in more.ood["far"]) == 51


def test_another_data_root_takes_the_place_of_the_runs_own(root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "moved-away")
    with pytest.raises(UserError, match="known"):
        load_evaluation_images(run, SetOptions(), 0)
    assert len(load_evaluation_images(run, SetOptions(root=root), 0).id_set) == 40


@pytest.mark.parametrize(
    ("own", "asked", "found"), [(True, None, True), (True, False, False), (False, True, True), (False, None, False)]
)
def test_what_is_asked_of_an_evaluation_comes_before_the_runs_own(own: bool, asked: bool | None, found: bool) -> None:
    placed = SetOptions(download=asked).placed({"root": "there", "download": own, "image_size": 16})
    assert placed == {"root": Path("there"), "download": found, "image_size": 16}
    assert SetOptions(root=Path("here")).placed({"root": "there"}) == {"root": Path("here"), "download": False}


@pytest.mark.parametrize(
    ("data", "options", "named"),
    [
        ({}, {"ood": ("lonely",)}, "lonely: it has 1 image"),
        ({}, {"ood": ("far", "far")}, "'far' is already"),
        ({}, {"ood": ("known",)}, "'known' is already"),
        ({}, {"ood": ("fra",)}, "'fra' is no known set"),
        ({"ood": []}, {}, "no OOD set was named"),
        ({"image_size": 32}, {}, "known"),
    ],
)
def test_wrong_sets_are_named(root: Path, data: dict[str, Any], options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as raised:
        load_evaluation_images(make_run(root, **data), SetOptions(**options), 0)
    assert "\n" not in str(raised.value)


def test_id_sets_that_cannot_be_scored_are_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    save(tmp_path, "test", small_set("known", 1, 2))
    with pytest.raises(UserError, match="known: 1 image"):
        load_evaluation_images(make_run(tmp_path), SetOptions(), 0)
    many = small_set("known", 9, 2)
    save(tmp_path, "test", replace(many, labels=np.arange(9)))
    with pytest.raises(UserError, match=f"labels up to 8.*{CLASSES} classes"):
        load_evaluation_images(make_run(tmp_path), SetOptions(), 0)


def test_a_file_without_splits_cannot_test_what_it_trained(root: Path) -> None:
    """Every split of an .npz path is the whole file: its test images are those that the network was trained on."""
    run = make_run(root, in_distribution=str(root / "known" / "train.npz"))
    with pytest.raises(UserError, match=r"known: its test images are the training images.*val"):
        load_evaluation_images(run, SetOptions(), 0)
    images = load_evaluation_images(run, SetOptions(id_split="val"), 0)
    assert len(images.id_set) == 24 and images.id_set.name == "known"
    assert not identities(images.id_set.images) & identities(images.id_calibration.images)


def test_a_set_of_two_images_is_scored(root: Path) -> None:
    run = make_run(root)
    images = load_evaluation_images(run, SetOptions(ood=("pair",)), 0)
    table = evaluate(run, images, OPTIONS, resamples=10).table
    row = table.query("dataset == 'pair' and statistics == 'running' and score == 'energy' and metric == 'auroc'")
    assert row["n"].tolist() == [1] and row["n_id"].tolist() == [40]


@pytest.mark.parametrize("wrong", [{"id_split": "train"}, {"id_count": 1}, {"ood_count": 0}, {"tuning_images": -1}])
def test_set_options_that_make_no_sense_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SetOptions(**wrong)


def test_the_record_says_how_the_tables_came_about(evaluation: Evaluation) -> None:
    record = evaluation.record
    assert record["run"] == "small" and record["id"] == {"name": "known", "n": 40}
    assert record["ood"] == {"far": {"calibration": 25, "scored": 26}, "near": {"calibration": 20, "scored": 20}}
    options = record["options"]
    assert isinstance(options, dict)
    assert options["resamples"] == 20 and options["batch_sizes"] == (16,) and options["estimator"] == "sequential"
    names = {"id", "target:far", "target:near", "mixture:far", "mixture:near"}
    assert record["estimator_passes"].keys() == record["estimator_distance"].keys() == names  # type: ignore[attr-defined]
    # running and recalibrated:id and :target score 46 OOD images each, :mixture too; the ID set is scored 2 + 2 times
    # so; batches: 32 + 16 + 16 pure and, for each of two sets, as many batches of 8 + 8 as its 26 and 20 images fill;
    # and the mitigations are fitted on 30 held-out images once.
    assert record["images_scored"] == 4 * 46 + 4 * 40 + (32 + 16 + 16) + (3 * 16 + 2 * 16) + 30
    assert record["notes"] == evaluation.notes == []
    assert torch.__version__.startswith(record["versions"]["torch"])  # type: ignore[index]
    for name in ("seconds_forward", "seconds_metrics"):
        assert 0 < record[name] < 600  # type: ignore[operator]
    assert record["machine"] and "commit" in record
    json.dumps(record, allow_nan=False)
    assert set(evaluation.table["seed"]) == {4} and set(evaluation.table["run"]) == {"small"}


def test_mitigations_are_fitted_on_held_out_images_under_running_statistics(root: Path, evaluation: Evaluation) -> None:
    run = make_run(root)
    images = load_evaluation_images(run, SetOptions(), 0)
    assert images.tuning is not None and images.tuning.labels is not None
    logits, features = outputs(run.classifier, images.tuning.images)
    record = evaluation.record["mitigations"]
    assert isinstance(record, dict) and (record["percentile"], record["tuning_images"]) == (90.0, 30)
    assert record["threshold"] == pytest.approx(np.percentile(features.numpy().astype(float), 90), rel=1e-4)
    assert record["temperature"] == pytest.approx(fit_temperature(logits, images.tuning.labels), rel=1e-3)
    scores = evaluation.scores[evaluation.scores["statistics"] == "running"]
    scored = images.ood["far"][1].images
    logits, features = outputs(run.classifier, scored)
    with torch.no_grad():
        clipped = run.classifier.network.head(features.clamp(max=record["threshold"])).double()
    far = scores[scores["dataset"] == "far"]
    np.testing.assert_allclose(far["react"], clipped.logsumexp(dim=1), rtol=1e-3, atol=1e-3)
    cooled = (logits.double() / record["temperature"]).softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(far["msp_temperature"], cooled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["ln", "gn"])
def test_mitigations_serve_every_norm(root: Path, norm: str) -> None:
    run = replace(make_run(root), classifier=small_classifier(norm))
    found = evaluate(run, load_evaluation_images(run, SetOptions(), 0), OPTIONS, resamples=5)
    assert {"react", "msp_temperature"} < set(found.table["score"])
    assert found.differences.empty and list(found.differences.columns) == list(found.table.columns)


def test_without_tuning_images_there_are_no_mitigations(root: Path) -> None:
    run = make_run(root)
    options = SetOptions(id_split="val", tuning_images=0)
    images = load_evaluation_images(run, options, 0)
    assert images.tuning is None and len(images.id_set) == 30
    found = evaluate(run, images, replace(OPTIONS, statistics=("running",)), resamples=5)
    assert found.record["mitigations"] is None
    assert not found.table["score"].isin(["react", "msp_temperature"]).any()


@pytest.mark.parametrize(
    ("split", "wanted", "tuning", "scored"),
    [("test", 1000, 30, 40), ("test", 10, 10, 40), ("val", 15, 15, 15), ("val", 16, 6, 24), ("val", 3, 3, 27)],
)
def test_how_many_images_are_tuned_on(root: Path, split: str, wanted: int, tuning: int, scored: int) -> None:
    options = SetOptions(id_split=split, tuning_images=wanted)
    images, again = (load_evaluation_images(make_run(root), options, 0) for _ in range(2))
    assert images.tuning is not None and again.tuning is not None
    assert (len(images.tuning), len(images.id_set)) == (tuning, scored)
    assert len(identities(images.tuning.images)) == tuning
    assert np.array_equal(images.tuning.images, again.tuning.images)


def test_classes_keep_their_share_among_the_images_that_are_tuned_on(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    labels = np.repeat(np.arange(CLASSES), 20)
    save(tmp_path, "train", replace(small_set("known", 100, 1), labels=labels))
    drawn = []
    for seed in (0, 1):
        options = SetOptions(id_split="val", tuning_images=10)
        images = load_evaluation_images(make_run(tmp_path, validation=50), options, seed)
        assert images.tuning is not None and np.bincount(images.tuning.labels).tolist() == [2] * CLASSES
        assert np.bincount(images.id_set.labels).tolist() == [8] * CLASSES
        drawn.append(identities(images.tuning.images))
    assert drawn[0] != drawn[1]


def test_a_file_that_is_called_test_goes_by_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_evaluation_images(make_run(root), SetOptions(ood=(str(root / "far" / "test.npz"),)), 0)
    assert list(images.ood) == ["far"] and images.ood["far"][1].name == "far"
    monkeypatch.chdir(root / "near")
    assert list(load_evaluation_images(make_run(root), SetOptions(ood=("test.npz",)), 0).ood) == ["near"]


def test_evaluating_leaves_the_network_as_it_was_and_repeats_itself(root: Path, evaluation: Evaluation) -> None:
    run = make_run(root)
    before = {key: values.clone() for key, values in run.classifier.state_dict().items()}
    again = evaluate(run, load_evaluation_images(run, SetOptions(), 0), OPTIONS, resamples=20)
    pd.testing.assert_frame_equal(again.table, evaluation.table)
    pd.testing.assert_frame_equal(again.scores, evaluation.scores)
    pd.testing.assert_frame_equal(again.draws, evaluation.draws)
    after = run.classifier.state_dict()
    assert all(torch.equal(after[key].cpu(), before[key]) for key in before)
    assert not any(module.training for module in run.classifier.modules())


def test_written_files_read_back_equal(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "small" / "ood"
    write_evaluation(evaluation, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    scores = pd.read_parquet(folder / "scores.parquet")
    for column in scores:
        np.testing.assert_array_equal(scores[column], evaluation.scores[column])  # NaN where NaN was
    draws = pd.read_parquet(folder / "draws.parquet")
    assert list(draws.columns) == list(evaluation.draws.columns)
    np.testing.assert_array_equal(np.stack(draws["draws"].tolist()), np.stack(evaluation.draws["draws"].tolist()))
    differences = pd.read_csv(folder / "differences.csv", keep_default_na=False)
    assert list(differences.columns) == list(evaluation.table.columns) and "running" not in set(
        differences["statistics"]
    )
    units = pd.read_parquet(folder / "units.parquet")
    pd.testing.assert_frame_equal(units, evaluation.units, check_dtype=False)
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert list(table.columns) == list(evaluation.table.columns)
    numbers = ["value", "low", "high"]
    np.testing.assert_allclose(table[numbers], evaluation.table[numbers], rtol=1e-5)
    others = [column for column in table if column not in numbers]
    assert table[others].to_numpy().tolist() == evaluation.table[others].to_numpy().tolist()
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["id"] == evaluation.record["id"] and record["notes"] == []


def test_a_full_disk_leaves_what_was_there(evaluation: Evaluation, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("of an earlier evaluation")
    with files_up_to(4096), pytest.raises(UserError):
        write_evaluation(evaluation, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert {path.read_text() for path in tmp_path.iterdir()} == {"of an earlier evaluation"}


def test_a_disk_that_fills_up_is_one_line(
    evaluation: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_up_to(4096), pytest.raises(SystemExit), one_line_errors():
        write_evaluation(evaluation, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "too large" in lines[0].lower()
    assert str(tmp_path) in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that may not be written to: by the owner's permission or, for root, who may all, as another user."""
    parent = Path(tempfile.mkdtemp())  # pytest's own temporary folders are closed to other users
    folder = parent / "ood"
    folder.mkdir()
    parent.chmod(0o755)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(parent)


def test_a_read_only_folder_is_named_and_left_empty(
    evaluation: Evaluation, read_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        write_evaluation(evaluation, read_only)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(read_only) in lines[0] and "Permission denied" in lines[0]
    assert list(read_only.iterdir()) == []
