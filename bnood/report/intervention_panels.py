"""The pictures of the interventions, for a study (over seeds) and for one run alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnood.report.batch_panels import batch_picture
from bnood.report.figures import ID_COLOUR, colours, ood_sets
from bnood.report.intervention_rows import (
    OUTCOMES,
    as_changes,
    images_in_words,
    outcome,
    outcome_rows,
    pooled_interventions,
    with_interval,
)
from bnood.report.layer_panels import (
    COUNTED,
    depth_ticks,
    distance_picture,
    layer_line,
    layer_name,
    set_name,
    share_picture,
)
from bnood.report.panels import BESIDE, Panel, Picture, Series, marker_of
from bnood.report.study_tables import CUT, plain, rests_on, signed
from bnood.study.claim.options import ClaimOptions

_LEAST = ClaimOptions()
_STEPS = (  # score, metric, role, name, the least change that a reader would care about
    ("penultimate", "unit_mean_max_ratio", "ood", "largest unit mean", _LEAST.minimum_unit_ratio),
    ("energy", "mean", "ood", "mean energy score (nats)", _LEAST.minimum_energy),
    ("energy", "auroc", "ood", "AUROC of the energy score", _LEAST.minimum_auroc),
    ("", "accuracy", "id", "ID accuracy", _LEAST.control_accuracy),
)
_PARTS = {"mean": "means only", "variance": "variances only", "all": "both"}


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


def place_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """H5: matched statistics in one layer, the first k, the last k; only means, only variances."""
    kinds = {
        "only": ("one layer alone", "number of the matched layer"),
        "first": ("the first k layers", "k"),
        "last": ("the last k layers", "k"),
    }
    pooled = pooled_interventions(interventions, [*kinds, "mean", "variance", "all"], changes=True)
    if pooled is None:
        return None
    hues = colours(ood_sets(pooled))
    panels = []
    for score, metric, name, unit in OUTCOMES:
        own = outcome(pooled, score, metric)
        if own.empty:
            continue
        label = f"change ({unit})"
        choice = name[0].upper() + name[1:]
        for kind, (title, axis) in kinds.items():
            part = own[own["kind"] == kind]
            if part.empty:
                continue
            series = [
                layer_line(dataset, hue, rows, labels=_where(rows.sort_values("position")))
                for dataset, hue in hues.items()
                if len(rows := part[part["dataset"] == dataset])
            ]
            panels.append(
                Panel(title, axis, label, series, x_ticks=depth_ticks(part), y_line=0.0, choice=choice, step=1.0)
            )  # fmt: skip
        panels.append(_parts_panel(own, hues, label, choice))
    return Picture(
        name="interventions", title="Interventions: matched statistics in some layers only",
        says=_place_sentence(pooled),
        how=f"Changes from running statistics on the same images; zero means no effect. {COUNTED} "
        f"{images_in_words(pooled)}{rests_on(pooled)} {BESIDE}",
        panels=panels, numbers=_place_table(pooled),
        source="interventions.csv", choice_label="Outcome",
        static=list(dict.fromkeys(panel.choice for panel in panels))[:3],
    )  # fmt: skip


def _parts_panel(own: pd.DataFrame, hues: dict[str, str], label: str, choice: str) -> Panel:
    """Only the means, only the variances, both: one column each, the sets beside each other."""
    names = [kind for kind in ("mean", "variance", "all") if (own["kind"] == kind).any()]
    slots = np.linspace(-0.25, 0.25, len(hues)) if len(hues) > 1 else np.zeros(1)
    series = []
    for slot, (dataset, hue) in zip(slots, hues.items(), strict=True):
        rows = own[own["dataset"] == dataset].set_index("kind")
        held = [kind for kind in names if kind in rows.index]
        rows = rows.loc[held]
        place = [names.index(kind) + float(slot) for kind in held]
        series.append(
            Series(dataset, hue, place, [*rows["mean"]], [*rows["low"]], [*rows["high"]], "y",
                   marker_of(hue), labels=[_PARTS[kind] for kind in held])
        )  # fmt: skip
    ticks = [(float(i), _PARTS[kind]) for i, kind in enumerate(names)]
    ends = (-0.5, len(names) - 0.5)
    return Panel("all layers", "", label, series, x_ticks=ticks, x_range=ends, y_line=0.0, choice=choice)


def _where(rows: pd.DataFrame) -> list[str]:
    """Where each row's statistics are matched: "layer 16 (blocks.6.norm2) alone", "the first 3 layers"."""
    found = []
    for row in rows.itertuples():
        if row.kind == "only":
            found.append(f"{layer_name(row.place, row.position)} alone")
        elif row.kind in ("first", "last"):
            found.append(f"the {row.kind} layer" if row.position == 1 else f"the {row.kind} {row.position:g} layers")
        else:
            found.append("all layers" if row.kind == "all" else f"all layers, {_PARTS[row.kind]}")
    return found


