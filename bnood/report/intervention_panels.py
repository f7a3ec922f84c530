"""The pictures of the activation lens and of the interventions, for a study (over seeds) and for one run alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnood.report.figures import ID_COLOUR, colours, ood_sets
from bnood.report.panels import BESIDE, Heat, Panel, Picture, Series, marker_of
from bnood.report.study_tables import (
    CUT,
    MATCHED,
    listed,
    networks_of,
    over_seeds,
    plain,
    rests_on,
    signed,
    with_network,
)  # fmt: skip

OUTCOMES = (  # score, metric, name, unit
    ("penultimate", "unit_mean_max_ratio", "largest unit mean", "relative to ID"),
    ("energy", "mean", "mean energy score", "nats"),
    ("energy", "auroc", "AUROC of the energy score", "share"),
    ("energy", "fpr95", "FPR95 of the energy score", "share"),
    ("max_logit", "mean", "mean maximum logit", "nats"),
    ("msp", "mean", "mean MSP", "share"),
)
GRIDS = (  # score, metric, role, name of the choice
    ("energy", "auroc", "ood", "AUROC of the energy score"),
    ("penultimate", "unit_mean_max_ratio", "ood", "largest unit mean, relative to ID"),
    ("", "accuracy", "id", "ID accuracy"),
)
_NEEDED = "network seed kind place position share dataset role score metric value change"


def lens_pictures(
    layers: pd.DataFrame | None, distances: pd.DataFrame | None, interventions: pd.DataFrame | None
) -> list[Picture | str]:
    """Layer profile, interventions, path, prior and batches, or for each that can't be drawn the reason."""
    return [
        distance_picture(distances) or "Distance of the statistics by layer: layer_distances.csv was not measured.",
        share_picture(layers) or "Abnormal activations by layer: layers.parquet was not measured.",
        place_picture(interventions) or "Interventions by layer: interventions.csv was not measured.",
        path_picture(interventions) or "Path and prior: interventions.csv holds neither.",
        batch_picture(interventions) or "Batch size and share of OOD: interventions.csv does not hold them.",
    ]


def _set_colours(frame: pd.DataFrame) -> dict[str, str]:
    """OOD sets in their colours, the ID set grey."""
    ids = [str(name) for name in frame.loc[frame["role"] == "id", "dataset"].unique()]
    return colours(ood_sets(frame)) | dict.fromkeys(ids, ID_COLOUR)


def _shown(name: str, colour: str) -> str:
    return f"{name} (ID)" if colour == ID_COLOUR else name


