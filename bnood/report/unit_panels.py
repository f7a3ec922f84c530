"""ReAct's picture: mean ± std of each penultimate unit, for every run and OOD set."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnood.errors import UserError
from bnood.report.figures import ID_COLOUR, colours, id_rows, ood_sets
from bnood.report.headline_conditions import called, keeps_statistics, names_in_tables
from bnood.report.panels import Panel, Picture, Series
from bnood.report.study_tables import MATCHED, StudyTables, listed, networks_of, plain, seeds_in_words, with_network

RATIO = "largest unit mean, relative to ID"


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
            drawn, rows = _unit_panels(own, network, f"{network}, seed {seed}")
            panels += drawn
            numbers += [{"network": network, "seed": seed, **row} for row in rows]
    table = pd.DataFrame(numbers)
    return Picture(
        name="unit_profiles", title="ReAct's picture: what each penultimate unit does", says=_unit_sentence(table),
        how="Lines are per-unit means, bands one standard deviation over images; ID grey, OOD coloured. Units are "
        "sorted by their ID mean under running statistics, in the same order everywhere in a network. Figures relative "
        "to ID are divided by that of the ID images under running statistics in the same run. "
        "Bands end at 0 where no unit has a mean below it, as after a ReLU. "
        f"{names_in_tables(table['statistics'])}{_unit_counts(tables, table)}",
        panels=panels, numbers=table.assign(statistics=table["statistics"].map(called)),
        source="units.parquet of each run", choice_label="Network", static=[panels[0].choice],
        held="two ratios per panel; each unit's mean and standard deviation are in units.parquet of each run",
    )  # fmt: skip


def _unit_panels(frame: pd.DataFrame, network: str, choice: str) -> tuple[list[Panel], list[dict[str, object]]]:
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
            title = f"{name} under {called(statistics)} statistics" if keeps_statistics(network) else name
            series = [_profile(other, order, name, colours(sets)[name]), _profile(own, order, "ID", ID_COLOUR)]
            panels.append(
                Panel(
                    title, "unit, by its ID mean", "activation", series, y_range=(floor, limit),
                    floor=0.0 if positive else None, choice=choice, colour=colours(sets)[name],
                )
            )  # fmt: skip
            ratio, spread = other["mean"].max() / top, other["mean"].std() / running["mean"].std()
            numbers.append(
                {"set": name, "statistics": statistics, RATIO: ratio, "spread over units, relative to ID": spread,
                 "units": len(order)}
            )  # fmt: skip
    return panels, numbers


def _unit_counts(tables: StudyTables, numbers: pd.DataFrame) -> str:
    """Seeds per network, and images per set as far as the metric table has these sets."""
    seeds = numbers.groupby("network")["seed"].nunique()
    shown = tables.metrics[tables.metrics["dataset"].isin(numbers["set"]) | tables.metrics["role"].eq("id")]
    images = shown.groupby("dataset", sort=False)["n"].max()
    counts = "; ".join(f"{name} n = {int(n):,}" for name, n in images.items())
    return f"{seeds_in_words(int(seeds.min()), int(seeds.max()))} per network, each drawn alone; images: {counts}."


def _profile(rows: pd.DataFrame, order: np.ndarray, name: str, colour: str) -> Series:
    found = rows.set_index("unit").loc[order]
    mean, std = found["mean"].to_numpy(np.float64), found["std"].to_numpy(np.float64)
    labels = [f"unit {unit}" for unit in order]
    place = list(range(len(order)))
    return Series(name, colour, place, [*mean], [*(mean - std)], [*(mean + std)], "band", "", "solid", labels)


def _unit_sentence(numbers: pd.DataFrame) -> str:
    """Of the first network its largest per-unit mean on each set; of those that keep no statistics their largest.

    All are means over seeds, in multiples of the figure for ID images under running statistics.
    """
    networks = networks_of(numbers)
    first, rest = networks[0], [name for name in networks[1:] if not keeps_statistics(name)]
    own = numbers[numbers["network"] == first]
    kept = [name for name in ("running", MATCHED) if (own["statistics"] == name).any()]
    parts = []
    for name in own["set"].unique():
        of_set = own[own["set"] == name]
        found = [_over_seeds(of_set.loc[of_set["statistics"] == statistics, RATIO]) for statistics in kept]
        parts.append(f"{' and '.join(text for text in found if text)} on {name}")
    under = f", under {' and then under '.join(map(called, kept))} statistics," if keeps_statistics(first) else ""
    means = "; means over the seeds, their range in brackets" if own["seed"].nunique() > 1 else ""
    said = (
        f"In {first} the largest per-unit mean is{under} as a multiple of that on ID images: {'; '.join(parts)}{means}."
    )
    others = [_highest(numbers[numbers["network"] == name], name) for name in rest]
    if not others:
        return said
    which = "Networks that keep no statistics" if keeps_statistics(first) else "Others"
    return f"{said} {which}: at most {listed(others)}."


def _highest(rows: pd.DataFrame, network: str) -> str:
    """The set on which a network's mean over seeds is largest."""
    name = rows.groupby("set", sort=False)[RATIO].mean().idxmax()
    return f"{_over_seeds(rows.loc[rows['set'] == name, RATIO])} in {network} (on {name})"


def _over_seeds(values: pd.Series) -> str:
    """The mean, and in brackets the range of the seeds; "" where there is none."""
    if values.empty:
        return ""
    spread = f" ({plain(values.min(), 2)} to {plain(values.max(), 2)})" if len(values) > 1 else ""
    return f"{plain(values.mean(), 2)}{spread}"
