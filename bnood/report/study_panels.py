"""From the tables of a study to its pictures: activations, detection, mitigations and confidence.

Layers and interventions are in `intervention_panels.py`, the price of matching in `price_panels.py`. Every figure that
a sentence names is computed from the tables; nothing is stated that the data could contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnood.errors import UserError
from bnood.report.figures import ID_COLOUR, Condition, colours, headline_conditions, id_rows, ood_sets
from bnood.report.intervention_panels import lens_pictures
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
    seeds_in_words,
    signed,
    with_network,
)  # fmt: skip

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


def unit_picture(tables: StudyTables) -> Picture | None:
    """ReAct's figure for every run and OOD set: mean ± std of each penultimate unit, ID beside OOD."""
    given = tables.all_units
    if given is None or given.empty:
        return None
    frame = with_network(given, "run statistics companion dataset role unit mean std", "the unit table")
    panels: list[Panel] = []
    numbers: list[dict[str, object]] = []
    for network in networks_of(frame):
        of_network = frame[frame["network"] == network]
        for (seed, _), own in of_network.groupby(["seed", "run"], sort=True):
            choice = f"{network}, seed {seed}"
            drawn, rows = _unit_panels(own, choice)
            panels += drawn
            numbers += [{"network": network, "seed": seed, **row} for row in rows]
    table = pd.DataFrame(numbers)
    first = table[(table["network"] == table["network"].iloc[0]) & (table["seed"] == table["seed"].iloc[0])]
    return Picture(
        name="unit_profiles", title="ReAct's picture: what each penultimate unit does", says=_unit_sentence(first),
        how="Lines are per-unit means, bands one standard deviation over images; ID grey, OOD coloured. Units are "
        "sorted by their ID mean under running statistics, in the same order everywhere in a network. "
        "Bands end at 0 where no unit has a mean below it, as after a ReLU. "
        f"{_unit_counts(tables, table)}",
        panels=panels, numbers=table, source="units.parquet of each run", choice_label="Network",
        held="two ratios per panel; each unit's mean and standard deviation are in units.parquet of each run",
        static=[panels[0].choice],
    )  # fmt: skip


def _unit_panels(frame: pd.DataFrame, choice: str) -> tuple[list[Panel], list[dict[str, object]]]:
    sets = ood_sets(frame)
    running = id_rows(frame[frame["statistics"] == "running"], "").sort_values("mean")
    if running.empty:
        raise UserError(f"the unit table of {choice} has no ID rows under running statistics")
    order, top = running["unit"].to_numpy(), float(running["mean"].max())
    columns = [name for name in ("running", MATCHED) if (frame["statistics"] == name).any()]
    shown = frame[frame["statistics"].isin(columns)]
    limit = float((shown["mean"] + shown["std"]).max()) * 1.03
    positive = bool((shown["mean"] >= 0).all())
    floor = 0.0 if positive else float((shown["mean"] - shown["std"]).min()) * 1.03
    panels, numbers = [], []
    for name in sets:
        for statistics in columns:
            part = frame[frame["statistics"] == statistics]
            own, other = id_rows(part, name), part[part["dataset"] == name]
            if own.empty or other.empty:
                continue
            series = [_profile(other, order, name, colours(sets)[name]), _profile(own, order, "ID", ID_COLOUR)]
            panels.append(
                Panel(
                    f"{name} under {_kind(statistics)}", "unit, by its ID mean", "activation", series,
                    y_range=(floor, limit), floor=0.0 if positive else None, choice=choice,
                    colour=colours(sets)[name],
                )
            )  # fmt: skip
            ratio, spread = other["mean"].max() / top, other["mean"].std() / running["mean"].std()
            numbers.append(
                {"set": name, "statistics": statistics, "largest unit mean, relative to ID": ratio,
                 "spread over units, relative to ID": spread, "units": len(order)}
            )  # fmt: skip
    return panels, numbers


