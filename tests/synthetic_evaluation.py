"""Tables of an evaluation that never ran: the evaluation's schema, with scores and activations of plausible size.

The figures and the report are tested on these; the scores are scikit-learn's and NumPy's, not bnood's own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

CLASSES = 10
OOD_SIZES = {"svhn": 1.3, "dtd": 0.5, "cifar100": 1.0, "noise": 0.4}  # images, relative to the ID set
# Mean margin of the winning logit: (ID, then each OOD set), under running statistics and under the others.
MARGINS = {
    "running": (11.0, {"svhn": 6.5, "dtd": 6.0, "cifar100": 6.8, "noise": 8.5}),
    "batch|pure": (10.6, {"svhn": 5.2, "dtd": 5.0, "cifar100": 6.4, "noise": 4.4}),
    "batch|mixed 0.1": (10.8, {"svhn": 6.0, "dtd": 5.8, "cifar100": 6.7, "noise": 7.0}),
    "batch|mixed 0.5": (10.2, {"svhn": 5.6, "dtd": 5.4, "cifar100": 6.5, "noise": 5.2}),
    "recalibrated:id|": (11.0, {"svhn": 6.6, "dtd": 6.1, "cifar100": 6.8, "noise": 8.7}),
    "recalibrated:target|": (11.0, {"svhn": 5.1, "dtd": 5.1, "cifar100": 6.3, "noise": 4.6}),
    "recalibrated:mixture|mixed 0.5": (10.3, {"svhn": 5.5, "dtd": 5.4, "cifar100": 6.5, "noise": 5.4}),
}


def _scored(rng: np.random.Generator, n: int, margin: float, labelled: bool) -> dict[str, np.ndarray]:
    logits = rng.normal(0.0, 1.2, (n, CLASSES))
    winner = rng.integers(0, CLASSES, n)
    logits[np.arange(n), winner] += rng.gamma(6.0, margin / 6.0, n)
    prediction = logits.argmax(1)
    msp = softmax(logits, axis=1).max(1)
    right = rng.random(n) < np.clip(msp - 0.04, 0, 1)  # a little overconfident, as networks are
    label = np.where(right, prediction, (prediction + 1) % CLASSES) if labelled else np.full(n, -1)
    return {
        "index": np.arange(n),
        "label": label,
        "prediction": prediction,
        "msp": msp,
        "energy": logsumexp(logits, axis=1),
        "max_logit": logits.max(1),
    }


def make_scores(
    seed: int = 0, n: int = 400, norm: str = "bn", batch_sizes: tuple[int, ...] = (128,), shuffles: int = 2
) -> pd.DataFrame:
    """`scores.parquet`: one row per image and condition; only "running" unless the norm is "bn"."""
    rng = np.random.default_rng(seed)
    parts = []
    for key, (id_margin, ood_margins) in MARGINS.items():
        statistics, composition = key.split("|") if "|" in key else (key, "")
        if norm != "bn" and statistics != "running":
            continue
        shared = composition.startswith("mixed")
        for batch_size in batch_sizes if statistics == "batch" else (0,):
            for shuffle in range(shuffles if statistics == "batch" else 1):
                fixed = {
                    "statistics": statistics,
                    "composition": composition,
                    "batch_size": batch_size,
                    "shuffle": shuffle,
                }
                for companion in ood_margins if shared else [""]:
                    what = fixed | {"companion": companion, "dataset": "cifar10", "role": "id"}
                    parts.append(pd.DataFrame(what | _scored(rng, n, id_margin, labelled=True)))
                for dataset, margin in ood_margins.items():
                    what = fixed | {"companion": "", "dataset": dataset, "role": "ood"}
                    parts.append(pd.DataFrame(what | _scored(rng, int(n * OOD_SIZES[dataset]), margin, labelled=False)))
    return pd.concat(parts, ignore_index=True)


def _interval(value: float, n: int) -> tuple[float, float]:
    """An uneven interval of about the right width, so that swapped ends are noticed."""
    width = np.sqrt(max(value * (1 - value), 1e-4) / n) if value <= 1 else 3.0 / np.sqrt(n)
    return value - 1.7 * width, value + 2.2 * width


def make_table(scores: pd.DataFrame, run: str = "cifar10-bn-0", norm: str = "bn", seed: int = 0) -> pd.DataFrame:
    """`table.csv` of these scores (shuffle 0), with ID rows once per companion where the batches are mixed."""
    rows: list[dict[str, object]] = []
    keys = ["statistics", "composition", "batch_size"]
    for condition, part in scores[scores["shuffle"] == 0].groupby(keys, sort=False):
        fixed = {"run": run, "norm": norm, "seed": seed} | dict(zip(keys, condition, strict=True))

        def add(group: pd.DataFrame, score: str, metric: str, value: float, n_id: int = 0, fixed=fixed) -> None:
            first, n = group.iloc[0], len(group)
            low, high = _interval(value, n)
            named = {"dataset": first["dataset"], "role": first["role"], "companion": first["companion"]}
            figures = {"value": value, "low": low, "high": high, "n": n, "n_id": n_id}
            rows.append(fixed | named | {"score": score, "metric": metric} | figures)

        known = part[part["role"] == "id"]
        for _, group in part.groupby(["dataset", "companion"], sort=False):
            add(group, "msp", "mean", group["msp"].mean())
            add(group, "msp", "share_above_0.9", (group["msp"] > 0.9).mean())
            add(group, "energy", "mean", group["energy"].mean())
            add(group, "max_logit", "mean", group["max_logit"].mean())
            add(group, "penultimate", "share_above_id_p99", 0.01 if group["role"].iloc[0] == "id" else 0.03)
            if group["role"].iloc[0] == "id":
                add(group, "", "accuracy", (group["label"] == group["prediction"]).mean())
                add(group, "", "nll", -np.log(group["msp"]).mean())
                add(group, "", "ece", abs((group["label"] == group["prediction"]).mean() - group["msp"].mean()))
                continue
            paired = known[known["companion"].isin([group["dataset"].iloc[0], ""])]
            for score in ("msp", "energy", "max_logit"):
                inside, outside = paired[score].to_numpy(), group[score].to_numpy()
                truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
                area = float(roc_auc_score(truth, np.r_[inside, outside]))
                accepted = float((outside >= np.quantile(inside, 0.05)).mean())
                add(group, score, "auroc", area, len(inside))
                add(group, score, "fpr95", accepted, len(inside))
                add(group, score, "aupr_in", area, len(inside))
    columns = (
        "run norm seed statistics composition batch_size dataset role score metric value low high n companion n_id"
    )
    return pd.DataFrame(rows)[columns.split()]


def make_units(scores: pd.DataFrame, seed: int = 0, units: int = 128) -> pd.DataFrame:
    """`units.parquet`: OOD units are ragged under running statistics and calmer under matched ones."""
    rng = np.random.default_rng(seed)
    own = rng.gamma(12.0, 0.06, units)
    keys = ["statistics", "composition", "batch_size", "companion", "dataset", "role"]
    parts = []
    for names, _ in scores.groupby(keys, sort=False):
        what = dict(zip(keys, names, strict=True))
        ragged = 0.05 if what["role"] == "id" else 0.55 if what["statistics"] == "running" else 0.2
        mean = own * rng.lognormal(-0.5 * ragged**2, ragged, units)
        measured = {
            "unit": np.arange(units),
            "mean": mean,
            "std": 0.6 * mean,
            "max": 4 * mean,
            "share_above_id_p99": np.clip(0.01 * mean / own, 0, 1),
        }
        parts.append(pd.DataFrame(what | measured))
    return pd.concat(parts, ignore_index=True)


def make_summary() -> dict[str, object]:
    """`summary.json` of a training run."""
    return {
        "accuracy": 0.9132,
        "seconds": 1043.2,
        "images_per_second": 2210.4,
        "parameters": 701466,
        "versions": {"torch": "2.15.0", "lightning": "2.6.6", "python": "3.12.3"},
        "commit": "0123abc",
        "machine": "a processor, 2 cores, 2 threads",
    }
