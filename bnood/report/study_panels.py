"""From the tables of a study to its pictures: detection, mitigations and confidence.

ReAct's picture is in `unit_panels.py`, layers in `layer_panels.py`, interventions in `intervention_panels.py` and
`batch_panels.py`, the price of matching in `price_panels.py`. Every figure that a sentence names is computed from the
tables; nothing is stated that the data could contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnood.report.figures import ID_COLOUR, colours
from bnood.report.headline_conditions import (
    Condition,
    called,
    headline_conditions,
    keeps_statistics,
    names_in_tables,
    row_label,
    under_running,
)
from bnood.report.intervention_panels import lens_pictures
from bnood.report.intervention_rows import with_interval
from bnood.report.panels import Panel, Picture, Series, marker_of
from bnood.report.price_panels import price_picture
from bnood.report.study_tables import (
    CUT,
    KEYS,
    MATCHED,
    StudyTables,
    listed,
    networks_of,
    over_seeds,
    plain,
    rests_on,
    rows_where,
    signed,
    with_network,
)  # fmt: skip
from bnood.report.unit_panels import unit_picture

Row = dict[str, Any]
METRIC_LABELS = {
    "auroc": "AUROC (share; higher is better)",
    "fpr95": "FPR95 (share of OOD accepted; lower is better)",
    "fpr95_ood_positive": "OOD-positive FPR95 (ID rejected; lower is better)",
}
SCORE_NAMES = {
    "energy": "energy score",
    "msp": "MSP",
    "react": "ReAct (energy of clipped features)",
    "msp_temperature": "MSP at a fitted temperature",
}


def study_pictures(tables: StudyTables) -> list[Picture | str]:
    """All pictures of a study in reading order; in place of one that can't be drawn, one line that says why."""
    builders: list[tuple[str, Callable[[StudyTables], Picture | None]]] = [
        ("ReAct's per-unit picture: no unit table", unit_picture),
        ("Detection by statistics: no AUROC in the metric table", detection_picture),
        ("Mitigations: neither ReAct nor a fitted temperature was scored", mitigation_picture),
        ("Confidence on OOD images: no mean scores in the metric table", confidence_picture),
    ]
    found: list[Picture | str] = [build(tables) or f"{missing}." for missing, build in builders]
    found += lens_pictures(tables.layers, tables.layer_distances, tables.interventions)
    return [*found, price_picture(tables.shift) or "The price of matching: no shifted sets were evaluated."]


def _rows(frame: pd.DataFrame) -> list[tuple[str, Condition]]:
    """(network, condition) of each row of a dot plot; of the nets stopped early only running and matched."""
    found = []
    for network in networks_of(frame):
        for condition in headline_conditions(frame[frame["network"] == network]):
            if "-at-" not in network or condition.statistics in ("running", MATCHED):
                found.append((network, condition))
    return found


def _terms(rows: Sequence[tuple[str, Condition]]) -> str:
    """What the rows' names mean: matched and re-estimated statistics, and networks that were stopped early."""
    known = {condition.statistics for _, condition in rows}
    found = []
    if MATCHED in known:
        found.append("Matched statistics are estimated on held-out images of the very set that is scored. ")
    stopped = [name for name in dict.fromkeys(name for name, _ in rows) if "-at-" in name]
    found += [
        f"{name} is {norm.upper()} stopped at the accuracy of {partner.upper()}. "
        for name in stopped
        for norm, partner in [name.split("-at-")]
    ]
    return names_in_tables(known) + "".join(found)


def _at(frame: pd.DataFrame, network: str, condition: Condition) -> pd.DataFrame:
    return condition.rows(frame[frame["network"] == network])


def _dots(
    name: str, colour: str, marker: str, found: Sequence[tuple[float, Row]], labels: Sequence[str] = ()
) -> Series:
    """Marks with intervals along x, each at its place on the y axis."""
    return Series(
        name, colour, [row["mean"] for _, row in found], [place for place, _ in found],
        [row["low"] for _, row in found], [row["high"] for _, row in found], "x", marker, labels=labels,
    )  # fmt: skip


def _by_key(pooled: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[object, ...], Row]:
    """The rows by their values of `keys`: a dot plot looks up some hundred of them."""
    return {tuple(row[key] for key in keys): row for row in pooled.to_dict("records")}


