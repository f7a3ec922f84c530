"""The page of a study: the answer to each hypothesis, ReAct's picture, and the pictures of every network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bnood.evaluation.intervals import Replicates
from bnood.report.charts import COLOURS, Panel, Picture, Series, dots, heat
from bnood.report.figures import KEYS, TARGET, over_networks, rows, run_pictures, scale, shown
from bnood.report.names import change, display, number
from bnood.report.page import write_page
from bnood.report.run import CHANGE_COLUMNS, QUESTIONS

SHADES = {"supported": 10.0, "refuted": -10.0, "inconclusive": 0.0}


class Judged(Protocol):
    """What the page needs of a verdict: `rows` with hypothesis, network, verdict, effect, low, high, threshold, reason."""

    rows: Any


def write_study_report(
    folder: Path,
    table: pd.DataFrame,
    draws: pd.DataFrame,
    verdict: Judged,
    *,
    title: str,
    commands: list[str],
    units: pd.DataFrame | None = None,
    layers: pd.DataFrame | None = None,
    sentence: str = "",
    notes: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a study into `folder`.

    Args:
        folder: is made if it does not exist.
        table: the tables of all evaluations, pooled.
        draws: their bootstrap replicates, pooled; columns of `draws.parquet`.
        verdict: the hypotheses as judged; rows without a verdict (as in the demo) show their effects alone.
        title: the page's heading.
        commands: what to type to get the page again.
        units, layers: the other tables of the evaluations, pooled, with columns network and seed.
        sentence: the answer in one sentence, if there is one.
        notes: what the study left out.
        record: versions, commit and machine.

    Returns:
        The files that were written, the page first.
    """
    judged = pd.DataFrame(verdict.rows)
    differences = _differences(draws)
    networks = list(table["network"].unique())
    pictures = {name: _pictures_of(name, table, units, layers, len(networks) > 1) for name in networks}
    first = pictures.pop(networks[0])
    across = [one for one in (_verdict_picture(judged), _seeds_picture(differences)) if one is not None]
    return write_page(
        folder, "study", title=title, commands=commands, sentence=sentence, notes=notes, record=record,
        pictures=[*first[:1], *across, *first[1:]],
        others=[(display(name), found) for name, found in pictures.items()],
        answer=_answer(judged), answer_columns=_answer_columns(judged),
        changes=_changes(differences), change_columns=["Network", *CHANGE_COLUMNS],
        thresholds=_thresholds(judged), threshold_columns=["Hypothesis", "Threshold", "Reason"],
    )  # fmt: skip


def _pictures_of(
    network: str, table: pd.DataFrame, units: pd.DataFrame | None, layers: pd.DataFrame | None, several: bool
) -> list[Picture]:
    """A network's pictures; of the units, which differ from seed to seed, those of the first seed."""
    none = pd.DataFrame()
    own, profiles, distances = (
        none if one is None or one.empty else one[one["network"] == network] for one in (table, units, layers)
    )
    if len(profiles):
        profiles = profiles[profiles["seed"] == profiles["seed"].min()]
    found = run_pictures(over_networks(own), profiles, distances)
    # A picture is named "units.gn": its kind, which has the caption, and the network.
    return [replace(one, name=f"{one.name}.{network}" if several else one.name) for one in found]


def _differences(draws: pd.DataFrame) -> pd.DataFrame:
    """Per network, question and image set: running, target, and their difference with its interval and per seed."""
    found = []
    for network, own in draws.groupby("network", sort=False):
        kept = own[own["statistics"].isin(["running", TARGET])]
        for title, metric, detector, role, printed in QUESTIONS:
            one = rows_with_replicates(kept, metric, detector, role)
            for dataset, part in one.groupby("dataset", sort=False):
                sides = {name: side.set_index("seed") for name, side in part.groupby("statistics")}
                if len(sides) < 2:
                    continue
                before, after = (_replicates(sides[name]) for name in ("running", TARGET))
                difference = after - before
                interval = difference.interval()
                found.append(
                    {
                        "network": network, "title": title, "dataset": dataset, "printed": printed, "role": role,
                        "before": before.values.mean(), "after": after.values.mean(), "effect": interval.effect,
                        "low": interval.low, "high": interval.high, "per_seed": difference.values,
                        "scale": scale(metric, detector),
                    }
                )  # fmt: skip
    return pd.DataFrame(found)


def rows_with_replicates(draws: pd.DataFrame, metric: str, detector: str, role: str) -> pd.DataFrame:
    """As :func:`bnood.report.figures.rows`, of `draws.parquet`: of ID images the row for the first OOD set."""
    shifts = set(draws.loc[draws["role"] == "ood", "companion"]) - {""}
    found = draws[(draws["metric"] == metric) & (draws["detector"] == detector) & (draws["role"] == role)]
    if role == "ood":
        return found[found["comparison"].isin(["ood", ""]) & (found["companion"] == "")]
    return found[~found["dataset"].isin(shifts)].drop_duplicates(["network", "seed", "statistics", "dataset"])


