"""Tables of a study that never ran, with the columns of the real ones and figures of plausible size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from claim_tables import Truth, made_study
from synthetic_evaluation import make_scores, make_table, make_units

from bnood.report.study_tables import StudyTables
from bnood.study.claim import judge

SETS = {"svhn": 1.0, "dtd": 0.8, "cifar100": 0.4, "noise": 1.6}  # how far from the ID images
LAYERS = ["stem.norm", "layer1.0.norm1", "layer1.0.norm2", "layer2.0.norm1", "layer2.0.norm2", "layer2.0.shortcut.1"]
STRENGTHS = {"jpeg": [1], "noise": range(1, 6), "blur": range(1, 6), "contrast": range(1, 6)}
COLUMNS = "run norm seed dataset role score metric value low high change change_low change_high n n_id companion"


def _runs(networks: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, str, int]]:
    """(run, network, norm, seed)."""
    found = []
    for network in networks:
        norm = network.split("-")[0]
        for seed in seeds:
            run = f"{norm}-s{seed}" + (f"-{network.split('-', 1)[1]}" if "-" in network else "")
            found.append((run, network, norm, seed))
    return found


def make_metric_table(networks: Sequence[str], seeds: Sequence[int], n: int) -> pd.DataFrame:
    """The pooled `table.csv`, with the rows of the mitigations."""
    parts, made = [], {norm: make_table(make_scores(0, n, norm, shuffles=1)) for norm in ("bn", "ln", "gn")}
    for number, (run, network, norm, seed) in enumerate(_runs(networks, seeds)):
        moved = np.random.default_rng(number).normal(0, 0.01, len(made[norm]))
        table = made[norm].assign(run=run, norm=norm, seed=seed)
        table[["value", "low", "high"]] += moved[:, None]
        running = table[table["statistics"] == "running"]
        helped = [
            running[(running["score"] == score) & (running["role"] == "ood")].assign(score=name)
            for score, name in (("energy", "react"), ("msp", "msp_temperature"))
        ]
        ratios = table[(table["score"] == "penultimate")].assign(metric="unit_mean_max_ratio")
        ratios["value"] = np.where(ratios["role"] == "id", 1.0, np.where(ratios["statistics"] == "running", 1.9, 1.05))
        ratios[["low", "high"]] = np.c_[ratios["value"] - 0.05, ratios["value"] + 0.04]
        positive = table[table["metric"] == "fpr95"].assign(metric="fpr95_ood_positive")
        parts.append(pd.concat([table, ratios, positive, *helped], ignore_index=True).assign(network=network))
    return pd.concat(parts, ignore_index=True)


def make_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every condition but running, minus running; ID rows of mixed batches are compared with the lone ID rows."""
    keys = ["run", "dataset", "role", "score", "metric"]
    running = table[table["statistics"] == "running"][[*keys, "value"]].rename(columns={"value": "before"})
    found = table[table["statistics"] != "running"].merge(running, on=keys)
    found["value"] -= found["before"]
    half = np.where(found["metric"].isin(["auroc", "fpr95", "fpr95_ood_positive"]), 0.012, 0.05)
    return found.assign(low=found["value"] - half, high=found["value"] + half).drop(columns="before")


def _row(run: tuple[str, str, str, int], **values: object) -> dict[str, object]:
    empty = {name: "" for name in ("companion", "score", "place", "kind")}
    return {"run": run[0], "network": run[1], "norm": run[2], "seed": run[3], "n": 300, "n_id": 0} | empty | values


def _moved(
    strength: float, dataset: str, seed: int, rng: np.random.Generator
) -> list[tuple[str, str, str, float, float]]:
    """(role, score, metric, value, change) of one condition that does `strength` (0 to 1) of the whole matching."""
    far, noise = SETS[dataset], rng.normal(0, 0.01, 6)
    bend = strength**0.7
    return [
        ("penultimate", "unit_mean_max_ratio", 1 + far, -0.9 * far * bend + noise[0]),
        ("penultimate", "unit_mean_spread_ratio", 1 + 1.5 * far, -1.2 * far * bend + noise[1]),
        ("energy", "mean", 5.2 + 0.1 * seed, (0.5 - 0.9 * far) * strength + noise[2]),
        ("msp", "mean", 0.72, 0.02 * strength + noise[3] / 10),
        ("max_logit", "mean", 4.9, (0.5 - 0.9 * far) * strength + noise[4]),
        ("energy", "auroc", 0.9, -0.12 * strength + noise[5]),
        ("energy", "fpr95", 0.6, 0.15 * strength + noise[5]),
        ("energy", "fpr95_ood_positive", 0.3, 0.15 * strength + noise[5]),
        ("msp", "auroc", 0.88, -0.1 * strength + noise[5]),
    ]  # fmt: skip


