"""The tables and figures of results/RESULTS.md, from the folders of finished studies:

    python results/summarise.py runs/cifar10-resnet18 runs/imagenet

Copies each study's tables to results/<study>/, writes results/detectors.csv and results/figures/, and prints Markdown:
hypotheses x networks, then detectors x statistics: AUROC in per cent, mean over the study's primary OOD sets with equal
weight, and changes from running statistics in points, with 95 % intervals over images, and over seeds where there are
several.
"""

import gzip
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import yaml

from bnood.evaluation.intervals import Replicates, mean_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
TEXT = {"companion": "", "comparison": "", "detector": "", "statistics": ""}
# One panel each: hypothesis, quantity in verdict.json, title, factor.
EFFECTS = (
    ("H1", "largest unit mean, running - target", "H1: largest unit mean\nrunning - target, times ID", 1),
    ("H2", "energy, running - target", "H2: energy score of OOD\nrunning - target, nats", 1),
    ("H2", "MSP, running - target", "H2: mean MSP of OOD\nrunning - target, points", 100),
    ("H3", "energy AUROC, target - running", "H3: AUROC of energy\ntarget - running, points", 100),
    ("H3", "MSP AUROC, target - running", "H3: AUROC of MSP\ntarget - running, points", 100),
)
TARGET = "recalibrated:target"
APART = "/|path|prior|0.1"  # layer forms, paths, priors: in detectors.csv alone
# The columns of energy's AUROC set by set: how a column begins, and its title.
FORMS = {
    "recalibrated:id": "`recalibrated:id`", TARGET: "`recalibrated:target`",
    "recalibrated:mixture@0.5": "`recalibrated:mixture@0.5`", f"{TARGET}/only": "target, last layer alone",
    f"{TARGET}/mean": "target, means alone", f"{TARGET}/variance": "target, variances alone",
}  # fmt: skip
UNITS_OF, UNITS_SET = "mobilenet_v2", "flowers-256"
COLUMNS = ["study", "network", "seeds", "sets", "detector", "statistics", "within_placebo"]
COLUMNS += [f"{name}{side}" for name in ("auroc", "change", "placebo") for side in ("", "_low", "_high")]


def main(studies: Sequence[Path]) -> None:
    """Write and print everything for the given studies."""
    (HERE / "figures").mkdir(exist_ok=True)
    verdicts: list[dict[str, Any]] = []
    matrix: list[dict[str, Any]] = []
    for study in studies:
        kept = HERE / study.name.replace("-", "_")
        kept.mkdir(exist_ok=True)
        for name in ("verdict.csv", "networks.csv"):
            shutil.copyfile(study / name, kept / name)
        # Packed, because one row per layer, set and metric comes to megabytes; without the time, for equal bytes.
        (kept / "table.csv.gz").write_bytes(gzip.compress((study / "table.csv").read_bytes(), mtime=0))
        verdicts += json.loads((study / "verdict.json").read_text())["rows"]
        matrix += detector_rows(study)
    found = pd.DataFrame(matrix, columns=COLUMNS)
    found.to_csv(HERE / "detectors.csv", index=False, float_format="%.6g")
    by_set = [line for study in studies for line in sets_markdown(study)]
    print("\n".join([*hypotheses_markdown(verdicts), *detectors_markdown(found), *by_set]))
    effects_figure(verdicts)
    detectors_figure(found)
    for study in studies:
        if (file := study / UNITS_OF / "ood" / "units.parquet").exists():
            units_figure(pd.read_parquet(file).fillna({"companion": ""}), study)
            break