def _place_table(pooled: pd.DataFrame) -> pd.DataFrame:
    """The rows of the panels, and those of ID accuracy, which only the sentence speaks of."""
    rows = pd.concat([outcome_rows(pooled), outcome(pooled, "", "accuracy", "id")], ignore_index=True)
    named = rows.assign(kind=_where(rows)).rename(columns={"kind": "matched"})
    return as_changes(named.drop(columns=["place", "position", "share", "companion", "role"]))


def _place_sentence(pooled: pd.DataFrame) -> str:
    """What matching all layers changes, and the one layer that does most of it; then what it does to ID accuracy."""
    found = []
    for score, metric, name, digits in (
        ("penultimate", "unit_mean_max_ratio", "the largest unit mean, relative to ID,", 2),
        ("energy", "auroc", "the AUROC of the energy score", 3),
    ):
        if parts := _place_parts(outcome(pooled, score, metric), digits):
            found.append(f"Matching all layers changes {name} by {'; '.join(parts)}.")
    if not found:
        return "The tables do not hold both all layers and one layer at a time, so no share can be named."
    own = outcome(pooled, "", "accuracy", "id")
    for _, row in own[own["kind"] == "all"].iterrows():
        found.append(
            f"The accuracy on {row['dataset']} (ID), matched to its own images, changes by {with_interval(row)}."
        )
    return f"{' '.join(found)} The layer named is the one that alone changes a figure most in the same direction."


def _place_parts(own: pd.DataFrame, digits: int) -> list[str]:
    parts = []
    for dataset in ood_sets(own):
        rows = own[own["dataset"] == dataset]
        whole, alone = rows[rows["kind"] == "all"], rows[rows["kind"] == "only"]
        if whole.empty or alone.empty or whole["mean"].iloc[0] == 0:
            continue
        change = whole.iloc[0]
        best = alone.loc[(alone["mean"] * np.sign(change["mean"])).idxmax()]
        where = f"{layer_name(best['place'], best['position'])} alone {signed(best['mean'], digits)}"
        parts.append(f"{with_interval(change, digits)} on {dataset}, {where}")
    return parts


