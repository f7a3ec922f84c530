"""From the pooled tables of a study to one quantity with every seed, as :class:`bnood.evaluation.intervals.Replicates`.

The tables hold one row per network, seed, condition, set and metric, with the metric's bootstrap draws.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnood.errors import UserError
from bnood.evaluation.intervals import Replicates, Unusable

CONDITION_KEYS = ("network", "statistics", "dataset", "role", "score", "metric")
INTERVENTION_KEYS = ("network", "kind", "position", "dataset", "role", "score", "metric")
# Of the interventions, those that put matched statistics into a part of the network.
PLACED = ("none", "all", "only", "first", "last", "mean", "variance")
NO_POSITION = -1
# The mixture whose statistics are listed beside H1: half of its images are OOD.
MIXTURE, MIXTURE_SHARE = "recalibrated:mixture", "mixed 0.5"


class Quantity(NamedTuple):
    """What is measured, as the tables name it, with its unit in words."""

    score: str
    metric: str
    unit: str

    @property
    def name(self) -> str:
        return f"{self.score} {self.metric}".strip()


UNIT_MAXIMUM = Quantity("penultimate", "unit_mean_max_ratio", "times ID")
# The largest unit mean of *ID* images weighted to the classes that are predicted on the set.
CLASS_MIX = Quantity("penultimate", "class_mix_max_ratio", "times ID")
UNIT_SPREAD = Quantity("penultimate", "unit_mean_spread_ratio", "times ID")
ABOVE_P99 = Quantity("penultimate", "share_above_id_p99", "share of activations")
ENERGY = Quantity("energy", "mean", "nats")
MAX_LOGIT = Quantity("max_logit", "mean", "nats")
MSP = Quantity("msp", "mean", "probability")
CONFIDENT = Quantity("msp", "share_above_0.9", "share of images")
ACCURACY = Quantity("", "accuracy", "share of images")


class _Row(NamedTuple):
    value: float
    draws: np.ndarray
    images: tuple[int, int]


Key = tuple[object, ...]


class Measurements:
    """Rows of a pooled table by what they measure; ``what`` names the table in messages."""

    def __init__(self, table: pd.DataFrame, keys: tuple[str, ...], what: str) -> None:
        self.what = what
        self.keys = keys
        self._rows: dict[Key, dict[int, _Row]] = {}
        for *key, seed, value, draws, n, n_id in table[[*keys, "seed", "value", "draws", "n", "n_id"]].itertuples(
            index=False, name=None
        ):
            seeds = self._rows.setdefault(tuple(key), {})
            if int(seed) in seeds:
                raise UserError(f"{what}: two rows for seed {seed}, {self._named(tuple(key))}: is a run in it twice?")
            seeds[int(seed)] = _Row(float(value), np.asarray(draws, dtype=np.float64), (int(n), int(n_id)))

    def names(self, key: str, **where: object) -> list[str]:
        """The names that ``key`` takes, in the table's order, among the rows where other keys have given values."""
        position, wanted = self.keys.index(key), {self.keys.index(name): value for name, value in where.items()}
        rows = (row for row in self._rows if all(row[place] == value for place, value in wanted.items()))
        return list(dict.fromkeys(str(row[position]) for row in rows))

    def seeds(self, network: str) -> tuple[int, ...]:
        """All seeds of a network, ascending."""
        place = self.keys.index("network")
        return tuple(sorted({seed for key, rows in self._rows.items() if key[place] == network for seed in rows}))

    def only(self, seeds: Collection[int]) -> "Measurements":
        """The rows of these seeds alone."""
        part = Measurements.__new__(Measurements)
        part.what, part.keys = self.what, self.keys
        kept = {key: {s: row for s, row in rows.items() if s in seeds} for key, rows in self._rows.items()}
        part._rows = {key: rows for key, rows in kept.items() if rows}
        return part

    def get(self, *key: object) -> Replicates:
        """The quantity with every seed that has it. Raises :class:`Unusable`, with the reason, if it is of no use."""
        rows = self._found(key)
        seeds = sorted(rows)
        sizes = {len(rows[seed].draws) for seed in seeds}
        if len(sizes) > 1:
            raise Unusable(
                f"{self.what}: {sorted(sizes)} resamples in {self._named(key)}: evaluate all with one number"
            )
        if key[-1] == "auroc" and any(rows[seed].value == 0.5 and np.ptp(rows[seed].draws) == 0 for seed in seeds):
            raise Unusable(f"the scores are constant (AUROC exactly 0.5 in every resample): {self._named(key)}")
        try:
            return Replicates(
                tuple(seeds), np.array([rows[seed].value for seed in seeds]), np.stack([rows[s].draws for s in seeds])
            )
        except Unusable as error:
            raise Unusable(f"{self.what}: {error} in {self._named(key)}") from error

    def difference(self, left: Key, right: Key, other: "Measurements | None" = None) -> Replicates:
        """``left - right`` on the same images; ``right`` is looked up in ``other`` where that is given.

        Raises :class:`Unusable` where the two scored different numbers of images.
        """
        other = self if other is None else other
        first, second = self._found(left), other._found(right)
        for seed in sorted(first.keys() & second.keys()):
            if not _same_images(first[seed].images, second[seed].images):
                raise Unusable(
                    f"on other images: {self._told(left)} is of {first[seed].images[0]} images, {other._told(right)} "
                    f"of {second[seed].images[0]} (seed {seed}); a paired comparison needs the same"
                )
        try:
            return self.get(*left) - other.get(*right)
        except Unusable as error:
            raise Unusable(f"{error}: {self._told(left)} and {other._told(right)}") from error

    def _found(self, key: Key) -> Mapping[int, _Row]:
        if key not in self._rows:
            raise Unusable(f"{self.what} has nothing for {self._named(key)}")
        return self._rows[key]

    def _told(self, key: Key) -> str:
        return f"{self.what}, {self._named(key)}"

    def _named(self, key: Key) -> str:
        return ", ".join(f"{name} {value}" for name, value in zip(self.keys, key, strict=True) if value not in ("", -1))


