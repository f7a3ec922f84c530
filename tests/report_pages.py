"""Tables in the evaluation's columns with invented numbers, for pictures and pages."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

SETS = ("svhn", "dtd")
STATISTICS = (
    "running", "batch:128", "batch:128@0.1", "batch:128@0.5", "recalibrated:id", "recalibrated:target",
    "recalibrated:mixture@0.5", *(f"recalibrated:target/{form}:{k}" for form in ("first", "last") for k in (1, 2, 3)),
)  # fmt: skip
DETECTORS = ("msp", "energy", "react", "knn")
KEYS = ["dataset", "role", "companion", "comparison", "detector", "metric"]


@dataclass
class Evaluated:
    """The tables of an invented evaluation."""

    table: pd.DataFrame
    units: pd.DataFrame
    record: dict[str, object] = field(default_factory=lambda: {"commit": "abc", "versions": {"torch": "2.15"}})
    notes: list[str] = field(default_factory=lambda: ["dtd: 40 images were used"])


def table_of(network: str = "bn", seed: int = 0, has_batchnorm: bool = True) -> pd.DataFrame:
    """`table.csv` of one network."""
    draw = np.random.RandomState(seed + len(network))
    found: list[dict[str, object]] = []

    def add(statistics: str, dataset: str, role: str, detector: str, metric: str, value: float, **keys: object) -> None:
        row = {
            "run": f"{network}-s{seed}", "network": network, "norm": network[:2], "seed": seed,
            "statistics": statistics, "dataset": dataset, "role": role, "companion": "",
            "comparison": "ood" if role == "ood" and metric in ("auroc", "fpr95") else "",
            "detector": detector, "metric": metric, "value": value,
        }  # fmt: skip
        found.append(row | keys)

    for place, statistics in enumerate(STATISTICS if has_batchnorm else ("running",)):
        add(statistics, "cifar10", "id", "", "accuracy", 0.95 - 0.01 * place)
        add(statistics, "cifar10", "id", "msp", "mean", 0.93 - 0.01 * place)
        for shift, dataset in enumerate(SETS):
            add(statistics, dataset, "ood", "msp", "mean", 0.7 - 0.02 * place + 0.05 * shift + 0.01 * draw.randn())
            add(statistics, dataset, "ood", "energy", "mean", 5 - 0.1 * place)
            add(statistics, dataset, "ood", "units", "unit_mean_max_ratio", 1.6 - 0.05 * place)
            for detector in DETECTORS:
                value = 0.9 - 0.02 * place + 0.03 * shift + 0.01 * draw.randn()
                add(statistics, dataset, "ood", detector, "auroc", value)
                add(statistics, dataset, "ood", detector, "fpr95", 1.1 - value)
                if statistics != "running" and dataset == "svhn":
                    value = 0.6 if detector == "knn" else 0.5
                    add(statistics, dataset, "ood", detector, "auroc", value, comparison="placebo")
        if statistics == "recalibrated:target":
            for companion in SETS:
                add(statistics, "noise-3", "id", "", "accuracy", 0.6 + 0.02 * place, companion=companion)
            control = {"companion": "noise-3", "comparison": "control"}
            add(statistics, "svhn", "ood", "energy", "auroc", 0.7 + 0.01 * place, **control)
    table = pd.DataFrame(found)
    running = table.loc[table["statistics"] == "running", [*KEYS, "value"]]
    table = table.merge(running, how="left", on=KEYS, suffixes=("", "_running"))
    table["difference"] = table["value"] - table.pop("value_running")
    ends = {"low": table["value"] - 0.01, "high": table["value"] + 0.01}
    changes = {"difference_low": table["difference"] - 0.02, "difference_high": table["difference"] + 0.02}
    return table.assign(**ends, **changes)


def units_of(has_batchnorm: bool = True) -> pd.DataFrame:
    """`units.parquet`: 32 units, three of which peak on OOD images under running statistics."""
    draw, parts = np.random.RandomState(0), []
    calm = np.sort(0.3 + 0.2 * draw.rand(32))
    peaks = np.where(np.isin(np.arange(32), [3, 17, 29]), 1.2, 0.0)
    for statistics in ("running", "recalibrated:target") if has_batchnorm else ("running",):
        for dataset, role in (("cifar10", "id"), *((name, "ood") for name in SETS)):
            mean = calm + 0.05 * draw.rand(32) + (peaks if role == "ood" and statistics == "running" else 0)
            keys = {"statistics": statistics, "dataset": dataset, "role": role}
            parts.append(pd.DataFrame({**keys, "unit": np.arange(32), "mean": mean, "std": 0.3}))
    return pd.concat(parts, ignore_index=True)


def evaluated(has_batchnorm: bool = True) -> Any:
    """One network's evaluation."""
    return Evaluated(table_of("bn" if has_batchnorm else "gn", 0, has_batchnorm), units_of(has_batchnorm))


def verdict() -> dict[str, Any]:
    """The content of an invented `verdict.json`."""
    rows = [
        ("H1", "Some units are abnormally high on OOD images.", "supported", 0.65, "times ID", ""),
        ("H2", "Outputs are higher accordingly.", "refuted", -0.034, "probability", ""),
        ("H4", "It is BatchNorm's doing.", "not tested", None, None, "no partners"),
    ]
    return {
        "rows": [
            {"hypothesis": name, "statement": statement, "network": "bn", "seed": None, "verdict": verdict,
             "effect": effect, "low": effect and effect - 0.02, "high": effect and effect + 0.02, "unit": unit,
             "reason": reason, "note": "", "quantity": "running minus target", "estimates": []}
            for name, statement, verdict, effect, unit, reason in rows
        ],
        "made": {"commit": "abc"}, "thresholds": {"minimum_msp": 0.01},
        "reasons": {"minimum_msp": "one point of confidence"},
    }  # fmt: skip
