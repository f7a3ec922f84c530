"""What interventions do: from the outputs of each to the table of effects, paired with the network as it is.

Every effect is a difference between two passes of the *same images* through the same weights: a set under an
intervention, and the same images under the running statistics (kind ``none``). One matrix of resample counts per set
serves all interventions, so that the interval of a change is that of the paired difference.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.activations import UnitReference, figures_of_means
from bnood.evaluation.bootstrap import interval, set_counts, weighted_means
from bnood.evaluation.interventions.segments import Outputs
from bnood.evaluation.metrics import detection_metrics
from bnood.evaluation.scores import SCORES

UNIT_RATIOS = ("unit_mean_max_ratio", "unit_mean_spread_ratio")
DETECTION_SCORES = ("msp", "energy")
DETECTION = ("auroc", "fpr95", "fpr95_ood_positive")
KEYS = ["kind", "place", "position", "share", "companion", "dataset", "role", "score", "metric", "n", "n_id", "value"]
COLUMNS = [
    "kind", "place", "position", "share", "dataset", "role", "score", "metric", "value", "low", "high", "change",
    "change_low", "change_high", "n", "n_id", "companion",
]  # fmt: skip
Figures = dict[tuple[str, str], np.ndarray]


class Place(NamedTuple):
    """Which intervention: kind, place and position of ``interventions.csv``; ``None`` where there is no such number."""

    kind: str
    place: str = ""
    position: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A set under an intervention.

    Attributes:
        place: the intervention.
        companion: for in-distribution images in batches with an OOD set, that set's name.
        dataset: the set's name.
        index: int64 ``[n]``, which images of the set were scored.
        outputs: of these images.
    """

    place: Place
    companion: str
    dataset: str
    index: np.ndarray
    outputs: Outputs


