"""The tables of a study, and how figures of several seeds become one figure with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from bnood.errors import UserError
from bnood.report.figures import complete, ood_sets

NETWORKS = ("bn", "ln", "gn", "bn-at-ln", "bn-at-gn")
MATCHED = "recalibrated:target"
Z95 = 1.959964
KEYS = ("network", "statistics", "composition", "batch_size", "companion", "dataset", "role", "score", "metric")
_NEEDED = "network norm seed statistics composition batch_size dataset role score metric value low high n companion"


@dataclass(frozen=True)
class StudyTables:
    """Everything that a study's report and figures are drawn from; what is None was not measured.

    Attributes:
        name: of the study.
        table: the pooled metric table, with the column `network` ("bn", "ln", "gn", "bn-at-ln", "bn-at-gn").
        differences: the same columns; value, low and high are changes from running statistics.
        units: per penultimate unit with the columns run, network and seed, or one table for each run.
        interventions, shift, layers, layer_distances: pooled tables with run, network and seed.
        verdict: the content of `verdict.json`.
        networks: one row per trained network.
        commands: what to type to get this study again, the command of the figures first.
        made: versions, commit, machine and whatever else says how it came about.
        limits: what the study does not show, one sentence each.
        notes: what its evaluations left out, one sentence each.
    """

    name: str
    table: pd.DataFrame
    differences: pd.DataFrame | None = None
    units: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None
    interventions: pd.DataFrame | None = None
    shift: pd.DataFrame | None = None
    layers: pd.DataFrame | None = None
    layer_distances: pd.DataFrame | None = None
    verdict: Mapping[str, object] | None = None
    networks: pd.DataFrame | None = None
    commands: Sequence[str] = ()
    made: Mapping[str, object] = field(default_factory=dict)
    limits: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def metrics(self) -> pd.DataFrame:
        """The metric table, checked; the column `network` is the norm where it is missing.

        Raises:
            UserError: it lacks columns or rows.
        """
        return with_network(self.table, _NEEDED, "the study's metric table")

    @property
    def sets(self) -> list[str]:
        """Names of the OOD sets, in the order in which they were evaluated."""
        return ood_sets(self.metrics)

    @property
    def all_units(self) -> pd.DataFrame | None:
        """The unit tables of all runs in one, with run, network and seed; None if there are none."""
        if self.units is None or isinstance(self.units, pd.DataFrame):
            return self.units
        table, parts = self.metrics, []
        for run, frame in self.units.items():
            own = table[table["run"] == run]
            if own.empty:
                raise UserError(f"the unit table of '{run}' has no run of that name in the study's metric table")
            first = own.iloc[0]
            parts.append(frame.assign(run=run, network=first["network"], seed=first["seed"]))
        return pd.concat(parts, ignore_index=True) if parts else None


def with_network(frame: pd.DataFrame, columns: str, what: str) -> pd.DataFrame:
    """`complete`, for tables of one run too: where `network` is missing it is the norm (or "bn"), and seed is 0."""
    given = frame
    if "network" not in frame.columns:
        given = given.assign(network=frame["norm"] if "norm" in frame.columns else "bn")
    if "seed" not in frame.columns:
        given = given.assign(seed=0)
    return complete(given, columns, what)


def networks_of(frame: pd.DataFrame) -> list[str]:
    """The networks of a table: BN, LN, GN, then BN stopped at another's accuracy, then any others by name."""
    found = {str(name) for name in frame["network"].unique()}
    return [name for name in NETWORKS if name in found] + sorted(found - set(NETWORKS))


def over_seeds(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds with a 95 % interval, one row per combination of `keys`: mean, low, high, n_seeds, n.

    The squared standard error is the sample variance of the seeds' values over their number, plus the squared mean
    standard error of a seed's own interval over images: all seeds are scored on the same images, so that part does not
    shrink with the number of seeds. Each part has a half width of its own, Student's t at S - 1 degrees of freedom for
    the seeds and the normal quantile for the images, and the interval's is the root of the sum of their squares (Howe
    1974), as in `bnood.evaluation.intervals`, so that report and verdict agree. With one seed the interval is that seed's own,
    over images only. Rows without an interval of their own (NaN) count as exact.
    """
    columns = {name: frame[name] if name in frame.columns else np.nan for name in ("low", "high", "n")}
    given = frame.assign(**columns, _se=lambda table: (table["high"] - table["low"]) / (2 * Z95))
    grouped = given.groupby(list(keys), sort=False, dropna=False)
    found = grouped.agg(
        mean=("value", "mean"), variance=("value", "var"), n_seeds=("value", "count"),
        se=("_se", "mean"), own_low=("low", "mean"), own_high=("high", "mean"), n=("n", "max"),
    ).reset_index()  # fmt: skip
    several = found["n_seeds"] > 1
    of_seeds = found["variance"].where(several, 0.0) / found["n_seeds"]
    student = stats.t.ppf(0.975, (found["n_seeds"] - 1).clip(lower=1))
    half = np.sqrt(student**2 * of_seeds + (Z95 * found["se"].fillna(0.0)) ** 2)
    low = np.where(several, found["mean"] - half, found["own_low"])
    high = np.where(several, found["mean"] + half, found["own_high"])
    return found.assign(low=low, high=high)[[*keys, "mean", "low", "high", "n_seeds", "n"]]


CUT = "Bars of shares end at 0 and 1, beyond which no share can lie; the table holds the whole intervals."


def rests_on(pooled: pd.DataFrame, of_images: bool = True, bars: bool = True) -> str:
    """What the marks of a picture rest on, in words: their intervals, the number of seeds and of images.

    Args:
        pooled: what is drawn, as `over_seeds` gives it.
        of_images: the rows have intervals of their own, over images.
        bars: the picture draws the intervals.
    """
    fewest, most = int(pooled["n_seeds"].min()), int(pooled["n_seeds"].max())
    images = pooled["n"].dropna() if "n" in pooled.columns else pd.Series(dtype=float)
    counts = seeds_in_words(fewest, most)
    if len(images):
        low, high = int(images.min()), int(images.max())
        counts += f", n = {low:,} images in a set" if low == high else f", n = {low:,} to {high:,} images in a set"
    if not bars:
        return f"{counts[0].upper()}{counts[1:]}."
    over = [name for name, there in (("seeds", most > 1), ("images", of_images)) if there]
    if not over:
        return f"There are no bars, because one seed has no interval over seeds; {counts}."
    mixed = ""
    if fewest == 1 and most > 1:
        mixed = " (over images alone where there is one seed)" if of_images else " (none where there is one seed)"
    return f"Bars are 95 % intervals over {listed(over)}{mixed}; {counts}."


def seeds_in_words(fewest: int, most: int | None = None) -> str:
    """ "1 seed", "3 seeds" or "1 to 3 seeds"."""
    most = fewest if most is None else most
    if fewest < most:
        return f"{fewest} to {most} seeds"
    return f"{most} seed" if most == 1 else f"{most} seeds"


def rows_where(frame: pd.DataFrame, **values: object) -> pd.Series:
    """Which rows have all these values in the columns of these names."""
    kept = pd.Series(True, index=frame.index)
    for name, value in values.items():
        kept &= frame[name].eq(value)
    return kept


def signed(value: float, digits: int = 3) -> str:
    """Always with its sign: "+0.012", or a true minus sign before "0.012"."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plain(value: float, digits: int = 3) -> str:
    """A figure with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
