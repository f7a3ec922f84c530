"""A study as one self-contained HTML page: the verdict first, then the figures that carry it, then every number.

The page needs no network and no other file: the charts' library is embedded once, style, script and data are inline,
and its own security policy forbids loading anything. `study_report.html.j2` holds its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bnood.report.charts import plotly_script
from bnood.report.shown import Grid, Shown, as_grid, show, template
from bnood.report.study_answer import WORDS_USED, plain_answer
from bnood.report.study_panels import study_pictures
from bnood.report.study_tables import KEYS, MATCHED, StudyTables, listed, networks_of, over_seeds, plain, seeds_in_words
from bnood.report.thresholds import thresholds
from bnood.training.run_folder import write_beside

__all__ = ["StudyTables", "write_study_report"]

SIGNS = {"supported": "\N{CHECK MARK}", "refuted": "\N{MULTIPLICATION X}", "inconclusive": "?"}
QUESTION = (
    "Generalized Out-of-Distribution Detection: A Survey (Yang et al., 2024), summing up ReAct (Sun, Guo and Li, "
    "2021), says that “using mismatched BatchNorm statistics — that are estimated on ID data yet blindly applied to "
    "the OOD data in testing — can trigger abnormally high unit activations and model output accordingly”. This page "
    "says which parts of that sentence hold for the networks of this study, by how much, and where they fail."
)


def write_study_report(folder: Path, study: StudyTables) -> Path:
    """Write `report.html` into `folder` and give its path.

    Raises:
        UserError: the metric table lacks columns or rows, or the file can't be written.
    """
    pictures = [picture if isinstance(picture, str) else show(picture) for picture in study_pictures(study)]
    verdict = dict(study.verdict or {})
    page = template("study_report.html.j2").render(
        name=study.name,
        question=QUESTION,
        about=_about(study),
        answer=plain_answer(verdict),
        words=WORDS_USED,
        hypotheses=verdict.get("hypotheses", []),
        signs=SIGNS,
        estimates=_estimates(verdict),
        shown=[picture for picture in pictures if isinstance(picture, Shown)],
        missing=[picture for picture in pictures if isinstance(picture, str)],
        command=study.commands[0] if study.commands else "",
        commands=study.commands,
        metrics=_metric_grid(study),
        thresholds=thresholds(verdict.get("thresholds", {})),
        networks=None if study.networks is None else as_grid("networks", _OF_NETWORKS, _rounded(study.networks)),
        counts=_counts(study),
        made=_flat(dict(study.made) or verdict.get("made", {})),
        limits=[*_limits(study), *study.limits],
        notes=study.notes,
        plotly=plotly_script(),
    )
    path = Path(folder) / "report.html"
    write_beside(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def _about(study: StudyTables) -> list[tuple[str, str]]:
    table = study.metrics
    seeds = table.groupby("network")["seed"].nunique()
    ids = table.loc[table["role"] == "id", "dataset"].unique()
    return [
        ("Networks", listed([f"{name} ({seeds_in_words(int(seeds[name]))})" for name in networks_of(table)])),
        ("In-distribution (ID)", ", ".join(map(str, ids)) or "none"),
        ("Out-of-distribution (OOD)", ", ".join(study.sets) or "none"),
    ]


def _estimates(verdict: Mapping[str, object]) -> Grid | None:
    """Every estimate behind the verdicts, with the controls."""
    rows = []
    for entry in verdict.get("hypotheses", []):  # type: ignore[attr-defined]
        kinds = {"headline": [entry.get("headline")], "estimate": entry.get("estimates", [])}
        kinds["control"] = entry.get("controls", [])
        for kind, estimates in kinds.items():
            for estimate in estimates:
                if estimate:
                    rows.append({"hypothesis": entry["hypothesis"], "kind": kind, **_estimate(estimate)})
    if not rows:
        return None
    return as_grid(
        "estimates",
        "The estimates behind the verdicts, each with its interval at the level of confidence in its row",
        pd.DataFrame(rows),
    )


_SHOWN = (
    "quantity", "dataset", "unit", "effect", "low", "high", "level", "effect_size", "n_seeds", "wanted", "threshold",
    "verdict", "reason",
)  # fmt: skip


def _estimate(estimate: Mapping[str, object]) -> dict[str, object]:
    found = {key: estimate.get(key) for key in _SHOWN}
    if estimate.get("wanted") == "any":
        found["wanted"] = ""
    if estimate.get("unit") == "share of the effect" and str(estimate.get("reason")).startswith("the whole effect"):
        # A share of next to nothing is some large number that says nothing.
        return found | dict.fromkeys(("effect", "low", "high", "effect_size")) | {"per seed": ""}
    seeds = estimate.get("per_seed")
    if isinstance(seeds, Mapping):
        known = {seed: float(value) for seed, value in seeds.items() if value is not None}
        found["per seed"] = ", ".join(f"{seed}: {plain(value)}" for seed, value in known.items())
    return found


def _metric_grid(study: StudyTables) -> Grid:
    """The metric table, averaged over seeds: what a reader looks up; the seeds' own rows are in table.csv."""
    pooled = over_seeds(study.metrics, KEYS)
    pooled["batch_size"] = pooled["batch_size"].replace(0, "").astype(str)
    pooled["statistics"] = (pooled["statistics"] + " " + pooled["composition"] + " " + pooled["batch_size"]).str.strip()
    dropped = pooled.drop(columns=["composition", "batch_size", "role"])
    return as_grid("all", f"All metrics of {study.name}, {_averaged(pooled)}", dropped)