def detector_rows(study: Path) -> Iterator[dict[str, Any]]:
    """One row per network family, detector and statistics: AUROC, its change from running, and the placebo."""
    sets = yaml.safe_load((study / "study.yaml").read_text())["claim"]["primary_sets"]
    runs = pd.read_csv(study / "networks.csv").set_index("run")
    parts = [pd.read_parquet(study / run / "ood" / "draws.parquet").assign(run=run) for run in runs.index]
    draws = pd.concat(parts, ignore_index=True).fillna(TEXT)
    draws = draws[(draws["metric"] == "auroc") & (draws["companion"] == "") & draws["dataset"].isin(sets)]
    draws["network"], draws["seed"] = draws["run"].map(runs["network"]), draws["run"].map(runs["seed"])
    for network, own in draws.groupby("network", sort=False):
        values = {
            comparison: {
                key: mean_of([_replicates(rows) for _, rows in part.groupby("dataset")])
                for key, part in own[own["comparison"] == comparison].groupby(["detector", "statistics"], sort=False)
                if part["dataset"].nunique() == len(sets)
            }
            for comparison in ("ood", "placebo")
        }
        for (detector, statistics), here in values["ood"].items():
            row = {"study": study.name, "network": network, "seeds": len(here.seeds), "sets": " ".join(sets)}
            row |= {"detector": detector, "statistics": statistics} | _figures("auroc", here)
            if statistics != "running":
                row |= _figures("change", here - values["ood"][detector, "running"])
            if (detector, statistics) in values["placebo"]:
                row |= _figures("placebo", values["placebo"][detector, statistics])
            yield row | {"within_placebo": _within_placebo(row)}


def _replicates(rows: pd.DataFrame) -> Replicates:
    rows = rows.sort_values("seed")
    return Replicates(tuple(rows["seed"]), rows["value"].to_numpy(), np.stack(rows["replicates"].to_list()))


def _figures(name: str, found: Replicates) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found.interval()[:3], strict=True))


def _within_placebo(row: dict[str, Any]) -> bool:
    """Whether a change is no larger than what the placebo shows where there is nothing to detect (imagenet.yaml)."""
    if "change" not in row or "placebo" not in row or row["placebo_low"] <= 0.5 <= row["placebo_high"]:
        return False
    reach = abs(row["placebo"] - 0.5)
    return bool(row["change_low"] <= reach and row["change_high"] >= -reach)


