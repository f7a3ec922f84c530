"""From outputs (one set under one condition) to the tables of an evaluation: per image, per metric, per unit."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from bnood.data.image_set import Images
from bnood.evaluation.activations import ClassMix, UnitReference, share_above
from bnood.evaluation.intervals import interval, set_counts, weighted_means
from bnood.evaluation.metrics import calibration_gaps, cross_entropies, detection_metrics_of_sets
from bnood.evaluation.scores import SCORES
from bnood.networks.network import Head, Outputs

COLUMNS = (
    "run", "network", "norm", "seed", "statistics", "estimator", "n_calibration", "fitted_under", "dataset", "role",
    "companion", "comparison", "detector", "metric", "value", "low", "high", "difference", "difference_low",
    "difference_high", "n_id", "n_ood",
)  # fmt: skip
REPLICATE_COLUMNS = (*COLUMNS[: COLUMNS.index("value")], "value", "n_id", "n_ood", "replicates")
# What the same metric under running has in common with another row.
SAME = ("dataset", "role", "companion", "comparison", "detector", "metric")


class Where(NamedTuple):
    """The condition, set and comparison of a row; the shuffles of a set have it in common."""

    statistics: str
    estimator: str
    n_calibration: int
    dataset: str
    role: str
    companion: str = ""
    comparison: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """The columns of the tables per image and per unit."""
        return {name: getattr(self, name) for name in ("statistics", "companion", "dataset", "role")}


@dataclass
class Scored:
    """What is kept of a set under a condition once its outputs are summed up."""

    name: str
    index: np.ndarray  # int64 [n], which images of the set were scored
    prediction: np.ndarray  # int64 [n], predicted classes
    scores: dict[str, np.ndarray]  # float64 [n], by detector
    # Of the set alone, by detector and metric, each [1 + R]: the value, its replicates.
    figures: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    units: dict[str, np.ndarray] = field(default_factory=dict)  # [D] by column; empty without a reference


class Tables:
    """Collects what was scored of ``sets``; ``roles`` says ``id``, ``ood`` or "" (no rows of its own)."""

    def __init__(
        self, sets: Mapping[str, Images], roles: Mapping[str, str], resamples: int, seed: int, head: Head | None = None
    ) -> None:
        self._labels = {name: images.labels for name, images in sets.items() if roles[name] == "id"}
        self._index = {name: images.index for name, images in sets.items()}
        self._counts = {name: set_counts(name, len(images), resamples, seed) for name, images in sets.items()}
        self._roles, self._head = dict(roles), head
        self._reference: UnitReference | None = None
        self._alone: dict[Where, list[Scored]] = {}
        self._compared: dict[Where, list[tuple[Scored, Scored]]] = defaultdict(list)

    def summed_up(self, name: str, index: np.ndarray, outputs: Outputs) -> Scored:
        """Logit scores and figures of images; the first ID set to come, under running, is the units' reference."""
        scores = {score: of(outputs.logits).numpy() for score, of in SCORES.items()}
        scored = Scored(name, index, outputs.logits.argmax(dim=1).numpy(), scores)
        if self._roles[name]:
            self._add_figures(scored, outputs)
        return scored

    def add(self, where: Where, shuffles: list[Scored]) -> None:
        """Rows of one set alone, averaged over its shuffles."""
        self._alone[where] = shuffles

    def compare(self, where: Where, pairs: Sequence[tuple[Scored, Scored]]) -> None:
        """Rows of detection, ID before OOD, averaged over all pairs that are given for ``where``."""
        self._compared[where] += pairs

    def scores(self) -> pd.DataFrame:
        """One row per image, condition and shuffle; NaN where a detector does not apply, or nothing is compared."""
        parts = []
        for where, shuffles in self._alone.items():
            for shuffle, each in enumerate(shuffles):
                columns = {"shuffle": shuffle, "index": self._index[each.name][each.index], "label": self._label(each)}
                parts.append(pd.DataFrame({**where.keys, **columns, "prediction": each.prediction, **each.scores}))
        return pd.concat(parts, ignore_index=True)

    def units(self) -> pd.DataFrame:
        """One row per penultimate unit, set and condition; of several shuffles, the first."""
        first = {where: shuffles[0].units for where, shuffles in self._alone.items()}
        parts = [pd.DataFrame({**where.keys, **units}) for where, units in first.items() if units]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def results(
        self, names: Mapping[str, object], fitted_under: Mapping[str, str], order: Sequence[str]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The table of metrics, and the same rows with their replicates; ``fitted_under`` names all detectors."""
        rows: list[dict[str, Any]] = []

        def add(where: Where, detector: str, metric: str, resampled: np.ndarray, n_id: int, n_ood: int) -> None:
            low, high = interval(resampled[1:])
            row = {**names, **where._asdict(), "detector": detector, "metric": metric, "n_id": n_id, "n_ood": n_ood}
            row["fitted_under"] = fitted_under.get(detector, "") if n_id and n_ood else ""
            rows.append({**row, "value": resampled[0], "low": low, "high": high, "replicates": resampled[1:]})

        for where, shuffles in self._alone.items():
            n = len(shuffles[0].index)
            for name in shuffles[0].figures:
                found = [each.figures[name] for each in shuffles if name in each.figures]
                if len(found) == len(shuffles):  # the class-mix control can lack in a shuffle
                    add(where, *name, np.mean(found, axis=0), *((n, 0) if where.role == "id" else (0, n)))
        for (where, detector, metric), resamples in self._detection(list(fitted_under)).items():
            known, other = self._compared[where][0]
            add(where, detector, metric, np.mean(resamples, axis=0), len(known.index), len(other.index))
        rows.sort(key=lambda row: order.index(row["statistics"]))
        running: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in rows:
            # ID images that shared a batch or statistics with an OOD set are compared with themselves alone.
            same = tuple(row[name] if (name, row["role"]) != ("companion", "id") else "" for name in SAME)
            if row["statistics"] == "running":
                running[same] = row
            elif same in running:
                row["difference"] = row["value"] - running[same]["value"]
                bounds = interval(row["replicates"] - running[same]["replicates"])
                row["difference_low"], row["difference_high"] = bounds
        return pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(rows, columns=list(REPLICATE_COLUMNS))

    def _label(self, scored: Scored) -> np.ndarray:
        """Labels ``[n]`` of ID images; -1 where there are none."""
        labels = self._labels.get(scored.name)
        return np.full(len(scored.index), -1) if labels is None else labels[scored.index]

    def _add_figures(self, scored: Scored, outputs: Outputs) -> None:
        """Means over a set's images, of everything at once because that is one product of matrices."""
        role, features, label = self._roles[scored.name], outputs.features.numpy(), self._label(scored)
        counts, msp = self.counts_of(scored), scored.scores["msp"]
        columns = {(score, "mean"): values for score, values in scored.scores.items()}
        columns["msp", "share_above_0.9"] = msp > 0.9
        gaps = []
        if labelled := role == "id" and bool((label >= 0).all()):
            right = scored.prediction == label
            columns |= {("", "accuracy"): right, ("", "nll"): cross_entropies(outputs.logits, label)}
            gaps = [calibration_gaps(msp, right)]
        p99 = None if self._reference is None else self._reference.p99
        if is_reference := self._reference is None and role == "id" and features.shape[1] > 1:
            p99 = np.percentile(features, 99, axis=0).astype(np.float64)
        of_units = [] if p99 is None else [features, share_above(features, p99)]
        means = weighted_means(np.column_stack([*of_units, *columns.values(), *gaps]), counts)
        width = 0 if p99 is None else features.shape[1]
        unit_means, shares, rest = np.split(means, [width, width + (p99 is not None)], axis=1)
        if is_reference and p99 is not None:
            self._reference = UnitReference(p99, unit_means)
            self._class_mix = ClassMix(features, scored.prediction, outputs.logits.shape[1], counts, self._head)
        # Copies, because a view would keep the means of all units in memory.
        scored.figures = {name: rest[:, position].copy() for position, name in enumerate(columns)}
        if labelled:
            scored.figures["", "ece"] = np.abs(rest[:, len(columns) :]).sum(axis=1)
        if self._reference is not None:
            of_means = self._reference.figures(unit_means, shares[:, 0].copy())
            if role == "ood":
                of_means |= self._class_mix.control(scored.prediction, counts)
            scored.figures |= {("units", name): values for name, values in of_means.items()}
            scored.units = self._reference.per_unit(features)

    def counts_of(self, scored: Scored) -> np.ndarray:
        """Resample counts ``[1 + R, n]`` of the images that were scored."""
        whole, index = self._counts[scored.name], scored.index
        if len(index) == whole.shape[1] and np.array_equal(index, np.arange(len(index))):
            return whole
        counts = whole.take(index, axis=1)
        # A very small part can be missing from a resample altogether; then its first image stands in for it.
        counts[~counts.any(axis=1), 0] = 1
        return counts

    def _detection(self, detectors: Sequence[str]) -> dict[tuple[Where, str, str], list[np.ndarray]]:
        """The resampled detection metrics of every comparison and shuffle, in as many threads as torch uses."""
        # What is compared with the same ID images is computed together.
        groups: dict[int, list[tuple[Where, Scored, Scored]]] = defaultdict(list)
        for where, pairs in self._compared.items():
            for known, other in pairs:
                groups[id(known)].append((where, known, other))

        def measured(group: list[tuple[Where, Scored, Scored]]) -> list[tuple[tuple[Where, str, str], np.ndarray]]:
            known, found = group[0][1], []
            id_counts, others = self.counts_of(known), [(where, each, self.counts_of(each)) for where, _, each in group]
            for detector in detectors:
                usable = [other for other in others if detector in known.scores and detector in other[1].scores]
                sets = [(other.scores[detector], counts) for _, other, counts in usable]
                metrics = detection_metrics_of_sets(known.scores[detector], id_counts, sets) if sets else []
                for (where, _, _), of_set in zip(usable, metrics, strict=True):
                    found += [((where, detector, metric), resampled) for metric, resampled in of_set.items()]
            return found

        values: dict[tuple[Where, str, str], list[np.ndarray]] = defaultdict(list)
        # NumPy lets go of the interpreter while it computes, so that threads share the work.
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
            for found in threads.map(measured, groups.values()):
                for key, resampled in found:
                    values[key].append(resampled)
        return values