def _replicates(side: pd.DataFrame) -> Replicates:
    side = side.sort_index()
    return Replicates(tuple(side.index), side["value"].to_numpy(float), np.stack(side["replicates"].to_list()))


def _changes(differences: pd.DataFrame) -> list[list[str]]:
    return [
        [
            display(one.network), one.title, display(one.dataset), number(one.before, one.printed),
            number(one.after, one.printed), change(one.effect, one.low, one.high, one.printed),
        ]
        for one in differences.itertuples()
    ]  # fmt: skip


def _seeds_picture(differences: pd.DataFrame) -> Picture | None:
    """Target minus running of every network and set: each seed as a point, the mean with its interval."""
    if differences.empty:
        return None
    several = differences["network"].nunique() > 1
    panels = []
    for title, part in differences.groupby("title", sort=False):
        names = [
            f"{display(one.network)}: {display(one.dataset)}" if several else display(one.dataset)
            for one in part.itertuples()
        ]
        factor = float(part["scale"].iloc[0])
        most = max(map(len, part["per_seed"]))
        seeds = [
            Series("", COLOURS[1], [factor * v[i] if i < len(v) else math.nan for v in part["per_seed"]], faint=True)
            for i in range(most if most > 1 else 0)
        ]
        ends = factor * part[["effect", "low", "high"]]
        mean = Series("", COLOURS[0], ends["effect"], ends["low"], ends["high"], marker="|")
        label = "target minus running" + (", points" if factor == 100 else "")
        draw = partial(dots, rows=names, series=[*seeds, mean], x_label=label, line=0.0, spread=0.0)
        panels.append(Panel(str(title), draw, 3.4, 0.8 + 0.4 * len(names)))
    alt = (
        f"Dot plots of target minus running statistics, one mark per seed: {', '.join(differences['title'].unique())}."
    )
    legend = [("one seed", COLOURS[1]), ("mean with 95 % interval", COLOURS[0])]
    return Picture("seeds", alt, panels, 2, legend)


def _decided(judged: pd.DataFrame) -> bool:
    return "verdict" in judged and judged["verdict"].fillna("").ne("").any()


def _effect(one: Any) -> str:
    text = f"{one.effect:+.3g}" if math.isfinite(one.effect) else "–"
    if math.isfinite(one.low) and math.isfinite(one.high):
        text += f" [{one.low:.3g}, {one.high:.3g}]"
    return text.replace("-", "−")


def _verdict_picture(judged: pd.DataFrame) -> Picture | None:
    if judged.empty or not _decided(judged):
        return None
    hypotheses, networks = list(judged["hypothesis"].unique()), list(judged["network"].unique())
    cells = judged.drop_duplicates(["hypothesis", "network"]).set_index(["hypothesis", "network"])
    shades = np.full((len(hypotheses), len(networks)), np.nan)
    texts = [["not tested"] * len(networks) for _ in hypotheses]
    for i, hypothesis in enumerate(hypotheses):
        for j, network in enumerate(networks):
            if (hypothesis, network) in cells.index:
                cell = cells.loc[(hypothesis, network)]
                shades[i, j] = SHADES.get(str(cell["verdict"]).split(" (")[0], math.nan)
                texts[i][j] = (
                    f"{cell['verdict']}\n{_effect(cell)}" if math.isfinite(cell["effect"]) else str(cell["verdict"])
                )
    draw = partial(
        heat, rows=hypotheses, columns=[display(name) for name in networks], shades=shades, texts=texts, limit=15.0
    )
    panel = Panel("", draw, 1.0 + 1.7 * len(networks), 0.6 + 0.5 * len(hypotheses))
    return Picture(
        "verdict", "Table of verdicts, hypotheses by networks; the same as at the top of the page.", [panel], 1
    )


def _answer_columns(judged: pd.DataFrame) -> list[str]:
    return ["Question", "Network", *(["Verdict"] if _decided(judged) else []), "Effect", "Why"]


def _answer(judged: pd.DataFrame) -> list[list[str]]:
    found = []
    for one in judged.itertuples():
        statement = f"{one.hypothesis}: {one.statement}" if hasattr(one, "statement") else str(one.hypothesis)
        unit = f" {one.unit}" if hasattr(one, "unit") and one.unit else ""
        verdict = [str(one.verdict)] if _decided(judged) else []
        found.append([statement, display(str(one.network)), *verdict, f"{_effect(one)}{unit}", str(one.reason or "")])
    return found


def _thresholds(judged: pd.DataFrame) -> list[list[str]]:
    known = judged[judged["threshold"].notna()] if "threshold" in judged else judged.iloc[:0]
    known = known.drop_duplicates(["hypothesis", "threshold"])
    return [
        [one.hypothesis, f"{one.threshold:g}", str(getattr(one, "threshold_reason", ""))] for one in known.itertuples()
    ]
