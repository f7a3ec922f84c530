"""Evaluating the folder of a trained run: its sets, its files, and whether that has been done."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnood import tracking
from bnood.data.corruptions import is_made_here
from bnood.data.image_set import Images
from bnood.data.reading import PADDING, crop_and_flip, draw_crops, padded
from bnood.data.sources import has_test_images, training_split
from bnood.data.sources import images as load
from bnood.errors import UserError
from bnood.evaluation.comparisons import by_name, in_proportion
from bnood.evaluation.evaluate import evaluate
from bnood.evaluation.options import EvaluationOptions, SetOptions
from bnood.evaluation.passes import Augment
from bnood.training.run_folder import Run

FOLDER = "ood"
ASKED = "asked"  # the key of evaluation.json that holds the options


def evaluate_run(
    run: Run, sets: SetOptions, options: EvaluationOptions, wandb: tracking.TrackingOptions, command: str,
    progress: Callable[[str], object], say: Callable[[str], object], folder: Path | None = None,
    store: Path | None = None,
) -> Path:  # fmt: skip
    """Evaluate a run and write ``<run>/ood/``, or ``folder``; returns what was written.

    ``command`` is for the report, ``progress`` takes the name of each step, ``say`` lines that the user should read,
    ``store`` is as for ``evaluate``.
    """
    question, data = asked(run.checkpoint, sets, options), run.config["data"]
    images = load_run_images(run, sets, options)
    run.network.model.to("cuda" if torch.cuda.is_available() else "cpu")
    id_name = images["id_set"].name
    tags = [f"norm:{run.norm}", f"seed:{run.seed}", f"set:{id_name}"]
    config = {"run": run.name, **question, "training": run.config}
    folder = folder or run.folder / FOLDER
    tracked = tracking.start_run(
        wandb, name=f"{run.name}-ood", job_type="evaluation", tags=tags, config=config, folder=folder.parent
    )
    try:
        tracking.use_checkpoint(tracked, run.checkpoint, run.name)
        augment = training_augmentation(data.get("augmentation", "crop_flip"))
        found = evaluate(run.network, **images, options=options, augment=augment, progress=progress, store=store)
        found.record |= {ASKED: question, "summary": run.summary}
        progress("figures and report")
        title = f"{run.name}: {id_name} ({sets.id_split}) against OOD"
        found.write(folder, title=title, commands=[training_command(run), command], config=run.config)
        tracking.log_evaluation(tracked, folder, found.table)
    finally:
        if sync := tracking.finish(tracked):
            say(sync)
    return folder


def asked(checkpoint: Path | None, sets: Any, options: EvaluationOptions, **network: Any) -> dict[str, Any]:
    """What an evaluation would be asked now, as ``evaluation.json`` keeps it; the checkpoint is named by its content.

    Where the data lie, and what only decides about speed, is left out.
    """
    plain = {**network, "sets": asdict(sets), "options": asdict(options)}
    for section, name in (("sets", "root"), ("sets", "download"), ("options", "workers")):
        plain[section].pop(name)
    digest = None if checkpoint is None else hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return json.loads(json.dumps({**plain, "checkpoint": digest}, default=str))


def check_id_split(data: Mapping[str, Any], sets: SetOptions, trained: str) -> None:
    """Refuse to score images as test images that a network, named ``trained``, was trained on by this section data."""
    name = data["in_distribution"]
    if sets.id_split == "test" and not has_test_images(name, sets.placed(data)["root"]):
        held_out = "score its held-out images, with id_split val"
        raise UserError(f"{name} has no test images of its own, {trained} was trained on them: {held_out}")


def load_run_images(run: Run, sets: SetOptions, options: EvaluationOptions) -> dict[str, Any]:
    """The images that a run is evaluated on, by the names that ``evaluate`` gives them.

    With ``id_split`` test, the images held out of training are there to be fitted on. With ``val`` they are scored, but
    for ``held_out_images`` of them, or a fifth if there are fewer than twice as many.
    """
    data, seed = sets.placed(run.config["data"]), options.seed
    check_id_split(data, sets, run.name)

    def named(name: str, split: str = "test") -> Images:
        size = data.get("image_size", 32)
        return load(name, split=split, root=data["root"], download=data["download"], image_size=size)

    train, held_out = training_split(data)
    if sets.id_split == "val":
        count = options.held_out_images if len(held_out) >= 2 * options.held_out_images else len(held_out) // 5
        chosen = in_proportion(held_out.labels, len(held_out), count, seed)
        rest = np.setdiff1d(np.arange(len(held_out)), chosen)
        # In the order that version 0.1 scored them in.
        id_set: Images = held_out.subset(rest) if count else held_out
        held_out = held_out.subset(chosen)
    else:
        id_set = named(data["in_distribution"])
    names = sets.ood if sets.ood is not None else data["ood"]
    ood = by_name(named(name).at_most(sets.ood_count, seed) for name in names)
    shifted = {name: named(name) for name in options.shifts if not is_made_here(name)}
    id_set, kept = id_set.at_most(sets.id_count, seed), held_out if len(held_out) else None
    return {"id_set": id_set, "train_set": train, "held_out": kept, "ood_sets": ood, "shifted_sets": shifted}


def training_augmentation(kind: str) -> Augment:
    """The augmentation of a training config."""
    padding = PADDING if kind == "crop_flip" else 0

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        draws = draw_crops(len(images), generator, padding)
        return crop_and_flip(padded(images, padding), torch.arange(len(images)), draws, padding)

    return (lambda images, generator: images) if kind == "none" else augment


def training_command(run: Run) -> str:
    """What to type to train a run again; of a network that a study stopped early, a comment that says so."""
    if stopped := run.summary.get("stopped"):
        return f"# {run.name}: stopped after epoch {stopped['epoch'] + 1} of {stopped['run']} by scripts/study.py"
    return f"python scripts/train.py --config {run.folder / 'config.yaml'} --name {run.name}-again"
