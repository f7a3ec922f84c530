"""The heat maps of batch statistics: change from running by batch size and share of OOD images in the batch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnood.report.figures import colours, ood_sets
from bnood.report.intervention_rows import GRIDS, as_changes, outcome, pooled_interventions, with_interval
from bnood.report.panels import Heat, Panel, Picture
from bnood.report.study_tables import listed, rests_on


def batch_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """Batch statistics: change from running by batch size and share of OOD images in the batch."""
    pooled = pooled_interventions(interventions, ["batch"], changes=True)
    if pooled is None:
        return None
    hues = colours(ood_sets(pooled))
    sizes = sorted({int(size) for size in pooled["position"]})
    shares = sorted({float(share) for share in pooled["share"]})
    panels = []
    for score, metric, role, name in GRIDS:
        own = outcome(pooled, score, metric, role)
        limit = float(own["mean"].abs().max()) if len(own) else 0.0
        for dataset, hue in hues.items():
            rows = own[own["dataset"] == dataset] if role == "ood" else own[own["companion"].isin([dataset, ""])]
            if rows.empty:
                continue
            cells = rows.drop_duplicates(["position", "share"]).set_index(["share", "position"])["mean"].to_dict()
            grid = [[float(cells.get((share, size), np.nan)) for share in shares] for size in sizes]
            labels = ["1 (pure)" if share == 1 else f"{share:g}" for share in shares]
            heat = Heat(labels, [str(size) for size in sizes], grid, limit or 1.0)
            panels.append(
                Panel(dataset, "share of OOD", "batch size", heat=heat, choice=f"Change in {name}", colour=hue)
            )  # fmt: skip
    return Picture(
        name="batches", title="Batch statistics: batch size and share of OOD images", says=_batch_sentence(pooled),
        how="Changes from running statistics; blue above zero, orange below, the number in each cell. A share of 1 "
        "means pure batches, where ID images are in batches of their own. "
        f"{_gaps(panels)}{_numbers_of_images(pooled)}{rests_on(pooled, bars=False)}",
        panels=panels, numbers=_table(pooled), source="interventions.csv", choice_label="Outcome",
    )  # fmt: skip


def _batch_sentence(pooled: pd.DataFrame) -> str:
    """Of each outcome the lowest and the highest cell with their intervals, and how many are told apart from zero."""
    found = []
    for score, metric, role, name in GRIDS:
        rows = outcome(pooled, score, metric, role)
        if rows.empty:
            continue
        digits = 2 if metric == "unit_mean_max_ratio" else 3
        low, high = rows.loc[rows["mean"].idxmin()], rows.loc[rows["mean"].idxmax()]
        cells = f"of {len(rows)} cells {(rows['mean'] > 0).sum()} are above zero"
        if rows["low"].notna().any():
            cells += f"; the interval lies above zero in {(rows['low'] > 0).sum()}, below in {(rows['high'] < 0).sum()}"
        found.append(
            f"{name[0].upper()}{name[1:]}: {with_interval(low, digits)} ({_cell(low)}) to "
            f"{with_interval(high, digits)} ({_cell(high)}); {cells}."
        )
    if not found:
        return "The table holds no outcome by batch size and share."
    return f"Changes from running to batch statistics [95 % interval], lowest to highest. {' '.join(found)}"


def _gaps(panels: list[Panel]) -> str:
    """Which cells are empty. Only sets that do not fill a batch are left out of a sweep."""
    found: dict[str, set[int]] = {}
    for panel in panels:
        if panel.heat is not None:
            for size, row in zip(panel.heat.rows, panel.heat.values, strict=True):
                if np.isnan(row).any():
                    found.setdefault(panel.title, set()).add(int(size))
    if not found:
        return ""
    cells = listed([f"{name}, batches of {listed([str(size) for size in sorted(s)])}" for name, s in found.items()])
    return f"Empty cells ({cells}) were not measured: there were too few images to fill such a batch. "


def _numbers_of_images(pooled: pd.DataFrame) -> str:
    few = pooled["n"].min()
    return "" if pd.isna(few) else f"Only whole batches count; some cells rest on {int(few):,} images. "


def _table(pooled: pd.DataFrame) -> pd.DataFrame:
    """The rows that the heat maps show, with the names of their axes."""
    rows = pd.concat([outcome(pooled, score, metric, role) for score, metric, role, _ in GRIDS], ignore_index=True)
    named = rows.assign(position=rows["position"].astype(int)).rename(columns={"position": "batch_size"})
    return as_changes(named.drop(columns=["kind", "place"]))


def _cell(row: pd.Series) -> str:
    where = row["dataset"] if row["role"] == "ood" else f"beside {row['companion']}"
    named = "" if row["role"] == "id" and not row["companion"] else f"{where}, "
    share = "pure" if row["share"] == 1 else f"share {row['share']:g}"
    return f"{named}batches of {int(row['position'])}, {share}"
