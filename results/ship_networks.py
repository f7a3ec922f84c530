"""Copy finished runs to a folder that can be kept in a repository: python results/ship_networks.py OUT RUN [RUN ...]

Each copy is a run folder without optimizer state and without the path of the data. Weights of convolutions and linear
layers are rounded to float16; normalisation parameters and statistics stay float32, because they are what is studied.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import torch
import yaml

CHECKPOINT = Path("checkpoints/last.ckpt")


def ship(run: Path, out: Path) -> Path:
    """Copy one run folder into ``out``, under its own name."""
    content = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    weights = {name: value.half() if value.ndim > 1 else value for name, value in content["state_dict"].items()}
    target = out / run.name
    (target / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "hyper_parameters": content["hyper_parameters"]}, target / CHECKPOINT)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = None
    (target / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for file in (run / name for name in ("summary.json", "metrics.csv")):  # a stopped network has no log
        if file.exists():
            copyfile(file, target / file.name)
    return target


def main(arguments: Sequence[str]) -> None:
    """Copy all runs that are named."""
    for run in arguments[1:]:
        print(ship(Path(run), Path(arguments[0])))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {__doc__}")
    main(sys.argv[1:])
