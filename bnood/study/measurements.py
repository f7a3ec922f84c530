"""From the replicates of a study's networks to one quantity with every seed, ready for an interval.

The pooled ``draws.parquet`` has one row per network, seed, statistics, set, detector and metric, with the metric's
value and its bootstrap replicates. All rows of a set share the same resamples, so differences are paired.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.errors import UserError
from bnood.evaluation.intervals import Replicates, Unusable, linear, mean_of

KEYS = ("network", "statistics", "dataset", "role", "detector", "metric")
NUMBERS = ("seed", "value", "replicates", "n_id", "n_ood")
TEXT = ("statistics", "estimator", "fitted_under", "companion", "comparison", "detector")
PLACEBO = "placebo"


class Quantity(NamedTuple):
    """What is measured, as the table's columns name it, with a name in words and its unit."""

    detector: str
    metric: str
    name: str
    unit: str


UNIT_MAXIMUM = Quantity("units", "unit_mean_max_ratio", "largest unit mean", "times ID")
UNIT_SPREAD = Quantity("units", "unit_mean_spread_ratio", "spread over units", "times ID")
ABOVE_P99 = Quantity("units", "share_above_id_p99", "share above ID's 99th percentile", "share of activations")
# The largest unit mean of *ID* images weighted to the classes that are predicted on the set.
CLASS_MIX = Quantity("units", "class_mix_max_ratio", "class mix", "times ID")
CLASS_MIX_N = Quantity("units", "class_mix_effective_n", "effective n of the class mix", "images")
ENERGY = Quantity("energy", "mean", "energy", "nats")
MAX_LOGIT = Quantity("max_logit", "mean", "max logit", "nats")
MSP = Quantity("msp", "mean", "MSP", "probability")
CONFIDENT = Quantity("msp", "share_above_0.9", "share with MSP > 0.9", "share of images")
ACCURACY = Quantity("", "accuracy", "ID accuracy", "share of images")


class Term(NamedTuple):
    """One measured quantity with its weight in a contrast; ``network`` is the kind within the family (bn, ln ...)."""

    weight: float
    quantity: Quantity
    statistics: str = "running"
    network: str = "bn"
    on_id: bool = False


class _Row(NamedTuple):
    value: float
    replicates: np.ndarray
    images: tuple[int, int]


Key = tuple[str, ...]


