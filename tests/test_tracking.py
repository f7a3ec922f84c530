"""Tracking, tested by reading back the files that wandb itself wrote offline."""

import hashlib
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from wandb_files import OfflineRun, read_offline_runs

from bnood import tracking
from bnood.errors import UserError
from bnood.tracking import TrackingOptions

ACCURACIES = {4: 0.25, 8: 0.75, 12: 0.5}  # by step
OFFLINE = TrackingOptions(mode="offline")
CONFIG = {"seed_everything": 3, "model": {"norm": "bn", "width": 16}, "tags": ["a", "b"], "nothing": None}


def start(options: TrackingOptions, folder: Path) -> Any:
    return tracking.start_run(options, name="n", job_type="t", tags=[], config={}, folder=folder)


def evaluation_table(sets: tuple[str, ...] = ("svhn", "dtd", "cifar100")) -> pd.DataFrame:
    """The rows of a metric table that matter here, with known values, and some that must not be taken for them."""
    columns = ("statistics", "dataset", "comparison", "detector", "metric", "companion", "value", "n_id")
    conditions, detectors = ("running", "recalibrated:target", "batch:128@0.5"), ("msp", "energy", "knn")
    metrics = {"auroc": 0.9, "fpr95": 0.3, "aupr_in": 0.8}
    rows = [("running", "cifar10", "", "", "accuracy", "", 0.875, 50)]
    for name, condition, detector, metric in product(sets, conditions, detectors, metrics):
        rows.append((condition, name, "ood", detector, metric, "", metrics[metric] + sets.index(name) / 100, 50))
    rows.append(("running", sets[0], "placebo", "msp", "auroc", "", 0.5, 50))
    rows.append(("running", sets[0], "ood", "msp", "auroc", "noise-3", 0.1, 50))
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder into which one process logged a training and, while that was open, an evaluation."""
    root = tmp_path_factory.mktemp("runs") / "my run"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_CACHE_DIR", str(root.parent / "cache"))
        options = TrackingOptions(project="proj", tags=("extra",), mode="offline")
        own: dict[str, Any] = {"name": "my run", "tags": ["norm:bn", "x" * 70], "folder": root}
        training = tracking.start_run(options, job_type="training", config=CONFIG, **own)
        evaluation = tracking.start_run(options, job_type="evaluation", config={"run": "my run"}, **own)
        assert training is not None and evaluation is not None
        for step, accuracy in ACCURACIES.items():
            assert tracking.log_metrics(training, {"validation/accuracy": accuracy}, step)
        checkpoint = root / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(b"weights of epoch 3")
        summary = {"accuracy": 0.5, "seconds": 7.0, "images_per_second": 900.0, "parameters": 1}
        tracking.log_checkpoint(training, checkpoint, "my run", summary)
        tracking.use_checkpoint(evaluation, checkpoint, "my run")
        (root / "ood").mkdir()
        for name in ("table.csv", "scores.parquet", "report.html"):
            (root / "ood" / name).write_text("<!doctype html><title>The report</title>")
        tracking.log_evaluation(evaluation, root / "ood", evaluation_table())
        lines = [tracking.finish(training)]
        with pytest.raises(ZeroDivisionError):
            try:
                1 / 0  # noqa: B018
            finally:
                lines.append(tracking.finish(evaluation))
        (root / "lines.json").write_text(json.dumps(lines))
        checkpoint.write_bytes(b"weights of a later, resumed training")
        yield root


@pytest.fixture(scope="module")
def runs(folder: Path) -> tuple[OfflineRun, OfflineRun]:
    """The training and the evaluation, read back."""
    training, evaluation = read_offline_runs(folder)
    return training, evaluation


def test_two_runs_of_one_process_have_their_own_files(folder: Path, runs: tuple[OfflineRun, OfflineRun]) -> None:
    training, evaluation = runs
    assert [training.record.job_type, evaluation.record.job_type] == ["training", "evaluation"]
    assert {key: training.config[key] for key in CONFIG} == CONFIG and "model" not in evaluation.config
    rows = [row for row in training.history if "validation/accuracy" in row]
    assert {row["trainer/global_step"]: row["validation/accuracy"] for row in rows} == ACCURACIES
    assert not any("validation/accuracy" in row for row in evaluation.history)
    assert [training.exit_code, evaluation.exit_code] == [0, 1]  # the evaluation ended with an exception
    for line, run in zip(json.loads((folder / "lines.json").read_text()), runs, strict=True):
        assert line == f"wandb: to upload this run: wandb sync '{run.folder}'"  # quoted: there is a space in it
    assert {run.record.run_group for run in runs} == {"my run"}  # the network's folder
    assert (training.record.project, list(training.record.tags)) == ("proj", ["extra", "norm:bn", "x" * 64])


def test_the_checkpoint_is_copied_once_as_the_artifact_of_training_and_named_by_the_evaluation(
    runs: tuple[OfflineRun, OfflineRun], folder: Path
) -> None:
    training, evaluation = runs
    (artifact,) = training.artifacts
    digest = hashlib.sha256(b"weights of epoch 3").hexdigest()
    assert (artifact.type, artifact.name) == ("model", "my-run")
    assert set(artifact.aliases) == {"latest", f"sha256-{digest[:16]}"}  # wandb keeps them in a set
    assert json.loads(artifact.metadata)["sha256"] == digest and training.summary["seconds"] == 7.0
    (entry,) = artifact.manifest.contents
    assert entry.path == "last.ckpt" and entry.size == len(b"weights of epoch 3")
    copy = Path(entry.local_path)
    assert copy.read_bytes() == b"weights of epoch 3"
    assert copy.is_relative_to(training.folder.parent)  # in the run's folder, not in the home folder
    path = str(folder / "checkpoints" / "last.ckpt")
    assert evaluation.config["checkpoint"] == {"path": path, "sha256": digest, "artifact": "my-run"}


def test_the_summary_is_short_and_holds_the_general_figures(runs: tuple[OfflineRun, OfflineRun]) -> None:
    _, evaluation = runs
    keys = {key for key in evaluation.summary if not key.startswith("_")}
    assert len(keys) <= 25 and {"table", "report"} <= keys
    numbers = {key: evaluation.summary[key] for key in keys - {"table", "report"}}
    assert numbers == tracking.summary_numbers(evaluation_table()) and numbers["id_accuracy"] == 0.875
    assert numbers["mean/running/msp/auroc"] == pytest.approx(0.91)
    assert numbers["mean/target/energy/fpr95"] == pytest.approx(0.31)
    assert numbers["cifar100/target/energy/auroc"] == pytest.approx(0.92)
    two = tracking.summary_numbers(evaluation_table(("svhn", "dtd.v2", "noise")), ["svhn", "dtd.v2"])
    assert len(two) == 23 and two["mean/running/msp/auroc"] == pytest.approx(0.905)
    assert "dtd_v2/running/msp/auroc" in two and not any(key.startswith("noise") for key in two)


def test_metric_table_report_and_artifact_are_complete(runs: tuple[OfflineRun, OfflineRun]) -> None:
    _, evaluation = runs
    (logged,) = [row for row in evaluation.history if "table" in row]
    content = json.loads(evaluation.media(logged["table"]).read_text())
    found, table = pd.DataFrame(content["data"], columns=content["columns"]), evaluation_table()
    assert list(found.columns) == list(table.columns) and len(found) == len(table)
    for column in ("value", "n_id", "statistics", "companion"):
        assert found[column].tolist() == table[column].tolist()
    assert "<title>The report</title>" in evaluation.media(logged["report"]).read_text()
    (artifact,) = [artifact for artifact in evaluation.artifacts if artifact.type == "evaluation"]
    assert artifact.name == "my-run-tables"
    assert {entry.path for entry in artifact.manifest.contents} == {"table.csv", "scores.parquet"}


def test_what_is_refused_and_which_process_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is 65 characters\. Tags must be between 1 and 64"):
        start(TrackingOptions(tags=("y" * 65,), mode="offline"), tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/wandb: cannot be written \(Not a directory\)"):
        start(OFFLINE, tmp_path / "file")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start(OFFLINE, tmp_path / "second") is None and not (tmp_path / "second").exists()


def in_child(code: str, home: Path, **environment: str) -> tuple[list[str], list[str]]:
    """Run code in a fresh process without any configuration of wandb: lines of its output and of its errors.

    It has a terminal, where a prompt would wait for an answer that never comes.
    """
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_", "NETRC"))}
    env = kept | {"HOME": str(home), "PYTHONPATH": str(Path(tracking.__file__).parent.parent)} | environment
    ours, terminal = pty.openpty()
    try:
        command = [sys.executable, "-c", CHILD + code]
        streams = {"stdin": terminal, "stdout": subprocess.PIPE, "stderr": terminal}
        done = subprocess.run(command, env=env, cwd=home, text=True, timeout=90, **streams)  # type: ignore[call-overload]
        os.write(terminal, b"\n")  # reading would wait if nothing was written
        errors = [line for line in os.read(ours, 1 << 16).decode().splitlines() if line]
    finally:
        os.close(ours)
        os.close(terminal)
    assert done.returncode == 0, errors
    return done.stdout.splitlines(), errors


CHILD = """
import os, sys
from pathlib import Path
from bnood import tracking
from bnood.tracking import TrackingOptions
def start(name, **options):
    arguments = dict(name=name, job_type="t", tags=[], config={}, folder=Path("out", name))
    return tracking.start_run(TrackingOptions(**options), **arguments)
