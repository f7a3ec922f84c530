"""Tables of a lab that was never run, with plausible numbers: vanishing gradients, drifting and dying units."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from bnood.lab.results import LabTables

FACTOR = {  # gradient of a layer relative to the next one's
    ("sigmoid", "none"): 0.16,
    ("sigmoid", "bn"): 0.85,
    ("sigmoid", "ln"): 0.7,
    ("sigmoid", "gn"): 0.75,
}
FINAL = {"none": (0.11, 0.47), "bn": (0.49, 0.53), "ln": (0.46, 0.52), "gn": (0.47, 0.51)}  # sigmoid, relu
VERDICTS = {"a": "supported", "b": "supported", "c": "refuted", "d": "supported", "e": "inconclusive", "f": "supported"}


def _runs(seeds: int, rates: tuple[float, ...], after: bool) -> list[dict[str, Any]]:
    found = []
    for activation, norm, rate, seed in itertools.product(("sigmoid", "relu"), FINAL, rates, range(seeds)):
        if activation == "sigmoid" and rate != rates[0]:
            continue
        for position in ("before", "after") if after and norm == "bn" else ("before",):
            found.append(
                {
                    "network": f"mlp-{activation}-{norm}"
                    + ("-after" if position == "after" else "")
                    + ("-high" if rate > rates[0] else ""),
                    "architecture": "mlp",
                    "activation": activation,
                    "norm": norm,
                    "norm_position": "" if norm == "none" else position,
                    "learning_rate": rate,
                    "seed": seed,
                }
            )
    return found


def _layer_values(run: dict[str, Any], layer: int, layers: int, time: float, noise: float) -> dict[str, float]:
    activation, norm = run["activation"], run["norm"]
    factor = FACTOR.get((activation, norm), 0.95) ** (1 - 0.3 * time)
    centre = {"none": -2.5 - 2 * time if activation == "relu" else 6.0 - 1.5 * time, "bn": -1.2 * (1 - time)}
    spread = 2.0 if norm == "none" else 1.0
    hot = run["learning_rate"] > 0.1
    dead = (0.05 + 0.6 * time * layer / layers * (1 if hot else 0.3)) if norm == "none" else 0.02 * time
    values = {
        "gradient_norm": 0.3 * factor ** (layers - layer) * np.exp(-time) * (1 + noise),
        "update_ratio": 1e-3 * (1 + noise),
        "preactivation_mean": centre.get(norm, -0.3) * layer / layers + 0.1 * noise,
        "preactivation_std": spread,
        "linear_mean": 2 * centre.get(norm, -0.3) + 0.1 * noise,
        "linear_std": 1.5 * spread,
        "preactivation_offset": abs(centre.get(norm, -0.3)) / spread,
        "linear_offset": 2 * abs(centre.get(norm, -0.3)) / spread,
    }
    if norm == "bn":
        values |= {"running_offset": 1.5 * (1 - time) + 0.1, "running_mean": 2 * (1 - time), "running_std": 1.2}
    if activation == "relu":
        values |= {"dead_share": np.clip(dead + 0.2 * noise, 0, 1), "always_on_share": 0.04 * (1 - time)}
    else:
        values |= {"saturated_share": np.clip((0.5 * time + 0.2 * noise) if norm == "none" else 0.03, 0, 1)}
    return values


def _estimate(quantity: str, verdict: str, threshold: float | None, seeds: int) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "dataset": "mlp",
        "unit": "accuracy",
        "effect": 0.31,
        "low": 0.12,
        "high": 0.5,
        "n_seeds": seeds,
        "threshold": threshold,
        "verdict": verdict,
    }


def make_lab(
    seeds: int = 3, rates: tuple[float, ...] = (0.05, 0.5), layers: int = 8, epochs: int = 10, after: bool = True
) -> LabTables:
    """An MLP of `layers` hidden layers, sigmoid and ReLU, every norm, recorded twice per epoch."""
    generator = np.random.default_rng(0)
    measured, shares, accuracies = [], [], []
    for run in _runs(seeds, rates, after):
        for record in range(2 * epochs + 1):
            time, keys = record / (2 * epochs), run | {"step": 50 * record, "epoch": record / 2}
            for layer in range(1, layers + 1):
                values = _layer_values(run, layer, layers, time, generator.normal(0, 0.1))
                place = keys | {"layer": layer, "layers": layers}
                measured += [place | {"quantity": name, "value": value} for name, value in values.items()]
                if layer < layers - 1:
                    continue
                edges = np.concatenate([[-np.inf], np.linspace(-6, 6, 62), [np.inf]])
                for mode, name in (("training", "preactivation"), ("evaluation", "running")):
                    if f"{name}_mean" not in values:
                        continue
                    drawn = generator.normal(values[f"{name}_mean"], values[f"{name}_std"], 2000)
                    counts, _ = np.histogram(drawn, edges)
                    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                        shares.append(place | {"mode": mode, "bin_low": low, "bin_high": high, "share": count / 2000})
        for epoch in range(1, epochs + 1):
            final = FINAL[run["norm"]][run["activation"] == "relu"] + generator.normal(0, 0.01)
            reached = 0.1 + (final - 0.1) * (1 - np.exp(-3 * epoch / epochs))
            accuracies.append(run | {"epoch": epoch, "train_accuracy": reached + 0.03, "validation_accuracy": reached})
    checks = [
        {
            "check": letter,
            "statement": f"Statement {letter} of the issue.",
            "reading": f"Reading of {letter}.",
            "verdict": verdict,
            "sentence": f"MLP ({verdict}): effect {letter} 0.31 [0.12, 0.50] accuracy.",
            "estimates": [_estimate(f"effect {letter}", verdict, 0.02, seeds)],
            "controls": [_estimate(f"control {letter}", "", None, seeds)],
        }
        for letter, verdict in VERDICTS.items()
    ]
    record = {
        "config": {"lab": "synthetic", "epochs": epochs, "data": {"name": "shapes"}},
        "versions": {"torch": "2.15.0"},
        "commit": "0123abc",
        "machine": "2 cores",
        "seconds": 81.2,
        "recording_share": 0.043,
    }
    command = "python scripts/lab.py --config configs/lab/shapes.yaml"
    frames = [pd.DataFrame(rows) for rows in (measured, shares, accuracies)]
    return LabTables("synthetic", frames[0], frames[1], frames[2], {"checks": checks}, record, [command])
