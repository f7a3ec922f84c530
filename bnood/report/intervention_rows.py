"""The rows of the interventions that the pictures and their sentences are about."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bnood.report.study_tables import networks_of, over_seeds, rows_where, signed, with_network

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


def pooled_interventions(given: pd.DataFrame | None, kinds: Sequence[str], changes: bool) -> pd.DataFrame | None:
    """Interventions of these kinds over seeds, as changes from running statistics or as values."""
    if given is None or given.empty:
        return None
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


def outcome(pooled: pd.DataFrame, score: str, metric: str, role: str = "ood") -> pd.DataFrame:
    """The rows of one outcome, on OOD images or, with `role` "id", on ID images."""
    return pooled[rows_where(pooled, score=score, metric=metric, role=role)]


def outcome_rows(pooled: pd.DataFrame) -> pd.DataFrame:
    """The rows of OOD sets that `OUTCOMES` names."""
    return pd.concat([outcome(pooled, score, metric) for score, metric, *_ in OUTCOMES], ignore_index=True)


def with_interval(row: pd.Series, digits: int = 3) -> str:
    """A change and its interval, as far as it has one: "+0.012 [-0.003, +0.027]"."""
    if pd.isna(row["low"]):
        return signed(row["mean"], digits)
    return f"{signed(row['mean'], digits)} [{signed(row['low'], digits)}, {signed(row['high'], digits)}]"


def as_changes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table for reading, with columns that say that their figures are changes."""
    return rows.rename(columns={"mean": "change", "low": "change_low", "high": "change_high"})


def images_in_words(pooled: pd.DataFrame) -> str:
    """On how many images the interventions were scored, and why figures differ from those on all images of a set."""
    whole = pooled[~pooled["kind"].isin(["batch", "prior"])]
    most = (whole if len(whole) else pooled)["n"].max()
    if pd.isna(most):
        return ""
    return (
        f"Interventions are scored on up to {int(most):,} images of a set (of larger sets, drawn at random), so "
        "figures differ a little from those on all images. "
    )