"""


def test_disabled_creates_nothing_and_imports_nothing(tmp_path: Path) -> None:
    code = """
runs = [start("a", enabled=False)]
os.environ["WANDB_MODE"] = "disabled"
assert [*runs, start("b"), start("c", mode="online")] == [None] * 3
assert tracking.log_metrics(None, {}, 0) and tracking.finish(None) is None
tracking.log_checkpoint(None, Path("none"), "a", {})
tracking.log_evaluation(None, Path("none"), None)
print("wandb" in sys.modules, sorted(os.listdir(".")))
"""
    out, _ = in_child(code, tmp_path / "home")
    assert out == ["False []"]


def test_without_a_key_it_is_offline_at_once_and_asks_nothing(tmp_path: Path) -> None:
    code = """
for name, mode in (("a", "auto"), ("b", "online")):
    run = start(name, mode=mode)
    run.log({"x": 1})
    print(run.offline, tracking.finish(run))
"""
    out, (said,) = in_child(code, tmp_path / "home")
    for line, name in zip(out, "ab", strict=True):
        assert line.startswith(f"True wandb: to upload this run: wandb sync out/{name}/wandb/offline-run-")
        assert list(Path(tmp_path, "home", line.split(" wandb sync ")[1]).glob("run-*.wandb"))
    assert said.startswith("wandb: logging offline (no API key: set WANDB_API_KEY or run `wandb login`); to upload")


def test_a_base_url_that_is_none_is_one_line(tmp_path: Path) -> None:
    out, (said,) = in_child('print(start("a"))', tmp_path / "home", WANDB_API_KEY="a" * 40, WANDB_BASE_URL="nowhere")
    assert out == ["None"] and "base_url Input should be a valid URL" in said


def test_a_server_that_never_answers_holds_nothing_up(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = """
tracking.INIT_SECONDS = 3
run = start("a")
run.log({"x": 1})
tracking.finish(run)
"""
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        _, err = in_child(code, tmp_path / "home", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=address)
    (said,) = (line for line in err if "logging offline" in line)
    assert "giving up" in said and "wandb sync out/a/wandb/offline-run-" in said
    (run,) = read_offline_runs(tmp_path / "home" / "out" / "a")
    assert [row["x"] for row in run.history] == [1]


def test_training_and_evaluation_outlive_the_death_of_wandbs_service(tmp_path: Path) -> None:
    code = """
import signal, subprocess, time, pandas as pd
run = start("a", mode="offline")
processes = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True).stdout.splitlines()
(service,) = [int(line.split()[0]) for line in processes if line.split()[1:] == [str(os.getpid()), "wandb-core"]]
os.kill(service, signal.SIGKILL)
time.sleep(0.3)
for step in range(3):
    if not tracking.log_metrics(run, {"train/loss": 1.0}, step):
        break
    time.sleep(0.1)
frame = pd.DataFrame([["id", "running", "", "", "", "accuracy", 1.0]],
                     columns="role statistics companion comparison detector metric value".split())
Path("report.html").write_text("")
tracking.log_evaluation(run, Path("."), frame)
print(tracking.finish(run))
assert start("b", mode="offline") is None
"""
    out, err = in_child(code, tmp_path / "home")
    assert out[0].startswith("wandb: to upload this run: wandb sync out/a/")
    said = [line.split(":")[1] for line in err if line.startswith("wandb: could not log ")]
    lost = ("any further metrics", "the evaluation", "the end of the run", "the run b at all")
    assert said == [f" could not log {what}" for what in lost]
