"""A study of tiny networks on tiny images: norm x seed in seconds."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from study import main, parse
from tiny_runs import SIZE, TRAIN, VALIDATION, data_root

from bnood.study.networks import RunSpec, run_specs
from bnood.study.options import StudyOptions

TRAINING: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "precision": "32-true"},
    "data": {"in_distribution": "tiny", "ood": ["marks", "grounds"], "validation": VALIDATION, "train_count": TRAIN,
             "image_size": SIZE, "batch_size": 64},
    "model": {"depth": 20, "width": 8, "groups": 4},
}  # fmt: skip
EVALUATION = {
    "statistics": ["running", "recalibrated"], "detectors": ["msp", "energy", "max_logit"],
    "calibration_images": 40, "fit_images": 40, "held_out_images": 0, "shuffles": 1, "resamples": 20,
}  # fmt: skip


def study_config(
    folder: Path, recipe: dict[str, Any] | None = None, entry: dict[str, Any] | None = None, **more: Any
) -> Path:
    """Write a study config and its training config; ``entry`` and ``more`` are settings of network and study."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.yaml").write_text(yaml.safe_dump(recipe or TRAINING))
    network = {"training": str(folder / "training.yaml"), "norms": ["bn", "ln"], "seeds": [0],
               "overrides": {"ln": {"trainer.max_epochs": 1}}}  # fmt: skip
    study = {
        "name": "tiny", "networks": [network | (entry or {})], "sets": {"id_count": 60, "root": str(data_root())},
        "evaluation": EVALUATION, "claim": {"primary_sets": ["marks", "grounds"]}, "wandb": {"enabled": False},
        "runs": str(folder / "runs"),
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study | more))
    return file


def options_of(config: Path) -> StudyOptions:
    return parse(["--config", str(config)])[0]


def specs_of(config: Path) -> dict[str, RunSpec]:
    return {spec.name: spec for spec in run_specs(options_of(config))}


@cache
def studied() -> Path:
    """The folder of a study of BN and LN, run in this process; for reading only."""
    return main(["--config", str(study_config(data_root() / "study"))])


def copy_of_study(target: Path) -> Path:
    """A copy of :func:`studied` and its config; the config's path."""
    folder = studied()
    config = study_config(target)
    shutil.copytree(folder, target / "runs" / folder.name)
    (target / "runs" / "tiny" / "study.yaml").unlink()  # it names the folder of the training config
    return config


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern) if path.is_file()}


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