def _row_range(count: int) -> tuple[float, float]:
    return count - 0.5, -0.5


def detection_picture(tables: StudyTables) -> Picture | None:
    """AUROC and FPR95 of energy and MSP: a panel per OOD set, a row per network and kind of statistics."""
    frame = tables.metrics
    kept = frame["score"].isin(["energy", "msp"]) & frame["metric"].isin(list(METRIC_LABELS)) & frame["role"].eq("ood")
    pooled = over_seeds(frame[kept], KEYS)
    if pooled.empty:
        return None
    rows, sets = _rows(frame[kept]), tables.sets
    ticks = [(float(i), row_label(network, condition)) for i, (network, condition) in enumerate(rows)]
    panels = []
    for metric in (name for name in METRIC_LABELS if (pooled["metric"] == name).any()):
        for name in sets:
            own = pooled[(pooled["metric"] == metric) & (pooled["dataset"] == name)]
            series = [
                _by_row(own[own["score"] == score], rows, shift, SCORE_NAMES[score], colours(sets)[name], marker)
                for score, shift, marker in (("energy", -0.13, "circle"), ("msp", 0.13, "square-open"))
            ]
            panels.append(
                Panel(name, METRIC_LABELS[metric], "", [s for s in series if s.x], y_ticks=ticks,
                      y_range=_row_range(len(rows)), share_axis="x", choice=METRIC_LABELS[metric].split(" (")[0],
                      colour=colours(sets)[name])
            )  # fmt: skip
    return Picture(
        name="detection", title="Detection: AUROC and FPR95 by statistics", says=_detection_sentence(tables),
        how="A panel per OOD set, a row per network · statistics. Each side is scored under the statistics of that "
        f"name. {_terms(rows)}{rests_on(pooled)} {CUT}",
        panels=panels, numbers=_shortened(pooled, rows),
        source="table.csv", choice_label="Metric",
    )  # fmt: skip


def _by_row(
    own: pd.DataFrame, rows: list[tuple[str, Condition]], shift: float, name: str, colour: str, marker: str
) -> Series:
    """One mark per row of a dot plot; rows that were not measured have none."""
    held = _by_key(own, ["network", *Condition._fields])
    places = [(place, held[key]) for place, key in enumerate((n, *c) for n, c in rows) if key in held]
    labels = [row_label(*rows[place]) for place, _ in places]
    return _dots(name, colour, marker, [(place + shift, row) for place, row in places], labels)


def _shortened(pooled: pd.DataFrame, rows: list[tuple[str, Condition]]) -> pd.DataFrame:
    """The rows of a picture as a table for reading: condition in one column, no empty ones."""
    parts = [_at(pooled, network, condition).assign(condition=condition.label) for network, condition in rows]
    table = pd.concat(parts, ignore_index=True)
    none_kept = table["statistics"].eq("running") & ~table["network"].map(keeps_statistics)
    table.loc[none_kept, "condition"] = "no statistics"
    columns = ["network", "condition", "companion", "dataset", "score", "metric", "mean", "low", "high", "n_seeds", "n"]
    return table[[name for name in columns if name != "companion" or table[name].ne("").any()]]


def _changes(tables: StudyTables, score: str, metric: str) -> list[tuple[str, pd.Series]]:
    """Per OOD set the BN networks' change from running to matched statistics, paired, as mean and interval."""
    given = tables.differences
    if given is None or given.empty:
        return []
    frame = with_network(given, "network statistics dataset role score metric value low high", "the differences")
    kept = frame["network"].eq("bn") & frame["statistics"].eq(MATCHED) & frame["role"].eq("ood")
    frame = frame[kept & frame["score"].eq(score) & frame["metric"].eq(metric)]
    pooled = over_seeds(frame, ["dataset"]).set_index("dataset")
    return [(name, pooled.loc[name]) for name in tables.sets if name in pooled.index]


def _detection_sentence(tables: StudyTables) -> str:
    found = _changes(tables, "energy", "auroc")
    if not found:
        return "Matched statistics were not evaluated, so no change in AUROC can be named."
    parts = listed([f"{with_interval(row)} on {name}" for name, row in found])
    return (
        "From running to matched statistics the AUROC of the energy score changes in the BN networks "
        f"[95 % interval] by {parts}; above zero means that the mismatch had harmed detection."
    )


