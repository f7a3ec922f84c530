"""The long table of an invented lab: what the notes say, in clear numbers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

ACCURACY = {"none": 0.1, "bn": 0.98, "ln": 0.82, "gn": 0.9}
FIRST_GRADIENT = {"none": 1e-4, "bn": 1.0, "ln": 1e-2, "gn": 1e-1}  # the last layer's is 1


def lab_table(
    accuracy: Mapping[str, float] = ACCURACY, relu: Mapping[str, float] = dict.fromkeys(ACCURACY, 0.9),
    validation: float = 0.0, seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:  # fmt: skip
    """Sigmoid and ReLU MLPs of 3 layers; validation accuracy is `validation` below training accuracy."""
    found: list[dict[str, object]] = []
    for seed in seeds:
        draw = np.random.RandomState(seed)
        for activation, learnt in (("sigmoid", accuracy), ("relu", relu)):
            for norm in ACCURACY:
                rows = [(20, 0, "train_accuracy", learnt[norm])]
                rows.append((20, 0, "validation_accuracy", learnt[norm] - validation))
                for step in (0, 10, 20):
                    for layer in (1, 2, 3):
                        gradient = FIRST_GRADIENT[norm] ** ((3 - layer) / 2) if activation == "sigmoid" else 1.0
                        rows.append((step, layer, "gradient_norm", gradient))
                keys = {"architecture": "mlp", "activation": activation, "norm": norm}
                for step, layer, quantity, value in rows:
                    row = {"seed": seed, "step": step, "epoch": step / 10, "layer": layer, "quantity": quantity}
                    found.append(keys | row | {"value": value * (1 + 0.003 * draw.randn())})
    return pd.DataFrame(found)
