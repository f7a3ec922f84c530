"""Files with bad content, and networks that no evaluation can use, by name; see ``test_bad_input.py``."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tiny_runs import checkpoint, copy_of_run, write_set
from torch import Tensor, nn

from bnood import Network
from bnood.evaluation.detectors import Detector

Make = Callable[[Path], object]
CHECKPOINT = "checkpoints/last.ckpt"
CALLS_A_SHELL = b"cos\nsystem\n(S'touch it-was-run'\ntR."


def pixels(count: int, size: int = 8) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, size, size, 3)).astype(np.uint8)


def archive(*shape: int, labels: np.ndarray | None = None, kind: Any = np.uint8) -> Make:
    return lambda path: write_set(path, np.zeros(shape, kind), labels)


def inside(make: Make, *names: str) -> Make:
    """A folder that holds the same thing under these names."""

    def in_folder(folder: Path) -> None:
        folder.mkdir()
        for name in names:
            make(folder / name)

    return in_folder


def pictures(*names: str) -> Make:
    return inside(lambda path: Image.new("RGB", (8, 8)).save(path), *names)


def truncated(path: Path) -> None:
    write_set(path, pixels(9))
    path.write_bytes(path.read_bytes()[:-30])


def state(change: Callable[[dict[Any, Any]], object] = lambda state: None) -> Make:
    """Weights of the network ``good``, changed."""

    def make(path: Path) -> None:
        weights: dict[Any, Any] = dict(good().state_dict())
        change(weights)
        torch.save(weights, path)

    return make


def run(change: Make) -> Make:
    """A trained run, changed."""
    return lambda path: change(copy_of_run(path))


def config(section: str | None, **values: Any) -> Make:
    """A trained run whose config was edited; None removes a key."""

    def change(folder: Path) -> None:
        content = yaml.safe_load((folder / "config.yaml").read_text())
        (content if section is None else content[section]).update(values)
        (folder / "config.yaml").write_text(yaml.safe_dump(content))

    return run(change)


def content(change: Callable[[dict[str, Any]], object]) -> Make:
    """A trained run whose checkpoint holds something else."""

    def make(folder: Path) -> None:
        found = checkpoint(folder)
        change(found)
        torch.save(found, folder / CHECKPOINT)

    return run(make)


def replaced(name: str, make: Make) -> Make:
    """A trained run in which a file is something else."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return run(change)


def text(words: str | bytes) -> Make:
    return lambda path: path.write_bytes(words if isinstance(words, bytes) else words.encode())


FILES: dict[str, Make] = {
    "id.npz": lambda path: write_set(path, pixels(60), np.arange(60) % 4),
    "ood.npz": lambda path: write_set(path, pixels(40)), "one.npz": archive(1, 8, 8, 3),
    "sizeless.npz": archive(4, 0, 0, 3), "large.npz": archive(40, 16, 16, 3),
    "float-labels.npz": archive(9, 8, 8, 3, labels=np.ones(9)), "run-summary-pipe": replaced("summary.json", os.mkfifo),
    "negative-labels.npz": archive(9, 8, 8, 3, labels=np.arange(9) - 5),
    "high-labels.npz": archive(60, 8, 8, 3, labels=np.arange(60)),
    "dark.npz": archive(80, 32, 32, 3, labels=np.zeros(80, np.int64)),
    "gap.npz": archive(80, 32, 32, 3, labels=np.arange(80) % 2 * 2**40),
    "one-class.npz": archive(400, 16, 16, 3, labels=np.zeros(400, np.int64)), "unlabelled.npz": archive(400, 16, 16, 3),
    "no-images.npz": lambda path: np.savez(path, pictures=pixels(3)), "truncated.npz": truncated, "pipe.npz": os.mkfifo,
    "loop.npz": lambda path: path.symlink_to(path.name), "no-pictures": lambda path: path.mkdir(),
    "broken": inside(text("no picture"), "a.png", "b.png"), "one[bold]picture": pictures("a.png"),
    "few.pth": state(lambda weights: [weights.pop(key) for key in list(weights)[3:]]),
    "other-shape.pth": state(lambda weights: weights.update({"2.weight": torch.zeros(5, 192)})),
    "complex.pth": state(lambda weights: weights.update({"2.bias": torch.zeros(4, dtype=torch.complex64)})),
    "text.pth": text("a\nb\nc\n"), "pipe": os.mkfifo, "three.txt": text("a\nb\nc\n"),
    "same.npz": lambda path: path.symlink_to("id.npz"), "twice.yaml": text("norm: bn\nnorm: gn\n"),
    "blank.txt": text("a\n\nc\nd\n"), "binary.txt": text(b"\xff\xfe"), "folder": inside(text("mine"), "notes.txt"),
    "run-no-checkpoint": run(lambda path: shutil.rmtree(path / "checkpoints")),
    "run-truncated": run(lambda path: (path / CHECKPOINT).write_bytes((path / CHECKPOINT).read_bytes()[:-100])),
    "run-shell": replaced(CHECKPOINT, text(CALLS_A_SHELL)), "run-pipe": replaced(CHECKPOINT, os.mkfifo),
    "run-no-weights": content(lambda found: found.update(state_dict=[])),
    "run-other-shape": content(lambda found: found["state_dict"].update({"network.head.bias": torch.zeros(3)})),
    "run-nan": content(lambda found: found["state_dict"].update({"network.head.bias": torch.full((10,), torch.nan)})),
    "run-groups": content(lambda found: found["hyper_parameters"].update(groups={})),
    "run-other-norm": config("model", norm="gn"), "run-no-config": run(lambda path: (path / "config.yaml").unlink()),
    "run-no-data": config(None, data={}), "run-count-text": config("data", train_count="many"),
}  # fmt: skip


# Networks, as ``--model bad_files:NAME`` finds them.


def good(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, classes))


class Changed(nn.Module):
    """A network that does something to its logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = good(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


def transformed(transform: Callable[[Any], Any]) -> Network:
    return Network(good(), transform)


def fails() -> nn.Module:
    raise RuntimeError("a defect of the user's")


def gives_maps() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))


def keeps_no_statistics() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 4))


Short, Label = (type(n, (Detector,), {"name": n, "_score": lambda _, x, z: x[1:, 0]}) for n in ("short", "label"))
gives_a_dict = partial(Changed, lambda logits: {"logit": logits})
gives_probabilities = partial(Changed, lambda logits: logits.softmax(1))
scales = partial(Changed, lambda logits: 3 * logits)
crops_to_9 = partial(transformed, lambda image: torch.zeros(3, 9, 9))
draws_at_random = partial(transformed, lambda image: torch.rand(3, 8, 8))
gives_bytes = partial(transformed, lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8))
divides_by_zero = partial(transformed, lambda image: 1 / 0)
gives_nan = partial(transformed, lambda image: torch.full((3, 8, 8), torch.nan))
