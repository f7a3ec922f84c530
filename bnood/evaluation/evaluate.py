"""The engine: a network x statistics x detectors x image sets -> one tidy table with intervals."""

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnood.data.image_set import Images
from bnood.data.labels import folder_labels
from bnood.data.reading import read_batches
from bnood.errors import UserError
from bnood.evaluation.activations import layer_distances
from bnood.evaluation.comparisons import Sets, arranged
from bnood.evaluation.conditions import Condition, parse_statistics
from bnood.evaluation.engine import Engine
from bnood.evaluation.fitting import Fitting
from bnood.evaluation.options import EvaluationOptions
from bnood.evaluation.passes import Augment, Passes, Progress, estimate_name
from bnood.evaluation.tables import Tables
from bnood.networks.network import Network
from bnood.statistics import has_batchnorm, read_statistics
from bnood.training.provenance import commit, machine, versions


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        table: one row per metric (:data:`bnood.evaluation.tables.COLUMNS`), fractions between 0 and 1.
        scores: one row per image and condition.
        units: one row per penultimate unit, set and condition.
        replicates: the rows of ``table`` with all their bootstrap replicates.
        layers: distance of each set's target statistics from the running ones, layer by layer.
        record: options, cost, notes, versions: how the tables came about.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    units: pd.DataFrame
    replicates: pd.DataFrame
    layers: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One line for everything that was left out, or that a reader should know."""
        return self.record["notes"]

    def __str__(self) -> str:
        from bnood.evaluation.printing import as_text

        return as_text(self.table, self.record["run"], self.notes)

    def write(self, folder: Path | str) -> Path:
        """Write all files and the report into a folder, as a whole or not at all; see :mod:`bnood.evaluation.files`."""
        from bnood.evaluation.files import write_evaluation

        return write_evaluation(self, Path(folder))


def evaluate(
    network: Network,
    id_set: Images | None,
    *,
    train_set: Images | None = None,
    held_out: Images | None = None,
    ood_sets: Mapping[str, Images],
    shifted_sets: Mapping[str, Images] | None = None,
    options: EvaluationOptions | None = None,
    statistics: Sequence[str] | None = None,
    detectors: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    augment: Augment | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a network under all statistics, with all detectors.

    Args:
        network: left as it was.
        id_set: the in-distribution images that are scored; None: scores alone, without detection.
        train_set: training images, for recalibration and for detectors; None: half of the ID set recalibrates.
        held_out: labelled ID images that are neither trained on nor scored, for ReAct and the temperature.
        ood_sets: the OOD sets by name; half of each is scored.
        shifted_sets: labelled ID images from elsewhere, by name; see ``options.shifts`` for those made here.
        options: how; see :class:`EvaluationOptions`.
        statistics, detectors, settings: take the place of those options.
        classes: names of the network's classes, in the order of its logits, for labels that come from folders.
        augment: ``augment(uint8 [n, H, W, 3], generator)``: the training augmentation, for ``recalibrated:augmented``.
        progress: is called with the name of each step that begins.

    Raises:
        UserError: for anything that was given and does not fit.
    """
    options = _options(options, statistics, detectors, settings)
    if not isinstance(network, Network):
        raise UserError(f"network is a {type(network).__name__}; expected bnood.Network(model, transform)")
    conditions = parse_statistics(options.statistics)
    notes: list[str] = []
    if not has_batchnorm(network.model):
        conditions = _running_alone(conditions, network, options, notes)
    first = next(iter(ood_sets.values()), id_set)
    if first is not None and len(first):
        probe = np.array([[0, k] for k in range(min(8, len(first)))])
        network.probe(next(read_batches([first], [probe], network.transform)))

    def labelled(images: Images | None) -> Images | None:
        if images is None:
            return None
        found, note = folder_labels(images, classes, network.num_classes)
        notes.extend([note] if note else [])
        return found

    shifted = {name: labelled(images) for name, images in (shifted_sets or {}).items()}
    known = labelled(id_set), labelled(train_set), labelled(held_out)
    sets = arranged(*known, ood_sets, shifted, options)  # type: ignore[arg-type]
    return _evaluated(network, sets, conditions, options, notes, augment, progress or (lambda step: None))