def _unit_counts(tables: StudyTables, numbers: pd.DataFrame) -> str:
    """Seeds per network, and images per set as far as the metric table has these sets."""
    seeds = numbers.groupby("network")["seed"].nunique()
    shown = tables.metrics[tables.metrics["dataset"].isin(numbers["set"]) | tables.metrics["role"].eq("id")]
    images = shown.groupby("dataset", sort=False)["n"].max()
    counts = "; ".join(f"{name} n = {int(n):,}" for name, n in images.items())
    return f"{seeds_in_words(int(seeds.min()), int(seeds.max()))} per network, each drawn alone; images: {counts}."


def _kind(statistics: str) -> str:
    return {"running": "running statistics", MATCHED: "matched statistics"}.get(statistics, statistics)


def _profile(rows: pd.DataFrame, order: np.ndarray, name: str, colour: str) -> Series:
    found = rows.set_index("unit").loc[order]
    mean, std = found["mean"].to_numpy(np.float64), found["std"].to_numpy(np.float64)
    labels = [f"unit {unit}" for unit in order]
    place = list(range(len(order)))
    return Series(name, colour, place, [*mean], [*(mean - std)], [*(mean + std)], "band", "", "solid", labels)


def _unit_sentence(rows: pd.DataFrame) -> str:
    """Of the first run: the largest per-unit mean, relative to that of ID images under running statistics."""
    found = rows.pivot(index="set", columns="statistics", values="largest unit mean, relative to ID")
    who = f"In the {rows['network'].iloc[0].upper()} network of seed {rows['seed'].iloc[0]} the largest per-unit mean"
    matched = MATCHED in found.columns
    parts = [
        f"{plain(found.loc[name, 'running'], 2)}"
        + (f" and {plain(found.loc[name, MATCHED], 2)}" if matched else "")
        + f" on {name}"
        for name in rows["set"].unique()
    ]
    under = "running and then under matched" if matched else "running"
    return f"{who} is, under {under} statistics, as a multiple of that on ID images: {'; '.join(parts)}."


def _rows(frame: pd.DataFrame) -> list[tuple[str, Condition]]:
    """(network, condition) of each row of a dot plot; of the nets stopped early only running and matched."""
    found = []
    for network in networks_of(frame):
        for condition in headline_conditions(frame[frame["network"] == network]):
            if "-at-" not in network or condition.statistics in ("running", MATCHED):
                found.append((network, condition))
    return found


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
    ticks = [(float(i), f"{network} · {condition.label}") for i, (network, condition) in enumerate(rows)]
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
        how=f"A panel per OOD set, a row per network · statistics · composition · batch size. {rests_on(pooled)} "
        f"{CUT} Each side is scored under the statistics of that name.",
        panels=panels, numbers=_shortened(pooled, rows),
        source="table.csv", choice_label="Metric",
    )  # fmt: skip


def _by_row(
    own: pd.DataFrame, rows: list[tuple[str, Condition]], shift: float, name: str, colour: str, marker: str
) -> Series:
    """One mark per row of a dot plot; rows that were not measured have none."""
    held = _by_key(own, ["network", *Condition._fields])
    places = [(place, held[key]) for place, key in enumerate((n, *c) for n, c in rows) if key in held]
    labels = [f"{rows[place][0]} · {rows[place][1].label}" for place, _ in places]
    return _dots(name, colour, marker, [(place + shift, row) for place, row in places], labels)


def _shortened(pooled: pd.DataFrame, rows: list[tuple[str, Condition]]) -> pd.DataFrame:
    """The rows of a picture as a table for reading: condition in one column, no constant ones."""
    parts = [_at(pooled, network, condition).assign(condition=condition.label) for network, condition in rows]
    columns = ["network", "condition", "dataset", "score", "metric", "mean", "low", "high", "n_seeds", "n"]
    return pd.concat(parts, ignore_index=True)[columns]


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


def _with_interval(row: pd.Series, digits: int = 3) -> str:
    return f"{signed(row['mean'], digits)} [{signed(row['low'], digits)}, {signed(row['high'], digits)}]"


