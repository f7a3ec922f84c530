"""From cells (one set under one condition) to the tables of an evaluation: per image, per metric, per unit.

Every value has a 95 % interval from one bootstrap over images. Each set has one matrix of resample counts, which serves
all conditions, shuffles and scores, so that conditions are compared on the same resampled images; a metric of several
shuffles is the mean over them within each resample.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.activations import ClassMix, UnitReference, figures_of_means, share_above, unit_p99, unit_table
from bnood.evaluation.bootstrap import interval, set_counts, weighted_means
from bnood.evaluation.conditions import Cell
from bnood.evaluation.metrics import calibration_gaps, cross_entropies, detection_metrics_of_sets
from bnood.evaluation.mitigations import Mitigations
from bnood.evaluation.scores import SCORES

COLUMNS = (
    "run", "norm", "seed", "statistics", "composition", "batch_size", "dataset", "role", "score", "metric", "value",
    "low", "high", "n", "companion", "n_id",
)  # fmt: skip
DRAWS_COLUMNS = (
    "statistics", "composition", "batch_size", "companion", "dataset", "role", "score", "metric", "n", "n_id", "value",
    "draws",
)  # fmt: skip

# Figures by score and metric ("penultimate", "unit_mean_max_ratio"), each [1 + R]: the value, then its draws.
Figures = dict[tuple[str, str], np.ndarray]


class Condition(NamedTuple):
    """What the shuffles of one set have in common."""

    statistics: str
    composition: str
    batch_size: int
    companion: str
    dataset: str
    role: str


@dataclass
class ScoredCell:
    """What is kept of a cell once its features are summed up: scores per image, figures per resample."""

    index: np.ndarray
    scores: dict[str, np.ndarray]
    figures: Figures


class Measured(NamedTuple):
    """One metric of one set under one condition.

    Attributes:
        condition: where it was measured.
        score: which score, if any.
        metric: its name.
        resampled: float64 ``[1 + R]``, the value and its draws.
        n: images of the set.
        n_id: images of the in-distribution set that it is compared with; 0 where it is not.
    """

    condition: Condition
    score: str
    metric: str
    resampled: np.ndarray
    n: int
    n_id: int

    def row(self) -> dict[str, object]:
        """As a row of the tidy table: with the percentile interval of its draws."""
        low, high = interval(self.resampled[1:])
        return self.condition._asdict() | {
            "score": self.score, "metric": self.metric, "value": self.resampled[0], "low": low, "high": high,
            "n": self.n, "n_id": self.n_id,
        }  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The tables that hold metrics.

    Attributes:
        table: one row per metric with its interval, columns :data:`COLUMNS`.
        draws: the same rows with all R draws in place of the interval, columns :data:`DRAWS_COLUMNS`.
        differences: for every row under another condition than ``running``, itself minus the same metric under
            ``running``, with the interval of the paired differences of their draws; columns :data:`COLUMNS`.
    """

    table: pd.DataFrame
    draws: pd.DataFrame
    differences: pd.DataFrame


