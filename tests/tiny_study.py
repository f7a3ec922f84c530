"""A study of tiny networks on tiny images: norm x seed in seconds."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import SIZE, TRAIN, VALIDATION, data_root

from bnood.study.cli import main, parse
from bnood.study.grid import StudyCell, StudyOptions

BN, LN, STOPPED = StudyCell("bn", 0), StudyCell("ln", 0), StudyCell("bn", 0, "ln")

TRAINING: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "precision": "32-true"},
    "data": {
        "in_distribution": "tiny",
        "ood": ["marks", "grounds"],
        "validation": VALIDATION,
        "train_count": TRAIN,
        "image_size": SIZE,
        "batch_size": 64,
    },
    "model": {"depth": 20, "width": 8, "groups": 4},
}


def study_config(folder: Path, recipe: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write a study config and its training config into a folder; ``more`` are settings of the study."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.yaml").write_text(yaml.safe_dump(recipe or TRAINING))
    study = {
        "name": "tiny",
        "training": str(folder / "training.yaml"),
        "norms": ["bn", "ln"],
        "seeds": [0],
        "overrides": {"ln": {"trainer.max_epochs": 1}},
        "evaluation": {
            "sets": {"id_count": 60},
            "conditions": {"batch_sizes": [16], "shuffles": 1, "shares": [0.5], "calibration_images": 64},
            "resamples": 50,
            "sweeps": {
                "interventions": {
                    **{"id_images": 40, "ood_images": 40, "calibration_images": 40, "resamples": 50},
                    **{
                        "prior_batch": 8,
                        "lambdas": [0.25, 0.5, 0.75],
                        "priors": [16, 64, 256],
                        "batch_sizes": [8],
                        "shares": [0.5],
                    },
                },
                "price": {"id_images": 40, "ood_images": 40, "calibration_images": 40, "resamples": 50},
                "corruptions": ["noise"],
                "strengths": [3],
            },
        },
        "claim": {"headline_sets": ["marks", "grounds"]},
        "wandb": {"enabled": False},
        "runs": str(folder / "runs"),
        "root": str(data_root()),
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study | more))
    return file


def options_of(config: Path) -> StudyOptions:
    """The options in a study config."""
    return parse(["--config", str(config)])[0]


@cache
def studied() -> Path:
    """The folder of a study of BN and LN with all sweeps, run in this process; for reading only."""
    folder = data_root() / "study"
    return main(["--config", str(study_config(folder))])


def copy_of_study(target: Path) -> Path:
    """A copy of :func:`studied` and its config; the config's path."""
    folder = studied()
    config = study_config(target)
    shutil.copytree(folder, target / "runs" / folder.name)
    file = target / "runs" / "tiny" / "study.yaml"
    file.unlink()  # it names the folder of the training config
    return config


def times(folder: Path, pattern: str) -> dict[str, int]:
    """When each file of a pattern was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern) if path.is_file()}