def make_interventions(seeds: Sequence[int], sizes: Sequence[int] = (8, 32, 128, 512)) -> pd.DataFrame:
    """`interventions.csv` of the BN runs: the early layers do most of the work."""
    own = np.array([0.3, 0.25, 0.15, 0.12, 0.1, 0.08])
    cells = [("none", "", 0.0, np.nan, 0.0), ("all", "", 0.0, np.nan, 1.0)]
    cells += [("mean", "", 0.0, np.nan, 0.7), ("variance", "", 0.0, np.nan, 0.35)]
    cells += [("only", layer, i, np.nan, own[i]) for i, layer in enumerate(LAYERS)]
    cells += [("first", str(k), k, np.nan, own[:k].sum()) for k in range(1, 7)]
    cells += [("last", str(k), k, np.nan, own[-k:].sum()) for k in range(1, 7)]
    cells += [("path", f"{part:g}", part, np.nan, part) for part in (0.25, 0.5, 0.75)]
    cells += [("prior", str(n), n, np.nan, 128 / (128 + n)) for n in (0, 16, 64, 256, 1024)]
    cells += [("batch", str(size), size, share, share) for size in sizes for share in (0.1, 0.5, 0.9, 1.0)]
    rows = []
    for run in _runs(["bn"], seeds):
        rng = np.random.default_rng(run[3])
        for kind, place, position, share, strength in cells:
            common = {"kind": kind, "place": place, "position": position, "share": share}
            mixed = kind == "batch" and share < 1
            for dataset in SETS:
                for score, metric, value, change in _moved(strength, dataset, run[3], rng):
                    change = 0.0 if kind == "none" else change
                    half = {"value": value + change, "low": value + change - 0.02, "high": value + change + 0.02}
                    ends = {"change": change, "change_low": change - 0.01, "change_high": change + 0.015}
                    what = {"dataset": dataset, "role": "ood", "score": score, "metric": metric}
                    rows.append(_row(run, **common, **what, **half, **ends))
            for companion in SETS if mixed else [""]:
                worse = -0.15 * 8 / position if kind == "batch" else -0.02 * strength
                for score, metric, value, change in (("", "accuracy", 0.9, worse), ("energy", "mean", 9.5, worse)):
                    half = {"value": value + change, "low": value + change - 0.01, "high": value + change + 0.01}
                    ends = {"change": change, "change_low": change - 0.005, "change_high": change + 0.005}
                    what = {"dataset": "cifar10", "role": "id", "score": score, "metric": metric}
                    rows.append(_row(run, **common, **what, **half, **ends, companion=companion))
    names = f"network kind place position share {COLUMNS}"
    return pd.DataFrame(rows)[names.split()]


def make_shift(seeds: Sequence[int]) -> pd.DataFrame:
    """`shift.csv` of the BN runs: matching wins accuracy under noise and blur and loses a little on clean images."""
    rows = []
    gains = {"none": -0.01, "jpeg": 0.01, "noise": 0.05, "blur": 0.04, "contrast": 0.03}
    for run in _runs(["bn"], seeds):
        rng = np.random.default_rng(run[3])
        for corruption, strengths in {"none": [0], **STRENGTHS}.items():
            for strength in strengths:
                name = {"none": "clean", "jpeg": "cifar10-jpeg75"}.get(corruption, f"{corruption}-{strength}")
                for statistics in ("running", "recalibrated:id", "recalibrated:target"):
                    matched = float(statistics == "recalibrated:target")
                    fixed = {"statistics": statistics, "dataset": name, "corruption": corruption, "role": "shifted"}
                    fixed["strength"] = strength
                    gain = matched * gains[corruption] * max(strength, 1) + rng.normal(0, 0.003)
                    change = 0.0 if statistics == "running" else gain
                    value = 0.9 - 0.07 * strength + change
                    figures = [("", "accuracy", value, change, "")]
                    figures += [("", "nll", 0.4, -change, ""), ("", "ece", 0.05, 0.0, "")]
                    for companion, far in SETS.items():
                        loss = -matched * 0.1 * far + rng.normal(0, 0.004) if statistics != "running" else 0.0
                        figures.append(("energy", "auroc", 0.88 - 0.03 * strength + loss, loss, companion))
                    for score, metric, value, change, companion in figures:
                        ends = {"low": value - 0.01, "high": value + 0.01, "change": change}
                        ends |= {"change_low": change - 0.008, "change_high": change + 0.008}
                        what = {"score": score, "metric": metric, "value": value, "companion": companion}
                        rows.append(_row(run, **fixed, **what, **ends))
    return pd.DataFrame(rows)[f"network statistics corruption strength {COLUMNS}".split()]


