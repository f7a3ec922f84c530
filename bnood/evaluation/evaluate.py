"""Evaluating a run: its network, the sets, all conditions, and the files in ``runs/<name>/ood/``."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bnood.data.datamodule import ImageDataModule
from bnood.data.image_set import ImageSet
from bnood.data.sources import load_images, set_name
from bnood.data.splits import halves
from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions, Conditions, Images
from bnood.evaluation.mitigations import Mitigations
from bnood.evaluation.tables import Tables
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import Run


@dataclass
class SetOptions:
    """Which images are scored.

    Args:
        ood: names of the OOD sets; none: those of the run's config.
        id_split: ``test`` (the official test images) or ``val`` (the training images held out for validation).
        id_count: score only so many in-distribution images; none: all.
        ood_count: open only so many images of each OOD set, before it is halved; none: all.
        root: folder of the data sets; none: that of the run's config.
        download: whether torchvision may download what is missing; none: as the run's config says.
        tuning_images: images held out of training that mitigations are fitted on, at most (:mod:`bnood.evaluation.mitigations`);
            with ``id_split`` val they are set aside and not scored, a fifth of the held-out images if these are fewer
            than twice as many. 0: no mitigations.
    """

    ood: tuple[str, ...] | None = None
    id_split: str = "test"
    id_count: int | None = None
    ood_count: int | None = None
    root: Path | None = None
    download: bool | None = None
    tuning_images: int = 1000

    def __post_init__(self) -> None:
        if self.id_split not in ("test", "val"):
            raise UserError(f"id_split is {self.id_split!r}: choose test or val")
        for name in ("id_count", "ood_count"):
            count = getattr(self, name)
            if count is not None and count < 2:
                raise UserError(f"{name} is {count}; at least 2 images are needed")
        if self.tuning_images < 0:
            raise UserError(f"tuning_images is {self.tuning_images}; it has to be 0 (no mitigations) or more")

    def placed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The section data of a training config, with the root and the download that hold in the evaluation."""
        root = data.get("root") if self.root is None else self.root
        download = data.get("download", False) if self.download is None else self.download
        return {**data, "root": None if root is None else Path(root), "download": download}


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        table: tidy metrics (:mod:`bnood.evaluation.tables`).
        scores: one row per image and condition.
        units: one row per penultimate unit, set and condition.
        draws: every row of ``table`` with all its draws of the bootstrap.
        differences: every row of ``table`` under another condition than ``running``, minus that under ``running``.
        record: options, cost, notes, versions: how the tables came about.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    units: pd.DataFrame
    draws: pd.DataFrame
    differences: pd.DataFrame
    record: dict[str, object] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One line for everything that was left out."""
        notes = self.record["notes"]
        assert isinstance(notes, list)
        return notes


def load_evaluation_images(run: Run, options: SetOptions, seed: int) -> Images:
    """The images that a run is evaluated on; see :class:`bnood.evaluation.conditions.Images`.

    Raises:
        UserError: for sets that are missing or unreadable, empty, of one image, of another size, or unlabelled
            where labels are needed.
    """
    config = options.placed(run.config["data"])
    try:
        data = ImageDataModule(**{**config, "ood": tuple(config["ood"])})
    except TypeError as error:
        raise UserError(f"{run.folder / 'config.yaml'}, section data: {error}") from error
    train, validation = data.split()
    validation, tuning = _set_aside(validation, options, seed)
    id_set = validation if options.id_split == "val" else _load(data, data.in_distribution, "test")
    id_set = replace(id_set, name=set_name(data.in_distribution, id_set))
    if len(id_set) < 2:
        raise UserError(f"{id_set.name}: {len(id_set)} image(s) cannot be scored; at least 2 are needed")
    if options.id_split == "test" and _share_contained(id_set, train) > 0.5:
        raise UserError(
            f"{id_set.name}: its test images are the training images (a file or folder has no splits); "
            "score those that were held out of training: id_split val"
        )
    classes = run.classifier.hparams["num_classes"]
    if id_set.labels is not None and id_set.labels.max() >= classes:
        raise UserError(
            f"{id_set.name} has labels up to {id_set.labels.max()}, but the network of {run.name} has {classes} classes"
        )
    id_set = id_set.at_most(options.id_count, seed)
    shuffled = np.random.RandomState(seed).permutation(len(train))
    ood: dict[str, tuple[ImageSet, ImageSet]] = {}
    for name in options.ood if options.ood is not None else data.ood:
        images = _load(data, name, "test").at_most(options.ood_count, seed)
        images = replace(images, name=set_name(name, images))
        if images.name in ood or images.name == id_set.name:
            raise UserError(
                f"{name}: a set of the name {images.name!r} is already being evaluated; expected each set once, "
                "under a name (of its file or folder) of its own"
            )
        calibration, scored = (images.subset(part) for part in halves(len(images), seed, name=images.name))
        ood[images.name] = (calibration, scored)
    if not ood:
        raise UserError("no OOD set was named: give --ood, for example --ood svhn,dtd")
    return Images(id_set, train.subset(shuffled), ood, tuning)


def _load(data: ImageDataModule, name: str, split: str) -> ImageSet:
    return load_images(name, split, data.root, download=data.download, image_size=data.image_size)


def _set_aside(held_out: ImageSet, options: SetOptions, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """What of the held-out images may be scored, and what mitigations are tuned on, every class in proportion."""
    wanted, whole = options.tuning_images, len(held_out)
    # Where the official test images are scored, held-out ones are there to be tuned on.
    count = min(wanted, whole) if options.id_split == "test" or whole >= 2 * wanted else min(wanted, whole // 5)
    if count == 0 or held_out.labels is None:
        return held_out, None
    order = np.random.RandomState(seed).permutation(whole)
    by_class = order[np.argsort(held_out.labels[order], kind="stable")]
    chosen = np.sort(by_class[(2 * np.arange(count) + 1) * whole // (2 * count)])
    tuning = held_out.subset(chosen)
    return (held_out if options.id_split == "test" else held_out.subset(np.setdiff1d(order, chosen))), tuning


def _share_contained(images: ImageSet, others: ImageSet) -> float:
    """Share of the images (of 1,000 at most) that are among the others, pixel by pixel."""
    known = {hash(image.tobytes()) for image in others.images}
    some = images.images[:: -(-len(images) // 1000)]
    return float(np.mean([hash(image.tobytes()) in known for image in some]))


def evaluate(
    run: Run,
    images: Images,
    options: ConditionOptions,
    *,
    resamples: int = 1000,
    console: Console | None = None,
) -> Evaluation:
    """Evaluate a network under all conditions.

    Args:
        run: the trained network; left as it was, but on the accelerator if there is one.
        images: see :func:`load_evaluation_images`.
        options: the conditions.
        resamples: bootstrap resamples behind each interval.
        console: shows a progress bar over conditions x sets; none: silent.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.classifier.to(device)
    conditions = Conditions(run.classifier, images, options)
    started, summing = time.perf_counter(), 0.0
    mitigations = _fitted(conditions)
    scored_sets = [images.id_set, *(scored for _, scored in images.ood.values())]
    tables = Tables(scored_sets, resamples, options.seed, mitigations)
    with _progress(console) as progress:
        task = progress.add_task(run.name, total=conditions.number_of_cells())
        for cell in conditions.cells():
            progress.update(
                task, description=f"{run.name}: {cell.dataset}, {cell.statistics} {cell.composition}".rstrip()
            )
            began = time.perf_counter()
            tables.add(cell)
            summing += time.perf_counter() - began
            progress.advance(task)
        forwarded = time.perf_counter()
        progress.update(task, description=f"{run.name}: metrics and intervals")
        results = tables.results(run.name, run.classifier.norm, run.seed)
    record: dict[str, object] = {
        "run": run.name,
        "options": asdict(options) | {"resamples": resamples},
        "id": {"name": images.id_set.name, "n": len(images.id_set)},
        "ood": _sizes(images.ood),
        "mitigations": None if mitigations is None else mitigations.record(),
        "notes": conditions.notes,
        "images_scored": conditions.cost.scored,
        "images_estimated_on": conditions.cost.estimated_on,
        "estimator_images": conditions.estimator_images,
        "estimator_passes": {name: estimate.passes for name, estimate in conditions.estimates.items()},
        "estimator_distance": {
            name: {"mean_shift": shift, "log_std_ratio": ratio}
            for name, (shift, ratio) in conditions.estimator_distance.items()
        },
        "seconds_forward": forwarded - started - summing,
        "seconds_metrics": time.perf_counter() - forwarded + summing,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }
    return Evaluation(results.table, tables.scores(), tables.units(), results.draws, results.differences, record)


