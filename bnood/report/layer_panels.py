"""The pictures of the activation lens: what each layer's statistics and activations do on each set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnood.report.figures import ID_COLOUR, colours, ood_sets
from bnood.report.headline_conditions import called, keeps_statistics, under_running
from bnood.report.panels import BESIDE, Panel, Picture, Series, marker_of
from bnood.report.study_tables import CUT, MATCHED, listed, networks_of, over_seeds, plain, rests_on, with_network

COUNTED = "Layers are counted from 0, the one nearest to the input."
FEATURES = "penultimate"


def layer_name(layer: str, position: float) -> str:
    """ "layer 16 (blocks.6.norm2)": the number is that of the axes."""
    known = "penultimate features" if layer == FEATURES else layer.removeprefix("network.")
    return f"layer {int(position)} ({known})"


def _layer_names(rows: pd.DataFrame) -> list[str]:
    """One name for each row, in the order of the layers."""
    return [layer_name(row.layer, row.position) for row in rows.sort_values("position").itertuples()]


def set_colours(frame: pd.DataFrame) -> dict[str, str]:
    """OOD sets in their colours, the ID set grey."""
    ids = [str(name) for name in frame.loc[frame["role"] == "id", "dataset"].unique()]
    return colours(ood_sets(frame)) | dict.fromkeys(ids, ID_COLOUR)


def set_name(name: str, colour: str) -> str:
    return f"{name} (ID)" if colour == ID_COLOUR else name


def depth_ticks(frame: pd.DataFrame) -> list[tuple[float, str]]:
    """Layer numbers; where there are many, every second, third ... so that labels do not touch."""
    places = sorted({int(place) for place in frame["position"]})
    step = -(-len(places) // 10)
    return [(float(place), str(place)) for place in places[::step]]


def layer_line(name: str, colour: str, rows: pd.DataFrame, labels: Sequence[str] = ()) -> Series:
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
    hues = set_colours(frame)
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
            layer_line(set_name(name, hue), hue, own, labels=_layer_names(own))
            for name, hue in hues.items()
            if len(own := pooled[pooled["dataset"] == name])
        ]
        panels.append(
            Panel(title, "BN layer, from the input", unit, series, x_ticks=depth_ticks(frame), y_line=line,
                  floor=floor, step=1.0)
        )  # fmt: skip
    table = pd.concat(numbers, ignore_index=True)
    divergence = table[(table["measure"] == "symmetric_kl") & (table["role"] == "ood")]
    parts = []
    for name, own in divergence.groupby("dataset", sort=False):
        top = own.loc[own["mean"].idxmax()]
        parts.append(f"{layer_name(top['layer'], top['position'])} on {name}, {plain(top['mean'], 2)} nats")
    return Picture(
        name="layer_distances", title="Where the statistics differ: distance by layer",
        says=f"The symmetric KL between running statistics and the set's own is largest at {'; '.join(parts)}.",
        how=f"{COUNTED} Each layer's own statistics are those of its inputs as they arrive under running statistics. "
        f"Grey: ID images, for which the distance should be small. {rests_on(table, of_images=False)} "
        f"Bars of the mean shift and of the symmetric KL end at 0, below which neither can lie. {BESIDE}",
        panels=panels,
        numbers=table[["measure", "dataset", "layer", "position", "mean", "low", "high", "n_seeds"]].rename(
            columns={"position": "layer_number"}
        ),
        source="layer_distances.csv", across=3,
    )  # fmt: skip


def share_picture(layers: pd.DataFrame | None) -> Picture | None:
    """Share of (image, unit) pairs above the unit's ID 99th percentile, by layer, network and statistics."""
    if layers is None or layers.empty:
        return None
    needed = "network seed statistics dataset role layer position share_above_id_p99"
    frame = with_network(layers, needed, "the layer table")
    hues = set_colours(frame)
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
                layer_line(set_name(name, hue), hue, own, labels=_layer_names(own))
                for name, hue in hues.items()
                if len(own := part[part["dataset"] == name])
            ]
            title = f"{network}, {called(statistics)} statistics" if keeps_statistics(network) else network
            panels.append(
                Panel(title, "layer, from the input", "share above ID p99", series, x_ticks=depth_ticks(part),
                      y_range=(0.0, limit), y_line=0.01, share_axis="y", step=1.0)
            )  # fmt: skip
    return Picture(
        name="layer_shares", title="Abnormal activations by layer", says=_share_sentence(pooled),
        how=f"{COUNTED} A layer is a norm layer's output, averaged over each image; {FEATURES}, the last, is the "
        "features that the classifier sees. The line marks 1 %, the share on ID images under running statistics. "
        f"{rests_on(pooled, of_images=False)} {CUT} {BESIDE}",
        panels=panels, numbers=_table(pooled), source="layers.parquet",
    )  # fmt: skip


def _share_sentence(pooled: pd.DataFrame) -> str:
    """Each network's largest share over all norm layers, and beside it that of the penultimate features alone."""
    ood = pooled[(pooled["role"] == "ood") & (pooled["statistics"] == "running")]
    inner, last = ood[ood["layer"] != FEATURES], ood[ood["layer"] == FEATURES]
    if inner.empty:
        return "No OOD set was looked at under running statistics."
    said = (
        "The largest share of activations above the ID 99th percentile in any norm layer"
        f"{under_running(ood['network'])} is {listed(_largest(inner, named=True))}; on ID images it is 1 % by "
        "definition."
    )
    if last.empty:
        return said
    return f"{said} In the penultimate features, which ReAct's picture is about, it is {listed(_largest(last))}."


def _largest(rows: pd.DataFrame, named: bool = False) -> list[str]:
    found = []
    for network in networks_of(rows):
        own = rows[rows["network"] == network]
        top = own.loc[own["mean"].idxmax()]
        where = f" at {layer_name(top['layer'], top['position'])}" if named else ""
        found.append(f"{plain(100 * top['mean'], 1)} % in {network}{where} on {top['dataset']}")
    return found


def _table(pooled: pd.DataFrame) -> pd.DataFrame:
    """The shares as a table for reading; nothing is counted in images here, and not every network has statistics."""
    kept = pooled["network"].map(keeps_statistics)
    shown = pooled.assign(statistics=pooled["statistics"].map(called).where(kept, "none kept"))
    columns = {"mean": "share_above_id_p99", "position": "layer_number"}
    return shown.drop(columns="n").rename(columns=columns)