def _depth_ticks(frame: pd.DataFrame) -> list[tuple[float, str]]:
    """Layer numbers; where there are many, every second, third ... so that labels do not touch."""
    places = sorted({int(place) for place in frame["position"]})
    step = -(-len(places) // 10)
    return [(float(place), str(place)) for place in places[::step]]


def _line(name: str, colour: str, rows: pd.DataFrame, labels: Sequence[str] = ()) -> Series:
    marker = marker_of(colour)
    rows = rows.sort_values("position")
    place = [*rows["position"].astype(float)]
    return Series(name, colour, place, [*rows["mean"]], [*rows["low"]], [*rows["high"]], "y", marker, "solid", labels)


def distance_picture(distances: pd.DataFrame | None) -> Picture | None:
    """Per BN layer: running statistics against the set's own, as three distances."""
    if distances is None or distances.empty:
        return None
    frame = with_network(distances, "network dataset role layer position mean_shift symmetric_kl", "the distances")
    frame = frame[frame["network"] == networks_of(frame)[0]]
    hues = _set_colours(frame)
    names = frame.drop_duplicates("position").set_index("position")["layer"]
    panels, numbers = [], []
    measures: dict[str, tuple[str, str, float | None, float | None]] = {  # title, unit, line at, floor
        "mean_shift": ("mean shift", "standard deviations", 0.0, 0.0),
        "log_var_ratio": ("log variance ratio, set / running", "log ratio", 0.0, None),
        "symmetric_kl": ("symmetric KL of the Gaussians", "nats", None, 0.0),
    }
    for column, (title, unit, line, floor) in measures.items():
        pooled = over_seeds(frame.assign(value=frame[column]), ["dataset", "role", "layer", "position"])
        numbers.append(pooled.assign(measure=column))
        series = [
            _line(_shown(name, hue), hue, own, labels=[str(names[place]) for place in sorted(own["position"])])
            for name, hue in hues.items()
            if len(own := pooled[pooled["dataset"] == name])
        ]
        panels.append(
            Panel(title, "BN layer, from the input", unit, series, x_ticks=_depth_ticks(frame), y_line=line,
                  floor=floor, step=1.0)
        )  # fmt: skip
    table = pd.concat(numbers, ignore_index=True)
    divergence = table[(table["measure"] == "symmetric_kl") & (table["role"] == "ood")]
    parts = []
    for name, own in divergence.groupby("dataset", sort=False):
        top = own.loc[own["mean"].idxmax()]
        parts.append(f"{top['layer']} (layer {top['position']}) on {name}, {plain(top['mean'], 2)} nats")
    return Picture(
        name="layer_distances", title="Where the statistics differ: distance by layer",
        says=f"The symmetric KL between running statistics and the set's own is largest at {'; '.join(parts)}.",
        how="Each layer's own statistics are those of its inputs as they arrive under running statistics. "
        f"Grey: ID images, for which the distance should be small. {rests_on(table, of_images=False)} "
        f"Bars of the mean shift and of the symmetric KL end at 0, below which neither can lie. {BESIDE}",
        panels=panels, numbers=table[["measure", "dataset", "layer", "position", "mean", "low", "high", "n_seeds"]],
        source="layer_distances.csv", across=3,
    )  # fmt: skip


def share_picture(layers: pd.DataFrame | None) -> Picture | None:
    """Share of (image, unit) pairs above the unit's ID 99th percentile, by layer, network and statistics."""
    if layers is None or layers.empty:
        return None
    needed = "network seed statistics dataset role layer position share_above_id_p99"
    frame = with_network(layers, needed, "the layer table")
    hues = _set_colours(frame)
    keys = ["network", "statistics", "dataset", "role", "layer", "position"]
    per_seed = frame.groupby([*keys, "seed"], sort=False)["share_above_id_p99"].mean().rename("value").reset_index()
    pooled = over_seeds(per_seed, keys)
    limit = 1.08 * float(np.nanmax(pooled["high"].fillna(pooled["mean"])))
    panels = []
    for network in networks_of(pooled):
        of_network = pooled[pooled["network"] == network]
        for statistics in [name for name in ("running", MATCHED) if (of_network["statistics"] == name).any()]:
            part = of_network[of_network["statistics"] == statistics]
            series = [
                _line(_shown(name, hue), hue, own, labels=[*own.sort_values("position")["layer"]])
                for name, hue in hues.items()
                if len(own := part[part["dataset"] == name])
            ]
            kind = "running" if statistics == "running" else "matched"
            title = f"{network}, {kind} statistics" if (of_network["statistics"] != "running").any() else network
            panels.append(
                Panel(title, "layer, from the input", "share above ID p99", series, x_ticks=_depth_ticks(part),
                      y_range=(0.0, limit), y_line=0.01, share_axis="y", step=1.0)
            )  # fmt: skip
    ood = pooled[(pooled["role"] == "ood") & (pooled["statistics"] == "running")]
    parts = []
    for network in networks_of(ood):
        own = ood[ood["network"] == network]
        top = own.loc[own["mean"].idxmax()]
        parts.append(f"{100 * top['mean']:.1f} % in {network} ({top['dataset']}, {top['layer']})")
    return Picture(
        name="layer_shares", title="Abnormal activations by layer",
        says="Under running statistics, the largest share of activations above the ID 99th percentile is "
        f"{listed(parts)}; on ID images it is 1 % by definition.",
        how=f"The line marks 1 %, the share on ID images under running statistics. "
        f"{rests_on(pooled, of_images=False)} {CUT} {BESIDE}",
        panels=panels, numbers=pooled, source="layers.parquet",
    )  # fmt: skip


def _pooled(interventions: pd.DataFrame | None, kinds: Sequence[str], changes: bool) -> pd.DataFrame | None:
    """Interventions of these kinds over seeds, as changes from running statistics or as values."""
    if interventions is None or interventions.empty:
        return None
    given = interventions
    if "companion" not in given.columns:
        given = given.assign(companion="")
    text = {name: given[name].astype(object).fillna("") for name in ("place", "score", "companion")}
    frame = with_network(given.assign(**text), _NEEDED, "the interventions")
    frame = frame[frame["kind"].isin(kinds) & frame["network"].eq(networks_of(frame)[0])]
    if frame.empty:
        return None
    if changes:
        frame = frame.drop(columns=["value", "low", "high"], errors="ignore").rename(
            columns={"change": "value", "change_low": "low", "change_high": "high"}
        )
    keys = ["kind", "place", "position", "share", "companion", "dataset", "role", "score", "metric"]
    known = {(score, metric) for score, metric, *_ in (*OUTCOMES, *GRIDS)}
    named = pd.Series([*zip(frame["score"], frame["metric"], strict=True)], index=frame.index)
    return over_seeds(frame[named.isin(known)], keys)


def _outcome(pooled: pd.DataFrame, score: str, metric: str, role: str = "ood") -> pd.DataFrame:
    return pooled[pooled["score"].eq(score) & pooled["metric"].eq(metric) & pooled["role"].eq(role)]


def _outcomes(pooled: pd.DataFrame) -> pd.DataFrame:
    """The rows of OOD sets that `OUTCOMES` names."""
    return pd.concat([_outcome(pooled, score, metric) for score, metric, *_ in OUTCOMES], ignore_index=True)


def place_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """H5: matched statistics in one layer, the first k, the last k; only means, only variances."""
    kinds = {
        "only": ("one layer alone", "matched layer"),
        "first": ("the first k layers", "k"),
        "last": ("the last k layers", "k"),
    }
    pooled = _pooled(interventions, [*kinds, "mean", "variance", "all"], changes=True)
    if pooled is None:
        return None
    hues = colours(ood_sets(pooled))
    panels = []
    for score, metric, name, unit in OUTCOMES:
        own = _outcome(pooled, score, metric)
        if own.empty:
            continue
        label = f"change ({unit})"
        choice = name[0].upper() + name[1:]
        for kind, (title, axis) in kinds.items():
            part = own[own["kind"] == kind]
            if part.empty:
                continue
            series = [
                _line(dataset, hue, rows, labels=[f"{kind} {place}" for place in rows.sort_values("position")["place"]])
                for dataset, hue in hues.items()
                if len(rows := part[part["dataset"] == dataset])
            ]
            panels.append(
                Panel(title, axis, label, series, x_ticks=_depth_ticks(part), y_line=0.0, choice=choice, step=1.0)
            )  # fmt: skip
        panels.append(_parts_panel(own, hues, label, choice))
    return Picture(
        name="interventions", title="Interventions: matched statistics in some layers only",
        says=_place_sentence(pooled),
        how=f"Changes from running statistics on the same images; zero means no effect. {rests_on(pooled)} "
        f"{BESIDE}",
        panels=panels, numbers=_outcomes(pooled).drop(columns=["share", "companion", "role"]),
        source="interventions.csv", choice_label="Outcome",
        static=list(dict.fromkeys(panel.choice for panel in panels))[:3],
    )  # fmt: skip


def _parts_panel(own: pd.DataFrame, hues: dict[str, str], label: str, choice: str) -> Panel:
    """Only the means, only the variances, both: one column each, the sets beside each other."""
    names = [kind for kind in ("mean", "variance", "all") if (own["kind"] == kind).any()]
    titles = {"mean": "means only", "variance": "variances only", "all": "both"}
    slots = np.linspace(-0.25, 0.25, len(hues)) if len(hues) > 1 else np.zeros(1)
    series = []
    for slot, (dataset, hue) in zip(slots, hues.items(), strict=True):
        rows = own[own["dataset"] == dataset].set_index("kind")
        held = [kind for kind in names if kind in rows.index]
        rows = rows.loc[held]
        place = [names.index(kind) + float(slot) for kind in held]
        series.append(
            Series(dataset, hue, place, [*rows["mean"]], [*rows["low"]], [*rows["high"]], "y",
                   marker_of(hue), labels=[titles[kind] for kind in held])
        )  # fmt: skip
    ticks = [(float(i), titles[kind]) for i, kind in enumerate(names)]
    ends = (-0.5, len(names) - 0.5)
    return Panel("all layers", "", label, series, x_ticks=ticks, x_range=ends, y_line=0.0, choice=choice)


def _place_sentence(pooled: pd.DataFrame) -> str:
    """For the largest unit mean: the whole change, and the one layer that does most of it."""
    own = _outcome(pooled, "penultimate", "unit_mean_max_ratio")
    parts = []
    for dataset in ood_sets(own):
        rows = own[own["dataset"] == dataset]
        whole, alone = rows.loc[rows["kind"] == "all", "mean"], rows[rows["kind"] == "only"]
        if whole.empty or alone.empty or whole.iloc[0] == 0:
            continue
        change = whole.iloc[0]
        best = alone.loc[(alone["mean"] * np.sign(change)).idxmax()]
        parts.append(f"{signed(change, 2)} on {dataset} ({best['place']} alone: {signed(best['mean'], 2)})")
    if not parts:
        return "The tables do not hold both all layers and one layer at a time, so no share can be named."
    return (
        "Matching all layers changes the largest unit mean, relative to ID, by "
        f"{listed(parts)}; in brackets the single layer that changes it most in that direction."
    )


def path_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """From running to matched statistics in steps of λ, and Schneider's prior of N source images."""
    pooled = _pooled(interventions, ["path", "prior", "none", "all"], changes=False)
    if pooled is None or not pooled["kind"].isin(["path", "prior"]).any():
        return None
    pooled = _with_ends(pooled)
    hues = colours(ood_sets(pooled))
    panels = []
    for score, metric, name, unit in OUTCOMES[:3]:
        panels += [
            _step_panel(_outcome(pooled, score, metric), kind, f"{name}: {axis}", unit, hues)
            for kind, axis in (("path", "path λ"), ("prior", "prior N"))
        ]
    accuracy = _outcome(pooled, "", "accuracy", role="id")
    for kind, axis in (("path", "path λ"), ("prior", "prior N")):
        hue = {str(name): ID_COLOUR for name in accuracy["dataset"].unique()}
        panels.append(_step_panel(accuracy, kind, f"ID accuracy: {axis}", "share", hue))
    panels = [panel for panel in panels if panel.series]
    return Picture(
        name="path", title="From running to matched in steps", says=_path_sentence(pooled),
        how="Left: λ = 0 is running, λ = 1 matched statistics. Right: the prior N of Schneider et al. (2020), the "
        "running statistics' weight in source images beside pure batches of 128; more is nearer to running. "
        f"{rests_on(pooled)} {CUT} {BESIDE}",
        panels=panels, numbers=_steps(pooled), source="interventions.csv",
    )  # fmt: skip


def _with_ends(pooled: pd.DataFrame) -> pd.DataFrame:
    """The path with its ends: λ = 0 is no intervention at all, λ = 1 matched statistics in all layers."""
    walked = pooled["kind"].eq("path")
    steps = set(pooled.loc[walked, "position"].astype(float))
    parts = [pooled[walked | pooled["kind"].eq("prior")]]
    for kind, end in (("none", 0.0), ("all", 1.0)):
        if steps and end not in steps:
            parts.append(pooled[pooled["kind"].eq(kind)].assign(kind="path", place=f"{end:g}", position=end))
    return pd.concat(parts, ignore_index=True)


def _steps(pooled: pd.DataFrame) -> pd.DataFrame:
    """The rows that the path's and the prior's panels show."""
    shown = [_outcome(pooled, score, metric) for score, metric, *_ in OUTCOMES[:3]]
    shown.append(_outcome(pooled, "", "accuracy", role="id"))
    return pd.concat(shown, ignore_index=True).drop(columns=["share", "companion"])


def _step_panel(rows: pd.DataFrame, kind: str, title: str, label: str, hues: dict[str, str]) -> Panel:
    rows = rows[rows["kind"] == kind]
    steps = sorted(set(rows["position"].astype(float)))
    # The prior's steps grow by factors from zero on, which no logarithm shows: equal distances instead.
    places = {step: float(i) if kind == "prior" else step for i, step in enumerate(steps)}
    rows = rows.assign(position=rows["position"].astype(float).map(places))
    series = [
        _line(_shown(name, hue), hue, own, labels=[f"{kind} {place}" for place in own.sort_values("position")["place"]])
        for name, hue in hues.items()
        if len(own := rows[rows["dataset"] == name])
    ]
    ticks = [(places[step], f"{step:g}") for step in steps[:: max(1, -(-len(steps) // 8))]]
    axis = "λ (0 running, 1 matched)" if kind == "path" else "N (images of prior weight)"
    step = min(np.diff(sorted(places.values())), default=0.0)
    return Panel(title, axis, label, series, x_ticks=ticks, share_axis="y" if label == "share" else "", step=step)


def _path_sentence(pooled: pd.DataFrame) -> str:
    """How much of the whole change in the largest unit mean is done at the step nearest to the middle."""
    own = _outcome(pooled, "penultimate", "unit_mean_max_ratio")
    own = own[own["kind"] == "path"].astype({"position": float})
    ends = sorted(set(own["position"]))
    if len(ends) < 3:
        return "The path has no step between its ends."
    middle = min(ends, key=lambda step: abs(step - 0.5))
    parts = []
    for dataset in ood_sets(own):
        value = own[own["dataset"] == dataset].set_index("position")["mean"]
        parts.append(
            f"{plain(value[ends[0]], 2)}, {plain(value[middle], 2)} and {plain(value[ends[-1]], 2)} on {dataset}"
        )
    return (
        f"At λ = {ends[0]:g}, {middle:g} and {ends[-1]:g} the largest unit mean, relative to ID, is {'; '.join(parts)}."
    )


def batch_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """Batch statistics: change from running by batch size and share of OOD images in the batch."""
    pooled = _pooled(interventions, ["batch"], changes=True)
    if pooled is None:
        return None
    hues = colours(ood_sets(pooled))
    sizes = sorted({int(size) for size in pooled["position"]})
    shares = sorted({float(share) for share in pooled["share"]})
    panels = []
    for score, metric, role, name in GRIDS:
        own = _outcome(pooled, score, metric, role)
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
    area = _outcome(pooled, "energy", "auroc")
    says = "The table holds no AUROC by batch size and share."
    if len(area):
        low, high = area.loc[area["mean"].idxmin()], area.loc[area["mean"].idxmax()]
        says = (
            f"From running to batch statistics the energy score's AUROC changes by {signed(low['mean'])} "
            f"({_cell(low)}) to {signed(high['mean'])} ({_cell(high)}); {(area['mean'] > 0).sum()} of {len(area)} "
            "cells are above zero."
        )
    shown = pd.concat([_outcome(pooled, score, metric, role) for score, metric, role, _ in GRIDS], ignore_index=True)
    return Picture(
        name="batches", title="Batch statistics: batch size and share of OOD images", says=says,
        how="Changes from running statistics; blue above zero, orange below, the number in each cell. A share of 1 "
        f"means pure batches, where ID images are in batches of their own. {rests_on(pooled, bars=False)}",
        panels=panels, numbers=shown.drop(columns=["kind", "place"]), source="interventions.csv",
        choice_label="Outcome",
    )  # fmt: skip


def _cell(row: pd.Series) -> str:
    return f"{row['dataset']}, batches of {int(row['position'])}, share {row['share']:g}"