def _evaluated(
    network: Network,
    sets: Sets,
    conditions: list[Condition],
    options: EvaluationOptions,
    notes: list[str],
    augment: Augment | None,
    tell: Progress,
) -> Evaluation:
    passes = Passes(network, sets.adaptation, options, augment, notes=notes)
    fitting = Fitting(network, sets, options, notes)
    tables = Tables(sets.scored, sets.roles, options.resamples, options.seed, network.head)
    started = time.perf_counter()
    Engine(sets, options, passes, fitting, tables, tell).run(conditions)
    tell("metrics and intervals")
    forwarded = time.perf_counter()
    names = {"run": network.name, "network": network.name, "norm": network.norm, "seed": network.seed or 0}
    order = [condition.name for condition in conditions]
    table, replicates = tables.results(names, fitting.fitted_under(), order)
    record = _record(sets, options, passes, fitting) | {
        "seconds_forward": forwarded - started,
        "seconds_metrics": time.perf_counter() - forwarded,
    }
    layers = _layers(sets, options, passes, conditions)
    return Evaluation(table, tables.scores(), tables.units(), replicates, layers, record)


def _options(
    options: EvaluationOptions | None, statistics: Any, detectors: Any, settings: dict[str, Any]
) -> EvaluationOptions:
    known = [each.name for each in fields(EvaluationOptions)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"evaluate has no setting {name!r}" + (f" (did you mean {close[0]}?)" if close else ""))
    given = {"statistics": statistics, "detectors": detectors}
    return replace(options or EvaluationOptions(), **settings, **{k: v for k, v in given.items() if v is not None})


def check_statistics(network: Network, options: EvaluationOptions) -> None:
    """Refuse to ask a network without BatchNorm for nothing but statistics that it lacks."""
    if not has_batchnorm(network.model) and "running" not in options.statistics:
        raise UserError(
            f"norm {network.norm} keeps no statistics, so that there is nothing to evaluate under "
            f"{' or '.join(options.statistics)}; expected running among the statistics"
        )


def _running_alone(
    conditions: list[Condition], network: Network, options: EvaluationOptions, notes: list[str]
) -> list[Condition]:
    check_statistics(network, options)
    skipped = [name for name in options.statistics if name != "running"]
    if skipped:
        are = "is" if len(skipped) == 1 else "are"
        notes.append(
            f"norm {network.norm} keeps no statistics: only running is evaluated, {' and '.join(skipped)} {are} skipped"
        )
    return conditions[:1]


def _layers(sets: Sets, options: EvaluationOptions, passes: Passes, conditions: list[Condition]) -> pd.DataFrame:
    """Distances of the target statistics from the running ones."""
    parts = []
    for condition in conditions:
        if condition.name != "recalibrated:target":
            continue
        running, seen = read_statistics(passes.network.model), set()
        for pair in sets.pairs_of(condition):
            estimates = condition.estimates(sets.splits(options), pair.id_split, pair.ood_split)
            for name, role, estimate in zip((pair.id_name, pair.ood_name), ("id", "ood"), estimates, strict=True):
                found = passes.estimates.get(estimate)
                if found is None or not sets.roles.get(name) or (name, estimate) in seen:
                    continue
                seen.add((name, estimate))
                keys = {"dataset": name, "role": role, "n_calibration": estimate.images}
                parts.append(layer_distances(running, found).assign(**keys))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _record(sets: Sets, options: EvaluationOptions, passes: Passes, fitting: Fitting) -> dict[str, Any]:
    targets = {pair.dataset: len(sets.adaptation[pair.ood_split]) for pair in sets.pairs if pair.comparison == "ood"}
    return {
        "run": passes.network.name,
        "transform": passes.network.transform_text,
        "options": asdict(options),
        "id": {"name": sets.id_name, "n": len(sets.scored[sets.id_name]) if sets.id_name else 0},
        "ood": {name: {"adaptation": n, "scored": len(sets.scored[name])} for name, n in targets.items()},
        "fitted_on": 0 if sets.fitting is None else len(sets.fitting),
        "held_out": 0 if sets.held_out is None else len(sets.held_out),
        "detectors": fitting.record,
        "notes": passes.notes,
        "images_scored": passes.scored,
        "images_estimated_on": passes.estimated_on,
        "estimator_images": {estimate_name(estimate): estimate.images for estimate in passes.estimates},
        "estimator_passes": {estimate_name(estimate): found.passes for estimate, found in passes.estimates.items()},
        "estimator_distance": {
            name: {"mean_shift": shift, "log_std_ratio": ratio} for name, (shift, ratio) in passes.distances.items()
        },
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }
