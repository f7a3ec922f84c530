"""What target statistics change against running ones: the table at the head of a page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import Replicates
from bnood.report.figures import TARGET, rows
from bnood.report.names import change, display, number, scale

QUESTIONS = (  # title, metric, detector, role
    ("Largest unit mean, relative to ID", "unit_mean_max_ratio", "units", "ood"),
    ("Mean MSP", "mean", "msp", "ood"),
    ("Mean energy", "mean", "energy", "ood"),
    ("AUROC of MSP", "auroc", "msp", "ood"),
    ("AUROC of energy", "auroc", "energy", "ood"),
    ("ID accuracy", "accuracy", "", "id"),
)
FOUND = ["network", "title", "dataset", "scale", "before", "after", "effect", "low", "high", "per_seed"]
COLUMNS = ["Quantity", "Images", "Running", "Target", "Difference"]


def differences(replicates: pd.DataFrame) -> pd.DataFrame:
    """Target against running statistics, per network, question and image set, over its seeds.

    Args:
        replicates: rows of `draws.parquet`, of one or more networks.

    Returns:
        Columns :data:`FOUND`; `per_seed` is an array.
    """
    found = []
    for network, own in replicates.groupby("network", sort=False):
        own = own[own["statistics"].isin(["running", TARGET])]
        for title, metric, detector, role in QUESTIONS:
            for dataset, part in rows(own, metric, detector, role).groupby("dataset", sort=False):
                sides = {name: _of_seeds(side) for name, side in part.groupby("statistics")}
                if len(sides) < 2:
                    continue
                before, after = sides["running"], sides[TARGET]
                difference = after - before
                interval = difference.interval()
                numbers = (before.values.mean(), after.values.mean(), interval.effect, interval.low, interval.high)
                found.append((network, title, dataset, scale(metric, detector), *numbers, difference.values))
    return pd.DataFrame(found, columns=FOUND)


def _of_seeds(side: pd.DataFrame) -> Replicates:
    side = side.sort_values("seed")
    return Replicates(tuple(side["seed"]), side["value"].to_numpy(float), np.stack(side["replicates"].to_list()))


def as_text(found: pd.DataFrame) -> list[list[str]]:
    """The differences as rows of :data:`COLUMNS`."""
    return [
        [
            one.title, display(one.dataset), number(one.before, one.scale), number(one.after, one.scale),
            change(one.effect, one.low, one.high, one.scale),
        ]
        for one in found.itertuples()
    ]  # fmt: skip