def _averaged(pooled: pd.DataFrame) -> str:
    fewest, most = int(pooled["n_seeds"].min()), int(pooled["n_seeds"].max())
    if most == 1:
        return "of one seed, with 95 % intervals over images"
    alone = " (over images alone where there is one seed)" if fewest == 1 else ""
    return f"mean over seeds, with 95 % intervals over seeds and images{alone}"


_OF_NETWORKS = (
    "The networks. Each norm has its own recipe, so that their epochs differ; a stopped network has the accuracy of "
    "the epoch that it was stopped at, and its partner's beside it. Seconds are those of training"
)


def _rounded(networks: pd.DataFrame) -> pd.DataFrame:
    """Whole seconds."""
    if "seconds" not in networks:
        return networks
    return networks.assign(seconds=pd.to_numeric(networks["seconds"]).round().astype("Int64"))


def _counts(study: StudyTables) -> list[tuple[str, str, str]]:
    """(set, role, number of images scored) of every set."""
    grouped = study.metrics.groupby(["dataset", "role"], sort=False)["n"].max()
    return [(str(name), str(role).upper(), f"{int(n):,}") for (name, role), n in grouped.items()]


def _flat(nested: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(nested, Mapping):
        return []
    found: list[tuple[str, str]] = []
    for key, value in nested.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", str(value))]
    return found


def _limits(study: StudyTables) -> list[str]:
    """What holds of every study, as far as this one's tables say it; each sentence only where it is true."""
    table = study.metrics
    seeds = table.groupby("network")["seed"].nunique()
    fewest, most = int(seeds.min()), int(seeds.max())
    found = [
        f"Each network was trained with {seeds_in_words(fewest, most)}. "
        + ("With one seed there is no interval over seeds, so nothing separates a network from its seed."
           if fewest == 1 else "Intervals over so few seeds are wide, and rightly so."),
        f"Only these OOD sets were scored: {', '.join(study.sets)}. Others may answer otherwise.",
    ]  # fmt: skip
    if most > 1:
        found.append(
            "Intervals on this page combine the spread over seeds with the interval over images; the images' part is "
            "taken as shared by all seeds, which makes an interval rather too wide than too narrow. The verdicts rest "
            "on paired intervals of their own."
        )
    batch = table[table["statistics"].eq("batch") & table["role"].eq("ood")]
    if batch["composition"].eq("pure").any():
        found.append(
            "Pure OOD batches under batch statistics have zero mean and unit variance in every channel by construction"
            + _beside(table)
        )
    return found


def _beside(table: pd.DataFrame) -> str:
    """Which of the conditions that do not share this flaw are shown beside pure batches."""
    mixed = table["statistics"].eq("batch") & table["composition"].str.startswith("mixed")
    kinds = [("mixed batches", mixed.any()), ("held-out target statistics", table["statistics"].eq(MATCHED).any())]
    there = [name for name, found in kinds if found]
    if not there:
        return "; neither mixed batches nor held-out target statistics were evaluated beside them."
    return f"; {listed(there)} are shown beside them for that reason."