def mitigation_picture(tables: StudyTables) -> Picture | None:
    """What helps: ReAct, a temperature, another norm, matched statistics, all beside the default."""
    frame = tables.metrics
    frame = frame[frame["role"].eq("ood") & frame["metric"].isin(["auroc", "fpr95"])]
    if not frame["score"].isin(["react", "msp_temperature"]).any():
        return None
    pooled = over_seeds(frame, KEYS)
    held = _by_key(pooled, ["network", "statistics", "score", "metric", "dataset"])
    shown = [
        (network, statistics, score)
        for network in networks_of(frame)
        if "-at-" not in network
        for statistics in ("running", MATCHED)
        for score in ("msp", "msp_temperature", "energy", "react")
        if (network, statistics, score, "auroc", tables.sets[0]) in held
    ]
    legend = "mean over seeds" if pooled["n_seeds"].max() > 1 else "value"
    ticks = [
        (float(i), f"{network} · {score}" + (" · matched" if statistics == MATCHED else ""))
        for i, (network, statistics, score) in enumerate(shown)
    ]
    panels, numbers = [], []
    for metric in ("auroc", "fpr95"):
        for name in tables.sets:
            keys = [(*key, metric, name) for key in shown]
            cells = [(float(place), held[key]) for place, key in enumerate(keys) if key in held]
            numbers += [row for _, row in cells]
            colour = colours(tables.sets)[name]
            series = [_dots(legend, colour, "circle", cells, [ticks[int(place)][1] for place, _ in cells])]
            panels.append(
                Panel(name, METRIC_LABELS[metric], "", series, y_ticks=ticks, y_range=_row_range(len(shown)),
                      share_axis="x", choice=METRIC_LABELS[metric].split(" (")[0], colour=colour)
            )  # fmt: skip
    drawn = pd.DataFrame(numbers)
    columns = ["network", "statistics", "score", "dataset", "metric", "mean", "low", "high", "n_seeds", "n"]
    return Picture(
        name="mitigations", title="What helps: mitigations beside the default",
        says=_mitigation_sentence(drawn, headline_sets(tables)),
        how="A panel per OOD set, a row per network · score, under running statistics unless it says matched. "
        "ReAct's percentile and the temperature come from ID validation images alone. "
        f"{names_in_tables(drawn['statistics'])}{rests_on(drawn)} {CUT}",
        panels=panels, numbers=drawn[columns].assign(statistics=drawn["statistics"].map(called)),
        source="table.csv", choice_label="Metric",
    )  # fmt: skip


def headline_sets(tables: StudyTables) -> list[str]:
    """The OOD sets that the verdict is about; all of them where the study has no verdict."""
    thresholds = (tables.verdict or {}).get("thresholds")
    wanted = thresholds.get("headline_sets") if isinstance(thresholds, Mapping) else None
    return [name for name in tables.sets if name in wanted] if wanted else tables.sets


def _mitigation_sentence(drawn: pd.DataFrame, sets: Sequence[str]) -> str:
    """The best and the worst row over these sets and on each, and what ReAct does to the energy score it rests on.

    The means have no common interval, so they are named and nothing is concluded from them.
    """
    own = drawn[drawn["dataset"].isin(list(sets))]
    mean = own.groupby(["metric", "network", "statistics", "score"], sort=False)["mean"].agg(["mean", "count"])
    mean = mean.loc[mean["count"] == len(sets), "mean"]  # rows that were not measured on every set have no such mean
    known = mean.index.get_level_values("metric")
    if "auroc" not in known:
        return "No row was measured on all of these OOD sets."
    area = mean["auroc"]
    parts = [f"AUROC {_ends(area, best_is_high=True)}"]
    if "fpr95" in known:
        parts.append(f"FPR95 {_ends(mean['fpr95'], best_is_high=False)}")
    default = ("bn", "running", "energy")
    beside = f"; the BN default (energy) has an AUROC of {plain(area[default])}" if default in area.index else ""
    seeds = " and the seeds" if own["n_seeds"].max() > 1 else ""
    found = [f"Averaged over {listed(list(sets))}{seeds}, from worst to best: {listed(parts)}{beside}."]
    if len(sets) > 1:
        of_set = own[own["metric"] == "auroc"].set_index(["network", "statistics", "score"])
        each = [f"{_ends(of_set.loc[of_set['dataset'] == name, 'mean'], best_is_high=True)} on {name}" for name in sets]
        found.append(f"AUROC by set: {'; '.join(each)}.")
    changes = [
        f"{signed(area[network, 'running', 'react'] - area[network, 'running', 'energy'])} on {network}"
        for network in networks_of(own)
        if {(network, "running", "react"), (network, "running", "energy")} <= set(area.index)
    ]
    if changes:
        found.append(f"ReAct in place of the energy score changes the average AUROC by {listed(changes)}.")
    return f"{' '.join(found)} The intervals are in the picture."


