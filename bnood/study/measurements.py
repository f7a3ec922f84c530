"""From the replicates of a study's networks, which are paired, to one quantity with every seed."""

from collections.abc import Collection, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.errors import UserError
from bnood.evaluation.intervals import Replicates, Unusable, linear, mean_of

KEYS = ["network", "statistics", "dataset", "role", "detector", "metric"]
NUMBERS = ["seed", "value", "replicates", "n_id", "n_ood"]
TEXT = ("statistics", "estimator", "fitted_under", "companion", "comparison", "detector")


class Quantity(NamedTuple):
    """What is measured, as the table's columns name it, with a name in words and its unit."""

    detector: str
    metric: str
    name: str
    unit: str


class Term(NamedTuple):
    """One measured quantity with its weight in a contrast; ``network`` is the kind within the family (bn, ln ...)."""

    weight: float
    quantity: Quantity
    statistics: str = "running"
    network: str = "bn"
    on_id: bool = False  # of the ID set, whatever set is asked about


class Measurements:
    """A study's pooled ``draws.parquet``; UserError if it is empty, lacks a column or an ID set, or has a run twice."""

    def __init__(self, table: pd.DataFrame) -> None:
        if missing := sorted({*KEYS, *NUMBERS, "companion", "comparison"} - set(table.columns)):
            raise UserError(f"draws lacks the columns {', '.join(missing)}: pool the tables of evaluated networks")
        if table.empty:
            raise UserError("draws is empty: there is nothing to judge; evaluate the networks first")
        # Readers of files turn empty names into NaN.
        table = table.assign(**{name: table[name].astype(object).fillna("") for name in TEXT if name in table})
        shifts = set(table.loc[table["role"] == "ood", "companion"])
        # ID rows that shared a batch with OOD images, and OOD rows against a shifted ID set, have a companion.
        table = table[(table["companion"] == "") & table["comparison"].isin(("", "ood", "placebo"))]
        table = table.assign(role=table["role"].where(table["comparison"] != "placebo", "placebo"))
        for seed, *key in table.loc[table.duplicated(["seed", *KEYS]), ["seed", *KEYS]].to_numpy():
            raise UserError(f"draws: two rows for seed {seed}, {_named(key)}: is a run in it twice?")
        self._hold(table)
        id_sets = [name for name in self.names("dataset", role="id") if name not in shifts]
        if not id_sets:
            raise UserError("draws holds no in-distribution set: evaluate the networks with labelled ID images")
        self.id_set = id_sets[0]

    def _hold(self, table: pd.DataFrame) -> None:
        self._table, self._places = table, table.groupby(KEYS, sort=False).indices
        self._columns = {name: table[name].to_numpy() for name in NUMBERS}

    def only(self, seeds: Collection[int]) -> "Measurements":
        """The rows of these seeds alone."""
        part = copy(self)
        part._hold(self._table[self._table["seed"].isin(seeds)])
        return part

    def names(self, key: str, **where: str) -> list[str]:
        """The values of a key in the table's order, among the rows where other keys have given values."""
        chosen = (self._table[list(where)] == pd.Series(where, dtype=object)).all(axis=1)
        return list(self._table.loc[chosen, key].unique())

    def families(self) -> list[str]:
        """The prefixes of the BatchNorm networks' names: "" for bn, "small " for small bn."""
        found = [name.removesuffix("bn") for name in self.names("network") if name.endswith("bn")]
        return [family for family in found if not family or family.endswith(" ")]

    def seeds(self, network: str) -> list[int]:
        return sorted(map(int, self.names("seed", network=network)))

    def has(self, *key: str) -> bool:
        return key in self._places

    def contrast(self, terms: Sequence[Term], datasets: Sequence[str], family: str = "") -> Replicates:
        """The weighted sum of terms, averaged with equal weight over sets, on the seeds that all terms have.

        Raises ``Unusable`` if a term is missing, constant or not finite, or two of them are of other images.
        """
        return mean_of([self._on_set(terms, dataset, family) for dataset in datasets])

    def placebo(self, network: str, statistics: str, detector: str, datasets: Sequence[str]) -> Replicates | None:
        """The placebo's AUROC over sets (or under the ID set's name); None where it was not evaluated."""
        keys = [(network, statistics, name, "placebo", detector, "auroc") for name in (*datasets, self.id_set)]
        found = [self._get(key) for key in dict.fromkeys(keys) if key in self._places]
        return mean_of(found) if found else None

    def _on_set(self, terms: Sequence[Term], dataset: str, family: str) -> Replicates:
        parts, scored = [], dict[tuple[str, int], tuple[int, int]]()
        for weight, quantity, statistics, network, on_id in terms:
            name = self.id_set if on_id else dataset
            role = "id" if name == self.id_set else "ood"
            key = (family + network, statistics, name, role, quantity.detector, quantity.metric)
            rows = self._rows(key)
            for seed, *counts in zip(rows["seed"], rows["n_id"], rows["n_ood"], strict=True):
                first = scored.setdefault((name, seed), tuple(counts))
                # 0 stands for a set that a figure does not use.
                if any(a != b and 0 not in (a, b) for a, b in zip(first, counts, strict=True)):
                    sizes = f"{max(counts)} images, another side of {max(first)} (seed {seed})"
                    raise Unusable(f"on other images: {_named(key)} is of {sizes}; a paired comparison needs the same")
            parts.append((weight, self._get(key)))
        return linear(parts)

    def _get(self, key: tuple[str, ...]) -> Replicates:
        rows = self._rows(key)
        try:
            if len(sizes := {len(each) for each in rows["replicates"]}) > 1:
                raise Unusable(f"seeds have {sorted(sizes)} resamples: evaluate all with one number")
            values, replicates = rows["value"].astype(float), np.stack(list(rows["replicates"])).astype(float)
            if key[-1] == "auroc" and ((values == 0.5) & (np.ptp(replicates, axis=1) == 0)).any():
                raise Unusable("the scores are constant (AUROC exactly 0.5 in every resample)")
            return Replicates(tuple(map(int, rows["seed"])), values, replicates)
        except Unusable as error:
            raise Unusable(f"{error} in {_named(key)}") from error

    def _rows(self, key: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The numbers of a key, by ascending seed."""
        if key not in self._places:
            raise Unusable(f"draws has nothing for {_named(key)}")
        places = self._places[key]
        places = places[np.argsort(self._columns["seed"][places])]
        return {name: column[places] for name, column in self._columns.items()}


def _named(key: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(KEYS, key, strict=True) if value != "")