class Measurements:
    """The rows of a study's pooled ``draws.parquet``, by what they measure.

    Raises ``UserError`` if the table is empty, lacks a column, holds a run twice or has no ID set.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        missing = sorted({*KEYS, *NUMBERS, "companion", "comparison"} - set(table.columns))
        if missing:
            raise UserError(f"draws lacks the columns {', '.join(missing)}: pool the tables of evaluated networks")
        if table.empty:
            raise UserError("draws is empty: there is nothing to judge; evaluate the networks first")
        # Readers of files turn empty names into NaN.
        table = table.assign(**{name: table[name].astype(object).fillna("") for name in TEXT if name in table})
        shifts = set(table.loc[table["role"] == "ood", "companion"])
        # ID rows that shared a batch with OOD images, and OOD rows against a shifted ID set, have a companion.
        table = table[(table["companion"] == "") & table["comparison"].isin(("", "ood", PLACEBO))]
        table = table.assign(role=table["role"].where(table["comparison"] != PLACEBO, PLACEBO))
        self._rows: dict[Key, dict[int, _Row]] = {}
        for *key, seed, value, replicates, n_id, n_ood in table[[*KEYS, *NUMBERS]].itertuples(index=False, name=None):
            seeds = self._rows.setdefault(tuple(key), {})
            if int(seed) in seeds:
                raise UserError(f"draws: two rows for seed {seed}, {_named(tuple(key))}: is a run in it twice?")
            seeds[int(seed)] = _Row(float(value), np.asarray(replicates, np.float64), (int(n_id), int(n_ood)))
        id_sets = [name for name in self.names("dataset", role="id") if name not in shifts]
        if not id_sets:
            raise UserError("draws holds no in-distribution set: evaluate the networks with labelled ID images")
        self.id_set = id_sets[0]

    def names(self, key: str, **where: str) -> list[str]:
        """The values of a key in the table's order, among the rows where other keys have given values."""
        rows = (dict(zip(KEYS, row, strict=True)) for row in self._rows)
        return list(dict.fromkeys(row[key] for row in rows if where.items() <= row.items()))

    def seeds(self, network: str) -> tuple[int, ...]:
        """All seeds of a network, ascending."""
        return tuple(sorted({seed for key, rows in self._rows.items() if key[0] == network for seed in rows}))

    def only(self, seeds: Collection[int]) -> "Measurements":
        """The rows of these seeds alone."""
        part = Measurements.__new__(Measurements)
        part.id_set = self.id_set
        kept = {key: {s: row for s, row in rows.items() if s in seeds} for key, rows in self._rows.items()}
        part._rows = {key: rows for key, rows in kept.items() if rows}
        return part

    def has(self, *key: str) -> bool:
        """Whether there is any row for a key."""
        return key in self._rows

    def get(self, *key: str) -> Replicates:
        """The quantity with every seed that has it.

        Raises ``Unusable`` if it is missing, constant, not finite or of unequal numbers of resamples.
        """
        rows = self._found(key)
        seeds = sorted(rows)
        sizes = {len(rows[seed].replicates) for seed in seeds}
        if len(sizes) > 1:
            raise Unusable(f"{sorted(sizes)} resamples in {_named(key)}: evaluate all with one number")
        if key[-1] == "auroc" and any(rows[s].value == 0.5 and np.ptp(rows[s].replicates) == 0 for s in seeds):
            raise Unusable(f"the scores are constant (AUROC exactly 0.5 in every resample): {_named(key)}")
        values, replicates = np.array([rows[s].value for s in seeds]), np.stack([rows[s].replicates for s in seeds])
        try:
            return Replicates(tuple(seeds), values, replicates)
        except Unusable as error:
            raise Unusable(f"{error} in {_named(key)}") from error

    def contrast(self, terms: Sequence[Term], datasets: Sequence[str], family: str = "") -> Replicates:
        """The weighted sum of terms, averaged with equal weight over sets, on the seeds that all terms have.

        Terms ``on_id`` are of the ID set whatever ``datasets`` are; ``family`` is the prefix of the networks' names.
        Raises ``Unusable`` if a term is missing, or two terms scored different numbers of images of one set.
        """
        return mean_of([self._on_set(terms, dataset, family) for dataset in datasets])

    def _on_set(self, terms: Sequence[Term], dataset: str, family: str) -> Replicates:
        parts, images = [], dict[str, dict[int, tuple[int, int]]]()
        for weight, quantity, statistics, network, on_id in terms:
            name = self.id_set if on_id else dataset
            role = "id" if name == self.id_set else "ood"
            key = (family + network, statistics, name, role, quantity.detector, quantity.metric)
            found = {seed: row.images for seed, row in self._found(key).items()}
            first = images.setdefault(name, found)
            for seed in sorted(first.keys() & found.keys()):
                if not _same_images(first[seed], found[seed]):
                    counts = f"{max(found[seed])} images, another side of {max(first[seed])} (seed {seed})"
                    raise Unusable(f"on other images: {_named(key)} is of {counts}; a paired comparison needs the same")
            parts.append((weight, self.get(*key)))
        return linear(parts)

    def placebo(self, network: str, statistics: str, detector: str, datasets: Sequence[str]) -> Replicates | None:
        """The placebo's AUROC over sets; None where it was not evaluated. (It may stand under the ID set's name.)"""
        keys = [(network, statistics, name, PLACEBO, detector, "auroc") for name in (*datasets, self.id_set)]
        found = [self.get(*key) for key in dict.fromkeys(keys) if self.has(*key)]
        return mean_of(found) if found else None

    def _found(self, key: Key) -> dict[int, _Row]:
        if key not in self._rows:
            raise Unusable(f"draws has nothing for {_named(key)}")
        return self._rows[key]


def _named(key: Key) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(KEYS, key, strict=True) if value != "")


def _same_images(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether as many ID and OOD images were scored; 0 stands for a set that a figure does not use."""
    return all(a == b or 0 in (a, b) for a, b in zip(first, second, strict=True))
