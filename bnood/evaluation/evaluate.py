"""The engine: a network x statistics x detectors x image sets -> one tidy table with intervals."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnood.data.atomic import check_replaceable, staged_folder
from bnood.data.image_set import Images, check_images, content, folder_labels
from bnood.data.reading import read_batches
from bnood.errors import UserError
from bnood.evaluation.comparisons import Sets, arranged
from bnood.evaluation.conditions import Condition, parse_statistics
from bnood.evaluation.engine import Engine, Fitting
from bnood.evaluation.options import EvaluationOptions, options_with
from bnood.evaluation.passes import Augment, Notes, Passes
from bnood.evaluation.tables import Tables
from bnood.networks.network import Network
from bnood.statistics import BatchNormStatistics, has_batchnorm, read_statistics
from bnood.statistics.layers import fixed_layers
from bnood.training.provenance import made_with

RECORD, LAYERS = "evaluation.json", ["layer", "mean_shift", "log_std_ratio"]


@dataclass
class Evaluation:
    """What an evaluation found."""

    table: pd.DataFrame  # one row per metric (bnood.evaluation.tables.COLUMNS), fractions between 0 and 1
    scores: pd.DataFrame  # one row per image and condition
    units: pd.DataFrame  # one row per penultimate unit, set and condition
    replicates: pd.DataFrame  # the rows of the table with all their bootstrap replicates
    layers: pd.DataFrame  # distance of each set's target statistics from the running ones, layer by layer
    record: dict[str, Any] = field(default_factory=dict)  # options, cost, notes, versions

    @property
    def notes(self) -> list[str]:
        """One line for everything that was left out, or that a reader should know."""
        return self.record["notes"]

    def __str__(self) -> str:
        from rich.console import Console

        from bnood.evaluation.printing import print_results

        with (console := Console(file=StringIO(), width=160)).capture() as printed:
            print_results(console, self.table, self.record["run"], self.notes)
        return printed.get()

    def write(
        self, folder: Path | str, *, title: str = "", commands: Sequence[str] = (), config: dict[str, Any] | None = None
    ) -> Path:
        """Write tables, record, figures and report (docs/files.md) into a folder, as a whole or not at all.

        ``title``, ``commands`` that give this evaluation again and the training's ``config`` are for the report.
        """
        from bnood.report.page import write_run_report  # brings matplotlib

        texts = self.scores.select_dtypes(["object", "string"]).columns
        check_replaceable(Path(folder))
        with staged_folder(Path(folder)) as beside:
            self.scores.astype(dict.fromkeys(texts, "category")).to_parquet(beside / "scores.parquet", index=False)
            self.units.to_parquet(beside / "units.parquet", index=False)
            self.replicates.to_parquet(beside / "draws.parquet", index=False)
            self.table.to_csv(beside / "table.csv", index=False, float_format="%.6g")
            if len(self.layers):
                self.layers.to_csv(beside / "layers.csv", index=False, float_format="%.6g")
            (beside / RECORD).write_text(json.dumps(self.record, indent=2, default=str) + "\n")
            write_run_report(beside, self, title=title or self.record["run"], commands=list(commands), config=config)
        return Path(folder)


def evaluate(
    network: Network, id_set: Images | None, *, train_set: Images | None = None, held_out: Images | None = None,
    ood_sets: Mapping[str, Images], shifted_sets: Mapping[str, Images] | None = None,
    options: EvaluationOptions | None = None, classes: Sequence[str] | None = None, augment: Augment | None = None,
    progress: Callable[[str], object] = lambda step: None, store: Path | None = None, **settings: Any,
) -> Evaluation:  # fmt: skip
    """Evaluate a network, which is left as it was, under all statistics, with all detectors.

    Args:
        network: any network.
        id_set: the in-distribution images that are scored; None: scores alone, without detection.
        train_set: training images, for recalibration and for detectors; None: half of the ID set recalibrates.
        held_out: labelled ID images that are neither trained on nor scored, for ReAct and the temperature.
        ood_sets: the OOD sets by name; half of each is scored.
        shifted_sets: labelled ID images from elsewhere, by name; see ``options.shifts`` for those made here.
        options: how; the defaults of :class:`EvaluationOptions`.
        classes: names of the network's classes, in the order of its logits, for labels that come from folders.
        augment: ``augment(uint8 [n, H, W, 3], generator)``: the training augmentation, for ``recalibrated:augmented``.
        progress: is called with the name of each step that begins.
        store: a folder for what each pass gives; if it is stopped, the same evaluation with the same folder goes on.
        settings: ``statistics=``, ``detectors=`` and the other options by name, in place of those of ``options``.
    """
    options = options_with(settings, options)
    if not isinstance(network, Network):
        raise UserError(f"network is a {type(network).__name__}; expected bnood.Network(model, transform)")
    if not isinstance(ood_sets, Mapping) or not all(isinstance(name, str) for name in ood_sets):
        raise UserError(f"ood_sets is a {type(ood_sets).__name__}; expected a dict of image sets by their names")
    given = {"id_set": id_set, "train_set": train_set, "held_out": held_out, **ood_sets, **(shifted_sets or {})}
    check_images({name: each for name, each in given.items() if each is not None})
    conditions, notes = parse_statistics(options.statistics), Notes()
    if not getattr(network.model, "takes_uint8", False):
        notes[f"transform: {network.transform_text}"] = None
    if not has_batchnorm(network.model):
        check_statistics(network, options)
        conditions = conditions[:1]
        if skipped := [name for name in options.statistics if name != "running"]:
            notes[f"{_lacking(network)}, not evaluated: {', '.join(skipped)}"] = None
    if not ood_sets:
        raise UserError("no OOD set was named: give --ood, for example --ood svhn,dtd")
    if few := min(8, len(first := next(iter(ood_sets.values())))):
        probe = np.array([[0, k] for k in range(few)])
        network.probe(next(read_batches([first], [probe], network.transform)))

    def labelled(images: Images | None) -> Any:
        if images is None:
            return None
        found, note = folder_labels(images, classes, network.num_classes)
        notes.update({note: None} if note else {})
        return found

    shifted = {name: labelled(images) for name, images in (shifted_sets or {}).items()}
    sets = arranged(labelled(id_set), labelled(train_set), labelled(held_out), ood_sets, shifted, options)
    splits, with_id = sets.splits(options), bool(sets.id_name)
    if lacking := [each.name for each in conditions if not each.possible(splits, with_id)]:
        conditions = [each for each in conditions if each.name not in lacking]
        notes[f"not evaluated, for lack of ID images: {', '.join(lacking)}"] = None
    store = store and store / _digest(network, given, options)
    passes = Passes(network, sets.adaptation, options, augment, notes, store)
    fitting = Fitting(passes, sets)
    tables = Tables(sets.scored, sets.roles, options.resamples, options.seed, network.head)
    started = time.perf_counter()
    Engine(sets, passes, fitting, tables, progress).run(conditions)
    progress("metrics and intervals")
    forwarded = time.perf_counter()
    columns = {"run": network.name, "network": network.name, "norm": network.norm, "seed": network.seed or 0}
    table, replicates = tables.results(columns, fitting.fitted_under(), [condition.name for condition in conditions])
    record = _record(sets, passes, fitting)
    record |= {"seconds_forward": forwarded - started, "seconds_metrics": time.perf_counter() - forwarded}
    return Evaluation(table, tables.scores(), tables.units(), replicates, _layers(sets, passes, conditions), record)


def _digest(network: Network, sets: Mapping[str, Images | None], options: EvaluationOptions) -> str:
    """Of weights, transform, head, images and options: what was stored for others is not used."""
    found = hashlib.sha256(f"{options} {network.transform_text} {network.probe(None)}".encode())  # found before
    for name, value in network.model.state_dict().items():
        found.update(f"{name} {value}".encode() if not isinstance(value, Tensor) else name.encode())
        if isinstance(value, Tensor):
            found.update(value.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    for name, images in sets.items():
        found.update(f"{name} {images and content(images)}".encode())
    return found.hexdigest()[:16]


def check_statistics(network: Network, options: EvaluationOptions) -> None:
    if not has_batchnorm(network.model) and "running" not in options.statistics:
        nothing = f"so that there is nothing to evaluate under {' or '.join(options.statistics)}"
        raise UserError(f"{_lacking(network)}, {nothing}; expected running among them")


def _lacking(network: Network) -> str:
    return fixed_layers(network.model) or f"norm {network.norm} keeps no statistics"


def _layers(sets: Sets, passes: Passes, conditions: list[Condition]) -> pd.DataFrame:
    parts = {}
    for condition in conditions:
        for pair in sets.pairs_of(condition) if condition.name == "recalibrated:target" else ():
            estimates = condition.estimates(sets.splits(passes.options), pair.id_split, pair.ood_split)
            for name, role, estimate in zip((pair.id_name, pair.ood_name), ("id", "ood"), estimates, strict=True):
                if sets.roles.get(name):
                    target, running = passes.estimates[estimate], read_statistics(passes.network.model)
                    found = BatchNormStatistics({layer: running[layer] for layer in target}).distance(target)
                    layers = pd.DataFrame([(layer, *pair) for layer, pair in found.items()], columns=LAYERS)
                    parts[name, estimate] = layers.assign(dataset=name, role=role, n_calibration=estimate.images)
    return pd.concat(parts.values(), ignore_index=True) if parts else pd.DataFrame()


def _record(sets: Sets, passes: Passes, fitting: Fitting) -> dict[str, Any]:
    targets = {pair.dataset: len(sets.adaptation[pair.ood_split]) for pair in sets.pairs if pair.comparison == "ood"}
    return {
        "run": passes.network.name, "transform": passes.network.transform_text, "options": asdict(passes.options),
        "id": {"name": sets.id_name, "n": len(sets.scored[sets.id_name]) if sets.id_name else 0},
        "ood": {name: {"adaptation": n, "scored": len(sets.scored[name])} for name, n in targets.items()},
        "fitted_on": len(sets.fitting or ()), "held_out": len(sets.held_out or ()),
        "detectors": fitting.record, "notes": list(passes.notes),
        "images_scored": passes.scored, "images_estimated_on": passes.estimated_on,
        "estimator_images": {str(estimate): estimate.images for estimate in passes.estimates},
        "estimator_passes": {str(estimate): found.passes for estimate, found in passes.estimates.items()},
        **made_with(),
    }  # fmt: skip
