"""What a tracked evaluation shows at a glance: its headline numbers and score histograms, by key."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnood.evaluation.scores import SCORES

HISTOGRAM_BINS = 64
HEADLINES = (("auroc", None), ("fpr95", None), ("accuracy", None), ("mean", "msp"), ("share_above_0.9", "msp"))


def headline_numbers(table: pd.DataFrame) -> dict[str, float]:
    """The metric table's headline numbers by key.

    The key is ``role/dataset/statistics[/composition][/batch size][/with_companion][/score]/metric``, for instance
    ``ood/svhn/running/energy/auroc``, ``ood/svhn/batch/mixed_0_1/128/msp/fpr95`` or
    ``id/cifar10/batch/mixed_0_1/128/with_svhn/accuracy``. Only in-distribution rows name their companion: an OOD set
    always has the in-distribution set for one. Letters, digits, ``_`` and ``-`` stay, all else becomes ``_``: wandb
    takes a dot in a key for nesting.
    """
    numbers: dict[str, float] = {}
    for metric, score in HEADLINES:
        rows = table[table["metric"] == metric]
        for row in (rows if score is None else rows[rows["score"] == score]).to_dict("records"):
            parts = [row["role"], row["dataset"], *_condition(row), row["score"], metric]
            numbers[_key(parts)] = float(row["value"])
    return numbers


def score_histograms(scores: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts and edges of every score of every set under every condition, of shuffle 0, by key.

    The key is ``scores/dataset/statistics[/composition][/batch size][/with_companion]/score``. The edges of a score
    are the same in all its histograms, so that sets and conditions can be laid over each other.
    """
    first = scores[scores["shuffle"] == 0]
    columns = ["role", "dataset", "statistics", "composition", "batch_size", "companion"]
    groups = list(first.groupby(columns, sort=False, observed=True, dropna=False))
    histograms: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for score in SCORES:
        edges = np.histogram_bin_edges(first[score].to_numpy(), bins=HISTOGRAM_BINS)
        for values, rows in groups:
            row = dict(zip(columns, values, strict=True))
            counts, _ = np.histogram(rows[score].to_numpy(), bins=edges)
            histograms[_key(["scores", row["dataset"], *_condition(row), score])] = counts, edges
    return histograms


def _condition(row: Mapping[Any, Any]) -> list[object]:
    """The parts of a key that name the condition, and the companion of an in-distribution set."""
    companion = row["companion"] if row["role"] == "id" and isinstance(row["companion"], str) else ""
    return [row["statistics"], row["composition"], row["batch_size"] or "", f"with_{companion}" if companion else ""]


def _key(parts: Sequence[object]) -> str:
    present = [str(part) for part in parts if not pd.isna(part) and part != ""]
    return "/".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in present)
