"""From cells (one set under one condition) to the tables of an evaluation: per image, per metric, per unit.

Every value has a 95 % interval from one bootstrap over images. Each set has one matrix of resample counts, which serves
all conditions, shuffles and scores, so that conditions are compared on the same resampled images; a metric of several
shuffles is the mean over them within each resample.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.activations import UnitReference, unit_figures, unit_table
from bnood.bootstrap import interval, resample_counts, weighted_means
from bnood.conditions import Cell
from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.metrics import cross_entropies, detection_metrics, expected_calibration_error
from bnood.scores import SCORES

COLUMNS = (
    "run", "norm", "seed", "statistics", "composition", "batch_size", "dataset", "role", "score", "metric", "value",
    "low", "high", "n", "companion", "n_id",
)  # fmt: skip


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
    figures: dict[tuple[str, str], np.ndarray]


@dataclass
class Tables:
    """Collects cells; ``scores``, ``units`` and ``metrics`` are the tables of what was collected.

    Args:
        sets: the sets that are scored, the in-distribution set first, for their sizes and labels.
        resamples: bootstrap resamples, at least 1,000 for intervals worth printing.
        seed: of the bootstrap.
    """

    sets: Sequence[ImageSet]
    resamples: int = 1000
    seed: int = 0
    _reference: UnitReference | None = None
    _cells: dict[Condition, list[ScoredCell]] = field(default_factory=lambda: defaultdict(list))
    _per_image: list[pd.DataFrame] = field(default_factory=list)
    _per_unit: list[pd.DataFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._labels = {images.name: images.labels for images in self.sets}
        # Row 0 counts every image once: the value itself; the other rows are the resamples of its interval.
        self._counts = {
            images.name: np.concatenate(
                [
                    np.ones((1, len(images)), np.uint8),
                    resample_counts(len(images), self.resamples, self.seed + position),
                ]
            )
            for position, images in enumerate(self.sets)
        }

    def add(self, cell: Cell) -> None:
        """Score a cell and sum its activations up; the first has to be the in-distribution set under ``running``."""
        features = cell.features.numpy()
        counts = self._counts_of(cell.dataset, cell.index)
        try:
            scores = {name: score(cell.logits).numpy() for name, score in SCORES.items()}
        except UserError as error:
            where = f"{cell.dataset} under {cell.statistics} {cell.composition}".rstrip()
            raise UserError(f"{where}: {error}") from error
        if self._reference is None:
            assert cell.role == "id" and cell.statistics == "running", "the reference has to come first"
            self._reference = UnitReference.of(features, counts)
        prediction = cell.logits.argmax(dim=1).numpy()
        labels = self._labels[cell.dataset]
        label = np.full(len(cell.index), -1) if labels is None or cell.role == "ood" else labels[cell.index]
        condition = Condition(
            cell.statistics, cell.composition, cell.batch_size, cell.companion, cell.dataset, cell.role
        )
        figures = dict(_set_figures(cell, scores, prediction, label, counts))
        for name, values in unit_figures(features, counts, self._reference).items():
            figures["penultimate", name] = values
        self._cells[condition].append(ScoredCell(cell.index, scores, figures))
        common = condition._asdict()
        self._per_image.append(
            pd.DataFrame(
                {**common, "shuffle": cell.shuffle, "index": cell.index, "label": label, "prediction": prediction}
                | scores
            )
        )
        if cell.shuffle == 0:
            self._per_unit.append(pd.DataFrame({**common, **unit_table(features, self._reference)}))

    def scores(self) -> pd.DataFrame:
        """One row per image and condition (and shuffle)."""
        return pd.concat(self._per_image, ignore_index=True)

    def units(self) -> pd.DataFrame:
        """One row per penultimate unit, set and condition; of several shuffles, the first."""
        return pd.concat(self._per_unit, ignore_index=True)

    def metrics(self, run: str, norm: str, seed: int) -> pd.DataFrame:
        """The tidy table of all metrics with their intervals, columns :data:`COLUMNS`."""
        rows = []
        for condition, cells in self._cells.items():
            n = len(cells[0].index)
            values = {key: np.mean([cell.figures[key] for cell in cells], axis=0) for key in cells[0].figures}
            rows += [self._row(condition, *key, resampled, n, 0) for key, resampled in values.items()]
            if condition.role == "ood":
                id_cells = self._partner(condition)
                if id_cells is not None:
                    rows += self._detection_rows(condition, id_cells, cells)
        table = pd.DataFrame(rows)
        table.insert(0, "run", run)
        table.insert(1, "norm", norm)
        table.insert(2, "seed", seed)
        return table[list(COLUMNS)]

    def _counts_of(self, dataset: str, index: np.ndarray) -> np.ndarray:
        """Resample counts ``[1 + R, n]`` of a part of a set."""
        counts = self._counts[dataset][:, index]
        # A very small part can be missing from a resample altogether; then its first image stands in for it.
        counts[~counts.any(axis=1), 0] = 1
        return counts

    def _partner(self, condition: Condition) -> list[ScoredCell] | None:
        """The in-distribution cells that an OOD condition is compared with; None if those were left out."""
        mixed = condition.composition.startswith("mixed")
        for other, cells in self._cells.items():
            companion = condition.dataset if mixed else ""
            if other.role == "id" and other[:3] == condition[:3] and other.companion == companion:
                return cells
        return None

    def _detection_rows(
        self, condition: Condition, id_cells: list[ScoredCell], ood_cells: list[ScoredCell]
    ) -> Iterator[dict[str, object]]:
        id_name = self.sets[0].name
        # Mixed batches pair the shuffles, in any other condition they are independent; their numbers are equal.
        for score in SCORES:
            values: dict[str, list[np.ndarray]] = defaultdict(list)
            for id_cell, ood_cell in zip(id_cells, ood_cells, strict=True):
                found = detection_metrics(
                    id_cell.scores[score],
                    ood_cell.scores[score],
                    self._counts_of(id_name, id_cell.index),
                    self._counts_of(condition.dataset, ood_cell.index),
                )
                for metric, resampled in found.items():
                    values[metric].append(resampled)
            for metric, shuffles in values.items():
                mean = np.mean(shuffles, axis=0)
                yield self._row(condition, score, metric, mean, len(ood_cells[0].index), len(id_cells[0].index))

    @staticmethod
    def _row(
        condition: Condition, score: str, metric: str, resampled: np.ndarray, n: int, n_id: int
    ) -> dict[str, object]:
        low, high = interval(resampled[1:])
        return condition._asdict() | {
            "score": score, "metric": metric, "value": resampled[0], "low": low, "high": high, "n": n, "n_id": n_id,
        }  # fmt: skip


def _set_figures(
    cell: Cell, scores: dict[str, np.ndarray], prediction: np.ndarray, label: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Figures of one set alone, each ``[R]``: means of the scores; with labels, accuracy and calibration too."""
    names = [(score, "mean") for score in scores] + [("msp", "share_above_0.9")]
    columns = [*scores.values(), scores["msp"] > 0.9]
    labelled = cell.role == "id" and bool((label >= 0).all())
    if labelled:
        names += [("", "accuracy"), ("", "nll")]
        columns += [prediction == label, cross_entropies(cell.logits, label)]
    means = weighted_means(np.stack(columns, axis=1), counts)
    yield from ((name, means[:, position]) for position, name in enumerate(names))
    if labelled:
        yield ("", "ece"), expected_calibration_error(scores["msp"], prediction == label, counts=counts)