def _same_images(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether as many images of the set were scored, and of the ID set where both figures compare with it."""
    return first[0] == second[0] and (first[1] == second[1] or 0 in (first[1], second[1]))


def condition_measurements(draws: pd.DataFrame) -> Measurements:
    """The draws of all runs: without ``batch``, which no hypothesis uses; of mixtures, the OOD images at equal shares.

    Raises ``UserError`` if the table is empty or lacks a column.
    """
    table = _checked(draws, {*CONDITION_KEYS, "seed", "composition", "batch_size", "companion"}, "draws")
    mixture = (table["statistics"] == MIXTURE) & (table["composition"] == MIXTURE_SHARE)
    pure = (table["composition"] == "") | mixture
    return Measurements(table[pure & (table["batch_size"] == 0) & (table["companion"] == "")], CONDITION_KEYS, "draws")


def intervention_measurements(draws: pd.DataFrame) -> Measurements:
    """The draws of the interventions of :data:`PLACED`; layers are told apart by their position (-1: none)."""
    table = _checked(draws, {*INTERVENTION_KEYS, "seed", "companion"}, "intervention_draws")
    table = table[table["kind"].isin(PLACED) & (table["companion"] == "")]
    position = pd.to_numeric(table["position"], errors="coerce").fillna(NO_POSITION).astype(int)
    # What has no place has no position either, whatever stands in the column.
    position = position.where(table["kind"].isin(("only", "first", "last")), NO_POSITION)
    return Measurements(table.assign(position=position), INTERVENTION_KEYS, "intervention_draws")


def _checked(table: pd.DataFrame, columns: set[str], what: str) -> pd.DataFrame:
    missing = sorted((columns | {"value", "draws", "n", "n_id"}) - set(table.columns))
    if missing:
        raise UserError(f"{what} lacks the columns {', '.join(missing)}: pool the tables of a study's evaluated runs")
    if table.empty:
        raise UserError(f"{what} is empty: there is nothing to judge; evaluate the runs first")
    # A CSV reader turns empty names into NaN.
    named = [name for name in ("composition", "companion", "score") if name in table.columns]
    return table.assign(**{name: table[name].astype(object).where(table[name].notna(), "") for name in named})
