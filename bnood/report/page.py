"""The pages of a run, a study and a lab: one template gives a self-contained HTML file; its pictures lie beside it."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from bnood.report.charts import COLOURS, INK, Panel, Picture
from bnood.report.figures import CONFIDENCE, DETECTION, TARGET, rows, run_pictures
from bnood.report.names import change, display, factor_of, number, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bnood.evaluation.evaluate import Evaluation

NORM_COLOURS = {"none": INK, "bn": COLOURS[1], "ln": COLOURS[0], "gn": COLOURS[2]}
GRADIENTS = "Line plots of the gradient norm over the layers, one line per norm, logarithmic axis."
WIDE = 3.6  # inches: wider panels scroll sideways on a phone instead of shrinking


def write_page(folder: Path, kind: str, *, pictures: Sequence[Picture], **content: Any) -> list[Path]:
    """Write `report.html` and `figures/*.png` into `folder`; returns these files, the page first.

    `kind` is run, study or lab. `content` is what else the template shows: title, commands, notes, a sentence, tables
    as a pair of columns and rows, the record (versions, commit, machine), and the whole config.
    """
    loader = jinja2.PackageLoader("bnood.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    for name in {"record", "config"} & content.keys():
        plain = json.loads(json.dumps(content[name], default=str))
        content[name] = plain and yaml.safe_dump(plain, sort_keys=False)
    panels = [
        [(panel.title, svg, panel.width > WIDE) for panel, svg in zip(picture.panels, picture.svgs(), strict=True)]
        for picture in pictures
    ]
    drawn = zip(pictures, panels, strict=True)
    text = environment.get_template("page.html.j2").render(kind=kind, pictures=drawn, **content)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(text, encoding="utf-8")
    return [page, *(picture.write_png(folder / "figures") for picture in pictures)]


def write_run_report(
    folder: Path, evaluation: "Evaluation", *, title: str, commands: list[str], config: dict[str, Any] | None = None
) -> list[Path]:
    """The page of one evaluation: what target statistics change, and all pictures; `config` is a trained run's."""
    table, found = evaluation.table, []
    for question, metric, detector in (*CONFIDENCE, *DETECTION):
        factor, own = scale(metric, detector), rows(table, metric, detector, "id" if metric == "accuracy" else "ood")
        for one in own[(own["statistics"] == TARGET) & own["difference"].notna()].itertuples():
            difference = change(one.difference, one.difference_low, one.difference_high, factor)
            before, after = number(one.value - one.difference, factor), number(one.value, factor)
            found.append([question.removesuffix(", per cent"), display(one.dataset), before, after, difference])
    return write_page(
        folder, "run", title=title, commands=commands, config=config, record=evaluation.record, notes=evaluation.notes,
        pictures=run_pictures(table, evaluation.units),
        changes=(["Quantity", "Images", "Running", "Target", "Difference"], found),
    )  # fmt: skip


def write_study_report(
    folder: Path, verdict: Mapping[str, Any], table: pd.DataFrame, units: pd.DataFrame, *,
    changes: Sequence[Sequence[str]], **content: Any,
) -> list[Path]:  # fmt: skip
    """The page of a study: the answer to each hypothesis, and the pictures of the first network.

    `verdict` is the content of `verdict.json`; `table` and `units` are pooled; `changes` are network, question, value
    under running, under target, and their difference; `content` is as in :func:`write_page`.
    """
    first = table["run"].iloc[0]
    answer, controls = [], []
    for row in verdict["rows"]:
        name, network = row["hypothesis"], display(row["network"])
        network += "" if row["seed"] is None else f", seed {row['seed']}"
        effect = f"{_effect(row)} ({row['quantity']})" if row["quantity"] else _effect(row)
        why = "; ".join(text for text in (row["reason"], row["note"]) if text)
        answer.append([f"{name}: {row['statement']}", network, row["verdict"], effect, why])
        estimates = [one for one in row["estimates"] if one["group"] == "control"]
        controls += [[name, network, one["quantity"], _effect(one), one["verdict"]] for one in estimates]
    thresholds = [
        [key.replace("_", " "), str(verdict["thresholds"][key]), reason] for key, reason in verdict["reasons"].items()
    ]
    return write_page(
        folder, "study", pictures=run_pictures(table[table["run"] == first], units[units["run"] == first]), shown=first,
        answer=(["Question", "Network", "Verdict", "Effect", "Why"], answer),
        changes=(["Network", "Quantity", "Running", "Target", "Difference"],
                 [[display(network), *rest] for network, *rest in changes]),
        controls=(["Hypothesis", "Network", "Control", "Change", "Passed"], controls),
        thresholds=(["Threshold", "Value", "Reason"], thresholds), record=verdict["made"], **content,
    )  # fmt: skip


def _effect(row: Mapping[str, Any]) -> str:
    effect, low, high = (math.nan if row[key] is None else row[key] for key in ("effect", "low", "high"))
    factor = factor_of(row["unit"] or "")
    unit = f" {row['unit']}" if factor == 1 and math.isfinite(effect) else ""
    return f"{change(effect, low, high, factor)}{unit}"


def write_lab_report(folder: Path, table: pd.DataFrame, **page: Any) -> list[Path]:
    """Write `report.html` and `figures/*.png` of a lab from its table (:mod:`bnood.lab.run`); the page comes first."""
    first_epoch = table[(table["quantity"] == "gradient_norm") & (table["epoch"] <= 1) & (table["value"] > 0)]
    legend = [(display(norm), colour) for norm, colour in NORM_COLOURS.items() if norm in set(table["norm"])]
    groups = first_epoch.groupby(["architecture", "activation"], sort=False)
    panels = [Panel(f"{display(a)}, {display(b)}", partial(_gradients, rows=own)) for (a, b), own in groups]
    # A network that diverges at once has nothing to draw.
    drawn = [Picture("gradients", GRADIENTS, panels, 2, legend)] if panels else []
    return write_page(folder, "lab", pictures=drawn, **page)


def _gradients(axes: "Axes", rows: pd.DataFrame) -> None:
    for norm, part in rows.assign(value=np.log(rows["value"])).groupby("norm", sort=False):
        colour, logs = NORM_COLOURS[str(norm)], part.pivot_table("value", "layer", "seed")
        axes.plot(logs.index, np.exp(logs), color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(logs.index, np.exp(logs.mean(axis=1)), color=colour, linewidth=1.8, marker="o", markersize=3.5)
    axes.set(yscale="log", xlabel="layer, 1 = at the input", ylabel="gradient norm")