def _ends(values: pd.Series, best_is_high: bool) -> str:
    """ "0.503 (react on ln) to 0.912 (energy on bn, matched)", the worst first."""
    low, high = values.idxmin(), values.idxmax()
    parts = []
    for network, statistics, score in (low, high) if best_is_high else (high, low):
        named = f"{score} on {network}" + (", matched" if statistics == MATCHED else "")
        parts.append(f"{plain(values[network, statistics, score])} ({named})")
    return " to ".join(parts)


CONFIDENCE = (
    ("msp", "mean", "mean MSP (share)"),
    ("msp", "share_above_0.9", "share of images with MSP > 0.9"),
    ("energy", "mean", "mean energy score (nats)"),
    ("max_logit", "mean", "mean maximum logit (nats)"),
)


def confidence_picture(tables: StudyTables) -> Picture | None:
    """How sure the networks are on ID and OOD images under each kind of statistics."""
    frame = tables.metrics
    wanted = frame["score"].isin(["msp", "energy", "max_logit"]) & frame["metric"].isin(["mean", "share_above_0.9"])
    frame = frame[wanted]
    if frame.empty:
        return None
    rows, sets, pooled = _rows(frame), tables.sets, over_seeds(frame, KEYS)
    ticks = [(float(i), row_label(network, condition)) for i, (network, condition) in enumerate(rows)]
    slots = np.linspace(-0.34, 0.34, len(sets) + 1)
    panels = []
    for score, metric, label in CONFIDENCE:
        own = pooled[rows_where(pooled, score=score, metric=metric)]
        if own.empty:
            continue
        series = []
        for slot, name in zip(slots, ["ID", *sets], strict=True):
            # Of ID images in mixed batches, those that shared with the first OOD set stand for all.
            ids = own[(own["role"] == "id") & own["companion"].isin([sets[0], ""])]
            part, colour = (ids, ID_COLOUR) if name == "ID" else (own[own["dataset"] == name], colours(sets)[name])
            series.append(_by_row(part, rows, float(slot), name, colour, marker_of(colour)))
        axis = "x" if "share" in label else ""
        panels.append(Panel(label, label, "", series, y_ticks=ticks, y_range=_row_range(len(rows)), share_axis=axis))
    return Picture(
        name="confidence", title="Confidence on OOD images", says=_confidence_sentence(tables, pooled),
        how="A row per network · statistics, a colour and a shape per set. "
        f"{_beside(pooled, sets[0])}{_terms(rows)}{rests_on(pooled)} {CUT}",
        panels=panels, numbers=_shortened(pooled, rows), source="table.csv",
    )  # fmt: skip


def _beside(pooled: pd.DataFrame, first: str) -> str:
    """Which of the ID rows of a condition is drawn where there are several, one for each OOD set."""
    if not (pooled["role"].eq("id") & pooled["companion"].ne("")).any():
        return ""
    return (
        "Where ID images shared batches or statistics with an OOD set (in the table: companion), those with "
        f"{first} are drawn. "
    )


def _confidence_sentence(tables: StudyTables, pooled: pd.DataFrame) -> str:
    area = pooled[rows_where(pooled, statistics="running", score="msp", metric="mean", role="ood")]
    parts = []
    for network in networks_of(area):
        own = area.loc[area["network"] == network, "mean"]
        parts.append(f"{plain(own.min(), 2)} to {plain(own.max(), 2)} in {network}")
    said = f"Over the OOD sets, mean MSP{under_running(area['network'])} is {listed(parts)}"
    found = _changes(tables, "energy", "mean")
    changes = listed([f"{with_interval(row, 2)} on {name}" for name, row in found])
    return f"{said}; matching changes BN's mean energy score (nats) by {changes}." if found else f"{said}."
