"""Tables in the evaluation's columns with invented numbers, for pictures and pages."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

SETS = ("svhn", "dtd")
STATISTICS = (
    "running", "batch:128", "batch:128@0.1", "batch:128@0.5", "recalibrated:id", "recalibrated:target",
    "recalibrated:mixture@0.5", *(f"recalibrated:target/{form}:{k}" for form in ("first", "last") for k in (1, 2, 3)),
)  # fmt: skip
DETECTORS = ("msp", "energy", "react", "knn")
RESAMPLES = 20


@dataclass
class Evaluated:
    """The tables of an invented evaluation."""

    table: pd.DataFrame
    units: pd.DataFrame
    layers: pd.DataFrame
    replicates: pd.DataFrame
    record: dict[str, object] = field(default_factory=lambda: {"commit": "abc", "versions": {"torch": "2.15"}})
    notes: list[str] = field(default_factory=lambda: ["dtd: 40 images were used"])


def replicates_of(network: str = "bn", seed: int = 0, has_batchnorm: bool = True) -> pd.DataFrame:
    """The rows of `draws.parquet` of one network."""
    draw = np.random.RandomState(seed + len(network))
    found: list[dict[str, object]] = []

    def add(statistics: str, dataset: str, role: str, detector: str, metric: str, value: float, **keys: object) -> None:
        row = {
            "run": f"{network}-s{seed}", "network": network, "norm": network[:2], "seed": seed,
            "statistics": statistics, "estimator": "one_pass", "n_calibration": 1000, "fitted_under": "condition",
            "dataset": dataset, "role": role, "companion": "",
            "comparison": "ood" if role == "ood" and metric in ("auroc", "fpr95") else "",
            "detector": detector, "metric": metric, "value": value, "n_id": 500, "n_ood": 400,
        }  # fmt: skip
        row["replicates"] = value + 0.005 * draw.randn(RESAMPLES)
        found.append(row | keys)

    for place, statistics in enumerate(STATISTICS if has_batchnorm else ("running",)):
        add(statistics, "cifar10", "id", "", "accuracy", 0.95 - 0.01 * place)
        add(statistics, "cifar10", "id", "msp", "mean", 0.93 - 0.01 * place)
        add(statistics, "cifar10", "id", "energy", "mean", 8 - 0.1 * place)
        for shift, dataset in enumerate(SETS):
            add(statistics, dataset, "ood", "msp", "mean", 0.7 - 0.02 * place + 0.05 * shift + 0.01 * draw.randn())
            add(statistics, dataset, "ood", "energy", "mean", 5 - 0.1 * place)
            add(statistics, dataset, "ood", "units", "unit_mean_max_ratio", 1.6 - 0.05 * place)
            for detector in DETECTORS:
                value = 0.9 - 0.02 * place + 0.03 * shift + 0.01 * draw.randn()
                add(statistics, dataset, "ood", detector, "auroc", value)
                add(statistics, dataset, "ood", detector, "fpr95", 1.1 - value)
        if statistics in ("running", "recalibrated:target"):
            for companion in SETS if statistics == "recalibrated:target" else ("",):
                add(statistics, "noise-3", "id", "", "accuracy", 0.6 + 0.02 * place, companion=companion)
            add(statistics, "svhn", "ood", "energy", "auroc", 0.7 + 0.01 * place, companion="noise-3")
        if statistics != "running":
            for detector in DETECTORS:
                value = 0.6 if detector == "knn" else 0.5
                add(statistics, "svhn", "ood", detector, "auroc", value, comparison="placebo")
    return pd.DataFrame(found)


def table_of(draws: pd.DataFrame) -> pd.DataFrame:
    """`table.csv` from `draws.parquet`: intervals, and the difference to running statistics without its own."""
    keys = ["network", "seed", "dataset", "role", "companion", "comparison", "detector", "metric"]
    running = draws.loc[draws["statistics"] == "running", [*keys, "value"]]
    found = draws.merge(running, how="left", on=keys, suffixes=("", "_running"))
    low, high = np.percentile(np.stack(found["replicates"].to_list()), [2.5, 97.5], axis=1)
    found = found.assign(low=low, high=high, difference=found["value"] - found["value_running"])
    return found.drop(columns=["replicates", "value_running"])


def units_of(has_batchnorm: bool = True) -> pd.DataFrame:
    """`units.parquet`: 32 units, three of which peak on OOD images under running statistics."""
    draw, parts = np.random.RandomState(0), []
    calm = np.sort(0.3 + 0.2 * draw.rand(32))
    peaks = np.where(np.isin(np.arange(32), [3, 17, 29]), 1.2, 0.0)
    for statistics in ("running", "recalibrated:target") if has_batchnorm else ("running",):
        for dataset, role in (("cifar10", "id"), *((name, "ood") for name in SETS)):
            mean = calm + 0.05 * draw.rand(32) + (peaks if role == "ood" and statistics == "running" else 0)
            parts.append(
                pd.DataFrame(
                    {"statistics": statistics, "dataset": dataset, "role": role, "unit": np.arange(32), "mean": mean,
                     "std": 0.3, "max": mean + 1, "share_above_id_p99": 0.01}
                )
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def layers_of() -> pd.DataFrame:
    """The distance of each layer's statistics from the running ones."""
    return pd.DataFrame(
        [
            {"dataset": name, "role": role, "layer": f"norm{k}", "position": k, "symmetric_kl": size * (k + 1)}
            for name, role, size in (("cifar10", "id", 0.01), ("svhn", "ood", 0.4), ("dtd", "ood", 0.2))
            for k in range(3)
        ]
    )


def evaluated(has_batchnorm: bool = True) -> Evaluated:
    """One network's evaluation."""
    draws = replicates_of("bn" if has_batchnorm else "gn", 0, has_batchnorm)
    layers = layers_of() if has_batchnorm else pd.DataFrame()
    return Evaluated(table_of(draws), units_of(has_batchnorm), layers, draws)


def _row(
    hypothesis: str, statement: str, verdict: str, effect: float | None, unit: str, **more: object
) -> dict[str, object]:
    ends = {"effect": effect, "low": effect and effect - 0.02, "high": effect and effect + 0.02, "unit": unit}
    names = {"hypothesis": hypothesis, "statement": statement, "network": "bn", "seed": None, "verdict": verdict}
    return {**names, **ends, "reason": "", "note": "", "quantity": "running minus target", "estimates": [], **more}


class Verdict:
    """An invented verdict."""

    rows = (
        _row("H1", "Some units are abnormally high on OOD images.", "supported", 0.65, "times ID"),
        _row("H2", "Outputs are higher accordingly.", "refuted", -0.034, "probability"),
        _row("H4", "It is BatchNorm's doing.", "not tested", None, "", reason="no partners"),
    )

    def to_json(self) -> dict[str, object]:
        """As the study's verdict gives it."""
        return {
            "rows": self.rows, "made": {"commit": "abc"}, "thresholds": {"minimum_msp": 0.01},
            "reasons": {"minimum_msp": "one point of confidence"},
        }  # fmt: skip
