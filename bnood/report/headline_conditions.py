"""Conditions under which images were scored: which of them are shown, in which order, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

STATISTICS_ORDER = ("running", "batch", "recalibrated:id", "recalibrated:target", "recalibrated:mixture")
CALLED = {  # on pages and in pictures, where the tables' own name says less
    "recalibrated:id": "recalibrated on ID",
    "recalibrated:target": "matched",
    "recalibrated:mixture": "recalibrated on a mixture",
}
TRAINING_BATCH_SIZE = 128  # of the published recipes; where several batch sizes were scored, the nearest is drawn


def called(statistics: str) -> str:
    """What pages call a kind of statistics: "matched" for "recalibrated:target"."""
    return CALLED.get(statistics, statistics)


def keeps_statistics(network: str) -> bool:
    """Whether a network ("bn", "ln", "bn-at-gn") has BatchNorm, so that it matters which statistics it uses."""
    return network.split("-")[0] == "bn"


class Condition(NamedTuple):
    """The statistics under which images were scored, as the tables name them."""

    statistics: str
    composition: str
    batch_size: int

    @property
    def label(self) -> str:
        """As pictures and pages call it: "matched", "batch of 128, half OOD"; the tables keep their own names."""
        share = f"{100 * self.ood_share:g} % OOD" if self.ood_share != 0.5 else "half OOD"
        mixed = share if self.ood_share else self.composition
        if self.statistics == "batch":
            first = f"batch of {self.batch_size}" if self.batch_size else "batch"
            return f"{first}, {mixed}" if mixed else first
        size = f"batches of {self.batch_size}" if self.batch_size else ""
        return ", ".join(part for part in (called(self.statistics), mixed, size) if part)

    @property
    def ood_share(self) -> float:
        """Share of OOD images in the batches: 0.5 for "mixed 0.5", 0 for "pure" and ""."""
        return float(self.composition.removeprefix("mixed ")) if self.composition.startswith("mixed ") else 0.0

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of `frame` under this condition."""
        found = frame["statistics"].eq(self.statistics) & frame["composition"].eq(self.composition)
        return frame[found & frame["batch_size"].eq(self.batch_size)]


def conditions(frame: pd.DataFrame) -> list[Condition]:
    """Every condition of a table or of scores, in the order in which they are always shown."""
    names = frame[["statistics", "composition", "batch_size"]].drop_duplicates()
    found = [Condition(str(a), str(b), int(c)) for a, b, c in names.itertuples(index=False)]

    def place(condition: Condition) -> tuple[int, str, float, int]:
        known = condition.statistics in STATISTICS_ORDER
        rank = STATISTICS_ORDER.index(condition.statistics) if known else len(STATISTICS_ORDER)
        return rank, condition.statistics, condition.ood_share, condition.batch_size

    return sorted(found, key=place)


def at_one_batch_size(found: list[Condition]) -> list[Condition]:
    """All conditions, but of the batch sizes only the one nearest to the usual training batch (128)."""
    sizes = [condition.batch_size for condition in found if condition.batch_size]
    kept = min(sizes, key=lambda size: (abs(size - TRAINING_BATCH_SIZE), size), default=0)
    return [condition for condition in found if condition.batch_size in (0, kept)]


def headline_conditions(frame: pd.DataFrame) -> list[Condition]:
    """The few conditions of the main result: one batch size, and of the mixed batches the share nearest to 0.5."""
    found = at_one_batch_size(conditions(frame))
    shares = [condition.ood_share for condition in found if condition.statistics == "batch" and condition.ood_share]
    kept = min(shares, key=lambda share: (abs(share - 0.5), share), default=0.0)
    return [condition for condition in found if condition.statistics != "batch" or condition.ood_share in (0.0, kept)]


def under_running(networks: Iterable[str]) -> str:
    """ " (BN under running statistics)", as far as any of these networks has statistics."""
    return " (BN under running statistics)" if any(map(keeps_statistics, networks)) else ""


def row_label(network: str, condition: Condition) -> str:
    """ "bn · matched"; the network alone where it keeps no statistics, so that none are named."""
    alone = condition.statistics == "running" and not keeps_statistics(network)
    return network if alone else f"{network} · {condition.label}"


def names_in_tables(statistics: Iterable[str]) -> str:
    """What the tables call these kinds of statistics, a sentence and a space; "" where the names are the same."""
    given = set(statistics)
    names = [f"“{shown}” is {name}" for name, shown in CALLED.items() if name in given]
    return f"In the CSV tables and under “All metrics”, {', '.join(names)}. " if names else ""
