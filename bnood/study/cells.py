"""What is done for one cell of a study: training, stopping a BN network early, evaluating."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import evaluate_run_folder, is_evaluated, remove_remains
from bnood.study.grid import (
    StudyCell,
    StudyOptions,
    cell_evaluation,
    expected_config,
    read_mapping,
    read_summary,
    tracking_options,
    training_arguments,
    training_state,
)
from bnood.training.atomic import staged_folder
from bnood.training.provenance import machine, versions
from bnood.training.run_folder import CHECKPOINT, load_classifier, read_checkpoint, write_beside
from bnood.training.train import train


def train_cell(options: StudyOptions, cell: StudyCell) -> None:
    """Train a cell from where it is: from the start, from its last checkpoint, or not at all."""
    folder = options.folder / cell.name
    state = training_state(folder, epochs_of(options, cell))
    if state == "unsummarised":
        summarise_finished(folder)
    elif state in ("new", "half"):
        arguments = training_arguments(options, cell)
        if state == "half":
            keep_last_epoch(folder)
            arguments += ["--ckpt_path", str(folder / CHECKPOINT)]
        train(arguments)


def epochs_of(options: StudyOptions, cell: StudyCell) -> int:
    """The epochs that a cell is trained for."""
    return int(expected_config(options, cell)["trainer"]["max_epochs"])


def keep_last_epoch(folder: Path) -> None:
    """Keep the weights of the last finished epoch, where the training was killed before it did so itself."""
    if not read_mapping(folder / "config.yaml").get("keep_epochs"):
        return
    content = read_checkpoint(folder / CHECKPOINT)
    kept = epoch_file(folder, content["epoch"])
    if kept.exists():
        return
    training_only = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
    weights = {key: value for key, value in content.items() if key not in training_only}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_beside(kept, lambda path: path.write_bytes(buffer.getbuffer()))


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where ``train.py --keep_epochs true`` keeps the weights after an epoch, counted from 0."""
    return folder / CHECKPOINT.parent / f"epoch-{epoch:03d}.ckpt"


def summarise_finished(folder: Path) -> None:
    """Write the ``summary.json`` of a training that was killed between its last checkpoint and its summary.

    Everything is read from the checkpoint and from ``metrics.csv``, which are written before it.
    """
    content = read_checkpoint(folder / CHECKPOINT)
    watch = content["callbacks"]["Stopwatch"]
    log = read_log(folder)
    last = log[log["epoch"] == content["epoch"]]
    classifier = load_classifier(folder / CHECKPOINT)
    summary = {
        "accuracy": _last(last, "validation/accuracy"),
        "nll": _last(last, "validation/nll"),
        "ece": _last(last, "validation/ece"),
        "train_accuracy": _last(last, "train/accuracy"),
        "epochs": content["epoch"] + 1,
        "seconds": watch["seconds"],
        "images_per_second": watch["images"] / max(watch["seconds"], 1e-9),
        "parameters": sum(p.numel() for p in classifier.network.parameters()),
        "versions": versions(),
        "commit": None,  # the program may have changed since the training
        "machine": machine(),
    }
    write_summary(folder, summary)
    print(f"{folder}: all epochs were done; summary.json was still missing")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``summary.json``."""
    write_beside(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))


def read_log(folder: Path) -> pd.DataFrame:
    """``metrics.csv``.

    Raises:
        UserError: if it is missing or no table.
    """
    file = folder / "metrics.csv"
    try:
        log = pd.read_csv(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: the accuracy of each epoch stands there") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{file} is not readable as a table: {' '.join(str(error).split())}") from error
    if "epoch" not in log:
        raise UserError(f"{file} has no column epoch: it is not the log of a training")
    return log


def _last(log: pd.DataFrame, column: str) -> float | None:
    """The last measured value of a column; None if there is none."""
    values = log[column].dropna().tolist() if column in log else []
    return float(values[-1]) if values else None


def stopped_at(options: StudyOptions, cell: StudyCell) -> dict[str, Any]:
    """Which epoch of the BN network's training is nearest to its partner's final validation accuracy.

    Only validation images decide (science: nothing is chosen on test or OOD images). Of equally near epochs the first
    is taken.

    Returns:
        run, epoch (from 0), accuracy, partner, partner_accuracy: what ``summary.json`` of the stopped network keeps.

    Raises:
        UserError: if no epoch was kept, or accuracies were not measured.
    """
    folder, partner = options.folder / f"bn-s{cell.seed}", options.folder / f"{cell.partner}-s{cell.seed}"
    wanted = read_summary(partner).get("accuracy")
    if wanted is None:
        raise UserError(f"{partner}/summary.json has no accuracy: {cell.name} can't be stopped where it is")
    log = read_log(folder)
    column = "validation/accuracy"
    measured = log.dropna(subset=[column]).groupby("epoch")[column].last() if column in log else pd.Series(dtype=float)
    measured = measured[[epoch for epoch in measured.index if epoch_file(folder, int(epoch)).exists()]]
    if measured.empty:
        raise UserError(
            f"{folder} kept no epochs with a validation accuracy (checkpoints/epoch-000.ckpt ...), which {cell.name} "
            "is taken from: train it with --keep_epochs true, or set equal_accuracy: false"
        )
    epoch = int((measured - wanted).abs().idxmin())
    return {
        "run": folder.name,
        "epoch": epoch,
        "accuracy": float(measured[epoch]),
        "partner": partner.name,
        "partner_accuracy": wanted,
    }


def stop_cell(options: StudyOptions, cell: StudyCell) -> None:
    """Make the folder of a BN network that is stopped at its partner's accuracy."""
    choice = stopped_at(options, cell)
    source = options.folder / choice["run"]
    config = read_mapping(source / "config.yaml") | {"name": cell.name}
    log = read_log(source)
    row = log[log["epoch"] == choice["epoch"]]
    summary = {
        **{key: value for key, value in read_summary(source).items() if key != "seconds"},
        "accuracy": choice["accuracy"],
        "nll": _last(row, "validation/nll"),
        "ece": _last(row, "validation/ece"),
        "train_accuracy": _last(row, "train/accuracy"),
        "epochs": choice["epoch"] + 1,
        "stopped": choice,
    }
    remove_remains(options.folder / cell.name)
    with staged_folder(options.folder / cell.name, "the stopped network") as beside:
        (beside / CHECKPOINT.parent).mkdir()
        shutil.copyfile(epoch_file(source, choice["epoch"]), beside / CHECKPOINT)
        (beside / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        write_summary(beside, summary)


def is_stopped(options: StudyOptions, cell: StudyCell) -> bool:
    """Whether the folder of a stopped network is there and is what it would be made to now."""
    return read_summary(options.folder / cell.name).get("stopped") == stopped_at(options, cell)


def evaluate_cell(options: StudyOptions, cell: StudyCell, command: str) -> None:
    """Evaluate a cell, unless that is done."""
    folder, evaluation = options.folder / cell.name, cell_evaluation(options, cell)
    if not is_evaluated(folder, evaluation):
        found = evaluate_run_folder(folder, evaluation, track=tracking_options(options), command=command, tell=_say)
        for note in found.notes:
            _say(f"note: {note}")
        if found.sync:
            _say(found.sync)


def _say(step: str) -> None:
    print(step, flush=True)