@dataclass
class Tables:
    """Collects cells; ``scores``, ``units`` and ``results`` are the tables of what was collected.

    Args:
        sets: the sets that are scored, the in-distribution set first, for their sizes and labels.
        resamples: bootstrap resamples, at least 1,000 for intervals worth printing.
        seed: of the bootstrap.
        mitigations: scores of their own under ``running``; none: left out.
    """

    sets: Sequence[ImageSet]
    resamples: int = 1000
    seed: int = 0
    mitigations: Mitigations | None = None
    _reference: UnitReference | None = None
    _class_mix: ClassMix | None = None
    _cells: dict[Condition, list[ScoredCell]] = field(default_factory=lambda: defaultdict(list))
    _per_image: list[pd.DataFrame] = field(default_factory=list)
    _per_unit: list[pd.DataFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._labels = {images.name: images.labels for images in self.sets}
        self._counts = {
            images.name: set_counts(images.name, len(images), self.resamples, self.seed) for images in self.sets
        }

    def add(self, cell: Cell) -> None:
        """Score a cell and sum its activations up; the first has to be the in-distribution set under ``running``."""
        assert self._cells or (cell.role == "id" and cell.statistics == "running"), "the reference has to come first"
        features = cell.features.numpy()
        scores = self._scores_of(cell)
        prediction = cell.logits.argmax(dim=1).numpy()
        labels = self._labels[cell.dataset]
        label = np.full(len(cell.index), -1) if labels is None or cell.role == "ood" else labels[cell.index]
        condition = Condition(
            cell.statistics, cell.composition, cell.batch_size, cell.companion, cell.dataset, cell.role
        )
        figures = self._figures_of(cell, features, scores, prediction, label)
        self._cells[condition].append(ScoredCell(cell.index, scores, figures))
        common = condition._asdict()
        self._per_image.append(
            pd.DataFrame(
                {**common, "shuffle": cell.shuffle, "index": cell.index, "label": label, "prediction": prediction}
                | scores
            )
        )
        if cell.shuffle == 0:
            assert self._reference is not None
            self._per_unit.append(pd.DataFrame({**common, **unit_table(features, self._reference)}))

    def scores(self) -> pd.DataFrame:
        """One row per image and condition (and shuffle); mitigations' scores are NaN but under ``running``."""
        return pd.concat(self._per_image, ignore_index=True)

    def units(self) -> pd.DataFrame:
        """One row per penultimate unit, set and condition; of several shuffles, the first."""
        return pd.concat(self._per_unit, ignore_index=True)

    def results(self, run: str, norm: str, seed: int) -> Results:
        """All metrics of what was collected, in threads: as many as torch uses."""
        detection = self._detection()
        measured = []
        for condition, cells in self._cells.items():
            n = len(cells[0].index)
            for key in cells[0].figures:
                shuffles = [cell.figures[key] for cell in cells]
                measured.append(Measured(condition, *key, np.mean(shuffles, axis=0), n, 0))
            id_cells = self._partner(condition)
            if id_cells is not None:
                n_id = len(id_cells[0].index)
                measured += [
                    Measured(condition, *key, np.mean(shuffles, axis=0), n, n_id)
                    for key, shuffles in detection[condition].items()
                ]
        return Results(
            _tidy(measured, run, norm, seed), _draws(measured), _tidy(_differences(measured), run, norm, seed)
        )

    def _scores_of(self, cell: Cell) -> dict[str, np.ndarray]:
        try:
            scores = {name: score(cell.logits).numpy() for name, score in SCORES.items()}
        except UserError as error:
            where = f"{cell.dataset} under {cell.statistics} {cell.composition}".rstrip()
            raise UserError(f"{where}: {error}") from error
        if self.mitigations is not None and cell.statistics == "running":
            scores |= self.mitigations.scores(cell.logits, cell.features)
        return scores

    def _figures_of(
        self,
        cell: Cell,
        features: np.ndarray,
        scores: dict[str, np.ndarray],
        prediction: np.ndarray,
        label: np.ndarray,
    ) -> Figures:
        """Figures of one set alone: means over its images, of everything at once because that is one product."""
        columns = dict(_columns(cell, scores, prediction, label))
        labelled = ("", "accuracy") in columns
        gaps = [calibration_gaps(scores["msp"], prediction == label)] if labelled else []
        p99 = unit_p99(features) if self._reference is None else self._reference.p99
        stacked = np.column_stack([features, share_above(features, p99), *columns.values(), *gaps])
        means = weighted_means(stacked, self._counts_of(cell.dataset, cell.index))
        of_units, shares, rest = np.split(means, [features.shape[1], features.shape[1] + 1], axis=1)
        if self._reference is None:
            self._reference = UnitReference.of_means(p99, of_units)
            counts = self._counts_of(cell.dataset, cell.index)
            self._class_mix = ClassMix.of(features, prediction, cell.logits.shape[1], counts)
        # Copies, because a view would keep the means of all units in memory.
        figures = {name: rest[:, position].copy() for position, name in enumerate(columns)}
        if labelled:
            figures["", "ece"] = np.abs(rest[:, len(columns) :]).sum(axis=1)
        for name, values in figures_of_means(of_units, shares[:, 0].copy(), self._reference).items():
            figures["penultimate", name] = values
        if cell.role == "ood":
            assert self._class_mix is not None
            mix = self._class_mix.max_ratio(prediction, self._counts_of(cell.dataset, cell.index))
            figures["penultimate", "class_mix_max_ratio"] = mix
        return figures

    def _counts_of(self, dataset: str, index: np.ndarray) -> np.ndarray:
        """Resample counts ``[1 + R, n]`` of a part of a set."""
        whole = self._counts[dataset]
        if len(index) == whole.shape[1] and np.array_equal(index, np.arange(len(index))):
            return whole
        counts = whole.take(index, axis=1)
        # A very small part can be missing from a resample altogether; then its first image stands in for it.
        counts[~counts.any(axis=1), 0] = 1
        return counts

    def _partner(self, condition: Condition) -> list[ScoredCell] | None:
        """The in-distribution cells that an OOD condition is compared with; None if those were left out."""
        if condition.role != "ood":
            return None
        mixed = condition.composition.startswith("mixed")
        for other, cells in self._cells.items():
            companion = condition.dataset if mixed else ""
            if other.role == "id" and other[:3] == condition[:3] and other.companion == companion:
                return cells
        return None

    def _detection(self) -> dict[Condition, dict[tuple[str, str], list[np.ndarray]]]:
        """The detection metrics of each OOD condition, by score and metric: one ``[1 + R]`` per shuffle."""
        # What is compared with the same in-distribution cells is computed together.
        together: dict[int, list[Condition]] = defaultdict(list)
        partners: dict[int, list[ScoredCell]] = {}
        for condition in self._cells:
            id_cells = self._partner(condition)
            if id_cells is not None:
                together[id(id_cells)].append(condition)
                partners[id(id_cells)] = id_cells
        tasks: list[Callable[[], Found]] = [
            # Mixed batches pair the shuffles, in any other condition they are independent; their numbers are equal.
            partial(self._detection_of, id_cell, conditions, shuffle)
            for key, conditions in together.items()
            for shuffle, id_cell in enumerate(partners[key])
        ]
        values: dict[Condition, dict[tuple[str, str], list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        # NumPy lets go of the interpreter while it computes, so that threads share the work.
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
            for found in threads.map(lambda task: task(), tasks):
                for condition, key, resampled in found:
                    values[condition][key].append(resampled)
        return values

    def _detection_of(self, id_cell: ScoredCell, conditions: list[Condition], shuffle: int) -> "Found":
        """The detection metrics of one in-distribution cell with all OOD cells that are compared with it."""
        cells = [self._cells[condition][shuffle] for condition in conditions]
        id_counts = self._counts_of(self.sets[0].name, id_cell.index)
        counts = [
            self._counts_of(condition.dataset, cell.index) for condition, cell in zip(conditions, cells, strict=True)
        ]
        found = []
        for score, id_scores in id_cell.scores.items():
            ood = [(cell.scores[score], of_cell) for cell, of_cell in zip(cells, counts, strict=True)]
            metrics = detection_metrics_of_sets(id_scores, id_counts, ood)
            for condition, of_condition in zip(conditions, metrics, strict=True):
                found += [(condition, (score, metric), resampled) for metric, resampled in of_condition.items()]
        return found


Found = list[tuple[Condition, tuple[str, str], np.ndarray]]


def _columns(
    cell: Cell, scores: dict[str, np.ndarray], prediction: np.ndarray, label: np.ndarray
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """What is averaged over the images of one set ``[N]``: its scores; with labels, accuracy and likelihood too."""
    yield from (((score, "mean"), values) for score, values in scores.items())
    yield ("msp", "share_above_0.9"), scores["msp"] > 0.9
    if cell.role == "id" and bool((label >= 0).all()):
        yield ("", "accuracy"), prediction == label
        yield ("", "nll"), cross_entropies(cell.logits, label)


def _tidy(measured: Sequence[Measured], run: str, norm: str, seed: int) -> pd.DataFrame:
    rows = [{"run": run, "norm": norm, "seed": seed} | each.row() for each in measured]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _draws(measured: Sequence[Measured]) -> pd.DataFrame:
    rows = [
        each.condition._asdict()
        | {"score": each.score, "metric": each.metric, "n": each.n, "n_id": each.n_id, "value": each.resampled[0]}
        | {"draws": each.resampled[1:]}
        for each in measured
    ]
    return pd.DataFrame(rows, columns=list(DRAWS_COLUMNS))


def _differences(measured: Sequence[Measured]) -> list[Measured]:
    """Every metric minus itself under ``running``, draw by draw: both sides saw the same resample of the set.

    In-distribution images beside an OOD set are compared with themselves alone. Where ``batch`` leaves images out (the
    last short batch; those that mixed batches have no room for), the draws of the rest are subtracted from those of
    the whole set: the interval covers that as well.
    """
    running: dict[Any, np.ndarray] = {}
    for each in measured:
        if each.condition.statistics == "running":
            running[each.condition.dataset, each.condition.role, each.score, each.metric] = each.resampled
    found = []
    for each in measured:
        before = running.get((each.condition.dataset, each.condition.role, each.score, each.metric))
        if each.condition.statistics != "running" and before is not None:
            found.append(each._replace(resampled=each.resampled - before))
    return found