class Effects:
    """Collects outcomes; :meth:`table` and :meth:`draws` are what was collected.

    In-distribution outcomes have to come before the OOD outcomes that are compared with them. Outcomes of a set wait
    for its ``none``, which everything is a change from.

    Args:
        id_set: the in-distribution set, as scored.
        ood_sets: the OOD sets, as scored.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    def __init__(self, id_set: ImageSet, ood_sets: Sequence[ImageSet], resamples: int, seed: int) -> None:
        self._id_set, self._labels = id_set.name, id_set.labels
        self._counts = {
            images.name: set_counts(images.name, len(images), resamples, seed) for images in (id_set, *ood_sets)
        }
        self._none: dict[str, Outputs] = {}
        self._waiting: dict[str, list[Outcome]] = defaultdict(list)
        self._none_figures: dict[tuple[str, bytes, bytes], Figures] = {}
        self._id_scores: dict[tuple[Place, str], tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        self._reference: UnitReference | None = None
        self._table: list[dict[str, object]] = []
        self._draws: list[dict[str, object]] = []

    def add(self, outcome: Outcome) -> None:
        """Sum an outcome up.

        Raises:
            UserError: for logits that are not finite, naming set and intervention.
        """
        dataset, outputs = outcome.dataset, outcome.outputs
        if outcome.place.kind == "none":
            self._none[dataset] = outputs
            if dataset == self._id_set:
                self._reference = UnitReference.of(outputs.features.numpy(), self._counts[dataset])
        if dataset not in self._none:
            self._waiting[dataset].append(outcome)
            return
        for ready in (outcome, *self._waiting.pop(dataset, ())):
            self._sum_up(ready)

    def _sum_up(self, outcome: Outcome) -> None:
        place, dataset, index, outputs = outcome.place, outcome.dataset, outcome.index, outcome.outputs
        none = self._none[dataset].at(index)
        try:
            scores = _scores(outputs)
        except UserError as error:
            raise UserError(f"{dataset} under {place.kind} {place.place}: {error}".replace(" :", ":")) from error
        figures = self._figures(dataset, index, outputs, scores)
        before = self._remembered(
            (dataset, index.tobytes(), b""), lambda: self._figures(dataset, index, none, _scores(none))
        )
        self._rows(outcome, figures, before, 0)
        if dataset == self._id_set:
            self._id_scores[place, outcome.companion] = index, scores
            return
        partner = self._partner(place, dataset)
        if partner is not None:
            id_index, id_scores = partner
            found = self._detection(dataset, id_index, id_scores, index, scores)
            before = self._remembered(
                (dataset, index.tobytes(), id_index.tobytes()),
                lambda: self._detection(dataset, id_index, self._none_scores(id_index), index, _scores(none)),
            )
            self._rows(outcome, found, before, len(id_index))

    def table(self) -> pd.DataFrame:
        """``interventions.csv`` without run, norm and seed: columns :data:`COLUMNS`."""
        return _numbers(pd.DataFrame(self._table, columns=COLUMNS))

    def draws(self) -> pd.DataFrame:
        """``intervention_draws.parquet``: columns :data:`KEYS` and ``draws``, the R resamples of each value."""
        return _numbers(pd.DataFrame(self._draws, columns=[*KEYS, "draws"]))

    def _partner(self, place: Place, dataset: str) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """The in-distribution images that an OOD set is told from: those in its batches, or those under the same."""
        return self._id_scores.get((place, dataset)) or self._id_scores.get((place, ""))

    def _none_scores(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return _scores(self._none[self._id_set].at(index))

    def _remembered(self, key: tuple[str, bytes, bytes], compute: Callable[[], Figures]) -> Figures:
        """Figures under ``none``, which most interventions of a set share, are computed once."""
        if key not in self._none_figures:
            self._none_figures[key] = compute()
        return self._none_figures[key]

    def _counts_of(self, dataset: str, index: np.ndarray) -> np.ndarray:
        """Resample counts ``[1 + R, n]`` of a part of a set, the first row for the images as they are."""
        counts = self._counts[dataset][:, index]
        # A very small part can be missing from a resample altogether; then its first image stands in for it.
        counts[~counts.any(axis=1), 0] = 1
        return counts

    def _figures(self, dataset: str, index: np.ndarray, outputs: Outputs, scores: dict[str, np.ndarray]) -> Figures:
        """Figures of one set alone, each ``[1 + R]``."""
        assert self._reference is not None, "the in-distribution set under none has to come first"
        counts = self._counts_of(dataset, index)
        names, columns = [(score, "mean") for score in scores], list(scores.values())
        if dataset == self._id_set and self._labels is not None:
            names.append(("", "accuracy"))
            columns.append(outputs.logits.argmax(dim=1).numpy() == self._labels[index])
        # One product of matrices for all means; the share above the 99th percentile is not asked for.
        means = weighted_means(np.column_stack([*columns, outputs.features.numpy()]), counts)
        figures = {name: means[:, position] for position, name in enumerate(names)}
        units = figures_of_means(means[:, len(names) :], means[:, 0], self._reference)
        return figures | {("penultimate", name): units[name] for name in UNIT_RATIOS}

    def _detection(
        self,
        dataset: str,
        id_index: np.ndarray,
        id_scores: dict[str, np.ndarray],
        index: np.ndarray,
        scores: dict[str, np.ndarray],
    ) -> Figures:
        id_counts, counts = self._counts_of(self._id_set, id_index), self._counts_of(dataset, index)
        figures: Figures = {}
        for score in DETECTION_SCORES:
            found = detection_metrics(id_scores[score], scores[score], id_counts, counts)
            figures |= {(score, metric): found[metric] for metric in DETECTION}
        return figures

    def _rows(self, outcome: Outcome, figures: Figures, before: Figures, n_id: int) -> None:
        role = "id" if outcome.dataset == self._id_set else "ood"
        for (score, metric), values in figures.items():
            change = values - before[score, metric]
            keys = outcome.place._asdict() | {
                "companion": outcome.companion, "dataset": outcome.dataset, "role": role, "score": score,
                "metric": metric, "n": len(outcome.index), "n_id": n_id, "value": values[0],
            }  # fmt: skip
            low, high = interval(values[1:])
            change_low, change_high = interval(change[1:])
            self._draws.append(keys | {"draws": values[1:]})
            self._table.append(
                keys
                | {"low": low, "high": high}
                | {"change": change[0], "change_low": change_low, "change_high": change_high}
            )


def _scores(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: score(outputs.logits).numpy() for name, score in SCORES.items()}


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Places without a position or share have NaN there."""
    return table.astype({"position": "float64", "share": "float64"})