def make_layers(networks: Sequence[str], seeds: Sequence[int], units: int = 8) -> pd.DataFrame:
    """`layers.parquet` of all runs: shares above the ID 99th percentile grow with depth, on OOD images."""
    parts = []
    for run in _runs(networks, seeds):
        rng = np.random.default_rng(run[3])
        for statistics in ("running", "recalibrated:target") if run[2] == "bn" else ("running",):
            for dataset, far in {"cifar10": 0.0, **SETS}.items():
                for position, layer in enumerate(LAYERS):
                    grown = 0.02 * far * position / (1 if statistics == "running" else 4)
                    share = 0.01 + grown * rng.uniform(0.5, 1.5, units)
                    what = {"run": run[0], "network": run[1], "norm": run[2], "seed": run[3]}
                    what |= {"statistics": statistics, "dataset": dataset, "layer": layer, "position": position}
                    what |= {"role": "ood" if far else "id", "unit": np.arange(units), "mean": 0.5, "std": 0.3}
                    parts.append(pd.DataFrame(what | {"max": 3.0, "share_above_id_p99": share}))
    return pd.concat(parts, ignore_index=True)


def make_distances(seeds: Sequence[int]) -> pd.DataFrame:
    """`layer_distances.csv` of the BN runs."""
    rows = []
    for run in _runs(["bn"], seeds):
        rng = np.random.default_rng(run[3])
        for dataset, far in {"cifar10": 0.02, **SETS}.items():
            for position, layer in enumerate(LAYERS):
                wide = far * (1 - 0.1 * position) * rng.uniform(0.9, 1.1)
                what = {"run": run[0], "network": run[1], "norm": run[2], "seed": run[3], "dataset": dataset}
                what |= {"role": "id" if dataset == "cifar10" else "ood", "layer": layer, "position": position}
                rows.append(what | {"mean_shift": wide, "log_var_ratio": -wide / 2, "symmetric_kl": wide**2})
    return pd.DataFrame(rows)


def make_verdict(seeds: Sequence[int]) -> dict[str, object]:
    """`verdict.json`, judged from tables with a known truth: with several seeds all three verdicts occur."""
    apart = {(norm, seed): 0.05 for norm in ("ln", "gn") for seed in seeds}  # no network of equal accuracy for H4
    made = made_study(Truth(auroc=-0.05, fpr95=-0.1, gaps=apart), seeds=tuple(seeds))
    origin = {"versions": {"torch": "2.15.0"}, "commit": "0123abc", "machine": "2 cores"}
    return judge(*made.tables(), study="synthetic", made=origin).to_json()


def make_study(seeds: Sequence[int] = (0, 1, 2), n: int = 120) -> StudyTables:
    """A complete study of five networks."""
    networks = ["bn", "ln", "gn", "bn-at-ln", "bn-at-gn"] if len(seeds) > 1 else ["bn", "ln", "gn"]
    table = make_metric_table(networks, seeds, n)
    runs = _runs(networks, seeds)
    scores = {norm: make_scores(0, 20, norm, shuffles=1) for norm in ("bn", "ln", "gn")}
    units = {run: make_units(scores[norm], seed=number, units=32) for number, (run, _, norm, _) in enumerate(runs)}
    accuracy = {"bn": 0.9, "ln": 0.88, "gn": 0.87, "bn-at-ln": 0.88, "bn-at-gn": 0.87}
    named = [
        {"run": run, "network": network, "seed": seed, "validation accuracy": accuracy[network], "epochs": 30}
        for run, network, _, seed in runs
    ]
    return StudyTables(
        name="synthetic", table=table, differences=make_differences(table), units=units,
        interventions=make_interventions(seeds), shift=make_shift(seeds),
        layers=make_layers(["bn", "ln", "gn"], seeds), layer_distances=make_distances(seeds),
        verdict=make_verdict(seeds), networks=pd.DataFrame(named),
        commands=["python scripts/study.py --config configs/studies/synthetic.yaml"],
        made={"versions": {"torch": "2.15.0"}, "commit": "0123abc", "machine": "2 cores"},
    )  # fmt: skip