def _fitted(conditions: Conditions) -> Mitigations | None:
    """The mitigations, fitted on the tuning images under ``running``; None where there are none."""
    tuning = conditions.images.tuning
    if tuning is None or tuning.labels is None:
        return None
    head = conditions.classifier.network.head
    assert isinstance(head, torch.nn.Linear), "every network of bnood.networks has a linear head"
    logits, features = conditions.tuning_outputs()
    try:
        return Mitigations.fit(head, features, logits, tuning.labels)
    except UserError as error:
        raise UserError(f"{tuning.name} under running: {error}") from error


def _sizes(ood: Mapping[str, tuple[ImageSet, ImageSet]]) -> dict[str, dict[str, int]]:
    return {name: {"calibration": len(first), "scored": len(second)} for name, (first, second) in ood.items()}


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the tables and ``evaluation.json`` into ``runs/<name>/ood/``.

    The tables are ``table.csv``, ``differences.csv``, ``scores.parquet``, ``units.parquet`` and ``draws.parquet``. All
    are written beside, then renamed: files of two evaluations never stand side by side.

    Raises:
        UserError: if the folder is read-only or the disk full; what was there before is still there then.
    """
    scores = evaluation.scores.copy()
    for column in scores.select_dtypes(["object", "string"]):
        scores[column] = scores[column].astype("category")
    text = json.dumps(evaluation.record, indent=2, default=str) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            beside = Path(partial)
            scores.to_parquet(beside / "scores.parquet", index=False)
            evaluation.units.to_parquet(beside / "units.parquet", index=False)
            evaluation.draws.to_parquet(beside / "draws.parquet", index=False)
            evaluation.table.to_csv(beside / "table.csv", index=False, float_format="%.6g")
            evaluation.differences.to_csv(beside / "differences.csv", index=False, float_format="%.6g")
            (beside / "evaluation.json").write_text(text)
            for file in sorted(beside.iterdir()):
                file.replace(folder / file.name)
    except OSError as error:
        # Arrow's errors name no file and the system's name one of the temporary folder.
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(
            f"{folder}: the evaluation cannot be written there ({reason}); earlier files are kept"
        ) from error