def _detection_sentence(tables: StudyTables) -> str:
    found = _changes(tables, "energy", "auroc")
    if not found:
        return "Matched statistics were not evaluated, so no change in AUROC can be named."
    parts = listed([f"{_with_interval(row)} on {name}" for name, row in found])
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
    called = "mean over seeds" if pooled["n_seeds"].max() > 1 else "value"
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
            series = [_dots(called, colour, "circle", cells, [ticks[int(place)][1] for place, _ in cells])]
            panels.append(
                Panel(name, METRIC_LABELS[metric], "", series, y_ticks=ticks, y_range=_row_range(len(shown)),
                      share_axis="x", choice=METRIC_LABELS[metric].split(" (")[0], colour=colour)
            )  # fmt: skip
    drawn = pd.DataFrame(numbers)
    columns = ["network", "statistics", "score", "dataset", "metric", "mean", "low", "high", "n_seeds", "n"]
    return Picture(
        name="mitigations", title="What helps: mitigations beside the default",
        says=_mitigation_sentence(pooled, headline_sets(tables)),
        how="A panel per OOD set, a row per network · score, under running statistics unless it says matched. "
        f"ReAct's percentile and the temperature come from ID validation images alone. {rests_on(drawn)} {CUT}",
        panels=panels, numbers=drawn[columns], source="table.csv", choice_label="Metric",
    )  # fmt: skip


def headline_sets(tables: StudyTables) -> list[str]:
    """The OOD sets that the verdict is about; all of them where the study has no verdict."""
    thresholds = (tables.verdict or {}).get("thresholds")
    wanted = thresholds.get("headline_sets") if isinstance(thresholds, Mapping) else None
    return [name for name in tables.sets if name in wanted] if wanted else tables.sets


def _mitigation_sentence(pooled: pd.DataFrame, sets: Sequence[str]) -> str:
    """The network and score with the largest mean AUROC over these sets under running statistics.

    Networks that were stopped early are no mitigation. The means have no common interval, so nothing is ranked.
    """
    finished = ~pooled["network"].astype(str).str.contains("-at-") & pooled["dataset"].isin(list(sets))
    area = pooled[finished & rows_where(pooled, statistics="running", metric="auroc") & pooled["score"].ne("max_logit")]
    if area.empty:
        return "No finished network was scored under running statistics."
    mean = area.groupby(["network", "score"], sort=False)["mean"].mean().sort_values(ascending=False)
    (network, score), best = mean.index[0], mean.iloc[0]
    default = mean.get(("bn", "energy"))
    beside = "" if default is None else f"; the BN default (energy) reaches {plain(default)}"
    return (
        f"Averaged over {listed(list(sets))} and the seeds, {SCORE_NAMES.get(score, score)} on {network} has the "
        f"largest mean AUROC under running statistics, {plain(best)}{beside} (means; the intervals are in the picture)."
    )


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
    ticks = [(float(i), f"{network} · {condition.label}") for i, (network, condition) in enumerate(rows)]
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
        how="A row per network · statistics · composition · batch size, a colour and a shape per set. "
        f"{rests_on(pooled)} {CUT}",
        panels=panels, numbers=_shortened(pooled, rows), source="table.csv",
    )  # fmt: skip


def _confidence_sentence(tables: StudyTables, pooled: pd.DataFrame) -> str:
    area = pooled[rows_where(pooled, statistics="running", score="msp", metric="mean", role="ood")]
    parts = []
    for network in networks_of(area):
        own = area.loc[area["network"] == network, "mean"]
        parts.append(f"{plain(own.min(), 2)} to {plain(own.max(), 2)} in {network}")
    said = f"Over the OOD sets, mean MSP under running statistics is {listed(parts)}"
    found = _changes(tables, "energy", "mean")
    changes = listed([f"{_with_interval(row, 2)} on {name}" for name, row in found])
    return f"{said}; matching changes BN's mean energy score (nats) by {changes}." if found else f"{said}."
