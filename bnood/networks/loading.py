"""Networks by name: torchvision's, timm's, or what a function returns. The transform belongs to the weights."""

import copy
import difflib
import hashlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from bnood.errors import Terminated, UserError
from bnood.networks.network import Network, described
from bnood.networks.weights import build_with_weights, load_weights, weights_file

Changes = dict[str, Any]  # image_size, mean and std, as far as they are given


def load_network(
    spec: str, weights: str | os.PathLike[str] | None = None, *, image_size: int | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, head: str | None = None,
) -> Network:  # fmt: skip
    """A network in evaluation mode, on the CPU. Nothing is downloaded.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``. The callable takes nothing and
            returns an ``nn.Module``, which then takes images as they are stored, or a :class:`Network`.
        weights: a state_dict file (``torch.save`` or safetensors), or ``package:file`` for one inside an installed
            package; None for a callable that loads its own.
        image_size, mean, std: side of the model's images (resized in proportion before the crop), and of the 3 channels
            of pixels in 0..1, instead of the transform's.
        head: see :class:`Network`.

    UserError for an unknown name, a package that is missing, weights that do not fit, a transform of another kind.
    """
    library, _, name = str(spec).partition(":")
    if not name or not all(part.isidentifier() for part in library.split(".")):
        raise UserError(f"model {spec!r}: expected torchvision:NAME, timm:NAME or package.module:callable")
    given = {"image_size": image_size, "mean": mean, "std": std}
    changes: Changes = {key: value for key, value in given.items() if value is not None}
    if changes.get("image_size", 1) < 1:
        raise UserError(f"image_size is {image_size}: give the side of the model's images in pixels")
    for what, least in (("mean", -math.inf), ("std", 0)):
        values = changes.get(what, (1, 1, 1))
        if len(values) != 3 or not all(least < value <= 1 for value in values):
            above = " above 0 and" if what == "std" else ""
            raise UserError(f"{what} is {list(values)}: give one number{above} up to 1 per colour, for pixels in 0..1")
    file = None if weights is None else weights_file(str(weights))
    make = {"torchvision": _torchvision, "timm": _timm}.get(library, partial(_from_callable, library))
    network = make(name, file, changes, head)
    network.model.eval()
    return network


def _torchvision(name: str, given: Path | None, changes: Changes, head: str | None) -> Network:
    file = _checked("torchvision", name, models.list_models(module=models), given)
    choices = models.get_model_weights(name)
    digest, assumed = hashlib.sha256(file.read_bytes()).hexdigest()[:8], ""
    entry = next((each for each in choices if file.name == Path(each.url).name or digest in each.url), None)
    if entry is None:
        entry = next((each for each in choices if each.name == "IMAGENET1K_V1"), choices.DEFAULT)
        assumed = f" (assumed: name and hash of {file.name} are none of torchvision's)"
    model = build_with_weights(partial(models.get_model, name, weights=None), file)
    if hasattr(model, "transform_input"):  # GoogLeNet and Inception: their weights expect another normalisation
        model.transform_input = True  # type: ignore[assignment]
    network = Network(model, _changed(entry.transforms(), changes), name=name, head=head)
    network.transform_text = f"{entry}{assumed}: {network.transform_text}"
    return network


def _timm(name: str, given: Path | None, changes: Changes, head: str | None) -> Network:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(f"timm:{name} needs the optional package timm: pip install timm") from None
    file = _checked("timm", name, [*timm.list_models(), *timm.list_pretrained()], given)
    model = build_with_weights(partial(timm.create_model, name, pretrained=False), file)
    config = {**timm.data.resolve_model_data_config(model), **changes}
    if "image_size" in changes:
        config["input_size"] = (3, config.pop("image_size"), changes["image_size"])
    network = Network(model, timm.data.create_transform(**config, is_training=False), name=name, head=head)
    network.transform_text = f"timm's for {name}: {network.transform_text}"
    return network


def _from_callable(module: str, name: str, file: Path | None, changes: Changes, head: str | None) -> Network:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # scripts/ comes first where a script runs
    try:
        made: Any = getattr(importlib.import_module(module), name)
        made = made if isinstance(made, nn.Module | Network) else made()
    except (Exception, SystemExit) as error:  # whatever the user's module or function raises
        if isinstance(error, UserError | Terminated):
            raise
        missing = str(error.name) if isinstance(error, ModuleNotFoundError) else module
        hint = "" if f"{module}.".startswith(f"{missing}.") else f": pip install {missing.replace('_', '-')}"
        raise UserError(f"model {module}:{name} cannot be made ({type(error).__name__}: {error}){hint}") from error
    if isinstance(made, nn.Module):
        made = Network(made, name=name, head=head)
    elif not isinstance(made, Network):
        raise UserError(f"{module}:{name} returns {type(made).__name__}, not a torch.nn.Module or a bnood.Network")
    elif head is not None:
        raise UserError(f"{module}:{name} returns a Network: name its head there, not by --head")
    if file is not None:
        load_weights(made.model, file)
    if changes:
        made.transform = _changed(made.transform, changes)
        made.transform_text = described(made.transform)
    return made


def _changed(transform: Callable[..., Any] | None, changes: Changes) -> Callable[..., Any]:
    """The transform with another crop, mean or std."""
    size = changes.get("image_size")
    if transform is None:
        steps = [] if size is None else [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        normalise = v2.Normalize(changes.get("mean", [0.0] * 3), changes.get("std", [1.0] * 3))
        return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise, v2.ToPureTensor()])
    if not isinstance(transform, ImageClassification):
        raise UserError("the network has a transform of its own: change image_size, mean and std there")
    changed = copy.copy(transform)
    changed.mean, changed.std = changes.get("mean", transform.mean), changes.get("std", transform.std)
    if size is not None:
        (crop,), (resize,) = transform.crop_size, transform.resize_size
        changed.crop_size, changed.resize_size = [size], [round(size * resize / crop)]
    return changed


def _checked(library: str, name: str, known: Collection[str], file: Path | None) -> Path:
    """The file, if the library has this model and there is one."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise UserError(f"{library} has no model {name!r}" + (f": did you mean {' or '.join(close)}?" if close else ""))
    if file is None:
        raise UserError(f"{library}:{name} needs weights (--weights FILE); nothing is downloaded")
    return file
