"""The page of a study: the answer to each hypothesis, ReAct's picture, and the pictures of every network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bnood.report import changes
from bnood.report.charts import COLOURS, Panel, Picture, Series, dots
from bnood.report.figures import over_networks, run_pictures
from bnood.report.names import change, display
from bnood.report.page import write_page

if TYPE_CHECKING:
    from bnood.study.verdict import Verdict

FRACTIONS = ("AUROC", "FPR95", "probability", "share of images", "share of activations", "share of the effect")


def write_study_report(
    folder: Path,
    table: pd.DataFrame,
    draws: pd.DataFrame,
    verdict: Verdict,
    *,
    title: str,
    commands: list[str],
    units: pd.DataFrame | None = None,
    layers: pd.DataFrame | None = None,
    sentence: str = "",
    notes: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a study into `folder`; returns these files, the page first.

    Args:
        folder: of the study.
        table: the tables of all evaluations, pooled.
        draws: their bootstrap replicates, pooled.
        verdict: the hypotheses as judged.
        title: the page's heading.
        commands: what to type to get the page again.
        units, layers: the other tables of the evaluations, pooled, with columns network and seed.
        sentence: the answer in one sentence, if there is one.
        notes: what the study left out.
        record: versions, commit and machine.
    """
    found = verdict.to_json()
    judged, differences = found["rows"], changes.differences(draws)
    networks = list(table["network"].unique())
    pictures = {name: _pictures_of(name, table, units, layers, len(networks) > 1) for name in networks}
    first = pictures.pop(networks[0])
    across = [_seeds_picture(differences)] if len(differences) else []
    answer, columns = filled([_answer(row) for row in judged], ["Question", "Network", "Verdict", "Effect", "Why"])
    return write_page(
        folder, "study", title=title, commands=commands, sentence=sentence, notes=notes, record=record,
        pictures=[*first[:1], *across, *first[1:]],
        others=[(display(name), own) for name, own in pictures.items()],
        answer=answer, answer_columns=columns,
        changes=[
            [display(one), *row] for one, row in zip(differences["network"], changes.as_text(differences), strict=True)
        ],
        change_columns=["Network", *changes.COLUMNS],
        controls=[line for row in judged for line in _controls(row)],
        control_columns=["Hypothesis", "Network", "Control", "Change", "Passed"],
        thresholds=[[k.replace("_", " "), str(found["thresholds"].get(k)), why] for k, why in found["reasons"].items()],
        threshold_columns=["Threshold", "Value", "Reason"],
    )  # fmt: skip


def _pictures_of(
    network: str, table: pd.DataFrame, units: pd.DataFrame | None, layers: pd.DataFrame | None, several: bool
) -> list[Picture]:
    """A network's pictures; of the units, which differ from seed to seed, those of the first seed."""
    own, profiles, distances = (
        pd.DataFrame() if one is None or one.empty else one[one["network"] == network] for one in (table, units, layers)
    )
    if len(profiles):
        profiles = profiles[profiles["seed"] == profiles["seed"].min()]
    found = run_pictures(over_networks(own), profiles, distances)
    # "units.gn": the kind of picture, which has its caption in the template, and the network.
    return [replace(one, name=f"{one.name}.{network}" if several else one.name) for one in found]


def _network(row: dict[str, Any]) -> str:
    return display(row["network"]) + (f", seed {row['seed']}" if row.get("seed") is not None else "")


def _effect(row: dict[str, Any]) -> str:
    unit = row.get("unit") or ""
    factor = 100.0 if unit in FRACTIONS else 1.0
    effect, low, high = (math.nan if row.get(key) is None else row[key] for key in ("effect", "low", "high"))
    return change(effect, low, high, factor) + (f" {unit}" if factor == 1 and math.isfinite(effect) else "").rstrip()


def _answer(row: dict[str, Any]) -> list[str]:
    why = "; ".join(text for text in (row["reason"], row.get("note")) if text)
    quantity = f" ({row['quantity']})" if row.get("quantity") else ""
    return [f"{row['hypothesis']}: {row['statement']}", _network(row), row["verdict"], f"{_effect(row)}{quantity}", why]


def filled(rows: list[list[str]], columns: list[str]) -> tuple[list[list[str]], list[str]]:
    """Rows and columns without the columns that no row fills: the demo's hint has neither verdict nor reason."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [[row[place] for place in kept] for row in rows], [columns[place] for place in kept]


def _controls(row: dict[str, Any]) -> list[list[str]]:
    found = [one for one in row.get("estimates", []) if one["group"] == "control"]
    return [[row["hypothesis"], _network(row), one["quantity"], _effect(one), one["verdict"]] for one in found]


def _seeds_picture(differences: pd.DataFrame) -> Picture:
    """Target minus running of every network and set: each seed as a point, the mean with its interval."""
    several = differences["network"].nunique() > 1
    panels = []
    for title, part in differences.groupby("title", sort=False):
        names = [
            f"{display(one.network)}, {display(one.dataset)}" if several else display(one.dataset)
            for one in part.itertuples()
        ]
        factor, most = float(part["scale"].iloc[0]), max(map(len, part["per_seed"]))
        seeds = [
            Series(COLOURS[1], [factor * values[i] if i < len(values) else math.nan for values in part["per_seed"]])
            for i in range(most if most > 1 else 0)
        ]
        ends = factor * part[["effect", "low", "high"]]
        mean = Series(COLOURS[0], ends["effect"], ends["low"], ends["high"])
        label = "target minus running" + (", points" if factor == 100 else "")
        draw = partial(dots, rows=names, series=[mean, *seeds], x_label=label, line=0.0, spread=0.0)
        panels.append(Panel(str(title), draw, height=0.8 + 0.4 * len(names)))
    alt = (
        f"Dot plots of target minus running statistics, one mark per seed: {', '.join(differences['title'].unique())}."
    )
    return Picture("seeds", alt, panels, 2, [("one seed", COLOURS[1]), ("mean with 95 % interval", COLOURS[0])])
