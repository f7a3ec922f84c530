"""A lab of four tiny networks on images that are bright or dark."""

from pathlib import Path

import numpy as np
import yaml


def lab_config(folder: Path, **changes: object) -> Path:
    draw = np.random.RandomState(0)
    labels = np.arange(80) % 2
    images = draw.randint(0, 100, (80, 32, 32, 3)) + 100 * labels[:, None, None, None]
    np.savez(folder / "bright.npz", images=images.astype(np.uint8), labels=labels.astype(np.int64))
    grid = {"architecture": "mlp", "depth": 2, "width": 8, "learning_rate": 0.1, "epochs": 2, "norms": ["none", "bn"],
            "activations": ["sigmoid"]}  # fmt: skip
    grid |= changes.pop("grid", {})  # type: ignore[arg-type]
    content = {"name": "tiny", "grids": [grid], "seeds": [0, 1], "images": str(folder / "bright.npz"),
               "train_count": 60, "validation_count": 20, "batch_size": 20, "workers": 1,
               "runs": str(folder / "runs")}  # fmt: skip
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path
