"""The picture of what matched statistics win in accuracy on shifted images, beside what they cost in OOD detection."""

from __future__ import annotations

import pandas as pd

from bnood.report.figures import colours
from bnood.report.panels import Panel, Picture, Series
from bnood.report.study_tables import (
    MATCHED,
    listed,
    networks_of,
    over_seeds,
    rests_on,
    rows_where,
    signed,
    with_network,
)

CORRUPTION_MARKERS = {"jpeg": "circle", "noise": "square", "blur": "diamond", "contrast": "triangle", "clean": "cross"}


def price_picture(shift: pd.DataFrame | None) -> Picture | None:
    """What matched statistics win in accuracy on shifted images beside what they cost in OOD detection."""
    if shift is None or shift.empty:
        return None
    needed = "network seed statistics dataset corruption strength score metric value change companion"
    frame = with_network(shift, needed, "the table of shifted sets")
    frame = frame[frame["statistics"].eq(MATCHED) & frame["network"].eq(networks_of(frame)[0])]
    if frame.empty:
        return None
    changed = frame.drop(columns=["value", "low", "high"], errors="ignore").rename(
        columns={"change": "value", "change_low": "low", "change_high": "high"}
    )
    keys = ["dataset", "corruption", "strength", "companion"]
    accuracy = over_seeds(changed[rows_where(changed, score="", metric="accuracy")], keys)
    area = over_seeds(changed[rows_where(changed, score="energy", metric="auroc")], keys)
    both = area.merge(accuracy, on=keys[:3], suffixes=("", "_accuracy"))
    if both.empty:
        return None
    sets = [str(name) for name in both["companion"].unique()]
    gains = _strength_panel(accuracy)
    ends = _padded(both["low"].fillna(both["mean"]).min(), both["high"].fillna(both["mean"]).max())
    clouds = [
        Panel(f"against {name}", "change in accuracy", "change in AUROC", _clouds(both, name, colours(sets)[name]),
              x_line=0.0, y_line=0.0, y_range=ends, colour=colours(sets)[name])
        for name in sets
    ]  # fmt: skip
    says = (
        f"On {len(accuracy)} clean and shifted sets, matching changes accuracy by {signed(accuracy['mean'].min())} to "
        f"{signed(accuracy['mean'].max())} and the energy score's AUROC by {signed(both['mean'].min())} to "
        f"{signed(both['mean'].max())}. {_counts(both)}"
    )
    columns = {
        "dataset": "dataset", "companion": "OOD set", "mean_accuracy": "accuracy_change",
        "low_accuracy": "accuracy_change_low", "high_accuracy": "accuracy_change_high", "mean": "auroc_change",
        "low": "auroc_change_low", "high": "auroc_change_high", "n_seeds": "n_seeds", "n": "n",
    }  # fmt: skip
    numbers = both[[*columns]].rename(columns=columns)
    return Picture(
        name="price", title="The price of matching: accuracy and detection", says=says,
        how="Each mark is one shifted set taken as in-distribution, at one strength. To the right: matching wins "
        f"accuracy there; downwards: matching loses AUROC against the OOD set. {rests_on(both)} "
        "In the first panel marks of one strength stand slightly beside each other; pointing at a mark names its set.",
        panels=[gains, *clouds], numbers=numbers, source="shift.csv", across=3,
    )  # fmt: skip


def _counts(both: pd.DataFrame) -> str:
    """How many pairs win and lose in each of the four ways, by their means and by their intervals."""
    ways = (
        ("both rise", 1, 1), ("accuracy rises and AUROC falls", 1, -1), ("accuracy falls and AUROC rises", -1, 1),
        ("both fall", -1, -1),
    )  # fmt: skip
    gained, found = _side(both, "mean_accuracy", "mean_accuracy"), _side(both, "mean", "mean")
    counts = [int(((gained == way) & (found == other)).sum()) for _, way, other in ways]
    parts = [f"{name} in {count}" for (name, *_), count in zip(ways, counts, strict=True)]
    if sum(counts) < len(both):
        parts.append(f"one of the two does not change in {len(both) - sum(counts)}")
    said = f"Of {len(both)} pairs of such a set and an OOD set, {listed(parts)}"
    if both[["low", "low_accuracy"]].isna().any(axis=None):
        return f"{said}."
    gained, found = _side(both, "low_accuracy", "high_accuracy"), _side(both, "low", "high")
    counts = [int(((gained == way) & (found == other)).sum()) for _, way, other in ways]
    clear = listed([str(count) for count in counts])
    return (
        f"{said}; counted where both 95 % intervals exclude zero, these are {clear}. AUROC alone is above zero by its "
        f"interval in {(found == 1).sum()} pairs and below in {(found == -1).sum()}."
    )


def _side(rows: pd.DataFrame, low: str, high: str) -> pd.Series:
    """1 where the whole interval lies above zero, -1 where it lies below, else 0."""
    return (rows[low] > 0).astype(int) - (rows[high] < 0).astype(int)


def _strength_panel(accuracy: pd.DataFrame) -> Panel:
    series = []
    for name, own in accuracy.groupby(_kinds(accuracy), sort=False):
        own = own.sort_values("strength")
        line = "solid" if own["strength"].nunique() > 1 else ""
        series.append(
            Series(str(name), "#555555", [*own["strength"].astype(float)], [*own["mean"]], [*own["low"]],
                   [*own["high"]], "y", _marker(str(name)), line, _labels(own))
        )  # fmt: skip
    ticks = [(float(step), f"{step:g}") for step in sorted(set(accuracy["strength"]))]
    return Panel("accuracy on the shifted sets", "strength", "change in accuracy", series, x_ticks=ticks, y_line=0.0,
                 step=1.0)  # fmt: skip


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range that holds zero and leaves some room."""
    low, high = min(low, 0.0), max(high, 0.0)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _kinds(frame: pd.DataFrame) -> pd.Series:
    """What a mark is called in the legend: its corruption, or the set's own name where the images are not corrupted."""
    return frame["corruption"].where(~frame["corruption"].isin(["none", ""]), frame["dataset"])


def _marker(kind: str) -> str:
    return CORRUPTION_MARKERS.get(kind, "wedge")


def _labels(rows: pd.DataFrame) -> list[str]:
    return [f"{name}, strength {strength:g}" for name, strength in zip(rows["dataset"], rows["strength"], strict=True)]


def _clouds(both: pd.DataFrame, name: str, colour: str) -> list[Series]:
    found = []
    own_set = both[both["companion"] == name]
    for kind, own in own_set.groupby(_kinds(own_set), sort=False):
        found.append(
            Series(str(kind), colour, [*own["mean_accuracy"]], [*own["mean"]], [*own["low"]], [*own["high"]], "y",
                   _marker(str(kind)), "", _labels(own), faint=True)
        )  # fmt: skip
    return found