def hypotheses_markdown(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """Hypotheses x networks: the verdict, the effect that leads it, and its interval."""
    names = list(dict.fromkeys(row["hypothesis"] for row in verdicts))
    lines = ["| network | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for network in _subjects(verdicts):
        cells = []
        for name in names:
            row = next((r for r in verdicts if (_subject(r), r["hypothesis"]) == (network, name)), None)
            cells.append("" if row is None else _verdict_cell(row))
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return lines


def _verdict_cell(row: dict[str, Any]) -> str:
    verdict = row["verdict"].partition(" (")[0]
    if verdict == "refuted":  # by its first effect that is: H4 by confidence, though the units that head it are higher
        row = row | next(one for one in row["estimates"] if (one["group"], one["verdict"]) == ("decides", verdict))
    if None in (row["effect"], row["low"], row["high"]):
        return verdict if row["effect"] is None else f"**{verdict}** ({row['reason']} at 99 %)"
    if row["hypothesis"] == "H5" and verdict == "supported":  # the half or layer that moves most
        places = [one for one in row["estimates"] if (one["group"], one["dataset"]) == ("decides", row["dataset"])]
        places = [one for one in places if re.match("largest unit mean: .* layer", one["quantity"])]
        row = row | max(places, key=lambda one: one["effect"])
    factor = 100 if "AUROC" in row["quantity"] or row["unit"] in ("probability", "share of images") else 1
    effect, low, high = (factor * row[key] for key in ("effect", "low", "high"))
    place = f" ({row['quantity'].partition(': ')[2]})" if row["hypothesis"] == "H5" else ""
    return f"**{verdict}** {effect:.2f} [{low:.2f}, {high:.2f}]{place}"


def _subject(row: dict[str, Any]) -> str:
    return row["network"].removesuffix(" bn")


def _subjects(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(_subject(row) for row in verdicts))


def detectors_markdown(found: pd.DataFrame) -> list[str]:
    """One table per family: AUROC under running statistics, and the changes; * within the placebo's reach.

    Networks of one study whose names differ in their last digit share a table, one line of each cell for each network.
    """
    lines = []
    found = found.groupby(["study", "network"], sort=False).filter(_has_matrix)
    for _, own in found.groupby(["study", found["network"].str.replace(r"\d( bn)?$", "", regex=True)], sort=False):
        statistics = [name for name in own["statistics"].unique() if name != "running" and not re.search(APART, name)]
        networks, count = list(own["network"].unique()), int(own["seeds"].max())
        names = "<br>".join(network.removesuffix(" bn") for network in networks)
        name = f"**{names}** ({count} seed{'s' * (count > 1)}{' each' * (len(networks) > 1)})"
        titles = [name, *(f"`{each}`" for each in ("running", *statistics)), "placebo, target"]
        lines += ["", "| " + " | ".join(titles) + " |"]
        lines.append("|---" * (len(statistics) + 3) + "|")
        by = {(row.network, row.detector, row.statistics): row for row in own.itertuples()}
        columns = [("running", "auroc", "{:.1f}"), *((name, "change", "{:+.1f}") for name in statistics)]
        columns.append((TARGET, "placebo", "{:.1f}"))
        for detector in own["detector"].unique():
            cells = [
                "<br>".join(_bracketed(by.get((network, detector, name)), *how) for network in networks)
                for name, *how in columns
            ]
            lines.append(f"| {detector} | " + " | ".join(cells) + " |")
    return lines


def sets_markdown(study: Path) -> list[str]:
    """AUROC of energy set by set, in a study without seeds: one line of each cell for each primary set."""
    if pd.read_csv(study / "networks.csv")["network"].duplicated().any():
        return []
    sets = yaml.safe_load((study / "study.yaml").read_text())["claim"]["primary_sets"]
    table = pd.read_csv(study / "table.csv").fillna(TEXT)
    table = table[(table["metric"] == "auroc") & (table["detector"] == "energy") & (table["comparison"] == "ood")]
    table = table[table["companion"] == ""].rename(columns={"value": "auroc", "low": "auroc_low", "high": "auroc_high"})
    lines = ["", f"| {'<br>'.join(sets)} | `running` | " + " | ".join(FORMS.values()) + " |"]
    lines.append("|---" * (len(FORMS) + 2) + "|")
    for network, own in table.groupby("network", sort=False):
        cells = [network.removesuffix(" bn")]
        for form, how in {"running": ("auroc", "{:.1f}"), **dict.fromkeys(FORMS, ("difference", "{:+.1f}"))}.items():
            name = next(each for each in own["statistics"] if re.sub(r"only:\d+", "only", each) == form)
            rows = own[own["statistics"] == name].set_index("dataset")
            cells.append("<br>".join(_bracketed(rows.loc[each], *how) for each in sets))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _has_matrix(own: pd.DataFrame) -> bool:
    """Not LN and GN networks, and networks that were stopped early."""
    return bool(own["placebo"].notna().any()) and "-at-" not in own["network"].iloc[0]


def _bracketed(row: Any, name: str, form: str) -> str:
    if row is None:
        return "-"
    numbers = [100 * getattr(row, key) for key in (name, f"{name}_low", f"{name}_high")]
    if np.isnan(numbers[0]):
        return "-"
    star = "*" if name == "change" and row.within_placebo else ""
    value, low, high = (form.format(number) for number in numbers)
    return f"{value}{star} [{low}, {high}]"


def effects_figure(verdicts: Sequence[dict[str, Any]]) -> None:
    """Hypotheses x networks: each effect with its interval; the dashed line is the threshold."""
    subjects = _subjects(verdicts)
    figure, axes = plt.subplots(1, len(EFFECTS), figsize=(12.8, 1.4 + 0.42 * len(subjects)), sharey=True)
    for axis, (hypothesis, quantity, title, factor) in zip(axes, EFFECTS, strict=True):
        for row in verdicts:
            if row["hypothesis"] != hypothesis:
                continue
            place = subjects.index(_subject(row))
            for one in row["estimates"]:
                if one["quantity"] == quantity and one["dataset"].startswith("mean of"):
                    effect, low, high = (factor * one[key] for key in ("effect", "low", "high"))
                    axis.plot([low, high], [place, place], color="#0b5394", linewidth=2)
                    axis.plot(effect, place, "o", color="#0b5394", markersize=5)
                    axis.axvline(factor * one["threshold"], color="#999999", linestyle="--", linewidth=0.8)
        axis.axvline(0, color="#333333", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(subjects)), subjects, fontsize=9)
    axes[0].set_ylim(len(subjects) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(HERE / "figures" / "hypotheses.png", dpi=110)


def units_figure(units: pd.DataFrame, study: Path) -> None:
    """ReAct's picture: mean +- standard deviation of each penultimate unit, running beside target statistics."""
    id_name = yaml.safe_load((study / "study.yaml").read_text())["sets"]["id"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    order = None
    for axis, statistics in zip(axes, ("running", TARGET), strict=True):
        for name, colour, shown in ((id_name, "#444444", "in-distribution"), (UNITS_SET, "#d95f02", "OOD (flowers)")):
            rows = units[(units["statistics"] == statistics) & (units["dataset"] == name)]
            rows = rows[rows["companion"] == rows["companion"].min()].sort_values("unit")
            order = np.argsort(rows["mean"].to_numpy()) if order is None else order
            mean, std = (rows[column].to_numpy()[order] for column in ("mean", "std"))
            axis.fill_between(np.arange(len(mean)), mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
            axis.plot(mean, color=colour, linewidth=0.7, label=shown, zorder=4 if name == id_name else 3)
        axis.set_title(f"{statistics.rpartition(':')[2]} statistics", fontsize=10)
        axis.set_xlabel("penultimate unit, sorted by its mean on ID images", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 2.5)
    axes[0].set_ylabel("activation", fontsize=8)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(HERE / "figures" / f"{UNITS_OF}_units.png", dpi=110)


def detectors_figure(found: pd.DataFrame) -> None:
    """Detectors x statistics as heat maps of the change of AUROC, one for each network."""
    found = found.groupby(["study", "network"], sort=False).filter(_has_matrix)
    networks = list(found["network"].unique())
    columns = min(3, len(networks))
    rows = -(-len(networks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 5.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(networks) :]:
        axis.set_visible(False)
    for axis, network in zip(axes.flat, networks, strict=False):
        own = found[(found["network"] == network) & (found["statistics"] != "running")]
        own = own[~own["statistics"].str.contains(APART)]
        order = [list(dict.fromkeys(own[key])) for key in ("detector", "statistics")]
        change = 100 * own.pivot(index="detector", columns="statistics", values="change").loc[order[0], order[1]]
        within = own.pivot(index="detector", columns="statistics", values="within_placebo").loc[order[0], order[1]]
        image = axis.imshow(change, cmap="RdBu", vmin=-30, vmax=30, aspect="auto")
        for (y, x), value in np.ndenumerate(change.to_numpy()):
            if np.isfinite(value):
                text = f"{value:+.1f}" + "*" * bool(within.iloc[y, x])
                axis.text(
                    x, y, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 18 else "black"
                )
        axis.set_xticks(range(change.shape[1]), change.columns, rotation=35, ha="right", fontsize=8)
        axis.set_yticks(range(change.shape[0]), change.index, fontsize=8)
        axis.set_title(network.removesuffix(" bn"), fontsize=10)
    bar = figure.colorbar(image, ax=list(axes.flat), shrink=0.5, pad=0.01)
    bar.set_label("change of AUROC from running statistics, points (colours end at 30)", fontsize=8)
    figure.savefig(HERE / "figures" / "detectors.png", dpi=110)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
