"""The long table of an invented lab: what the notes say, in clear numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

SEEDS = (0, 1, 2)
ACCURACY = {"none": 0.1, "bn": 0.6, "ln": 0.2, "gn": 0.4}
FIRST_GRADIENT = {"none": 1e-4, "bn": 1.0, "ln": 1e-2, "gn": 1e-1}  # the last layer's is 1


def lab_table(
    accuracy: Mapping[str, float] = ACCURACY, validation: float = 0.0, high: bool = True, seeds: tuple[int, ...] = SEEDS
) -> pd.DataFrame:
    """Sigmoid and ReLU MLPs of 3 layers; validation accuracy is `validation` below training accuracy."""
    found: list[dict[str, object]] = []
    for seed in seeds:
        draw = np.random.RandomState(seed)
        for activation, high_rate in [("sigmoid", False), ("relu", False), *([("relu", True)] if high else [])]:
            for norm in ACCURACY:
                keys = {"architecture": "mlp", "activation": activation, "norm": norm,
                        "high_rate": high_rate, "seed": seed}  # fmt: skip

                def add(
                    step: int, layer: int, quantity: str, value: float, keys: dict[str, object] = keys, draw: Any = draw
                ) -> None:
                    row = {"step": step, "epoch": step / 10, "layer": layer, "quantity": quantity}
                    found.append(keys | row | {"value": value * (1 + 0.01 * draw.randn())})

                learnt = accuracy[norm] if activation == "sigmoid" else 0.5
                add(20, 0, "train_accuracy", learnt)
                add(20, 0, "validation_accuracy", learnt - validation)
                for step in (0, 10, 20):
                    for layer in (1, 2, 3):
                        gradient = FIRST_GRADIENT[norm] ** ((3 - layer) / 2) if activation == "sigmoid" else 1.0
                        add(step, layer, "gradient_norm", gradient)
                        add(step, layer, "offset", 100.0 if step == 0 else 0.1)
                        add(step, layer, "preactivation_mean", 0.1)
                        add(step, layer, "preactivation_std", 1.0)
                        if activation == "relu":
                            add(step, layer, "dead_share", 0.3 if norm == "none" and high_rate else 0.0)
    return pd.DataFrame(found)