def path_picture(interventions: pd.DataFrame | None) -> Picture | None:
    """From running to matched statistics in steps of λ, and Schneider's prior of N source images."""
    pooled = pooled_interventions(interventions, ["path", "prior", "none", "all"], changes=False)
    if pooled is None or not pooled["kind"].isin(["path", "prior"]).any():
        return None
    pooled = _with_ends(pooled)
    hues = colours(ood_sets(pooled))
    panels = []
    for score, metric, name, unit in OUTCOMES[:3]:
        panels += [
            _step_panel(outcome(pooled, score, metric), kind, f"{name}: {axis}", unit, hues)
            for kind, axis in (("path", "path λ"), ("prior", "prior N"))
        ]
    accuracy = outcome(pooled, "", "accuracy", role="id")
    for kind, axis in (("path", "path λ"), ("prior", "prior N")):
        hue = {str(name): ID_COLOUR for name in accuracy["dataset"].unique()}
        panels.append(_step_panel(accuracy, kind, f"ID accuracy: {axis}", "share", hue))
    panels = [panel for panel in panels if panel.series]
    return Picture(
        name="path", title="From running to matched in steps", says=_path_sentence(pooled),
        how="Left: λ = 0 is running, λ = 1 matched statistics. Right: the prior N of Schneider et al. (2020), the "
        "running statistics' weight in source images beside pure batches of 128; more is nearer to running. "
        f"{images_in_words(pooled)}{rests_on(pooled)} {CUT} {BESIDE}",
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
    parts = [outcome(pooled, score, metric, role) for score, metric, role, *_ in _STEPS]
    steps = {"path": "path, by \N{GREEK SMALL LETTER LAMDA}", "prior": "prior, by N"}
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(kind=rows["kind"].map(steps)).drop(columns=["place", "share", "companion"])


def _step_panel(rows: pd.DataFrame, kind: str, title: str, label: str, hues: dict[str, str]) -> Panel:
    rows = rows[rows["kind"] == kind]
    steps = sorted(set(rows["position"].astype(float)))
    # The prior's steps grow by factors from zero on, which no logarithm shows: equal distances instead.
    places = {step: float(i) if kind == "prior" else step for i, step in enumerate(steps)}
    rows = rows.assign(position=rows["position"].astype(float).map(places))
    series = [
        layer_line(
            set_name(name, hue), hue, own, labels=[f"{kind} {place}" for place in own.sort_values("position")["place"]]
        )
        for name, hue in hues.items()
        if len(own := rows[rows["dataset"] == name])
    ]
    ticks = [(places[step], f"{step:g}") for step in steps[:: max(1, -(-len(steps) // 8))]]
    axis = "λ (0 running, 1 matched)" if kind == "path" else "N (images of prior weight)"
    step = min(np.diff(sorted(places.values())), default=0.0)
    return Panel(title, axis, label, series, x_ticks=ticks, share_axis="y" if label == "share" else "", step=step)


def _path_sentence(pooled: pd.DataFrame) -> str:
    """Both ends and the middle of the largest unit mean, and where any curve leaves the range between its ends."""
    own = outcome(pooled, "penultimate", "unit_mean_max_ratio")
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
    first = (
        f"At λ = {ends[0]:g}, {middle:g} and {ends[-1]:g} the largest unit mean, relative to ID, is {'; '.join(parts)}."
    )
    return " ".join([first, *_beyond(pooled[pooled["kind"] == "path"].astype({"position": float}))])


def _beyond(path: pd.DataFrame) -> list[str]:
    """For each outcome the curves whose mean leaves the range between their ends by what a reader would care about."""
    found = []
    for score, metric, role, name, least in _STEPS:
        own = outcome(path, score, metric, role)
        parts = [text for dataset in own["dataset"].unique() if (text := _turn(own, str(dataset), least))]
        if parts:
            found.append(f"{name[0].upper()}{name[1:]}: {'; '.join(parts)} (beyond by {least:g} or more).")
    if not found:
        return ["No curve's mean leaves the range between its ends by what counts as an effect."]
    return ["Between the ends, some means lie beyond both.", *found]


def _turn(own: pd.DataFrame, dataset: str, least: float) -> str:
    """Where a curve rises above both ends, or falls below both; "" where it stays between them."""
    value = own[own["dataset"] == dataset].set_index("position")["mean"].dropna().sort_index()
    if len(value) < 3:
        return ""
    ends, inner = value.iloc[[0, -1]], value.iloc[1:-1]
    digits = 2 if least >= 0.1 else 3
    parts = []
    if inner.max() - ends.max() >= least:
        parts.append(f"up to {plain(inner.max(), digits)} at λ = {inner.idxmax():g}")
    if ends.min() - inner.min() >= least:
        parts.append(f"down to {plain(inner.min(), digits)} at λ = {inner.idxmin():g}")
    return f"{' and '.join(parts)} on {dataset}" if parts else ""
